//! Files from outside: directories of the machine that its operator allowed, and files of configs and secrets.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use brig_api::ResourceName;
use brig_api::lifecycle::Reason;
use brig_api::session::Assignment;
use brig_api::unit_spec::{Mount, Task};
use brig_shim::message::BindMount;

use super::{Preparer, missing};
use crate::plan::Fault;

impl Preparer {
    /// Puts the files in place. `user` is as whom the task runs: `user[:group]`, empty for root.
    pub(super) fn mounts(
        &self,
        assignment: &Assignment,
        task: &Task,
        user: &str,
    ) -> Result<Vec<BindMount>, Fault> {
        task.mounts.iter().map(|mount| self.mount(assignment, task, mount, user)).collect()
    }

    fn mount(
        &self,
        assignment: &Assignment,
        task: &Task,
        mount: &Mount,
        user: &str,
    ) -> Result<BindMount, Fault> {
        let at = mount.at.clone();
        let whose = format!("mount `{at}` of task `{}`", task.name);
        let texts_of = |kind, name: &ResourceName, texts: &BTreeMap<ResourceName, _>| {
            texts.get(name).cloned().ok_or_else(|| missing(&whose, kind, name, assignment))
        };
        if let Some(host) = &mount.host {
            let source = allowed(&self.host_paths, host).map_err(|why| refused(&whose, &why))?;
            return Ok(BindMount { source, at, read_only: mount.read_only });
        }
        let (dir, texts, owner) = if let Some(name) = &mount.config {
            let dir = self.disk.mounts(&assignment.unit).join(format!("{}.{name}", task.name));
            (dir, texts_of("config", name, &assignment.texts.configs)?, Access::Everybody)
        } else if let Some(name) = &mount.secret {
            let dir = self.disk.secrets(&assignment.unit).join(format!("{}.{name}", task.name));
            (dir, texts_of("secret", name, &assignment.texts.secrets)?, access(user))
        } else {
            return Err(refused(&whose, "it names neither `host` nor `config` nor `secret`"));
        };
        write_files(&dir, &texts, owner).map_err(|error| failed(&whose, &dir, &error))?;
        Ok(BindMount { source: dir, at, read_only: true })
    }
}

fn refused(whose: &str, why: &str) -> Fault {
    Fault { reason: Reason::MountRefused, message: format!("{whose}: {why}") }
}

fn failed(whose: &str, dir: &Path, error: &io::Error) -> Fault {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
        _ => Reason::MountRefused,
    };
    Fault { reason, message: format!("{whose}: can't write `{}`: {error}", dir.display()) }
}

/// The real path of `host`, if it is inside one of the allowed directories. Links are followed first, so that
/// none leads out.
fn allowed(host_paths: &[PathBuf], host: &Path) -> Result<PathBuf, String> {
    let shown = host.display();
    let real = host.canonicalize().map_err(|error| format!("`{shown}` on the node: {error}"))?;
    let is_inside =
        |allowed: &PathBuf| allowed.canonicalize().is_ok_and(|allowed| real.starts_with(allowed));
    if host_paths.iter().any(is_inside) {
        return Ok(real);
    }
    Err(format!(
        "the node allows no mount of `{shown}`: its operator can, with `brig node --host-path {shown}`"
    ))
}

/// Who may read the files.
#[derive(Clone, Copy)]
enum Access {
    /// Anybody who can reach them.
    Everybody,
    /// Their owner alone.
    Owner(Option<(u32, u32)>),
}

/// A secret belongs to the task's user where that is a number. A name is known only inside the image: then
/// the files are readable for all in the container, and the directory around them keeps everybody else out.
fn access(user: &str) -> Access {
    if user.is_empty() {
        return Access::Owner(None);
    }
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    match (user.parse(), group.parse()) {
        (Ok(user), Ok(group)) => Access::Owner(Some((user, group))),
        _ => Access::Everybody,
    }
}

/// Writes a directory with a file per key, anew.
fn write_files(dir: &Path, texts: &BTreeMap<String, String>, access: Access) -> io::Result<()> {
    if let Some(unit_dir) = dir.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(unit_dir)?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o755).create(dir)?;
    let mode = match access {
        Access::Everybody => 0o444,
        Access::Owner(_) => 0o400,
    };
    for (key, text) in texts {
        if !is_file_name(key) {
            let why = format!("the key `{key}` is no file name");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let path = dir.join(key);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&path)?;
        file.write_all(text.as_bytes())?;
        if let Access::Owner(Some((user, group))) = access {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
    }
    Ok(())
}

fn is_file_name(key: &str) -> bool {
    !matches!(key, "" | "." | "..") && !key.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn host_directories_are_refused_unless_they_are_inside_what_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        let (open, closed) = (root.path().join("open"), root.path().join("closed"));
        std::fs::create_dir_all(open.join("deep")).unwrap();
        std::fs::create_dir_all(&closed).unwrap();
        std::os::unix::fs::symlink(&closed, open.join("link")).unwrap();
        let paths = [open.clone()];
        assert!(allowed(&paths, &open.join("deep")).is_ok());
        assert!(allowed(&paths, &open).is_ok());
        for bad in [closed, open.join("link"), open.join("deep/../../closed"), open.join("no")] {
            assert!(allowed(&paths, &bad).is_err(), "{}", bad.display());
        }
        assert!(allowed(&[], &open).unwrap_err().contains("--host-path"));
        assert!(allowed(&["/".into()], &open).is_ok());
    }

    #[test]
    fn files_are_written_anew_and_secrets_are_for_their_owner() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("unit/main.tls");
        let texts = |key: &str| BTreeMap::from([(key.to_owned(), "text".to_owned())]);
        write_files(&dir, &texts("old"), Access::Everybody).unwrap();
        write_files(&dir, &texts("key"), Access::Owner(None)).unwrap();
        assert!(!dir.join("old").exists());
        let mode = dir.join("key").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let parent = dir.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(parent & 0o777, 0o700);
        for bad in ["", "..", "a/b"] {
            assert!(write_files(&dir, &texts(bad), Access::Everybody).is_err(), "{bad}");
        }
    }
}
