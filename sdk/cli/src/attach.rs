//! Follows a unit from its creation to its end: input if it wants some, output as it comes, why it waits, signals passed on, its exit code.

use std::io::Write;
use std::pin::Pin;
use std::time::Duration;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::logline::Stream;
use brig_api::object::{Object, Unit};
use brig_api::request::{AttachRequest, LogQuery};
use brig_api::{Kind, NamespacePath};
use brig_client::{Client, ClientError, LogStream, TaskLine, WatchFilter, WatchStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::commands::exec::pass_on;
use crate::failure::{FAILED, Failure};
use crate::say;

/// How long output may trickle in after the unit has ended.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How long it takes until one is told that input can't be passed on: of a unit that has just ended nobody wants to know.
const INPUT_FAILS_AFTER: Duration = Duration::from_secs(2);

/// What a unit came to.
struct End {
    unit: Unit,
    /// A signal was passed on to it: its exit code.
    signal_code: Option<u8>,
}

/// How following a unit ended.
enum Followed {
    Ended(Box<End>),
    /// The user does not want to wait for the end.
    Left(u8),
}

/// How a unit was attended to.
pub(crate) struct Attended {
    /// The exit code is the unit's.
    pub(crate) outcome: Result<(), Failure>,
    /// The user left before its end.
    pub(crate) was_left: bool,
}

/// Shows a unit's output until it has ended; passes standard input on to it, if it takes that.
pub(crate) async fn to_the_end(client: &Client, unit: &Unit, has_input: bool) -> Attended {
    match follow(client, unit, has_input).await {
        Ok(Followed::Ended(end)) => Attended { outcome: outcome(&end), was_left: false },
        Ok(Followed::Left(code)) => Attended { outcome: Err(Failure::exit(code)), was_left: true },
        Err(failure) => Attended { outcome: Err(failure), was_left: false },
    }
}

/// Waits for SIGINT or SIGTERM: the exit code that goes with it.
pub(crate) async fn signalled() -> std::io::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(either(&mut interrupt, &mut terminate).await)
}

