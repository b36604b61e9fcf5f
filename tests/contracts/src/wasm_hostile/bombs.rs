//! Modules that are made to take the compiler's time and memory, or the shim's when it says where they trapped. They are
//! made of bytes: the text of some would be large.

use std::process::Command;

use brig_api::lifecycle::Reason;
use brig_shim::code::{CompileAnswer, Refusal};

use super::Rig;
use crate::shim_client::shim_binary;
use crate::wasm_shim::{digest, try_wasm};

/// Sections of a module, by their numbers in the format.
const TYPES: u8 = 1;
const FUNCTIONS: u8 = 3;
const TABLES: u8 = 4;
const GLOBALS: u8 = 6;
const EXPORTS: u8 = 7;
const CODE: u8 = 10;
const CUSTOM: u8 = 0;

const I32: u8 = 0x7f;
const BLOCK: [u8; 2] = [0x02, 0x40];
const LOOP: [u8; 2] = [0x03, 0x40];
const BR_IF_0: [u8; 2] = [0x0d, 0];
const END: u8 = 0x0b;
const LOCAL_GET: u8 = 0x20;
const LOCAL_SET: u8 = 0x21;
const I32_ADD: u8 = 0x6a;
const UNREACHABLE: u8 = 0x00;

/// A number as the format has it: LEB128.
fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [number(bytes.len()), bytes.to_vec()].concat()
}

/// A list: its length, then what is in it.
fn list(items: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = number(items.len());
    items.for_each(|item| bytes.extend(item));
    bytes
}

fn module(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    for (kind, content) in sections {
        bytes.push(*kind);
        bytes.extend(sized(content));
    }
    bytes
}

/// `(func)`
fn plain_type() -> Vec<u8> {
    vec![0x60, 0, 0]
}

fn export(name: &str, function: usize) -> Vec<u8> {
    [sized(name.as_bytes()), vec![0], number(function)].concat()
}

fn custom(name: &str, content: &[u8]) -> (u8, Vec<u8>) {
    (CUSTOM, [sized(name.as_bytes()), content.to_vec()].concat())
}

/// One function, `_start`, of this code and with so many locals of 32 bits.
fn one_function(code: &[u8], locals: usize) -> Vec<(u8, Vec<u8>)> {
    let body = [number(1), number(locals), vec![I32], code.to_vec(), vec![END]].concat();
    vec![
        (TYPES, list([plain_type()].into_iter())),
        (FUNCTIONS, list([number(0)].into_iter())),
        (EXPORTS, list([export("_start", 0)].into_iter())),
        (CODE, list([sized(&body)].into_iter())),
    ]
}

/// Empty functions, exported under a name each besides `_start`.
fn exports(count: usize) -> Vec<u8> {
    let names = (0..count).map(|index| match index {
        0 => export("_start", 0),
        _ => export(&format!("e{index}"), 0),
    });
    module(&[
        (TYPES, list([plain_type()].into_iter())),
        (FUNCTIONS, list([number(0)].into_iter())),
        (EXPORTS, list(names)),
        (CODE, list([sized(&[0, END])].into_iter())),
    ])
}

fn functions(count: usize) -> Vec<u8> {
    module(&[
        (TYPES, list([plain_type()].into_iter())),
        (FUNCTIONS, list((0..count).map(|_| number(0)))),
        (EXPORTS, list([export("_start", 0)].into_iter())),
        (CODE, list((0..count).map(|_| sized(&[0, END])))),
    ])
}

/// Types, globals and tables, which make no code.
fn declarations(types: usize, globals: usize, tables: usize) -> Vec<u8> {
    let mut sections = one_function(&[], 1);
    sections[0].1 = list((0..types).map(|_| plain_type()));
    sections.insert(2, (TABLES, list((0..tables).map(|_| vec![0x70, 0, 1]))));
    sections.insert(3, (GLOBALS, list((0..globals).map(|_| vec![I32, 0, 0x41, 0, END]))));
    module(&sections)
}

/// Many loops over many locals, each of which may have another value in each of them: what the compiler has to keep in mind
/// grows with the product of the two.
fn loops(count: usize, locals: usize) -> Vec<u8> {
    let local = |access: u8, index: usize| [vec![access], number(index % locals)].concat();
    let code = (0..count).flat_map(|index| {
        [
            LOOP.to_vec(),
            local(LOCAL_GET, index),
            local(LOCAL_GET, index * 7),
            vec![I32_ADD],
            local(LOCAL_SET, index * 13),
            local(LOCAL_GET, index),
            BR_IF_0.to_vec(),
            vec![END],
        ]
        .concat()
    });
    module(&one_function(&code.collect::<Vec<_>>(), locals))
}

/// Blocks in blocks.
fn nested(depth: usize) -> Vec<u8> {
    let code = [BLOCK.repeat(depth), vec![END; depth]].concat();
    module(&one_function(&code, 1))
}

