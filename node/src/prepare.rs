//! Makes everything ready for one attempt to run a unit: programs fetched, names resolved, files in place.

mod container;
mod files;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use brig_api::ResourceName;
use brig_api::lifecycle::Reason;
use brig_api::placement::{TaskGrants, devices_variable};
use brig_api::session::Assignment;
use brig_api::unit_spec::{EnvValue, Isolation, PIDS_DEFAULT, Program, Task, WasmProgram};
use brig_shim::message::{
    HttpLimits, KeyValueStore, Limits, StartProgram, StartTask, StartWasm, TaskKey, WasmWorld,
};

use crate::compiled::CompiledCode;
use crate::disk::Disk;
use crate::held::HeldArtifacts;
use crate::plan::Fault;
use crate::program::{Fetched, Programs};
use crate::shims::ShimId;

/// What preparing needs besides the assignment.
#[derive(Clone)]
pub(crate) struct Preparer {
    pub disk: Arc<Disk>,
    pub programs: Arc<dyn Programs>,
    pub compiled: CompiledCode,
    pub held: HeldArtifacts,
    /// Directories that may be mounted.
    pub host_paths: Vec<PathBuf>,
    /// Where servers listen.
    pub address: IpAddr,
    /// As images name it.
    pub architecture: &'static str,
}

impl Preparer {
    /// Prepares the `run`th attempt.
    ///
    /// # Errors
    /// The first [`Fault`] of any task.
    pub(crate) async fn prepare(
        &self,
        assignment: &Assignment,
        run: u32,
        ports: &BTreeMap<ResourceName, u16>,
    ) -> Result<Vec<StartTask>, Fault> {
        let mut tasks = Vec::new();
        let grants = assignment.grants.by_task(&assignment.template);
        for (task, grants) in assignment.template.tasks.iter().zip(&grants) {
            let last_port = ports.get(&task.name).copied();
            tasks.push(self.task(assignment, task, grants, run, last_port).await?);
        }
        Ok(tasks)
    }

    async fn task(
        &self,
        assignment: &Assignment,
        task: &Task,
        grants: &TaskGrants,
        run: u32,
        last_port: Option<u16>,
    ) -> Result<StartTask, Fault> {
        let reference = task.program().reference();
        let runtime = task.program().runtime();
        let fetched = self.programs.fetch(&assignment.namespace, reference, runtime).await?;
        let held = self.held.fetched(reference, runtime, &fetched);
        let key = TaskKey::new(&assignment.unit, &task.name, run);
        let shim = ShimId::of(&assignment.namespace, task.program(), &key);
        let ports = ports(task, grants)?;
        let mut env = environment(assignment, task, grants, &ports)?;
        let user = match (task.program(), &fetched) {
            (Program::Oci(oci), Fetched::Image { config, .. }) => {
                container::user(oci, config).to_owned()
            }
            _ => String::new(),
        };
        let mounts = self.mounts(assignment, task, &user)?;
        let program = match (task.program(), fetched) {
            (Program::Wasm(wasm), Fetched::Wasm { path, digest }) => {
                // A request that takes too long is cut off, which only a program that can be interrupted allows.
                let isolation =
                    if wasm.http.is_some() { Isolation::Namespace } else { wasm.isolation };
                let compatibility = self.compiled.ready(&path, &digest, isolation).await?;
                if let Some(held) = &held {
                    self.held.ready(held);
                }
                StartProgram::Wasm(StartWasm {
                    digest,
                    compatibility,
                    isolation,
                    args: arguments(wasm),
                    http: wasm.http.as_ref().map(|http| {
                        let port = http.port.or_else(|| still_free(self.address, last_port?));
                        SocketAddr::new(self.address, port.unwrap_or(0))
                    }),
                    http_limits: wasm.http.as_ref().map(HttpLimits::from).unwrap_or_default(),
                    allow_hosts: wasm.allow_hosts.clone(),
                    deadline_ms: wasm.deadline_ms,
                    world: self.world(assignment, task, wasm, ports)?,
                })
            }
            (Program::Oci(oci), Fetched::Image { config, layers }) => {
                let scratch = self.disk.scratch(&key);
                let image = container::Image { config: &config, layers, reference };
                let start = container::merge(oci, image, scratch, self.architecture, &mut env)?;
                StartProgram::Oci(start)
            }
            (Program::Wasm(_), Fetched::Image { .. }) => {
                return Err(wrong_kind(reference, "a container image", "wasm", "oci"));
            }
            (Program::Oci(_), Fetched::Wasm { .. }) => {
                return Err(wrong_kind(reference, "a wasm program", "oci", "wasm"));
            }
        };
        Ok(StartTask {
            title: format!("{}/{}", assignment.name, task.name),
            namespace: assignment.namespace.clone(),
            dir: self.disk.task(&shim, &key),
            log: self.disk.log_target(assignment, task),
            limits: limits(task),
            key,
            env,
            mounts,
            stdin: task.stdin,
            program,
        })
    }

