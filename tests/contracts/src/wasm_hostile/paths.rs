//! Ways out of the directory that was granted, and ways to change one that was granted to read.

use std::path::{Path, PathBuf};

use brig_api::logline::Stream;
use brig_shim::message::{BindMount, StopSignal};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Parts, Rig};
use crate::shim_client::wait_until;
use crate::shim_contract::{Runtime, output};
use crate::wasm_shim::Wasm;
use crate::wasm_worker::Contained;

const IMPORTS: &str = r#"
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_remove_directory" (func $rmdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_set_times"
    (func $set_times (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $set_size (param i32 i64) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_set_times" (func $fd_set_times (param i32 i64 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_allocate" (func $allocate (param i32 i64 i64) (result i32)))"#;

/// The directory that is granted: the first handle after the standard streams.
const DIR: &str = "(i32.const 3)";
/// Where a result is written that nobody looks at, such as the number of a handle.
const ANYWHERE: &str = "(i32.const 16)";
/// Rights to read, to read and write, and to change the size besides.
const READ: u32 = 1 << 1;
const WRITE: u32 = READ | 1 << 6;
const ALL: u32 = WRITE | 1 << 22;
/// Flags of opening: create it, a directory, cut it off.
const CREATE: u32 = 1;
const DIRECTORY: u32 = 2;
const TRUNCATE: u32 = 8;

/// What one program tries, call by call.
#[derive(Default)]
struct Script {
    data: String,
    body: String,
    end: usize,
    steps: Vec<String>,
}

impl Script {
    /// A path in the program's memory: where, and how long.
    fn path(&mut self, path: &str) -> String {
        let at = 65_536 + self.end;
        self.end += path.len();
        self.data += &format!("(data (i32.const {at}) {path:?})");
        format!("(i32.const {at}) (i32.const {})", path.len())
    }

    fn step(&mut self, what: &str, call: &str, is_allowed: bool) {
        self.steps.push(what.to_owned());
        let index = self.steps.len();
        // An error is another number than 0.
        let is_wrong = if is_allowed { call.to_owned() } else { format!("(i32.eqz {call})") };
        self.body += &format!("(if {is_wrong} (then (call $proc_exit (i32.const {index}))))");
    }

    fn refused(&mut self, what: &str, call: &str) {
        self.step(what, call, false);
    }

    fn allowed(&mut self, what: &str, call: &str) {
        self.step(what, call, true);
    }

    fn open(&mut self, path: &str, flags: u32, rights: u32) -> String {
        let path = self.path(path);
        // Follows links.
        format!(
            "(call $path_open {DIR} (i32.const 1) {path} (i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) {ANYWHERE})"
        )
    }

    fn two(&mut self, call: &str, from: &str, to: &str) -> String {
        let (from, to) = (self.path(from), self.path(to));
        match call {
            "$link" => format!("(call $link {DIR} (i32.const 0) {from} {DIR} {to})"),
            "$symlink" => format!("(call $symlink {from} {DIR} {to})"),
            _ => format!("(call {call} {DIR} {from} {DIR} {to})"),
        }
    }

    fn one(&mut self, call: &str, path: &str) -> String {
        let path = self.path(path);
        match call {
            "$stat" => format!("(call $stat {DIR} (i32.const 1) {path} {ANYWHERE})"),
            "$set_times" => {
                format!(
                    "(call $set_times {DIR} (i32.const 1) {path} (i64.const 1) (i64.const 1) (i32.const 5))"
                )
            }
            _ => format!("(call {call} {DIR} {path})"),
        }
    }

    /// Runs it with the directory; every step must go as it was said.
    #[track_caller]
    fn run(&self, rig: &mut Rig, source: &Path, read_only: bool) {
        let parts = Parts { imports: IMPORTS, definitions: &self.data, body: &self.body };
        let mut task = rig.text(&parts);
        task.mounts.push(BindMount { source: source.to_owned(), at: "/data".into(), read_only });
        let record = rig.run(&task);
        let step =
            usize::try_from(record.code).ok().and_then(|code| self.steps.get(code.wrapping_sub(1)));
        assert_eq!(record.code, 0, "{step:?}: {record:?}");
    }
}

/// Where a guest runs: alone, and in a container where there can be one.
fn everywhere() -> Vec<Box<dyn Runtime>> {
    let mut all: Vec<Box<dyn Runtime>> = vec![Box::new(Wasm)];
    if let Some(contained) = Contained::available() {
        all.push(Box::new(contained));
    }
    all
}

/// What there is, of names and contents, in a directory.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
        found.push((path, content, metadata.modified().unwrap()));
    }
    found.sort();
    found
}

