//! How a task ended: exit codes and reasons for everything that can happen to a guest.

use std::fmt::Write as _;

use brig_api::lifecycle::Reason;
use brig_shim::exit::MESSAGE_BYTES_MAX;
use wasmtime::component::ResourceTableError;
use wasmtime::{FrameInfo, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::host::HANDLES_MAX;
use crate::memory::MemoryExceeded;

/// The code of a task that could not be started, as shells use it for a file that can't be run.
pub(crate) const CODE_NOT_STARTED: i32 = 126;
/// The code of a task whose deadline passed, as `timeout` uses it.
const CODE_DEADLINE: i32 = 124;
/// The code of a task that was ended for its memory, as SIGKILL would give it.
const CODE_OUT_OF_MEMORY: i32 = 137;
/// The code of a trap.
const CODE_TRAPPED: i32 = 1;
/// How many frames of a trap's backtrace a message shows.
const FRAMES_MAX: usize = 8;

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: Option<String>,
}

/// Why a task could not be started.
pub(crate) use brig_shim::code::Refusal;

/// A [`Refusal`].
pub(crate) fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::failed(CODE_NOT_STARTED, refusal.reason, &refusal.message)
    }
}

impl Outcome {
    /// The program ended by itself.
    pub(crate) fn exited(code: i32) -> Self {
        Self { code, reason: (code != 0).then_some(Reason::ExitedNonZero), message: None }
    }

    /// The program was asked to end, and was cut off.
    pub(crate) fn stopped(code: i32) -> Self {
        Self { code, reason: None, message: None }
    }

    /// The deadline passed.
    pub(crate) fn deadline(deadline_ms: u64) -> Self {
        let message = format!("its deadline of {deadline_ms} ms passed");
        Self::failed(CODE_DEADLINE, Reason::DeadlineExceeded, &message)
    }

    /// The host itself failed while it ran the guest.
    pub(crate) fn host_failed(what: &str) -> Self {
        let message = format!("the wasm shim failed while it ran this: {what}; please report it");
        Self::failed(CODE_TRAPPED, Reason::ShimLost, &message)
    }

    /// What a call into a guest ended with, if not by returning.
    pub(crate) fn of_error(error: &wasmtime::Error) -> Self {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::exited(exit.0);
        }
        if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
            let message = format!("ended for its memory: {exceeded}");
            return Self::failed(CODE_OUT_OF_MEMORY, Reason::OutOfMemory, &message);
        }
        Self::failed(CODE_TRAPPED, Reason::Trapped, &trap_message(error, FRAMES_MAX))
    }

    /// What instantiating a guest failed with, before any of its code ran (a start function aside).
    pub(crate) fn of_instantiation_error(error: &wasmtime::Error) -> Self {
        if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
            let message = format!("it can't start within its memory limit: {exceeded}");
            return refusal(Reason::LimitTooSmall, message).into();
        }
        if error.is::<Trap>() || error.is::<I32Exit>() {
            return Self::of_error(error);
        }
        let message = format!("it could not be set up: {error:#}");
        refusal(Reason::CreateFailed, message).into()
    }

    fn failed(code: i32, reason: Reason, message: &str) -> Self {
        Self { code, reason: Some(reason), message: Some(cut(message, MESSAGE_BYTES_MAX)) }
    }
}

/// Longest report of a trap in a log: names and paths are the guest's.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// All that is known of where a guest trapped; None where it ended otherwise.
pub(crate) fn trap_report(error: &wasmtime::Error) -> Option<String> {
    let is_trap = error.is::<Trap>() && error.is::<WasmBacktrace>();
    is_trap.then(|| cut(&trap_message(error, usize::MAX), REPORT_BYTES_MAX))
}

