//! What a wasm file is, what it needs, and whether that can run here. The crate `brig-wasm` finds it in a file's
//! bytes; it is stored with the artifact, and a unit is admitted by it.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Bytes;
use crate::unit_spec::is_default;

/// Most imports, and most exports, that are kept; more are only counted.
pub const NAMES_MAX: usize = 1_000;
/// Longest name that is kept whole, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Most bytes of all imports, and of all exports, that are kept: facts lie in the database and travel in the feed.
pub const NAMES_BYTES_MAX: usize = 32 << 10;
/// Most languages, and most tools, that are kept.
pub const PRODUCERS_MAX: usize = 16;
/// Most names in a message.
const NAMES_TOLD_MAX: usize = 20;

/// Packages that components may find here, each with its versions; of those without a version any will do. The node
/// that links a program has the last word, on the interface: this is for what no node has, whatever its age. Modules
/// find [`PREVIEW1`].
const PROVIDED: &[(&str, &[&str])] = &[
    ("brig:unit", &["0.1"]),
    ("wasi:cli", &["0.2", "0.3"]),
    ("wasi:clocks", &["0.2", "0.3"]),
    ("wasi:config", &[]),
    ("wasi:filesystem", &["0.2", "0.3"]),
    ("wasi:http", &["0.2", "0.3"]),
    ("wasi:io", &["0.2"]),
    ("wasi:keyvalue", &[]),
    ("wasi:logging", &[]),
    ("wasi:random", &["0.2", "0.3"]),
    ("wasi:sockets", &["0.2", "0.3"]),
];
/// What a running program takes of its host besides its memories and tables, as it is charged: the touched part of its stack,
/// its handles and the buffers of its streams. The runtime does not tell, so that every one is charged the same; idle ones
/// were measured at 23 to 50 KiB.
pub const GUEST_BYTES: u64 = 64 << 10;
/// The module that core modules import WASI from.
pub const PREVIEW1: &str = "wasi_snapshot_preview1";

/// The two forms of a wasm binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WasmForm {
    /// A core module.
    Module,
    /// A component.
    Component,
}

/// What a wasm file is, by what it exports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum WasmKind {
    /// A core module with `_start`, for WASI preview 1.
    CommandP1,
    /// A component with `wasi:cli/run@0.2`.
    CommandP2,
    /// A component with `wasi:cli/run@0.3`, and none of 0.2.
    CommandP3,
    /// A component with `wasi:http/incoming-handler@0.2`.
    HttpP2,
    /// A component with `wasi:http/handler@0.3`, and no handler of 0.2.
    HttpP3,
    /// It exports nothing that is run: other programs use it.
    Library,
    /// It is wasm, but what it exports could not be found out.
    Unknown,
}

impl WasmKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::CommandP1,
        Self::CommandP2,
        Self::CommandP3,
        Self::HttpP2,
        Self::HttpP3,
        Self::Library,
        Self::Unknown,
    ];

    /// `command-p1` and so on, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CommandP1 => "command-p1",
            Self::CommandP2 => "command-p2",
            Self::CommandP3 => "command-p3",
            Self::HttpP2 => "http-p2",
            Self::HttpP3 => "http-p3",
            Self::Library => "library",
            Self::Unknown => "unknown",
        }
    }

    /// For people: `http service, WASI 0.2`.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::CommandP1 => "command, WASI preview 1",
            Self::CommandP2 => "command, WASI 0.2",
            Self::CommandP3 => "command, WASI 0.3",
            Self::HttpP2 => "http service, WASI 0.2",
            Self::HttpP3 => "http service, WASI 0.3",
            Self::Library => "library",
            Self::Unknown => "unknown",
        }
    }

    /// Does it serve requests?
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::HttpP2 | Self::HttpP3)
    }
}

/// What a program can ask of its host, by the interfaces that it imports. That it may ask says nothing of whether it
/// is granted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Files and directories.
    Filesystem,
    /// Sockets and name look-ups.
    Sockets,
    /// Outgoing HTTP requests.
    OutgoingHttp,
    /// Environment variables and arguments.
    Environment,
    /// Clocks and timers.
    Clocks,
    /// Random numbers.
    Random,
    /// `wasi:config`
    Config,
    /// `wasi:keyvalue`
    KeyValue,
    /// `wasi:logging`
    Logging,
    /// `brig:unit/checkpoint`
    Checkpoint,
}

