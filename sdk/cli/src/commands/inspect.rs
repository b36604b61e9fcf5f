//! `inspect`: what a wasm program is, what it needs, and whether it can run.

use std::fs::File;
use std::path::Path;

use brig_api::Bytes;
use brig_api::object::Artifact;
use brig_api::reference::Reference;
use brig_api::wasm::{WasmFacts, WasmForm, WasmMemory, capabilities_told};
use serde::Serialize;

use crate::arguments::{Inspect, Output};
use crate::artifact::find;
use crate::failure::{FAILED, Failure, NOT_FOUND};
use crate::output::{json, print, printable, size, yaml};

use super::Session;

/// Imports, and exports, that the table names; `-o json` has more.
const NAMES_SHOWN_MAX: usize = 40;

/// What was looked into.
#[derive(Debug, Serialize)]
struct Inspected {
    name: String,
    /// Of an artifact of the registry, with the layers' and the manifest's bytes in `size_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    size_bytes: u64,
    /// Can it run as a unit?
    runs: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    misfits: Vec<String>,
    #[serde(flatten)]
    wasm: WasmFacts,
}

impl Inspected {
    fn new(name: &str, digest: Option<String>, size_bytes: u64, wasm: WasmFacts) -> Self {
        // As it would be asked to run, with as much memory as it wants.
        let misfits = wasm.misfits(wasm.kind.is_http(), Bytes(u64::MAX));
        Self {
            name: name.to_owned(),
            digest,
            size_bytes,
            runs: misfits.is_empty(),
            misfits: misfits.iter().map(ToString::to_string).collect(),
            wasm,
        }
    }
}

pub(crate) async fn inspect(session: &Session<'_>, arguments: &Inspect) -> Result<(), Failure> {
    let path = Path::new(&arguments.artifact);
    let inspected =
        if path.exists() { file(path)? } else { artifact(session, &arguments.artifact).await? };
    match arguments.output {
        Output::Json => print(&json(&inspected)?),
        Output::Yaml => print(&yaml(&inspected)?),
        Output::Name => print(&format!("{}\n", inspected.wasm.kind)),
        Output::Table | Output::Wide => print(&text(&inspected)),
    }
}

fn file(path: &Path) -> Result<Inspected, Failure> {
    let name = path.display().to_string();
    if path.is_dir() {
        let message = format!("{name} is a directory: inspect looks into a .wasm file");
        return Err(Failure::usage(message));
    }
    let failed = |why: &dyn std::fmt::Display| Failure::new(FAILED, format!("{name}: {why}"));
    let file = File::open(path).map_err(|error| failed(&error))?;
    let size_bytes = file.metadata()?.len();
    let wasm = brig_wasm::inspect(file).map_err(|error| failed(&error))?;
    Ok(Inspected::new(&name, None, size_bytes, wasm))
}

async fn artifact(session: &Session<'_>, name: &str) -> Result<Inspected, Failure> {
    let reference: Reference = name.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    if reference.registry.is_some() {
        let message = format!(
            "`{name}` is in another registry: download it first (brig pull {name} FILE), then inspect the file"
        );
        return Err(Failure::usage(message));
    }
    let Some(Artifact { digest, size_bytes, wasm, kind, .. }) =
        find(&session.client, &reference).await?
    else {
        let message = format!("no tag of the registry names `{name}`: see `brig images`");
        return Err(Failure::new(NOT_FOUND, message));
    };
    let wasm = wasm.ok_or_else(|| {
        let kind = kind.as_str();
        let message = format!(
            "nothing is known of what `{name}` needs: it is of kind `{kind}`, or no valid wasm, or was pushed to an older server (then push it again)"
        );
        Failure::new(FAILED, message)
    })?;
    Ok(Inspected::new(name, Some(digest.to_string()), size_bytes, wasm))
}

