//! Small programs in text form, hostile bytes, and random ones.

use std::io::Cursor;

use brig_api::wasm::{Capability, NAMES_MAX, WasmFacts, WasmForm, WasmKind, WasmMemory};
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 64 << 10;

fn look(text: &str) -> WasmFacts {
    inspect(Cursor::new(wat::parse_str(text).unwrap())).unwrap()
}

/// A component that exports instances of these names and imports instances of those.
fn component(exports: &[&str], imports: &[&str]) -> WasmFacts {
    let imports = imports.iter().map(|name| format!("(import \"{name}\" (instance))"));
    let exports = exports.iter().map(|name| format!("(export \"{name}\" (instance $i))"));
    let text: String = imports.chain(["(instance $i)".to_owned()]).chain(exports).collect();
    look(&format!("(component {text})"))
}

#[test]
fn a_kind_is_told_by_what_is_exported() {
    for (text, kind) in [
        ("(module (func (export \"_start\")))", WasmKind::CommandP1),
        ("(module (memory (export \"_start\") 1))", WasmKind::Library),
        ("(module (func (export \"_initialize\")))", WasmKind::Library),
        ("(module)", WasmKind::Library),
        ("(component)", WasmKind::Library),
    ] {
        assert_eq!(look(text).kind, kind, "{text}");
    }
    for (exports, kind) in [
        (&["wasi:cli/run@0.2.3"][..], WasmKind::CommandP2),
        (&["wasi:cli/run@0.3.0"], WasmKind::CommandP3),
        (&["wasi:cli/run@0.3.0", "wasi:cli/run@0.2.0"], WasmKind::CommandP3),
        (&["wasi:http/incoming-handler@0.2.0", "wasi:cli/run@0.2.0"], WasmKind::HttpP2),
        (&["wasi:http/handler@0.3.0"], WasmKind::HttpP3),
        (&["wasi:http/handler@0.3.0", "wasi:cli/run@0.2.0"], WasmKind::HttpP3),
        (&["wasi:http/handler@0.3.0", "wasi:http/incoming-handler@0.2.0"], WasmKind::HttpP2),
        (&["wasi:http/incoming-handler@0.4.0", "acme:lib/math@1.0.0"], WasmKind::Library),
    ] {
        assert_eq!(component(exports, &[]).kind, kind, "{exports:?}");
    }
}

#[test]
fn capabilities_are_told_by_what_is_imported() {
    use Capability::*;
    let imports = [
        "brig:unit/checkpoint@0.1.0",
        "wasi:cli/environment@0.2.0",
        "wasi:cli/stdout@0.2.0",
        "wasi:clocks/monotonic-clock@0.2.0",
        "wasi:config/store@0.2.0-rc.1",
        "wasi:filesystem/types@0.2.0",
        "wasi:http/outgoing-handler@0.2.0",
        "wasi:http/types@0.2.0",
        "wasi:keyvalue/store@0.2.0-draft",
        "wasi:logging/logging",
        "wasi:random/random@0.2.0",
        "wasi:sockets/tcp@0.2.0",
        "wasi:nn/graph@0.2.0",
        "acme:shop/prices@1.0.0",
    ];
    let facts = component(&[], &imports);
    let all = [
        Filesystem,
        Sockets,
        OutgoingHttp,
        Environment,
        Clocks,
        Random,
        Config,
        KeyValue,
        Logging,
        Checkpoint,
    ];
    assert_eq!(facts.capabilities, all.into());
    assert_eq!(facts.imports, imports);
    assert_eq!(facts.foreign, ["wasi:nn/graph@0.2.0", "acme:shop/prices@1.0.0"]);
    assert!(component(&[], &["wasi:http/types@0.2.0"]).capabilities.is_empty());

    let import = |name: &str| format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func))");
    for (name, capability) in [
        ("path_open", Some(Filesystem)),
        ("fd_prestat_get", Some(Filesystem)),
        ("sock_accept", Some(Sockets)),
        ("environ_get", Some(Environment)),
        ("clock_time_get", Some(Clocks)),
        ("random_get", Some(Random)),
        ("fd_write", None),
        ("args_get", None),
    ] {
        let facts = look(&format!("(module {})", import(name)));
        assert_eq!(facts.capabilities, capability.into_iter().collect(), "{name}");
        assert_eq!(facts.foreign, Vec::<String>::new());
    }
    let facts = look("(module (import \"env\" \"log\" (func)))");
    assert_eq!((facts.foreign, facts.imports), (vec!["env.log".into()], vec!["env.log".into()]));
}

#[test]
fn memories_are_added_up() {
    let memory = |text: &str| look(text).memory;
    let of = |count, initial, maximum: Option<u64>| WasmMemory {
        count,
        initial_bytes: initial * PAGE,
        maximum_bytes: maximum.map(|pages| pages * PAGE),
    };
    assert_eq!(memory("(module)"), of(0, 0, Some(0)));
    assert_eq!(memory("(module (memory 2 5))"), of(1, 2, Some(5)));
    assert_eq!(memory("(module (memory 2 5) (memory 1))"), of(2, 3, None));
    // A module counts once for each instance: here two of the first, none of the second, and none of a stranger.
    let text = "(component (import \"m\" (core module $x)) (core module $a (memory 3 4)) \
        (core module $b (memory 100)) (core instance (instantiate $x)) (core instance (instantiate $a)) \
        (core instance (instantiate $a)))";
    assert_eq!(memory(text), of(2, 6, Some(8)));
    let nested = format!(
        "(component {text} (component (component (core module $a (memory 7)) \
        (core instance (instantiate $a)))))"
    );
    assert_eq!(memory(&nested), of(3, 13, None));
    assert_eq!(memory("(module (memory i64 0x1000000000000))").initial_bytes, u64::MAX);
}