impl Capability {
    /// For people: `outgoing HTTP`.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Filesystem => "files",
            Self::Sockets => "sockets",
            Self::OutgoingHttp => "outgoing HTTP",
            Self::Environment => "environment",
            Self::Clocks => "clocks",
            Self::Random => "random numbers",
            Self::Config => "wasi:config",
            Self::KeyValue => "wasi:keyvalue",
            Self::Logging => "wasi:logging",
            Self::Checkpoint => "brig:unit/checkpoint",
        }
    }
}

/// The linear memories of a program, all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WasmMemory {
    /// How many there are.
    pub count: u32,
    /// Bytes that they have when the program starts.
    pub initial_bytes: u64,
    /// Bytes that they can grow to; None when one of them has no maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_bytes: Option<u64>,
}

/// What a wasm file is and needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WasmFacts {
    /// Module or component.
    pub form: WasmForm,
    /// What it is.
    pub kind: WasmKind,
    /// The memory that it has.
    pub memory: WasmMemory,
    /// What it can ask of its host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: BTreeSet<Capability>,
    /// Imports that belong to no interface known here, in the form of `imports`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub foreign: Vec<String>,
    /// What it imports: of a module `MODULE.NAME`, of a component the interface, such as `wasi:cli/stdout@0.2.3`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub imports: Vec<String>,
    /// What it exports.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exports: Vec<String>,
    /// Imports and exports that there are besides those named.
    #[serde(default, skip_serializing_if = "is_default")]
    pub names_left_out: u32,
    /// Languages that it was written in, as its tools say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub languages: Vec<String>,
    /// Tools that made it, with their versions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tools: Vec<String>,
}

/// Why a program can't run as it is asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// There is nothing to start.
    #[error(
        "it is a library: {0}. Build it as a program: a module with `_start`, or a component that exports wasi:cli/run or a handler of wasi:http"
    )]
    Library(String),
    /// It wants what no node has.
    #[error(
        "it imports {0}, which nothing provides: a wasm unit finds WASI and `brig:unit/checkpoint`, and nothing else. Build it without that import"
    )]
    NotProvided(String),
    /// It serves requests, and nobody asked it to.
    #[error(
        "it is an http service (it exports a handler of wasi:http): write `http: {{}}` beside `artifact`, or deploy it with --http"
    )]
    NeedsHttp,
    /// It was asked to serve requests, and can't.
    #[error(
        "`http` was asked for, but it is no http service ({0}): leave `http` out, or build a component that exports wasi:http/incoming-handler or wasi:http/handler"
    )]
    NoHttp(&'static str),
    /// It begins larger than it may become.
    #[error(
        "its memory begins at {begins}, its limit is {limit}: raise the memory limit to {} or more ({} are for what it \
         takes of its host)",
        Bytes(begins.0.saturating_add(GUEST_BYTES)),
        Bytes(GUEST_BYTES)
    )]
    Memory {
        /// What it begins with.
        begins: Bytes,
        /// What it may have.
        limit: Bytes,
    },
}

impl WasmFacts {
    /// Everything that keeps the program from running here, asked to serve `http` or not, with so much memory at most.
    /// What is not known keeps nothing from running: the node that starts it looks again.
    #[must_use]
    pub fn misfits(&self, has_http: bool, memory_limit: Bytes) -> Vec<Misfit> {
        let mut found = Vec::new();
        match self.kind {
            WasmKind::Library => found.push(Misfit::Library(self.exports_told())),
            WasmKind::Unknown => {}
            kind if kind.is_http() && !has_http => found.push(Misfit::NeedsHttp),
            kind if !kind.is_http() && has_http => found.push(Misfit::NoHttp(kind.words())),
            _ => {}
        }
        let missing = self.not_provided();
        if !missing.is_empty() {
            found.push(Misfit::NotProvided(told(missing.iter().copied())));
        }
        let begins = Bytes(self.memory.initial_bytes);
        if begins.0.saturating_add(GUEST_BYTES) > memory_limit.0 {
            found.push(Misfit::Memory { begins, limit: memory_limit });
        }
        found
    }

    /// The imports that no node has, of those that are kept.
    #[must_use]
    pub fn not_provided(&self) -> Vec<&str> {
        let is_missing = |name: &&str| !is_provided(self.form, name);
        self.imports.iter().map(String::as_str).filter(is_missing).collect()
    }

    fn exports_told(&self) -> String {
        if self.exports.is_empty() {
            return "it exports nothing".to_owned();
        }
        format!("it exports {}", told(self.exports.iter().map(String::as_str)))
    }
}

