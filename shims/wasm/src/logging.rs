//! `wasi:logging`: a message with its level is a line of the task's log, on standard error.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker};

use crate::host::ComponentHost;

/// The names by which programs import it.
const INTERFACES: [&str; 2] = ["wasi:logging/logging", "wasi:logging/logging@0.1.0-draft"];
/// Longest message; what is beyond is cut off.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest context.
const CONTEXT_BYTES_MAX: usize = 256;

/// Is this one of the names?
pub(crate) fn is_provided(import: &str) -> bool {
    INTERFACES.contains(&import)
}

#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[expect(dead_code, reason = "guests make them")]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

/// Adds the interface under each of its names.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    for interface in INTERFACES {
        linker.instance(interface)?.func_wrap(
            "log",
            |host: StoreContextMut<'_, ComponentHost>,
             (level, context, message): (Level, String, String)| {
                host.data().write_to_log(line(level, &context, &message).as_bytes());
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// `LEVEL context: message`. Further lines of a message are indented, so that none looks like another message.
fn line(level: Level, context: &str, message: &str) -> String {
    let (context, message) = (cut(context, CONTEXT_BYTES_MAX), cut(message, MESSAGE_BYTES_MAX));
    let separator = if context.is_empty() { "" } else { ": " };
    let text = format!("{context}{separator}{message}").replace('\n', "\n  ");
    format!("{} {text}\n", level.as_str())
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_from_others_and_bounded() {
        assert_eq!(line(Level::Warn, "shop", "two\nINFO lines"), "WARN shop: two\n  INFO lines\n");
        assert_eq!(line(Level::Info, "", "plain"), "INFO plain\n");
        let long = line(Level::Error, &"ü".repeat(1 << 20), &"ü".repeat(1 << 20));
        assert!(long.len() < MESSAGE_BYTES_MAX + CONTEXT_BYTES_MAX + 16);
    }
}