#[test]
fn nothing_outside_of_what_was_granted_is_read_changed_or_moved() {
    for runtime in everywhere() {
        let mut rig = Rig::on(&*runtime);
        let base = rig.fixture.base.path().join("files");
        let (inside, outside) = (base.join("inside"), base.join("outside"));
        std::fs::create_dir_all(outside.join("empty")).unwrap();
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        std::fs::write(inside.join("mine"), "mine").unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        };
        link("../outside", "out");
        link(outside.to_str().unwrap(), "abs");
        link("../outside/secret", "file");
        link("sub/../../outside", "winding");
        link("/proc/self/root", "root");
        link("loop", "loop");
        let before = tree(&outside);
        let mut script = Script::default();
        for dir in
            ["..", "out", "abs", "winding", "sub/../../outside", "sub/../..", "root", "/", "loop"]
        {
            for (path, flags, rights) in [
                (dir.to_owned(), DIRECTORY, READ),
                (format!("{dir}/outside/secret"), 0, READ),
                (format!("{dir}/secret"), 0, READ),
                (format!("{dir}/secret"), 0, WRITE),
                (format!("{dir}/secret"), TRUNCATE, ALL),
                (format!("{dir}/new"), CREATE, WRITE),
            ] {
                let call = script.open(&path, flags, rights);
                script.refused(&format!("open {path}"), &call);
            }
            for call in ["$rename", "$link"] {
                let away = script.two(call, "mine", &format!("{dir}/taken"));
                script.refused(&format!("{call} to {dir}"), &away);
                let here = script.two(call, &format!("{dir}/secret"), "taken");
                script.refused(&format!("{call} from {dir}"), &here);
            }
            let made = script.two("$symlink", "anything", &format!("{dir}/made"));
            script.refused(&format!("$symlink in {dir}"), &made);
            for (call, name) in [
                ("$unlink", "secret"),
                ("$mkdir", "made"),
                ("$rmdir", "empty"),
                ("$stat", "secret"),
                ("$set_times", "secret"),
            ] {
                let call_of_it = script.one(call, &format!("{dir}/{name}"));
                script.refused(&format!("{call} in {dir}"), &call_of_it);
            }
        }
        for (flags, rights) in [(0, READ), (0, WRITE), (TRUNCATE, ALL)] {
            let call = script.open("file", flags, rights);
            script.refused("open through a link to a file", &call);
        }
        for call in ["$stat", "$set_times"] {
            let call_of_it = script.one(call, "file");
            script.refused(&format!("{call} through a link to a file"), &call_of_it);
        }
        // Links of its own making lead out no better.
        let absolute = script.two("$symlink", "/etc/passwd", "own");
        script.refused("an absolute link", &absolute);
        let own = script.two("$symlink", "../outside/secret", "own");
        script.allowed("a link that would lead out", &own);
        let call = script.open("own", 0, READ);
        script.refused("open its own link", &call);
        // The calls are right: inside, they do what they say.
        for (from, to) in [("mine", "yours"), ("yours", "sub/mine"), ("sub/mine", "sub/../mine")] {
            let moved = script.two("$rename", from, to);
            script.allowed(&format!("rename {from} to {to}"), &moved);
        }
        let linked = script.two("$link", "mine", "sub/linked");
        script.allowed("link inside", &linked);
        for call in ["$stat", "$set_times", "$unlink"] {
            let call_of_it = script.one(call, "sub/linked");
            script.allowed(&format!("{call} inside"), &call_of_it);
        }
        script.run(&mut rig, &inside, false);
        assert_eq!(tree(&outside), before);
        assert!(inside.join("mine").is_file());
        let own = std::fs::read_link(inside.join("own")).unwrap();
        assert_eq!(own, Path::new("../outside/secret"));
    }
}

