//! Programs that are run in a running container.

use brig_api::lifecycle::Reason;
use brig_api::request::ExecRequest;
use brig_api::stdio::{StdioFrame, TerminalSize};
use brig_shim::frame::{Decoder, encode};
use brig_shim::message::{Reply, Request, StartTask, StopSignal};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::{oci, script, wait_for_line};
use crate::shim_client::wait_until;
use crate::shim_contract::Fixture;

/// The program's side of a connection after an exec.
struct Stdio {
    stream: UnixStream,
    decoder: Decoder,
}

impl Stdio {
    fn send(&mut self, frame: &StdioFrame) {
        let mut bytes = Vec::new();
        encode(&frame.encode(), &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn next(&mut self) -> Option<StdioFrame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(StdioFrame::decode(&frame).unwrap());
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).expect("the shim answers in time") {
                0 => return None,
                length => self.decoder.push(&bytes[..length]),
            }
        }
    }

    /// Reads to the end: standard output, standard error, exit code.
    fn finish(mut self) -> (String, String, i32) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().expect("an exit comes before the end") {
                StdioFrame::Stdout(bytes) => stdout.extend(bytes),
                StdioFrame::Stderr(bytes) => stderr.extend(bytes),
                StdioFrame::Exit(code) => {
                    assert_eq!(self.next(), None, "an exit is the last frame");
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    return (text(stdout), text(stderr), code);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn wait_for(&mut self, wanted: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(wanted) {
            match self.next().expect("more comes") {
                StdioFrame::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("unexpected {other:?} after {seen:?}"),
            }
        }
        seen
    }
}

fn exec(fixture: &Fixture, task: &StartTask, command: &[&str]) -> Stdio {
    exec_with(fixture, task, command, None)
}

fn exec_with(
    fixture: &Fixture,
    task: &StartTask,
    command: &[&str],
    terminal: Option<TerminalSize>,
) -> Stdio {
    let mut client = fixture.shim.connect();
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let exec = ExecRequest { task: None, command, terminal };
    let reply = client.request(Request::Exec { task: task.key.clone(), exec });
    assert_eq!(reply, Reply::Done);
    let (stream, decoder) = client.into_stdio();
    Stdio { stream, decoder }
}

fn running(text: &str) -> Option<(Fixture, StartTask)> {
    let (fixture, mut task) = script(text)?;
    oci(&mut task).working_dir = "/srv".to_owned();
    task.env.insert("GREETING".to_owned(), "hello".to_owned());
    fixture.shim.connect().start(&task);
    wait_for_line(&task, "ready");
    Some((fixture, task))
}

const SLEEPER: &str = "grep -E '^(Cap|Seccomp|NoNewPrivs|Groups|Uid)' /proc/self/status > /tmp/init
                       trap 'exit 0' TERM; echo ready; sleep 3600 & wait";

#[test]
fn a_program_has_its_streams_its_code_and_the_containers_surroundings() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let command = ["sh", "-c", "cat; pwd; echo $GREETING >&2; hostname; exit 42"];
    let mut stdio = exec(&fixture, &task, &command);
    stdio.send(&StdioFrame::Stdin(b"from outside\n".to_vec()));
    stdio.send(&StdioFrame::Stdin(Vec::new()));
    let (stdout, stderr, code) = stdio.finish();
    assert_eq!(stdout, "from outside\n/srv\ncontract-task\n");
    assert_eq!((stderr.as_str(), code), ("hello\n", 42));
    let (stdout, _, code) = exec(&fixture, &task, &["sh", "-c", "kill -9 $$"]).finish();
    assert_eq!((stdout.as_str(), code), ("", 137));
}

#[test]
fn a_program_is_confined_as_the_container_is() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let command = "grep -E '^(Cap|Seccomp|NoNewPrivs|Groups|Uid)' /proc/self/status > /tmp/exec
                   cat /tmp/exec; cat /proc/self/cgroup | grep -v :/$ | grep -v '^0:'
                   for fd in 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$fd ] && ls -l /proc/self/fd/$fd; done
                   [ \"$(cat /tmp/init)\" = \"$(cat /tmp/exec)\" ] && echo same";
    let (stdout, _, code) = exec(&fixture, &task, &["sh", "-c", command]).finish();
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("Seccomp:\t2") && stdout.ends_with("same\n"), "{stdout}");
    assert!(!stdout.contains("->"), "a descriptor was left open: {stdout}");
    let (stdout, ..) = exec(&fixture, &task, &["unshare", "-U", "echo", "broken-out"]).finish();
    assert_eq!(stdout, "");
}

