//! A component that uses what its host has besides files and variables: configuration, a log with levels, and a place to
//! keep things.

use std::error::Error;
use std::process::ExitCode;

use wasi::config::store as config;
use wasi::keyvalue::{atomics, batch, store};
use wasi::logging::logging::{Level, log};

wit_bindgen::generate!({
    inline: r#"
        package brig:keeper;

        world keeper {
            import wasi:config/store@0.2.0-rc.1;
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            import wasi:keyvalue/batch@0.2.0-draft;
            import wasi:logging/logging@0.1.0-draft;
        }

        package wasi:config@0.2.0-rc.1 {
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
        }

        package wasi:logging@0.1.0-draft {
            interface logging {
                enum level { trace, debug, info, warn, error, critical }
                log: func(level: level, context: string, message: string);
            }
        }

        package wasi:keyvalue@0.2.0-draft {
            interface store {
                variant error { no-such-store, access-denied, other(string) }
                record key-response { keys: list<string>, cursor: option<u64> }
                open: func(identifier: string) -> result<bucket, error>;
                resource bucket {
                    get: func(key: string) -> result<option<list<u8>>, error>;
                    set: func(key: string, value: list<u8>) -> result<_, error>;
                    delete: func(key: string) -> result<_, error>;
                    exists: func(key: string) -> result<bool, error>;
                    list-keys: func(cursor: option<u64>) -> result<key-response, error>;
                }
            }
            interface atomics {
                use store.{bucket, error};
                increment: func(bucket: borrow<bucket>, key: string, delta: u64) -> result<u64, error>;
            }
            interface batch {
                use store.{bucket, error};
                get-many: func(bucket: borrow<bucket>, keys: list<string>)
                    -> result<list<option<tuple<string, list<u8>>>>, error>;
                set-many: func(bucket: borrow<bucket>, key-values: list<tuple<string, list<u8>>>) -> result<_, error>;
                delete-many: func(bucket: borrow<bucket>, keys: list<string>) -> result<_, error>;
            }
        }
    "#,
    generate_all,
});

const USAGE: &str = "\
usage: keeper COMMAND
  config                      print the configuration, sorted
  config KEY                  print one value
  log LEVEL CONTEXT MESSAGE   say something
  set BUCKET KEY VALUE        keep a value
  get BUCKET KEY              print it
  delete BUCKET KEY           forget it
  keys BUCKET                 print the keys
  add BUCKET KEY N            add to a number and print the sum
  both BUCKET KEY KEY         set two values at once, print them, delete them
  fill BUCKET BYTES           keep values of that size until that is refused";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keeper {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), Box<dyn Error>> {
    match args {
        ["config"] => {
            let mut all = config::get_all()?;
            all.sort();
            all.iter().for_each(|(key, value)| println!("{key}={value}"));
        }
        ["config", key] => println!("{}", config::get(key)?.ok_or("there is no such key")?),
        ["log", level, context, message] => log(level_of(level)?, context, message),
        ["set", bucket, key, value] => store::open(bucket)?.set(key, value.as_bytes())?,
        ["get", bucket, key] => {
            let value = store::open(bucket)?.get(key)?.ok_or("there is no such key")?;
            println!("{}", String::from_utf8(value)?);
        }
        ["delete", bucket, key] => store::open(bucket)?.delete(key)?,
        ["keys", bucket] => {
            let bucket = store::open(bucket)?;
            let mut page = bucket.list_keys(None)?;
            loop {
                page.keys.iter().for_each(|key| println!("{key}"));
                let Some(cursor) = page.cursor else { break };
                page = bucket.list_keys(Some(cursor))?;
            }
        }
        ["add", bucket, key, delta] => {
            println!("{}", atomics::increment(&store::open(bucket)?, key, delta.parse()?)?);
        }
        ["both", bucket, one, two] => both(&store::open(bucket)?, one, two)?,
        ["fill", bucket, bytes] => {
            let (bucket, value) = (store::open(bucket)?, vec![7; bytes.parse()?]);
            for number in 0.. {
                if let Err(error) = bucket.set(&number.to_string(), &value) {
                    println!("{number} were kept, then: {error}");
                    break;
                }
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

fn both(bucket: &store::Bucket, one: &str, two: &str) -> Result<(), Box<dyn Error>> {
    let entries = [(one.to_owned(), b"1".to_vec()), (two.to_owned(), b"2".to_vec())];
    batch::set_many(bucket, &entries)?;
    let keys = [one.to_owned(), two.to_owned(), "neither".to_owned()];
    for found in batch::get_many(bucket, &keys)? {
        match found {
            Some((key, value)) => println!("{key}={}", String::from_utf8(value)?),
            None => println!("nothing"),
        }
    }
    batch::delete_many(bucket, &keys)?;
    println!("{}", bucket.exists(one)?);
    Ok(())
}

fn level_of(text: &str) -> Result<Level, String> {
    Ok(match text {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warn" => Level::Warn,
        "error" => Level::Error,
        "critical" => Level::Critical,
        other => return Err(format!("there is no level `{other}`")),
    })
}