#[test]
fn large_modules_that_ask_for_little_run() {
    let mut rig = Rig::new();
    for (what, bytes) in [
        ("exports", exports(50_000)),
        ("functions", functions(2_000)),
        ("types and globals", declarations(50_000, 10_000, 1)),
        ("nested blocks", nested(10_000)),
    ] {
        let task = rig.module(&bytes);
        let record = rig.run(&task);
        assert_eq!(record.code, 0, "{what}: {record:?}");
    }
}

#[test]
fn modules_beyond_what_the_format_and_the_pool_allow_are_refused() {
    let rig = Rig::new();
    for (what, bytes, says) in [
        ("exports", exports(1_000_001), "export"),
        ("types", declarations(1_000_001, 1, 1), "type"),
        ("globals", declarations(1, 1_000_001, 1), "global"),
        ("tables", declarations(1, 1, 101), "table"),
        ("locals", module(&one_function(&[], 50_001)), "local"),
        ("a function", nested(4_000_000), "function"),
        (
            "a list that is not there",
            [&module(&[])[..], &[TYPES, 5, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat(),
            "type",
        ),
    ] {
        let refusal = try_wasm(&rig.fixture.base.path().join("program.wasm"), &bytes).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidArtifact, "{what}: {refusal}");
        assert!(refusal.message.contains(says), "{what}: {refusal}");
        rig.neighbour_answers();
    }
}

/// Compiles within limits that whoever starts the compiler has set: KiB of address space, seconds of processor time.
fn compile_within(rig: &Rig, bytes: &[u8], kib: u64, seconds: u64) -> Result<(), Refusal> {
    let module = rig.fixture.base.path().join("program.wasm");
    std::fs::write(&module, bytes).unwrap();
    let script = format!("ulimit -v {kib} && ulimit -t {seconds} && exec \"$0\" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).arg(shim_binary("brig-shim-wasm"));
    command.args(["compile", "--digest", digest(bytes).as_str(), "--isolation", "namespace"]);
    command.arg("--module").arg(&module).arg("--cache").arg(rig.fixture.base.path().join("cache"));
    let output = command.output().unwrap();
    let answer: CompileAnswer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    answer.map(|_| ())
}

#[test]
fn a_compiler_that_takes_too_much_is_ended_and_nothing_else_is() {
    let mut rig = Rig::new();
    let bomb = loops(40_000, 20_000);
    for (what, kib, seconds) in [("memory", 200_000, 600), ("time", 8_000_000, 1)] {
        let refusal = compile_within(&rig, &bomb, kib, seconds).unwrap_err();
        assert_eq!(refusal.reason, Reason::CreateFailed, "{what}: {refusal}");
        let says = "could not be compiled: the compiler ended with";
        assert!(refusal.message.contains(says), "{what}: {refusal}");
        rig.neighbour_answers();
    }
    let left = std::fs::read_dir(rig.fixture.base.path().join("cache")).unwrap();
    let files = left.flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap());
    assert_eq!(files.count(), 0, "half of a program's code was left");
    // In the same place, what is well can be compiled.
    compile_within(&rig, &exports(1_000), 2_000_000, 60).unwrap();
    let task = rig.module(&exports(2));
    assert_eq!(rig.run(&task).code, 0);
}

#[test]
fn names_and_debug_information_that_lie_change_nothing_but_what_is_said_of_a_trap() {
    let mut rig = Rig::new();
    let noise: Vec<u8> =
        (0_u32..100_000).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    // Of the name section: subsection 1, one name, that of function 0.
    let name = |bytes: &[u8]| {
        let names = [number(1), number(0), sized(bytes)].concat();
        custom("name", &[vec![1], sized(&names)].concat())
    };
    let hostile_name = "\u{1b}[2J\n<script>".to_owned() + &"x".repeat(90_000);
    for (what, further) in [
        ("a long name that is no name", vec![name(hostile_name.as_bytes())]),
        ("a name of noise", vec![name(&noise)]),
        ("names of noise", vec![custom("name", &noise)]),
        (
            "debug information of noise",
            [".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_ranges"]
                .map(|section| custom(section, &noise))
                .into(),
        ),
        (
            "debug information without end",
            [".debug_info", ".debug_abbrev", ".debug_line"]
                .map(|section| custom(section, &[0xff; 4096]))
                .into(),
        ),
    ] {
        let sections = [one_function(&[UNREACHABLE], 1), further].concat();
        let task = rig.module(&module(&sections));
        let record = rig.run(&task);
        assert_eq!((record.code, record.reason), (1, Some(Reason::Trapped)), "{what}: {record:?}");
        let message = record.message.unwrap();
        assert!(message.contains("unreachable") && message.len() < 4_096, "{what}: {message}");
        assert!(!message.contains('\u{1b}'), "{what}: {message}");
    }
}
