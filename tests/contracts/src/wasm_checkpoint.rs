//! `brig:unit/checkpoint` on `brig-shim-wasm`: what one run of a task saves, the next one finds.

use brig_api::checkpoint::{Checkpoint, STATE_BYTES_MAX, State};
use brig_api::logline::Stream;
use brig_shim::checkpoint::{self, CHECKPOINT_NAME};
use brig_shim::message::{FromShim, StartProgram, StartTask};

use crate::shim_client::{ShimClient, wait_until};
use crate::shim_contract::{Fixture, output};
use crate::wasm_programs::guest;
use crate::wasm_shim::Wasm;

fn saved(number: u64, state: &[u8]) -> Checkpoint {
    Checkpoint { number, saved_ms: 17, state: State::new(state.to_vec()).unwrap() }
}

fn of(task: &StartTask) -> Option<Checkpoint> {
    checkpoint::read(&task.dir.join(CHECKPOINT_NAME)).unwrap()
}

/// Runs a program in a directory with this checkpoint: its exit code, standard output and error.
fn run(
    (fixture, client): (&Fixture, &mut ShimClient),
    name: &str,
    program: (&str, &[&str]),
    before: Option<&Checkpoint>,
) -> (StartTask, i32, String, String) {
    let task = fixture.task(name, StartProgram::Wasm(guest(program.0, program.1)));
    if let Some(before) = before {
        checkpoint::write(&task.dir.join(CHECKPOINT_NAME), before).unwrap();
    }
    client.start(&task);
    let code = client.wait_exited(&task.key).code;
    let [stdout, stderr] = [Stream::Stdout, Stream::Stderr].map(|stream| output(&task.log, stream));
    (task, code, stdout, stderr)
}

#[test]
fn a_run_finds_what_the_run_before_has_saved_in_either_version_of_wasi() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let mut run = |name: &str, program, before| run((&fixture, &mut client), name, program, before);
    let (_, code, stdout, _) = run("first", ("primes.wasm", &["load"]), None);
    assert_eq!((code, stdout.as_str()), (0, "nothing was saved\n"));
    let before = saved(7, b"seven");
    let (task, code, stdout, _) = run("loads", ("primes.wasm", &["load"]), Some(&before));
    assert_eq!((code, stdout.as_str()), (0, "seven\n"));
    assert_eq!(of(&task), Some(before.clone()), "to read it changes nothing");
    let (task, code, ..) = run("saves", ("modern.wasm", &["save", "eight"]), Some(&before));
    let after = of(&task).unwrap();
    assert_eq!((code, after.number, after.state.bytes()), (0, 8, &b"eight"[..]));
    assert!(after.saved_ms > 1_700_000_000_000);
    let (_, code, stdout, _) = run("again", ("modern.wasm", &["load"]), Some(&after));
    assert_eq!((code, stdout), (0, format!("Ok(Some({:?}))\n", b"eight")));
}

#[test]
fn a_save_is_on_the_disk_before_it_returns_and_is_told() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let program = ("primes.wasm", &["save", "one", "two"][..]);
    let (task, code, stdout, _) = run((&fixture, &mut client), "task", program, None);
    assert_eq!((code, of(&task).map(|saved| saved.number)), (0, Some(2)));
    for number in [1, 2] {
        let told = FromShim::Checkpoint { task: task.key.clone(), number };
        assert_eq!(client.wait_for(|event| *event == told), told);
    }
    // The second one had to wait.
    let second = stdout.lines().nth(1).and_then(|line| line.strip_prefix("two ")).unwrap();
    assert!((500..60_000).contains(&second.parse::<u64>().unwrap()), "{stdout}");
}

#[test]
fn what_is_too_large_is_refused_with_the_most_that_is_kept() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let mut save = |name: &str, bytes: usize| {
        let bytes = bytes.to_string();
        let program = ("primes.wasm", &["save-bytes", &bytes][..]);
        run((&fixture, &mut client), name, program, Some(&saved(1, b"before")))
    };
    let (task, code, ..) = save("most", STATE_BYTES_MAX);
    let kept = of(&task).unwrap();
    assert_eq!((code, kept.number, kept.state.bytes().len()), (0, 2, STATE_BYTES_MAX));
    let (task, code, _, stderr) = save("more", STATE_BYTES_MAX + 1);
    assert_eq!((code, of(&task)), (1, Some(saved(1, b"before"))));
    assert!(stderr.contains("TooLarge") && stderr.contains("1048576"), "{stderr}");
}

#[test]
fn a_state_that_can_not_be_read_is_no_reason_to_begin_anew() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let task = fixture.task("task", StartProgram::Wasm(guest("primes.wasm", &["100"])));
    std::fs::write(task.dir.join(CHECKPOINT_NAME), "short").unwrap();
    client.start(&task);
    assert_eq!(client.wait_exited(&task.key).code, 1);
    assert_eq!(output(&task.log, Stream::Stdout), "");
    assert!(output(&task.log, Stream::Stderr).contains("checkpoint"));
}

#[test]
fn a_killed_shim_takes_nothing_with_it_that_was_saved() {
    let mut fixture = Fixture::new(&Wasm);
    let endless = guest("primes.wasm", &["1000000000", "5"]);
    let task = fixture.task("task", StartProgram::Wasm(endless));
    fixture.shim.connect().start(&task);
    wait_until("it saves", || output(&task.log, Stream::Stdout).contains("saved at"));
    fixture.shim.kill();
    let kept = of(&task).unwrap();
    let last = output(&task.log, Stream::Stdout);
    let last = last.lines().filter_map(|line| line.strip_prefix("saved at ")).next_back().unwrap();
    let next = u64::from_le_bytes(*kept.state.bytes().first_chunk().unwrap());
    assert!(next >= last.parse().unwrap(), "{next} {last}");
    let again = Fixture::new(&Wasm);
    let limit = (next + 1).to_string();
    let mut client = again.shim.connect();
    let program = ("primes.wasm", &[limit.as_str()][..]);
    let (_, code, stdout, _) = run((&again, &mut client), "again", program, Some(&kept));
    assert_eq!(code, 0);
    assert!(stdout.starts_with(&format!("begins at {next} with ")), "{stdout}");
}
