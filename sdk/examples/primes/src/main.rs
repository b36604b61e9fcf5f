//! A long command that says where it is by `brig:unit/checkpoint`: counts primes, and goes on where a run before it was.
#![expect(clippy::disallowed_methods, reason = "a program has the clock that its host gives it")]

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use brig::unit::checkpoint;

wit_bindgen::generate!({ path: "../../../wit", world: "brig:unit/resumable" });

const USAGE: &str = "\
usage: primes LIMIT [PAUSE_MS]   count the primes below LIMIT, with a pause after every hundred numbers
       primes save TEXT…         save one text after the other, print how long each took
       primes save-bytes N       save so many bytes
       primes load               print what was saved last";
/// The node has a save at most once a second anyway.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Where the count is.
#[derive(Clone, Copy)]
struct Count {
    /// The next number to look at.
    next: u64,
    /// Primes below it.
    primes: u64,
}

impl Count {
    fn to_bytes(self) -> Vec<u8> {
        [self.next.to_le_bytes(), self.primes.to_le_bytes()].concat()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (next, primes) = bytes.split_first_chunk()?;
        let primes = primes.try_into().ok()?;
        Some(Self { next: u64::from_le_bytes(*next), primes: u64::from_le_bytes(primes) })
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("primes {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), Box<dyn Error>> {
    match args {
        ["save", texts @ ..] => {
            for text in texts {
                let began = Instant::now();
                checkpoint::save(text.as_bytes())?;
                println!("{text} {}", began.elapsed().as_millis());
            }
        }
        ["save-bytes", count] => checkpoint::save(&vec![7; count.parse()?])?,
        ["load"] => match checkpoint::load()? {
            Some(state) => println!("{}", String::from_utf8_lossy(&state)),
            None => println!("nothing was saved"),
        },
        [limit] => count(limit.parse()?, Duration::ZERO)?,
        [limit, pause_ms] => count(limit.parse()?, Duration::from_millis(pause_ms.parse()?))?,
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

fn count(limit: u64, pause: Duration) -> Result<(), Box<dyn Error>> {
    let mut count = match checkpoint::load()? {
        Some(state) => Count::of_bytes(&state).ok_or("what was saved is no count")?,
        None => Count { next: 2, primes: 0 },
    };
    let Count { next, primes } = count;
    println!("begins at {next} with {primes} primes");
    let mut saved = Instant::now();
    while count.next < limit {
        count.primes += u64::from(is_prime(count.next));
        count.next += 1;
        if count.next.is_multiple_of(100) {
            std::thread::sleep(pause);
            if saved.elapsed() >= SAVE_EVERY {
                checkpoint::save(&count.to_bytes())?;
                saved = Instant::now();
                println!("saved at {}", count.next);
            }
        }
    }
    println!("{} primes below {limit}", count.primes);
    Ok(())
}

fn is_prime(number: u64) -> bool {
    number >= 2 && (2..).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}
