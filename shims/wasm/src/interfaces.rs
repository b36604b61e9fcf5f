//! What a program exports and imports, in words: to tell its kind, and to name what is missing.

use std::collections::BTreeSet;

use brig_api::checkpoint::INTERFACE;
use brig_api::lifecycle::Reason;
use wasmparser::{Parser, Payload};
use wasmtime::component::Component;
use wasmtime::{Engine, Linker, Module, Store};

use crate::host::CoreHost;
use crate::outcome::{Refusal, refusal};
use crate::{keyvalue, logging};

/// The interfaces that components may import of WASI 0.2 and of 0.3.
const PROVIDED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
];
/// Those of 0.2 alone.
const PROVIDED_BEFORE: &[&str] = &[
    "wasi:clocks/wall-clock",
    "wasi:http/outgoing-handler",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:sockets/instance-network",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];
/// Those of 0.3 alone.
const PROVIDED_ASYNC: &[&str] = &[
    "wasi:cli/types",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:http/client",
    "wasi:sockets/types",
];
/// The configuration of a component, in the one version that is provided.
const CONFIG: &str = "wasi:config/store@0.2.0-rc.1";
/// How versions of WASI 0.2 begin.
const VERSION: &str = "0.2.";
/// How versions of WASI 0.3 begin.
const VERSION_ASYNC: &str = "0.3.";

/// Most names in a message. A module may have a million imports, and messages are short.
const NAMES_MAX: usize = 20;

/// What a component exports, as far as it decides how it is run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Exports {
    /// `wasi:http/incoming-handler@0.2.x`
    pub(crate) has_http: bool,
    /// `wasi:http/handler@0.3.x`
    pub(crate) has_async_http: bool,
    /// `wasi:cli/run@0.2.x`
    pub(crate) has_command: bool,
    /// `wasi:cli/run@0.3.x`
    pub(crate) has_async_command: bool,
    /// Everything, for messages.
    names: Vec<String>,
}

impl Exports {
    /// Those of a component.
    pub(crate) fn of(engine: &Engine, component: &Component) -> Self {
        let exported = component.component_type();
        Self::of_names(exported.exports(engine).map(|(name, _)| name.to_owned()).collect())
    }

    fn of_names(names: Vec<String>) -> Self {
        let has = |interface: &str, wanted: &str| {
            names.iter().any(|name| {
                name.strip_prefix(interface)
                    .and_then(|rest| rest.strip_prefix('@'))
                    .is_some_and(|version| version.starts_with(wanted))
            })
        };
        Self {
            has_http: has("wasi:http/incoming-handler", VERSION),
            has_async_http: has("wasi:http/handler", VERSION_ASYNC),
            has_command: has("wasi:cli/run", VERSION),
            has_async_command: has("wasi:cli/run", VERSION_ASYNC),
            names,
        }
    }

    /// Is there anything to run?
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let has_http = self.has_http || self.has_async_http;
        if has_http || self.has_command || self.has_async_command {
            return Ok(());
        }
        let exports =
            if self.names.is_empty() { "nothing".to_owned() } else { self.names.join(", ") };
        Err(refusal(
            Reason::InvalidArtifact,
            format!(
                "the component is no program: it exports {exports}, expected wasi:cli/run of WASI 0.2 or 0.3, \
                 wasi:http/incoming-handler of 0.2, or wasi:http/handler of 0.3; build it as a command or an http \
                 service"
            ),
        ))
    }
}

/// Names every import of a component that nothing provides; None when none is missing.
pub(crate) fn missing_component_imports(engine: &Engine, component: &Component) -> Option<Refusal> {
    let imported = component.component_type();
    let names = imported.imports(engine).map(|(name, _)| name.to_owned());
    missing(names.filter(|name| !is_provided(name)))
}

fn is_provided(import: &str) -> bool {
    let is_wasi = import.split_once('@').is_some_and(|(interface, version)| {
        let is_in = |alone: &[&str]| PROVIDED.contains(&interface) || alone.contains(&interface);
        (version.starts_with(VERSION) && is_in(PROVIDED_BEFORE))
            || (version.starts_with(VERSION_ASYNC) && is_in(PROVIDED_ASYNC))
    });
    is_wasi
        || import == CONFIG
        || import == INTERFACE
        || keyvalue::is_provided(import)
        || logging::is_provided(import)
}