    fn world(
        &self,
        assignment: &Assignment,
        task: &Task,
        wasm: &WasmProgram,
        ports: Vec<u16>,
    ) -> Result<WasmWorld, Fault> {
        let mut config = BTreeMap::new();
        for (key, value) in &wasm.config {
            let what = format!("`config` key `{key}`");
            config.insert(key.clone(), resolve(assignment, task, &what, value)?);
        }
        let buckets: Vec<_> = wasm.keyvalue.iter().map(ToString::to_string).collect();
        let keyvalue = (!buckets.is_empty()).then(|| {
            let file = self.disk.keyvalue(&assignment.namespace);
            KeyValueStore { file, buckets }
        });
        // The port of `http` is the host's to listen on.
        let ports = if wasm.http.is_some() { Vec::new() } else { ports };
        Ok(WasmWorld { ports, config, keyvalue, clocks: wasm.clocks })
    }
}

fn wrong_kind(reference: &str, is: &str, written: &str, needed: &str) -> Fault {
    Fault {
        reason: Reason::InvalidArtifact,
        message: format!(
            "`{reference}` is {is}, but the task names it under `{written}`: write `{needed}` instead, or name another artifact"
        ),
    }
}

/// `argv[0]` is the artifact's last name without its tag, as a shell would have it.
fn arguments(wasm: &WasmProgram) -> Vec<String> {
    let path = wasm.artifact.split('@').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default();
    std::iter::once(name.to_owned()).chain(wasm.args.iter().cloned()).collect()
}

fn limits(task: &Task) -> Limits {
    Limits {
        cpu_request_milli: task.resources.cpu.0,
        cpu_limit_milli: task.limits.cpu.0,
        memory_bytes: task.limits.memory.0,
        pids: match task.program() {
            Program::Oci(oci) => oci.pids.unwrap_or(PIDS_DEFAULT),
            Program::Wasm(_) => PIDS_DEFAULT,
        },
    }
}

/// The port of the last attempt, if nobody took it meanwhile.
fn still_free(address: IpAddr, port: u16) -> Option<u16> {
    std::net::TcpListener::bind((address, port)).ok().map(|_| port)
}

/// All ports of a task, those that its placement chose among them.
fn ports(task: &Task, grants: &TaskGrants) -> Result<Vec<u16>, Fault> {
    grants.ports.iter().map(|port| port.ok_or_else(|| no_port(task))).collect()
}

/// The task's own variables; `PORT` where it has one; and the unit's identity and what its placement gave it, which
/// nothing overrides.
fn environment(
    assignment: &Assignment,
    task: &Task,
    grants: &TaskGrants,
    ports: &[u16],
) -> Result<BTreeMap<String, String>, Fault> {
    let mut env = BTreeMap::new();
    if let Some(port) = ports.first() {
        env.insert("PORT".to_owned(), port.to_string());
    }
    for (name, value) in &task.env {
        env.insert(name.clone(), resolve(assignment, task, &format!("variable `{name}`"), value)?);
    }
    for (index, port) in ports.iter().enumerate() {
        env.insert(format!("BRIG_PORT_{index}"), port.to_string());
    }
    for (resource, devices) in &grants.devices {
        let devices: Vec<_> = devices.iter().map(ToString::to_string).collect();
        env.insert(devices_variable(resource), devices.join(","));
    }
    env.extend(assignment.identity.clone());
    Ok(env)
}

fn no_port(task: &Task) -> Fault {
    Fault {
        reason: Reason::CreateFailed,
        message: format!(
            "task `{}` leaves a port open (0), and its placement chose none for it: name a port, or use the same version of brig on server and node",
            task.name
        ),
    }
}

fn resolve(
    assignment: &Assignment,
    task: &Task,
    what: &str,
    value: &EnvValue,
) -> Result<String, Fault> {
    let (kind, name, key, texts) = match value {
        EnvValue::Text(text) => return Ok(text.clone()),
        EnvValue::Secret(secret) => {
            ("secret", &secret.secret, &secret.key, &assignment.texts.secrets)
        }
        EnvValue::Config(config) => {
            ("config", &config.config, &config.key, &assignment.texts.configs)
        }
    };
    let whose = format!("{what} of task `{}`", task.name);
    let texts = texts.get(name).ok_or_else(|| missing(&whose, kind, name, assignment))?;
    texts.get(key).cloned().ok_or_else(|| Fault {
        reason: Reason::MountRefused,
        message: format!("{whose}: {kind} `{name}` has no key `{key}`; {}", keys(texts)),
    })
}

fn missing(whose: &str, kind: &str, name: &ResourceName, assignment: &Assignment) -> Fault {
    Fault {
        reason: Reason::MountRefused,
        message: format!(
            "{whose}: there is no {kind} `{name}` in namespace `{}`: apply it first",
            assignment.namespace
        ),
    }
}

fn keys(texts: &BTreeMap<String, String>) -> String {
    let keys: Vec<_> = texts.keys().map(|key| format!("`{key}`")).collect();
    if keys.is_empty() { "it has none".to_owned() } else { format!("it has {}", keys.join(", ")) }
}

/// Does the unit name secrets? Their texts are not on disk.
pub(crate) fn names_secrets(assignment: &Assignment) -> bool {
    assignment.template.tasks.iter().any(|task| {
        task.mounts.iter().any(|mount| mount.secret.is_some())
            || task.values().any(|(_, value)| matches!(value, EnvValue::Secret(_)))
    })
}