/// The trap and where it happened, one frame a line, with file and line where the module has debug information.
fn trap_message(error: &wasmtime::Error, frames_max: usize) -> String {
    let mut message = match error.downcast_ref::<Trap>() {
        Some(trap) => format!("trapped: {trap}"),
        None if error.root_cause().is::<ResourceTableError>() => too_many_handles(),
        None => format!("ended by an error of the host: {}", error.root_cause()),
    };
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    let frames = backtrace.map_or(&[][..], WasmBacktrace::frames);
    for (index, frame) in frames.iter().take(frames_max).enumerate() {
        let module = short_name(frame.module().name().unwrap_or("<module>"));
        let _ = write!(message, "\n  {index}: {module}!{}", function_name(frame));
        // The innermost function first; the others are those it was inlined into.
        let symbols = frame.symbols();
        for symbol in symbols {
            if let Some(file) = symbol.file() {
                let _ = write!(message, "\n       at {}", short_name(file));
                for number in [symbol.line(), symbol.column()].into_iter().flatten() {
                    let _ = write!(message, ":{number}");
                }
                if let (true, Some(name)) = (symbols.len() > 1, symbol.name()) {
                    let _ = write!(message, " in {}", language_name(name));
                }
            }
        }
    }
    if frames.len() > frames_max {
        let _ = write!(message, "\n  … {} more, in the log", frames.len() - frames_max);
    }
    message
}

/// The table of handles is full; no other of its errors comes from what a guest does.
fn too_many_handles() -> String {
    let most = HANDLES_MAX / 1_000;
    format!(
        "ended, for it has {most},000 open files, streams and sockets: close those that are done with"
    )
}

fn function_name(frame: &FrameInfo) -> String {
    match frame.func_name() {
        Some(name) => language_name(name),
        None => format!("<function {}>", frame.func_index()),
    }
}

/// A function's name as its language has it, not as its linker does.
fn language_name(name: &str) -> String {
    short_name(&format!("{:#}", rustc_demangle::demangle(name))).to_owned()
}

/// Names as the producer wrote them, without what a very long one would do to a table.
fn short_name(name: &str) -> &str {
    const NAME_BYTES_MAX: usize = 200;
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Cuts a message to a length in bytes of JSON, and takes out what would do something to a terminal: guests choose the names of
/// their functions and imports.
pub(crate) fn cut(message: &str, json_bytes_max: usize) -> String {
    let mut kept = String::new();
    let mut room = json_bytes_max.saturating_sub('…'.len_utf8());
    for character in message.chars() {
        let (character, json_bytes) = match character {
            '\n' | '\t' | '"' | '\\' => (character, 2),
            other if other.is_control() => ('\u{fffd}', '\u{fffd}'.len_utf8()),
            other => (other, other.len_utf8()),
        };
        let Some(rest) = room.checked_sub(json_bytes) else {
            kept.push('…');
            break;
        };
        room = rest;
        kept.push(character);
    }
    kept
}

#[cfg(test)]
mod tests {
    use brig_api::Bytes;

    use super::*;

    #[test]
    fn what_happens_to_a_guest_has_a_code_and_a_reason() {
        let exceeded = MemoryExceeded { wanted: Bytes(65 << 20), limit: Bytes(64 << 20) };
        for (error, code, reason) in [
            (wasmtime::Error::new(I32Exit(0)), 0, None),
            (wasmtime::Error::new(I32Exit(3)), 3, Some(Reason::ExitedNonZero)),
            (wasmtime::Error::new(exceeded), 137, Some(Reason::OutOfMemory)),
            (Trap::UnreachableCodeReached.into(), 1, Some(Reason::Trapped)),
        ] {
            let outcome = Outcome::of_error(&error.context("somewhere"));
            assert_eq!((outcome.code, outcome.reason), (code, reason));
        }
        let outcome = Outcome::of_instantiation_error(&wasmtime::Error::new(exceeded));
        assert_eq!(outcome.reason, Some(Reason::LimitTooSmall));
        let message = outcome.message.unwrap();
        assert!(message.contains("65Mi") && message.contains("64Mi"), "{message}");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = cut(&"ü".repeat(300), 301);
        assert!(message.len() <= 301 && message.ends_with('…'));
        assert_eq!(cut("short", 301), "short");
    }

    #[test]
    fn messages_hold_nothing_for_a_terminal() {
        let message =
            cut("trapped: \"x\"\n  0: shop!\u{1b}]0;owned\u{7}\u{9b}2J", MESSAGE_BYTES_MAX);
        assert_eq!(message, "trapped: \"x\"\n  0: shop!\u{fffd}]0;owned\u{fffd}\u{fffd}2J");
    }
}
