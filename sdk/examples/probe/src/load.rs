//! What uses something up: time, cpu, memory, stack, output.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;
const TICK: Duration = Duration::from_millis(100);

pub fn print_lines(count: u64) {
    for number in 1..=count {
        println!("line {number}");
    }
}

pub fn tick() {
    for number in 1_u64.. {
        println!("tick {number}");
        thread::sleep(TICK);
    }
}

pub fn sleep(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
    println!("slept {ms} ms");
}

/// Takes memory as an ordinary program does: one that ends when it gets no more.
pub fn eat(mib: usize, keep_ms: u64) {
    let mut eaten = Vec::new();
    for number in 1..=mib {
        eaten.push(black_box(vec![1_u8; MIB]));
        println!("ate {number} MiB");
    }
    thread::sleep(Duration::from_millis(keep_ms));
    drop(black_box(eaten));
}

pub fn spin() {
    let mut value = 1_u64;
    loop {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// The black boxes keep the compiler from turning the recursion into a loop.
#[expect(unconditional_recursion, reason = "to end the stack is the purpose")]
pub fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    black_box(recurse(depth + 1)) + frame[0]
}