#[test]
fn what_is_inside_a_component_is_not_what_it_exports() {
    let facts = look(
        "(component (core module (import \"env\" \"f\" (func)) (func (export \"_start\"))) \
         (component (import \"acme:x/y\" (instance)) (instance $i) (export \"wasi:cli/run@0.2.0\" (instance $i))))",
    );
    assert_eq!((facts.kind, facts.form), (WasmKind::Library, WasmForm::Component));
    assert!(facts.imports.is_empty() && facts.exports.is_empty() && facts.foreign.is_empty());
}

#[test]
fn makers_are_named_once_each() {
    let facts = look(
        "(component (core module (@producers (language \"Rust\" \"\") (processed-by \"rustc\" \"1.95.0\"))) \
         (core module (@producers (language \"Rust\" \"\") (sdk \"x\" \"2\"))))",
    );
    assert_eq!(
        (facts.languages, facts.tools),
        (vec!["Rust".into()], vec!["rustc 1.95.0".into(), "x 2".into()])
    );
}

#[test]
fn a_million_imports_are_counted_and_few_are_kept() {
    let mut imports = vec![];
    leb(&mut imports, 1_000_000);
    for _ in 0..1_000_000 {
        imports.extend(b"\x01a\x01b\0\0");
    }
    let facts = inspect(Cursor::new(module(&[(1, b"\x01\x60\0\0"), (2, &imports)]))).unwrap();
    assert_eq!(facts.imports.len(), NAMES_MAX);
    assert_eq!(facts.names_left_out, 999_000);
    assert!(facts.foreign.len() <= NAMES_MAX);
}

#[test]
fn long_names_are_cut_and_control_characters_replaced() {
    let long = "ä".repeat(40_000);
    let facts = look(&format!(
        "(module (import \"env\" \"{long}\" (func)) (import \"\\00\\1b[2J\" \"x\" (func)))"
    ));
    assert!(facts.imports[0].len() < 300 && facts.imports[0].ends_with('…'));
    assert_eq!(facts.imports[1], "\u{fffd}\u{fffd}[2J.x");
}

#[test]
fn what_would_cost_too_much_is_unknown() {
    // Empty custom sections without end.
    let sections = vec![(0, &b"\0"[..]); 200_000];
    assert_eq!(inspect(Cursor::new(module(&sections))).unwrap().kind, WasmKind::Unknown);
    // A component in a component in a component …
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..100 {
        let mut outer = b"\0asm\x0d\0\x01\0\x04".to_vec();
        leb(&mut outer, bytes.len());
        outer.extend(bytes);
        bytes = outer;
    }
    assert_eq!(inspect(Cursor::new(bytes)).unwrap().kind, WasmKind::Unknown);
    // One section larger than anything that is read.
    let exports = vec![0; usize::try_from(READ_BYTES_MAX).unwrap() + 1];
    let large = module(&[(7, &exports)]);
    assert_eq!(inspect(Cursor::new(large)).unwrap().kind, WasmKind::Unknown);
}

#[test]
fn what_is_no_wasm_or_was_cut_off_is_refused() {
    for bytes in [&b""[..], b"\0asm", b"\0asm\x02\0\0\0", b"#!/bin/sh\n"] {
        assert!(matches!(inspect(Cursor::new(bytes)), Err(InspectError::NotWasm)), "{bytes:?}");
    }
    // Cut between two sections a file is a shorter one; anywhere else it is broken.
    let whole = module(&[(1, b"\x01\x60\0\0"), (2, b"\x01\x01a\x01b\0\0")]);
    for end in (9..14).chain(15..whole.len()) {
        let cut = inspect(Cursor::new(&whole[..end]));
        assert!(matches!(cut, Err(InspectError::Broken { .. })), "{end}: {cut:?}");
    }
}

/// A module of these sections.
fn module(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        bytes.push(*id);
        leb(&mut bytes, content.len());
        bytes.extend(*content);
    }
    bytes
}

fn leb(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
}

fn sample() -> Vec<u8> {
    wat::parse_str(
        "(component (import \"wasi:cli/stdout@0.2.0\" (instance)) (import \"m\" (core module $x)) \
         (core module $a (import \"env\" \"f\" (func)) (memory 1 2) (func (export \"_start\")) \
           (@producers (language \"Rust\" \"\"))) \
         (core module $b (memory 1)) (core instance (instantiate $b)) \
         (component (core module $c)) (instance $i) (export \"wasi:cli/run@0.2.0\" (instance $i)))",
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), is_component: bool) {
        let head: &[u8] = if is_component { b"\0asm\x0d\0\x01\0" } else { b"\0asm\x01\0\0\0" };
        bytes.splice(..0, head.iter().copied());
        let _ = inspect(Cursor::new(bytes));
    }

    #[test]
    fn nor_does_a_file_that_was_changed_and_cut(
        at in 8_usize..300, byte: u8, end in 8_usize..400, is_cut: bool,
    ) {
        let mut bytes = sample();
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        if is_cut {
            bytes.truncate(end);
        }
        let _ = inspect(Cursor::new(bytes));
    }
}
