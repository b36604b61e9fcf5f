//! Standard input of wasm commands: sent by whoever is attached, to programs of every kind.

use std::time::Duration;

use brig_api::logline::Stream;
use brig_api::stdio::{FRAME_PAYLOAD_BYTES_MAX, StdioFrame};
use brig_shim::message::{Reply, Request, StartProgram, StartTask};

use crate::shim_client::{ShimClient, StdioClient, wait_until};
use crate::shim_contract::{Fixture, output};
use crate::wasm_programs::guest;
use crate::wasm_shim::Wasm;

/// A module of preview 1 and components of WASI 0.2 and 0.3 that copy their input with `stdin`.
const COPIERS: [&str; 3] = ["probe.wasm", "probe-component.wasm", "modern.wasm"];

/// A task with open input.
struct Reading {
    fixture: Fixture,
    client: ShimClient,
    task: StartTask,
}

impl Reading {
    fn start(name: &str, args: &[&str]) -> Self {
        let fixture = Fixture::new(&Wasm);
        let mut client = fixture.shim.connect();
        let mut task = fixture.task("task", StartProgram::Wasm(guest(name, args)));
        task.stdin = true;
        client.start(&task);
        Self { fixture, client, task }
    }

    fn attach(&self) -> StdioClient {
        let mut client = self.fixture.shim.connect();
        assert_eq!(client.request(self.request()), Reply::Done);
        StdioClient::of(client)
    }

    fn request(&self) -> Request {
        Request::Attach { task: self.task.key.clone() }
    }

    /// What a refused attach is told.
    fn refused(&self) -> String {
        match self.fixture.shim.connect().request(self.request()) {
            Reply::Refused { message, .. } => message,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn said(&self) -> String {
        output(&self.task.log, Stream::Stdout)
    }

    fn wait_said(&self, text: &str) {
        wait_until("the program has read it", || self.said() == text);
    }
}

fn input(text: &str) -> StdioFrame {
    StdioFrame::Stdin(text.as_bytes().to_vec())
}

#[test]
fn programs_of_every_kind_read_what_is_sent_to_its_end() {
    for name in COPIERS {
        let mut reading = Reading::start(name, &["stdin"]);
        // Before it runs: a module is compiled first.
        let mut stdio = reading.attach();
        stdio.send(&input("early\n"));
        reading.client.wait_running(&reading.task.key);
        reading.wait_said("early\n");
        stdio.send(&input("late\n"));
        reading.wait_said("early\nlate\n");
        stdio.send(&input(""));
        assert_eq!(stdio.next(), Some(StdioFrame::Exit(0)), "{name}");
        assert_eq!(stdio.next(), None);
        assert_eq!(reading.client.wait_exited(&reading.task.key).code, 0);
        assert!(reading.refused().contains("does not run"));
    }
}

#[test]
fn more_than_is_held_arrives_whole() {
    for name in COPIERS {
        let mut reading = Reading::start(name, &["stdin"]);
        let mut stdio = reading.attach();
        let text: String = (0..3_000).map(|line| format!("{line:0>99}\n")).collect();
        for piece in text.as_bytes().chunks(FRAME_PAYLOAD_BYTES_MAX) {
            stdio.send(&StdioFrame::Stdin(piece.to_vec()));
        }
        stdio.send(&input(""));
        assert_eq!(reading.client.wait_exited(&reading.task.key).code, 0);
        assert_eq!(reading.said(), text, "{name}");
    }
}

#[test]
fn a_program_that_does_not_read_takes_no_more_than_a_buffer() {
    let mut reading = Reading::start("probe.wasm", &["sleep", "3600000"]);
    reading.client.wait_running(&reading.task.key);
    let mut stdio = reading.attach();
    let piece = StdioFrame::Stdin(vec![b'x'; FRAME_PAYLOAD_BYTES_MAX]);
    let sent = (0..64).take_while(|_| stdio.try_send(&piece, Duration::from_secs(2))).count();
    assert!((1..32).contains(&sent), "{sent} pieces of 64 KiB");
    assert!(reading.refused().contains("another is attached"));
    reading.client.stop(&reading.task.key, brig_shim::message::StopSignal::Kill);
    assert_eq!(stdio.next(), Some(StdioFrame::Exit(137)));
}

#[test]
fn one_is_attached_at_a_time_and_who_leaves_leaves_the_program_waiting() {
    for name in COPIERS {
        let mut reading = Reading::start(name, &["stdin"]);
        let mut first = reading.attach();
        first.send(&input("first\n"));
        assert!(reading.refused().contains("another is attached"));
        drop(first);
        reading.wait_said("first\n");
        let mut second = None;
        wait_until("the first has left", || {
            let mut client = reading.fixture.shim.connect();
            let is_free = client.request(reading.request()) == Reply::Done;
            second = is_free.then(|| StdioClient::of(client));
            is_free
        });
        let mut second = second.unwrap();
        second.send(&input("second\n"));
        reading.wait_said("first\nsecond\n");
        second.send(&input(""));
        assert_eq!(second.next(), Some(StdioFrame::Exit(0)), "{name}");
        assert_eq!(reading.client.wait_exited(&reading.task.key).code, 0);
    }
}

#[test]
fn a_task_without_input_refuses_it() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let program = guest("probe.wasm", &["sleep", "3600000"]);
    let task = fixture.task("task", StartProgram::Wasm(program));
    client.start(&task);
    client.wait_running(&task.key);
    let request = Request::Attach { task: task.key };
    match client.request(request) {
        Reply::Refused { message, .. } => assert!(message.contains("`stdin: true`"), "{message}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn what_is_no_frame_of_a_stream_costs_its_own_connection_only() {
    let reading = Reading::start("probe.wasm", &["stdin"]);
    let mut client = reading.fixture.shim.connect();
    assert_eq!(client.request(reading.request()), Reply::Done);
    client.send_raw(&[0, 0, 0, 1, 99]);
    assert!(client.is_closed_by_shim());
    let mut stdio = None;
    wait_until("the place is free", || {
        let mut client = reading.fixture.shim.connect();
        let is_free = client.request(reading.request()) == Reply::Done;
        stdio = is_free.then(|| StdioClient::of(client));
        is_free
    });
    let mut stdio = stdio.unwrap();
    stdio.send(&input("on\n"));
    stdio.send(&input(""));
    assert_eq!(stdio.next(), Some(StdioFrame::Exit(0)));
    assert_eq!(reading.said(), "on\n");
}