#[test]
fn a_directory_that_was_granted_to_read_stays_as_it_is() {
    for runtime in everywhere() {
        let mut rig = Rig::on(&*runtime);
        let source = rig.fixture.base.path().join("source");
        std::fs::create_dir_all(source.join("empty")).unwrap();
        for name in ["a", "b"] {
            std::fs::write(source.join(name), "content").unwrap();
        }
        std::os::unix::fs::symlink("a", source.join("link")).unwrap();
        let before = tree(&source);
        let mut script = Script::default();
        for (what, path, flags, rights) in [
            ("open to write", "a", 0, WRITE),
            ("open a link to write", "link", 0, WRITE),
            ("open and cut off", "a", TRUNCATE, READ),
            ("open and cut off, to write", "a", TRUNCATE, ALL),
            ("create", "new", CREATE, WRITE),
            ("create to read", "new", CREATE, READ),
        ] {
            let call = script.open(path, flags, rights);
            script.refused(what, &call);
        }
        for (call, from, to) in [
            ("$rename", "a", "c"),
            ("$rename", "a", "b"),
            ("$link", "a", "c"),
            ("$symlink", "a", "c"),
        ] {
            let call_of_it = script.two(call, from, to);
            script.refused(call, &call_of_it);
        }
        for (call, path) in [
            ("$unlink", "a"),
            ("$unlink", "link"),
            ("$mkdir", "new"),
            ("$rmdir", "empty"),
            ("$set_times", "a"),
            ("$set_times", "link"),
        ] {
            let call_of_it = script.one(call, path);
            script.refused(call, &call_of_it);
        }
        let opened = script.open("a", 0, READ);
        script.allowed("open to read", &opened);
        let handle = "(i32.load (i32.const 16))";
        for (what, call) in [
            ("change the size", format!("(call $set_size {handle} (i64.const 0))")),
            ("make room", format!("(call $allocate {handle} (i64.const 0) (i64.const 100000))")),
            (
                "change the times",
                format!("(call $fd_set_times {handle} (i64.const 1) (i64.const 1) (i32.const 5))"),
            ),
            (
                "write",
                format!("(call $fd_write {handle} (i32.const 24) (i32.const 1) (i32.const 32))"),
            ),
        ] {
            script.refused(what, &call);
        }
        // One piece of output, of six bytes.
        script.data += "(data (i32.const 24) \"\\00\\04\\00\\00\\06\\00\\00\\00\")";
        script.run(&mut rig, &source, true);
        assert_eq!(tree(&source), before);
    }
}

/// Opens `flip/file` for ever, and says once that it could and once that it could not. What it reads must be `i`.
const RACE: &str = r#"
  (local.set $i (i32.const 0))
  (loop $again
    (if (call $path_open (i32.const 3) (i32.const 1) (i32.const 65536) (i32.const 9) (i32.const 0)
          (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 65600))
      (then
        (if (i32.eqz (i32.and (local.get $i) (i32.const 1))) (then
          (local.set $i (i32.or (local.get $i) (i32.const 1)))
          (call $say (i32.const 1) (i32.const 65552) (i32.const 8)))))
      (else
        (i32.store (i32.const 65608) (i32.const 65632))
        (i32.store (i32.const 65612) (i32.const 1))
        (drop (call $fd_read (i32.load (i32.const 65600)) (i32.const 65608) (i32.const 1) (i32.const 65616)))
        (drop (call $close (i32.load (i32.const 65600))))
        (if (i32.ne (i32.load8_u (i32.const 65632)) (i32.const 105))
          (then (call $proc_exit (i32.const 66))))
        (if (i32.eqz (i32.and (local.get $i) (i32.const 2))) (then
          (local.set $i (i32.or (local.get $i) (i32.const 2)))
          (call $say (i32.const 1) (i32.const 65568) (i32.const 7))))))
    (br $again))"#;

#[test]
fn a_directory_that_becomes_a_link_while_it_is_used_leads_nowhere() {
    let mut rig = Rig::new();
    let base = rig.fixture.base.path().join("files");
    let (inside, outside) = (base.join("inside"), base.join("outside"));
    std::fs::create_dir_all(inside.join("flip")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(inside.join("flip/file"), "i").unwrap();
    std::fs::write(outside.join("file"), "o").unwrap();
    std::os::unix::fs::symlink("../outside", inside.join("flop")).unwrap();
    let parts = Parts {
        imports: r#"(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))"#,
        definitions: r#"(data (i32.const 65536) "flip/file") (data (i32.const 65552) "refused\n")
            (data (i32.const 65568) "opened\n")"#,
        body: RACE,
    };
    let mut task = rig.text(&parts);
    task.mounts.push(BindMount { source: inside.clone(), at: "/data".into(), read_only: false });
    rig.client.start(&task);
    let flip = || {
        let [one, other] = ["flip", "flop"].map(|name| inside.join(name));
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
    };
    let said = || output(&task.log, Stream::Stdout);
    wait_until("it has met both", || {
        (0..7).for_each(|_| flip());
        said().contains("opened") && said().contains("refused")
    });
    (0..20_000).for_each(|_| flip());
    rig.client.stop(&task.key, StopSignal::Kill);
    assert_eq!(rig.end(&task).code, 137, "it has read what is outside");
}