/// Does a program of this form find this import here?
#[must_use]
pub fn is_provided(form: WasmForm, import: &str) -> bool {
    match form {
        WasmForm::Module => import.strip_prefix(PREVIEW1).is_some_and(|rest| rest.starts_with('.')),
        WasmForm::Component => {
            let (interface, version) = import.split_once('@').unwrap_or((import, ""));
            let Some((package, _)) = interface.split_once('/') else { return false };
            let Some((_, versions)) = PROVIDED.iter().find(|(name, _)| *name == package) else {
                return false;
            };
            let is_of = |known: &&str| {
                let rest = version.strip_prefix(known);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            versions.is_empty() || versions.iter().any(is_of)
        }
    }
}

/// Some of these names, for a message.
fn told<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let mut told: Vec<String> =
        names.iter().take(NAMES_TOLD_MAX).map(|name| format!("`{name}`")).collect();
    if names.len() > NAMES_TOLD_MAX {
        told.push(format!("… ({} in all)", names.len()));
    }
    told.join(", ")
}

/// `files, clocks, outgoing HTTP`
#[must_use]
pub fn capabilities_told(capabilities: &BTreeSet<Capability>) -> String {
    capabilities.iter().map(|capability| capability.words()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for WasmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: WasmKind, imports: &[&str], initial_bytes: u64) -> WasmFacts {
        let form = if kind == WasmKind::CommandP1 { WasmForm::Module } else { WasmForm::Component };
        WasmFacts {
            form,
            kind,
            memory: WasmMemory { count: 1, initial_bytes, maximum_bytes: None },
            capabilities: BTreeSet::new(),
            foreign: vec![],
            imports: imports.iter().map(|name| (*name).to_owned()).collect(),
            exports: vec![],
            names_left_out: 0,
            languages: vec![],
            tools: vec![],
        }
    }

    #[test]
    fn what_can_not_run_is_told_with_the_way_out() {
        use WasmKind::*;
        let limit = Bytes(1 << 20);
        let told = |facts: WasmFacts, has_http| -> Vec<String> {
            facts.misfits(has_http, limit).iter().map(ToString::to_string).collect()
        };
        for (facts, has_http, says) in [
            (facts(Library, &[], 0), false, "library"),
            (facts(HttpP2, &[], 0), false, "`http: {}`"),
            (facts(HttpP3, &[], 0), false, "`http: {}`"),
            (facts(CommandP2, &[], 0), true, "command, WASI 0.2"),
            (facts(CommandP1, &["env.log"], 0), false, "`env.log`"),
            (facts(CommandP2, &["wasi:nn/graph@0.2.0"], 0), false, "wasi:nn/graph"),
            (facts(CommandP1, &[], 2 << 20), false, "begins at 2Mi, its limit is 1Mi"),
            (facts(CommandP1, &[], 1 << 20), false, "to 1088Ki or more (64Ki are"),
        ] {
            let told = told(facts, has_http);
            assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
        }
        assert_eq!(told(facts(Library, &["a:b/c@1.0.0"], 2 << 20), false).len(), 3);
    }

    #[test]
    fn what_runs_or_is_not_known_is_let_through() {
        use WasmKind::*;
        for (facts, has_http) in [
            (facts(CommandP1, &["wasi_snapshot_preview1.fd_write"], 1 << 20), false),
            (facts(CommandP2, &["wasi:cli/stdout@0.2.6"], 0), false),
            (facts(HttpP2, &["wasi:http/types@0.2.0"], 0), true),
            (facts(HttpP3, &["wasi:http/types@0.3.0"], 0), true),
            (facts(Unknown, &[], 0), false),
            (facts(Unknown, &[], 0), true),
        ] {
            assert_eq!(facts.misfits(has_http, Bytes((1 << 20) + GUEST_BYTES)), []);
        }
    }

    #[test]
    fn imports_are_known_by_package_and_version() {
        for (import, is_there) in [
            ("wasi:cli/stdout@0.2.6", true),
            ("wasi:cli/stdout@0.3.0", true),
            ("wasi:io/streams@0.3.0", false),
            ("wasi:logging/logging", true),
            ("brig:unit/checkpoint@0.1.0", true),
            ("brig:unit/checkpoint@0.2.0", false),
            ("brig:unit/checkpoint", false),
            ("wasi:keyvalue/store@0.2.0-draft", true),
            ("wasi:nn/graph@0.2.0", false),
            ("wasi:cli/stdout@0.20.0", false),
            ("wasi:cli/stdout", false),
            ("wasi:client/x@0.2.0", false),
            ("wasi:cli@0.2.0", false),
            ("x", false),
        ] {
            assert_eq!(is_provided(WasmForm::Component, import), is_there, "{import}");
        }
        assert!(!is_provided(WasmForm::Module, "wasi_snapshot_preview1x.y"));
    }

    #[test]
    fn kinds_have_the_same_name_in_json() {
        for kind in WasmKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