/// Does a component keep something?
pub(crate) fn imports_keyvalue(engine: &Engine, component: &Component) -> bool {
    component.component_type().imports(engine).any(|(name, _)| keyvalue::is_provided(name))
}

/// Does a component, or a part of it, import or export anything of WASI 0.3? What can't be read is told by the
/// compiler.
pub(crate) fn speaks_wasi_0_3(component: &[u8]) -> bool {
    let is_async = |name: &str| {
        let version = name.strip_prefix("wasi:").and_then(|name| name.split_once('@'));
        version.is_some_and(|(_, version)| version.starts_with(VERSION_ASYNC))
    };
    Parser::new(0).parse_all(component).map_while(Result::ok).any(|payload| match payload {
        Payload::ComponentImportSection(imports) => {
            imports.into_iter().flatten().any(|import| is_async(import.name.name))
        }
        Payload::ComponentExportSection(exports) => {
            exports.into_iter().flatten().any(|export| is_async(export.name.name))
        }
        _ => false,
    })
}

/// Names every import of a module that nothing provides; None when none is missing.
pub(crate) fn missing_core_imports(
    engine: &Engine,
    linker: &Linker<CoreHost>,
    module: &Module,
) -> Option<Refusal> {
    let mut store = Store::new(engine, CoreHost::empty());
    let names = module
        .imports()
        .filter(|import| linker.get(&mut store, import.module(), import.name()).is_err())
        .map(|import| format!("{}.{}", import.module(), import.name()));
    missing(names)
}

fn missing(names: impl Iterator<Item = String>) -> Option<Refusal> {
    let mut named = BTreeSet::new();
    for name in names {
        let name = format!("`{name}`");
        if named.len() == NAMES_MAX && !named.contains(&name) {
            named.insert("…".to_owned());
            break;
        }
        named.insert(name);
    }
    if named.is_empty() {
        return None;
    }
    let message = format!(
        "it imports {}, which nothing provides: a wasm unit gets WASI preview 1 (modules), or WASI 0.2 and 0.3 with \
         wasi:http, wasi:config, wasi:keyvalue, wasi:logging and brig:unit/checkpoint (components; docs/wasm.md has \
         the versions). Build it for wasm32-wasip1 or wasm32-wasip2 without that import",
        named.into_iter().collect::<Vec<_>>().join(", ")
    );
    Some(refusal(Reason::ImportNotGranted, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(names: &[&str]) -> Exports {
        Exports::of_names(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_component_is_told_by_what_it_exports() {
        assert!(exports(&["wasi:cli/run@0.2.3"]).has_command);
        let newer = exports(&["wasi:cli/run@0.3.0"]);
        assert!(newer.has_async_command && !newer.has_command);
        assert!(exports(&["wasi:http/incoming-handler@0.2.0"]).has_http);
        assert!(exports(&["wasi:http/handler@0.3.2"]).has_async_http);
        for (names, says) in [
            (&[][..], "nothing"),
            (&["wasi:http/handler@0.4.0"], "wasi:http/handler@0.4.0"),
            (&["team:lib/math"], "team:lib/math"),
        ] {
            let refusal = exports(names).check().unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidArtifact);
            assert!(refusal.message.contains(says), "{refusal}");
        }
    }

    #[test]
    fn of_many_missing_imports_some_are_named() {
        assert_eq!(missing(std::iter::empty()), None);
        let two = missing(["b", "a", "b"].map(str::to_owned).into_iter()).unwrap();
        assert!(two.message.contains("it imports `a`, `b`, which"), "{two}");
        let many = missing((0..).map(|index| format!("env.{index}"))).unwrap();
        assert!(many.message.contains("`env.9`, …, which"), "{many}");
    }

    #[test]
    fn imports_are_known_by_interface_and_version() {
        assert!(is_provided("wasi:cli/stdout@0.2.6") && is_provided("wasi:http/types@0.2.0"));
        assert!(is_provided("wasi:http/client@0.3.0") && !is_provided("wasi:http/client@0.2.0"));
        assert!(is_provided("wasi:config/store@0.2.0-rc.1") && is_provided("wasi:logging/logging"));
        assert!(is_provided("brig:unit/checkpoint@0.1.0"));
        for other in [
            "wasi:cli/stdout@0.4.0",
            "wasi:cli/stdout",
            "brig:unit/checkpoint@0.2.0",
            "x:y/z@0.2.0",
        ] {
            assert!(!is_provided(other), "{other}");
        }
    }
}