async fn follow(client: &Client, unit: &Unit, has_input: bool) -> Result<Followed, Failure> {
    let filter = WatchFilter { kind: Some(Kind::Unit), namespace: Some(unit.namespace.clone()) };
    let mut watch = client.watch(filter, unit.meta.revision);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let logs = show_logs(client, &unit.namespace, unit.name.as_str());
    tokio::pin!(logs);
    let mut are_logs_done = false;
    let mut signal_code = None;
    let mut told = Told::default();
    let mut input = Input(None);
    let mut waits_for_input = has_input;
    loop {
        tokio::select! {
            // Output first: what was written before the end is shown before the end is told.
            biased;
            result = &mut logs, if !are_logs_done => {
                if let Err(failure) = result {
                    // The unit runs on, and its end is still of interest.
                    say(&format!("no more output of {}: {}", unit.name, failure.message));
                }
                are_logs_done = true;
            }
            changed = next_of(&mut watch, unit) => {
                let Some(newest) = changed? else {
                    return Err(Failure::new(FAILED, format!("unit `{}` was deleted", unit.name)));
                };
                if newest.status.state.is_final() {
                    if !are_logs_done {
                        // A node that is gone sends no more output; the end is known all the same.
                        let _ = tokio::time::timeout(DRAIN_TIME_MAX, &mut logs).await;
                    }
                    return Ok(Followed::Ended(Box::new(End { unit: newest, signal_code })));
                }
                told.tell(&newest);
                if waits_for_input && newest.status.state == UnitState::Running {
                    waits_for_input = false;
                    input = Input(Some(Box::pin(pass_input(client, unit))));
                }
            }
            failure = input.failed() => {
                say(&format!("no more input for {}: {}", unit.name, failure.message));
            }
            code = either(&mut interrupt, &mut terminate) => {
                if signal_code.is_some() {
                    return Ok(Followed::Left(code));
                }
                signal_code = Some(code);
                match client.unit_stop(&unit.namespace, unit.name.as_str()).await {
                    Ok(_) => say("stopping; once more to leave it alone"),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// What passes standard input on, once the unit runs.
struct Input<'a>(Option<Pin<Box<dyn Future<Output = Failure> + Send + 'a>>>);

impl Input<'_> {
    /// Ends when it can't be passed on, and then never again.
    async fn failed(&mut self) -> Failure {
        let Some(passing) = &mut self.0 else { return std::future::pending().await };
        let failure = passing.await;
        self.0 = None;
        failure
    }
}

async fn pass_input(client: &Client, unit: &Unit) -> Failure {
    let request = AttachRequest::default();
    let failure = match client.attach(&unit.namespace, unit.name.as_str(), &request).await {
        Ok(stream) => {
            let (mut reader, writer) = stream.split();
            tokio::select! {
                failure = pass_on(writer, true) => failure,
                // Its last frame: how the unit ended is told by its status.
                end = reader.next() => match end {
                    Ok(Some(_)) => std::future::pending().await,
                    Ok(None) => Failure::new(FAILED, "the connection ended"),
                    Err(error) => error.into(),
                },
            }
        }
        Err(error) => error.into(),
    };
    tokio::time::sleep(INPUT_FAILS_AFTER).await;
    failure
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> u8 {
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}

/// The newest state of `unit` among the next changes; None when it was removed.
async fn next_of(watch: &mut WatchStream, unit: &Unit) -> Result<Option<Unit>, ClientError> {
    loop {
        for change in watch.next().await? {
            if change.key.name != unit.name.as_str() {
                continue;
            }
            match change.object {
                Some(Object::Unit(newest)) if newest.id == unit.id => return Ok(Some(*newest)),
                None => return Ok(None),
                Some(_) => {}
            }
        }
    }
}

async fn show_logs(client: &Client, namespace: &NamespacePath, unit: &str) -> Result<(), Failure> {
    let query = LogQuery { follow: true, ..LogQuery::default() };
    match client.logs(namespace, unit, &query).await {
        Ok(mut logs) => show(&mut logs, |_| String::new()).await,
        // It ended before it had a node, so it has no logs; its end says why.
        Err(ClientError::Problem(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes every line of a log to the stream it came from, with a prefix.
pub(crate) async fn show(
    logs: &mut LogStream,
    prefix: impl Fn(&TaskLine) -> String,
) -> Result<(), Failure> {
    let mut begins_line = true;
    while let Some(line) = logs.next().await? {
        let mut bytes = Vec::with_capacity(line.bytes.len() + 1);
        if begins_line {
            bytes.extend_from_slice(prefix(&line).as_bytes());
        }
        bytes.extend_from_slice(&line.bytes);
        if line.ends_line {
            bytes.push(b'\n');
        }
        begins_line = line.ends_line;
        let written = match line.stream {
            Stream::Stdout => write(std::io::stdout().lock(), &bytes),
            Stream::Stderr => write(std::io::stderr().lock(), &bytes),
        };
        match written {
            // The reader has seen enough (`| head`).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

fn write(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// What was told last about a unit that waits, so that it is told once.
#[derive(Default)]
struct Told(Option<String>);

impl Told {
    fn tell(&mut self, unit: &Unit) {
        let waits = matches!(unit.status.state, UnitState::Pending | UnitState::Backoff);
        let (true, Some(message)) = (waits, &unit.status.message) else { return };
        // What a node says behind the cause, of its tries, changes each time.
        let cause = message.rsplit_once("; ").map_or(message.as_str(), |(cause, _)| cause);
        if self.0.as_deref() != Some(cause) {
            say(&format!("{} waits: {}", unit.name, crate::output::printable(message)));
            self.0 = Some(cause.to_owned());
        }
    }
}

/// Turns a unit's end into the command's exit code and, where the code does not say it, a sentence.
fn outcome(end: &End) -> Result<(), Failure> {
    let status = &end.unit.status;
    let code = status.exit_code.and_then(|code| u8::try_from(code).ok());
    let sentence = |what: &str| {
        let message = status.message.as_deref().map(crate::output::printable).unwrap_or_default();
        let reason = status.reason.map(Reason::as_str).unwrap_or_default();
        format!(
            "{} {what}: {reason}{}{message}",
            end.unit.name,
            if message.is_empty() { "" } else { ": " }
        )
    };
    match (status.state, status.reason) {
        (UnitState::Succeeded, _) => Ok(()),
        (UnitState::Stopped, _) => Err(Failure::exit(end.signal_code.or(code).unwrap_or(143))),
        // The program said itself what it had to say.
        (UnitState::Failed, Some(Reason::ExitedNonZero)) => {
            Err(Failure::exit(code.filter(|c| *c != 0).unwrap_or(FAILED)))
        }
        (UnitState::Lost, _) => Err(Failure::new(FAILED, sentence("was lost"))),
        _ => Err(Failure::new(code.filter(|c| *c != 0).unwrap_or(FAILED), sentence("failed"))),
    }
}
