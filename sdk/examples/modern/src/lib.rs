//! A command of WASI 0.3, whose standard library speaks WASI 0.2: both in one component.

use brig::unit::checkpoint;
use exports::wasi::cli::run::Guest;
use wasi::cli::stdin::read_via_stream;
use wasi::cli::stdout::write_via_stream;
use wasi::clocks::monotonic_clock::wait_for;
use wasi::sockets::ip_name_lookup::{IpAddress, resolve_addresses};
use wit_bindgen::StreamResult;

/// Read of standard input at a time.
const READ_BYTES: usize = 16 << 10;

wit_bindgen::generate!({
    path: "../../../wit",
    inline: r#"
        package brig:modern;

        world modern {
            import brig:unit/checkpoint@0.1.0;
            import wasi:cli/stdin@0.3.0;
            import wasi:cli/stdout@0.3.0;
            import wasi:clocks/monotonic-clock@0.3.0;
            import wasi:sockets/ip-name-lookup@0.3.0;
            export wasi:cli/run@0.3.0;
        }

        package wasi:cli@0.3.0 {
            interface types {
                enum error-code { io, illegal-byte-sequence, pipe }
            }
            interface stdin {
                use types.{error-code};
                read-via-stream: func() -> tuple<stream<u8>, future<result<_, error-code>>>;
            }
            interface stdout {
                use types.{error-code};
                write-via-stream: func(data: stream<u8>) -> future<result<_, error-code>>;
            }
            interface run {
                run: async func() -> result;
            }
        }

        package wasi:clocks@0.3.0 {
            interface monotonic-clock {
                wait-for: async func(how-long: u64);
            }
        }

        package wasi:sockets@0.3.0 {
            interface types {
                type ipv4-address = tuple<u8, u8, u8, u8>;
                type ipv6-address = tuple<u16, u16, u16, u16, u16, u16, u16, u16>;
                variant ip-address { ipv4(ipv4-address), ipv6(ipv6-address) }
            }
            interface ip-name-lookup {
                use types.{ip-address};
                variant error-code {
                    access-denied,
                    invalid-argument,
                    name-unresolvable,
                    temporary-resolver-failure,
                    permanent-resolver-failure,
                    other(option<string>),
                }
                resolve-addresses: async func(name: string) -> result<list<ip-address>, error-code>;
            }
        }
    "#,
    generate_all,
});

struct Modern;

export!(Modern);

impl Guest for Modern {
    async fn run() -> Result<(), ()> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["wait", ms] => {
                wait_for(ms.parse::<u64>().map_err(drop)? * 1_000_000).await;
                println!("waited");
            }
            ["say", text] => say(text).await?,
            ["stdin"] => copy_stdin().await?,
            ["look-up", name] => match resolve_addresses(name.to_owned()).await {
                Ok(found) => {
                    println!("{}", found.iter().map(address).collect::<Vec<_>>().join(" "))
                }
                Err(error) => {
                    eprintln!("{name}: {error:?}");
                    return Err(());
                }
            },
            ["save", text] => match checkpoint::save(text.as_bytes()) {
                Ok(()) => println!("saved"),
                Err(error) => {
                    eprintln!("{error:?}");
                    return Err(());
                }
            },
            ["load"] => println!("{:?}", checkpoint::load()),
            ["eat"] => eat(),
            ["spin"] => loop {
                std::hint::spin_loop();
            },
            ["trap"] => std::process::abort(),
            _ => {
                eprintln!(
                    "usage: modern wait MS | say TEXT | stdin | look-up NAME | save TEXT | load | eat | spin | trap"
                );
                return Err(());
            }
        }
        Ok(())
    }
}

async fn say(text: &str) -> Result<(), ()> {
    let (mut writer, reader) = wit_stream::new();
    let written = write_via_stream(reader);
    let rest = writer.write_all(format!("{text}\n").into_bytes()).await;
    drop(writer);
    if !rest.is_empty() {
        return Err(());
    }
    written.await.map_err(drop)
}

/// Hands standard input on to standard output as it comes.
async fn copy_stdin() -> Result<(), ()> {
    let (mut input, how_it_ended) = read_via_stream();
    let (mut writer, reader) = wit_stream::new();
    let written = write_via_stream(reader);
    loop {
        let (result, bytes) = input.read(Vec::with_capacity(READ_BYTES)).await;
        if !writer.write_all(bytes).await.is_empty() {
            return Err(());
        }
        if matches!(result, StreamResult::Dropped) {
            break;
        }
    }
    drop(writer);
    how_it_ended.await.map_err(drop)?;
    written.await.map_err(drop)
}

fn address(address: &IpAddress) -> String {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => format!("{a}.{b}.{c}.{d}"),
        IpAddress::Ipv6(parts) => format!("{parts:?}"),
    }
}

fn eat() {
    let mut eaten = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}