#[test]
fn a_program_that_can_not_run_is_told_by_code_and_words() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let (_, stderr, code) = exec(&fixture, &task, &["no-such-program"]).finish();
    assert_eq!(code, 127);
    assert!(stderr.contains("`no-such-program` was not found"), "{stderr}");
    let (_, stderr, code) = exec(&fixture, &task, &["/etc/passwd"]).finish();
    assert_eq!(code, 126);
    assert!(stderr.contains("may not be executed"), "{stderr}");
    let mut client = fixture.shim.connect();
    let empty = ExecRequest { task: None, command: Vec::new(), terminal: None };
    let reply = client.request(Request::Exec { task: task.key.clone(), exec: empty });
    assert!(
        matches!(reply, Reply::Refused { reason: Some(Reason::CreateFailed), .. }),
        "{reply:?}"
    );
}

#[test]
fn a_terminal_is_one_of_the_container_and_has_a_size() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let size = Some(TerminalSize { rows: 33, columns: 99 });
    let mut stdio = exec_with(&fixture, &task, &["sh"], size);
    stdio.send(&StdioFrame::Stdin(b"tty; stty size; echo $TERM\n".to_vec()));
    let seen = stdio.wait_for("xterm\r\n");
    assert!(seen.contains("/dev/pts/") && seen.contains("33 99"), "{seen}");
    stdio.send(&StdioFrame::Resize(TerminalSize { rows: 44, columns: 111 }));
    stdio.send(&StdioFrame::Stdin(b"stty size\n".to_vec()));
    stdio.wait_for("44 111");
    stdio.send(&StdioFrame::Stdin(b"exit 9\n".to_vec()));
    assert_eq!(stdio.finish().2, 9);
}

#[test]
fn large_streams_arrive_whole_both_ways() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let stdio = exec(&fixture, &task, &["cat"]);
    let mut writer =
        Stdio { stream: stdio.stream.try_clone().unwrap(), decoder: Decoder::default() };
    const FRAMES: usize = 100;
    const FRAME_BYTES: usize = 60_000;
    let writing = std::thread::spawn(move || {
        for _ in 0..FRAMES {
            writer.send(&StdioFrame::Stdin(vec![b'x'; FRAME_BYTES]));
        }
        writer.send(&StdioFrame::Stdin(Vec::new()));
    });
    let (stdout, _, code) = stdio.finish();
    writing.join().unwrap();
    assert_eq!((stdout.len(), code), (FRAMES * FRAME_BYTES, 0));
}

#[test]
fn a_program_is_hung_up_on_when_its_connection_says_what_is_no_frame() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let command =
        ["sh", "-c", "trap 'echo hung-up > /tmp/end; exit' HUP; echo here; sleep 3600 & wait"];
    let mut stdio = exec(&fixture, &task, &command);
    stdio.wait_for("here");
    stdio.stream.write_all(&[0, 0, 0, 1, 0xff]).unwrap();
    wait_until("the program was told", || {
        let (seen, ..) = exec(&fixture, &task, &["cat", "/tmp/end"]).finish();
        seen == "hung-up\n"
    });
}

#[test]
fn execs_end_with_the_container_and_leave_nothing() {
    let Some((fixture, task)) = running(SLEEPER) else { return };
    let mut client = fixture.shim.connect();
    let mut left = exec(&fixture, &task, &["sh", "-c", "echo here; sleep 3600"]);
    left.wait_for("here");
    drop(left);
    let mut stdio = exec(&fixture, &task, &["sh", "-c", "echo here; sleep 3600"]);
    stdio.wait_for("here");
    client.stop(&task.key, StopSignal::Kill);
    assert_eq!(stdio.finish().2, 137);
    client.wait_exited(&task.key);
    let refused = client.request(Request::Exec {
        task: task.key.clone(),
        exec: ExecRequest { task: None, command: vec!["true".to_owned()], terminal: None },
    });
    assert!(matches!(refused, Reply::Refused { .. }), "{refused:?}");
}
