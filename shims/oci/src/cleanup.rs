//! `brig-shim-oci cleanup`: undoes what a shim that was killed left behind. The agent runs it when a shim is gone
//! without having removed its task; it may be run any number of times.

use std::path::Path;

use crate::record::Record;
use crate::{shim, sys};

/// Ends the container of the shim in `dir`, removes its cgroups and its files.
pub(crate) fn clean_up(dir: &Path) -> anyhow::Result<()> {
    let Some(record) = Record::read(dir)? else { return Ok(()) };
    if let Some(init) = record.init.and_then(|init| init.if_still_there()) {
        // It may end by itself meanwhile; and its cgroup is killed next.
        let _ = sys::kill(init, libc::SIGKILL);
    }
    shim::clean_up(dir, &record.cgroup, &record.scratch)?;
    Ok(())
}
