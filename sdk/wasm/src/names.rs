//! Names of imports and exports: as many as are kept, and what all of them mean.

use std::collections::BTreeSet;

use brig_api::wasm::{
    Capability, NAME_BYTES_MAX, NAMES_BYTES_MAX, NAMES_MAX, PREVIEW1, PRODUCERS_MAX, WasmForm,
    WasmKind,
};

/// What core modules of an older WASI import from. It is WASI, though nothing provides it.
const PREVIEW0: &str = "wasi_unstable";

/// A list with an end.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) kept: Vec<String>,
    pub(crate) left_out: u32,
    bytes: usize,
}

impl Names {
    /// Keeps a name, or counts it.
    pub(crate) fn add(&mut self, name: &str) {
        if self.kept.len() >= NAMES_MAX || self.bytes >= NAMES_BYTES_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        let name = shown(name);
        self.bytes += name.len();
        self.kept.push(name);
    }
}

/// Everything about the outermost imports and exports, and about who made the file.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) imports: Names,
    pub(crate) exports: Names,
    pub(crate) foreign: Names,
    pub(crate) capabilities: BTreeSet<Capability>,
    pub(crate) languages: Vec<String>,
    pub(crate) tools: Vec<String>,
    runs: BTreeSet<WasmKind>,
}

impl Seen {
    /// An import of a core module.
    pub(crate) fn module_import(&mut self, module: &str, name: &str) {
        let full = format!("{module}.{name}");
        if module == PREVIEW1 || module == PREVIEW0 {
            self.capabilities.extend(preview1_capability(name));
        } else {
            self.foreign.add(&full);
        }
        self.imports.add(&full);
    }

    /// An import of a component.
    pub(crate) fn component_import(&mut self, name: &str) {
        match component_capability(name) {
            Known::Needs(capability) => {
                self.capabilities.insert(capability);
            }
            Known::NeedsNothing => {}
            Known::Foreign => self.foreign.add(name),
        }
        self.imports.add(name);
    }

    /// An export; `is_function` matters for modules.
    pub(crate) fn export(&mut self, form: WasmForm, name: &str, is_function: bool) {
        let runs = match form {
            WasmForm::Module => (is_function && name == "_start").then_some(WasmKind::CommandP1),
            WasmForm::Component => runnable(name),
        };
        self.runs.extend(runs);
        self.exports.add(name);
    }

    /// A language or tool.
    pub(crate) fn producer(&mut self, is_language: bool, name: &str, version: &str) {
        let list = if is_language { &mut self.languages } else { &mut self.tools };
        let text = shown(format!("{name} {version}").trim());
        if list.len() < PRODUCERS_MAX && !list.contains(&text) {
            list.push(text);
        }
    }

    /// What it is. Of several things it is a service before a command. Of two versions of a service the older one runs, which
    /// runs in more places. Of a command the newer one: tool chains export the `main` of every program as a command of 0.2,
    /// and in one that was written for 0.3 that is a stub which ends in a trap.
    pub(crate) fn kind(&self) -> WasmKind {
        use WasmKind::{CommandP1, CommandP2, CommandP3, HttpP2, HttpP3, Library};
        let order = [HttpP2, HttpP3, CommandP1, CommandP3, CommandP2];
        order.into_iter().find(|kind| self.runs.contains(kind)).unwrap_or(Library)
    }
}

/// What running a component by this export would make of it.
fn runnable(name: &str) -> Option<WasmKind> {
    let (interface, version) = name.split_once('@')?;
    let (is_p2, is_p3) = (version.starts_with("0.2."), version.starts_with("0.3."));
    match interface {
        "wasi:cli/run" if is_p2 => Some(WasmKind::CommandP2),
        "wasi:cli/run" if is_p3 => Some(WasmKind::CommandP3),
        "wasi:http/incoming-handler" if is_p2 => Some(WasmKind::HttpP2),
        "wasi:http/handler" if is_p3 => Some(WasmKind::HttpP3),
        _ => None,
    }
}

enum Known {
    Needs(Capability),
    NeedsNothing,
    Foreign,
}

/// By the interface's name, whatever its version.
fn component_capability(name: &str) -> Known {
    let interface = name.split('@').next().unwrap_or(name);
    let Some((package, interface)) = interface.split_once('/') else { return Known::Foreign };
    match (package, interface) {
        ("wasi:filesystem", _) => Known::Needs(Capability::Filesystem),
        ("wasi:sockets", _) => Known::Needs(Capability::Sockets),
        ("wasi:http", "outgoing-handler" | "client" | "handler") => {
            Known::Needs(Capability::OutgoingHttp)
        }
        ("wasi:cli", "environment") => Known::Needs(Capability::Environment),
        ("wasi:clocks", _) => Known::Needs(Capability::Clocks),
        ("wasi:random", _) => Known::Needs(Capability::Random),
        ("wasi:config", _) => Known::Needs(Capability::Config),
        ("wasi:keyvalue", _) => Known::Needs(Capability::KeyValue),
        ("wasi:logging", _) => Known::Needs(Capability::Logging),
        ("brig:unit", "checkpoint") => Known::Needs(Capability::Checkpoint),
        ("wasi:cli" | "wasi:http" | "wasi:io", _) => Known::NeedsNothing,
        _ => Known::Foreign,
    }
}

/// What a function of preview 1 is for, where it is for more than the streams and arguments that each program has.
fn preview1_capability(name: &str) -> Option<Capability> {
    match name {
        "fd_prestat_get" | "fd_prestat_dir_name" | "fd_readdir" => Some(Capability::Filesystem),
        _ if name.starts_with("path_") => Some(Capability::Filesystem),
        _ if name.starts_with("sock_") => Some(Capability::Sockets),
        _ if name.starts_with("environ_") => Some(Capability::Environment),
        _ if name.starts_with("clock_") => Some(Capability::Clocks),
        "poll_oneoff" => Some(Capability::Clocks),
        "random_get" => Some(Capability::Random),
        _ => None,
    }
}

/// A name as it is kept: not too long, and without characters that a terminal or a database would take amiss.
fn shown(name: &str) -> String {
    let mut kept = String::new();
    for c in name.chars() {
        if kept.len() + c.len_utf8() > NAME_BYTES_MAX {
            kept.push('…');
            break;
        }
        kept.push(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    }
    kept
}
