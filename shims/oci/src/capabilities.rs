//! What root inside a container may do: the container engines' default list without MKNOD and NET_RAW.
//!
//! Engines grant MKNOD and rely on a device cgroup to make the node useless. On hosts with the unified cgroup
//! hierarchy that needs a BPF program; leaving the capability out holds on every host.
//!
//! NET_RAW in a network of the container's own reads that one's traffic. Here the network is the node's, and it would
//! read what all other containers, the agent and the node itself send, and forge it.

use std::collections::HashSet;

use oci_spec::runtime::Capability;
use rustix::thread::CapabilitySet;

/// The capabilities of root inside a container, as the runtime spec and as the kernel call them.
const DEFAULT: [(Capability, CapabilitySet); 12] = [
    (Capability::AuditWrite, CapabilitySet::AUDIT_WRITE),
    (Capability::Chown, CapabilitySet::CHOWN),
    (Capability::DacOverride, CapabilitySet::DAC_OVERRIDE),
    (Capability::Fowner, CapabilitySet::FOWNER),
    (Capability::Fsetid, CapabilitySet::FSETID),
    (Capability::Kill, CapabilitySet::KILL),
    (Capability::NetBindService, CapabilitySet::NET_BIND_SERVICE),
    (Capability::Setfcap, CapabilitySet::SETFCAP),
    (Capability::Setgid, CapabilitySet::SETGID),
    (Capability::Setpcap, CapabilitySet::SETPCAP),
    (Capability::Setuid, CapabilitySet::SETUID),
    (Capability::SysChroot, CapabilitySet::SYS_CHROOT),
];

/// The default list, for the runtime spec.
pub(crate) fn in_spec() -> HashSet<Capability> {
    DEFAULT.iter().map(|(capability, _)| *capability).collect()
}

/// The default list, for the kernel.
pub(crate) fn in_kernel() -> CapabilitySet {
    DEFAULT.iter().fold(CapabilitySet::empty(), |set, (_, capability)| set | *capability)
}
