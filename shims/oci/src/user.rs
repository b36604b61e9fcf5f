//! Who a container runs as: `user[:group]` looked up in the image's own /etc/passwd and /etc/group.
//!
//! The files are read by us, as text: the C library's look-up would load code from the image.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::failure::Failure;

/// Largest passwd or group file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How often opening a file of the image is tried.
const OPEN_TRIES_MAX: usize = 64;
/// Most supplementary groups, the kernel's own limit.
const GROUPS_MAX: usize = 65_536;

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// For the variable HOME, which is always set.
    pub(crate) home: String,
}

impl Identity {
    /// May it do what root may, as far as the container's capabilities go?
    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// Looks `user` up in the file tree at `root`.
pub(crate) fn resolve(root: impl AsFd, user: &str) -> Result<Identity, Failure> {
    let passwd = read(root.as_fd(), "etc/passwd")?;
    let group = read(root.as_fd(), "etc/group")?;
    resolve_in(user, &passwd, &group)
}

fn read(root: impl AsFd, path: &str) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| Failure::system(&format!("reading the image's /{path}"), error);
    let file = match open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let kind = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
        return Err(Failure::create(format!(
            "the image's /{path} is not a file: rebuild the image"
        )));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a path of a file tree as a program that has the tree as its root would.
///
/// The kernel may ask for another try when anything on the machine is renamed or mounted while it follows a `..`.
pub(crate) fn open_in_root(
    root: impl AsFd,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if tries < OPEN_TRIES_MAX => tries += 1,
            outcome => return outcome,
        }
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(User { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, gid, ..] = fields[..] else { return None };
        Some(Group { name, gid: id(gid)?, members: fields.get(3).copied().unwrap_or("") })
    })
}

/// The number of a user or group. The highest one means "no change" to the kernel: who asked for it would stay root.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user_part, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = id(user_part);
    let entry = users(passwd)
        .find(|entry| entry.name == user_part)
        .or_else(|| users(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, gid, home) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home),
        (None, Some(number)) => (number, 0, "/"),
        (None, None) => {
            return Err(Failure::create(format!(
                "user `{user_part}` is not in the image's /etc/passwd: name one that is there, or a number"
            )));
        }
    };
    let (gid, supplementary) = match group_part {
        Some(name) => (group_id(name, group)?, Vec::new()),
        None => (gid, memberships(entry.as_ref(), group)),
    };
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(Identity { uid, gid, groups: supplementary, home: home.to_owned() })
}

fn group_id(name: &str, group: &str) -> Result<u32, Failure> {
    let entry = groups(group).find(|entry| entry.name == name).map(|entry| entry.gid);
    entry.or_else(|| id(name)).ok_or_else(|| {
        Failure::create(format!(
            "group `{name}` is not in the image's /etc/group: name one that is there, or a number"
        ))
    })
}

fn memberships(user: Option<&User<'_>>, group: &str) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    let is_member = |entry: &Group<'_>| entry.members.split(',').any(|member| member == user.name);
    let mut ids: Vec<_> =
        groups(group).filter(is_member).map(|entry| entry.gid).take(GROUPS_MAX).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no entry\nbroken:x:a:b\nweb:x:101:102:,,,:/srv/web:/bin/false\n\
                          relative:x:7:7::home:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:4:syslog,web\nadm:x:5:web\nnobody\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        for (user, expected) in [
            ("", identity(0, 0, &[], "/root")),
            ("root", identity(0, 0, &[], "/root")),
            ("web", identity(101, 102, &[4, 5], "/srv/web")),
            ("101", identity(101, 102, &[4, 5], "/srv/web")),
            ("web:log", identity(101, 4, &[], "/srv/web")),
            ("web:77", identity(101, 77, &[], "/srv/web")),
            ("4711", identity(4711, 0, &[], "/")),
            ("4711:4712", identity(4711, 4712, &[], "/")),
            (":log", identity(0, 4, &[], "/root")),
            ("relative", identity(7, 7, &[], "/")),
        ] {
            assert_eq!(resolve_in(user, PASSWD, GROUP), Ok(expected), "{user}");
        }
        assert_eq!(resolve_in("", "", ""), Ok(identity(0, 0, &[], "/")));
    }

    #[test]
    fn names_that_are_not_there_are_named_in_the_error() {
        let message = |user| resolve_in(user, PASSWD, GROUP).unwrap_err().message;
        assert!(message("mallory").contains("`mallory`"));
        assert!(message("web:mallory").contains("/etc/group"));
        assert!(message("-1").contains("/etc/passwd"));
    }

    #[test]
    fn the_number_that_changes_nothing_is_no_user_and_no_group() {
        let passwd = "ghost:x:4294967295:4294967295::/:/bin/sh\n";
        for user in ["4294967295", "ghost", "0:4294967295", "0:ghost"] {
            assert!(resolve_in(user, passwd, "ghost:x:4294967295:root\n").is_err(), "{user}");
        }
    }

    #[test]
    fn a_link_out_of_the_image_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/../../../../etc/hostname", dir.path().join("etc/passwd"))
            .unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(resolve(&root, "0"), Ok(identity(0, 0, &[], "/")));
    }
}