fn text(inspected: &Inspected) -> String {
    let Inspected { wasm, .. } = inspected;
    let form = match wasm.form {
        WasmForm::Module => "core module",
        WasmForm::Component => "component",
    };
    let mut lines = Lines::default();
    lines.add("NAME", &inspected.name);
    lines.add("KIND", &format!("{} ({form})", wasm.kind.words()));
    if let Some(digest) = &inspected.digest {
        lines.add("DIGEST", digest);
    }
    lines.add("SIZE", &size(inspected.size_bytes));
    lines.add("MEMORY", &memory(wasm.memory));
    lines.add("CAN ASK FOR", &or_nothing(&capabilities_told(&wasm.capabilities)));
    if !wasm.foreign.is_empty() {
        lines.list("FOREIGN", &wasm.foreign);
    }
    lines.add("LANGUAGE", &wasm.languages.join(", "));
    lines.add("MADE BY", &wasm.tools.join(", "));
    if inspected.runs {
        lines.add("RUNS", if wasm.kind.is_http() { "yes, with --http" } else { "yes" });
    }
    for misfit in &inspected.misfits {
        lines.add("RUNS", &format!("no: {misfit}"));
    }
    lines.list("IMPORTS", &wasm.imports);
    lines.list("EXPORTS", &wasm.exports);
    if wasm.names_left_out > 0 {
        lines.add("", &format!("… and {} more imports and exports", wasm.names_left_out));
    }
    lines.0
}

fn memory(memory: WasmMemory) -> String {
    let start = size(memory.initial_bytes);
    let most = memory.maximum_bytes.map_or_else(
        || "as much as its limit allows".to_owned(),
        |bytes| format!("{} at most", size(bytes)),
    );
    match memory.count {
        0 => "none".to_owned(),
        1 => format!("{start} at start, {most}"),
        count => format!("{start} at start in {count} memories, {most}"),
    }
}

fn or_nothing(text: &str) -> String {
    if text.is_empty() { "nothing".to_owned() } else { text.to_owned() }
}

/// Lines of a heading and a text, one below the other.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, heading: &str, text: &str) {
        if !text.is_empty() {
            self.0.push_str(&format!("{heading:<13}{}\n", printable(text)));
        }
    }

    fn list(&mut self, heading: &str, names: &[String]) {
        for (index, name) in names.iter().take(NAMES_SHOWN_MAX).enumerate() {
            self.add(if index == 0 { heading } else { "" }, name);
        }
        if names.len() > NAMES_SHOWN_MAX {
            self.add("", &format!("… {} in all: see -o json", names.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::wasm::{Capability, WasmKind};

    fn facts() -> WasmFacts {
        WasmFacts {
            form: WasmForm::Component,
            kind: WasmKind::HttpP2,
            memory: WasmMemory { count: 1, initial_bytes: 1 << 20, maximum_bytes: None },
            capabilities: [Capability::Clocks, Capability::OutgoingHttp].into(),
            foreign: vec![],
            imports: vec!["wasi:clocks/wall-clock@0.2.3".into(), "wasi:http/types@0.2.3".into()],
            exports: vec!["wasi:http/incoming-handler@0.2.3".into()],
            names_left_out: 0,
            languages: vec!["Rust".into()],
            tools: vec!["rustc 1.95.0".into(), "wit-component 0.240.0".into()],
        }
    }

    #[test]
    fn a_program_is_shown_line_by_line() {
        expect_test::expect![[r"
            NAME         web.wasm
            KIND         http service, WASI 0.2 (component)
            SIZE         64.00 KiB
            MEMORY       1.00 MiB at start, as much as its limit allows
            CAN ASK FOR  outgoing HTTP, clocks
            LANGUAGE     Rust
            MADE BY      rustc 1.95.0, wit-component 0.240.0
            RUNS         yes, with --http
            IMPORTS      wasi:clocks/wall-clock@0.2.3
                         wasi:http/types@0.2.3
            EXPORTS      wasi:http/incoming-handler@0.2.3
        "]]
        .assert_eq(&text(&Inspected::new("web.wasm", None, 64 << 10, facts())));
    }

    #[test]
    fn what_is_in_the_way_is_shown() {
        let imports: Vec<String> = (0..50).map(|index| format!("acme:x/{index}@1.0.0")).collect();
        let strange = WasmFacts { foreign: imports.clone(), imports, ..facts() };
        let shown = text(&Inspected::new("web.wasm", None, 1, strange));
        assert!(shown.contains("RUNS         no: it imports `acme:x/0@1.0.0`"), "{shown}");
        assert!(shown.contains("… 50 in all: see -o json"), "{shown}");
        assert!(!shown.contains("yes"), "{shown}");
    }
}
