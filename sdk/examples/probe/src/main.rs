//! A guest that tries one thing and says how it went, so that a test can see what a unit may do and what it may not.

mod load;
mod world;

use std::error::Error;
use std::process::ExitCode;

const USAGE: &str = "\
usage: probe COMMAND
  args [ARG…]          print each argument on a line
  env                  print the environment, sorted
  stdin                copy standard input to standard output
  stderr TEXT          print TEXT on standard error
  lines N              print N numbered lines
  ticker               print a numbered line each 100 ms, for ever
  sleep MS             sleep, then say so
  exit N               exit with code N
  cat PATH             print a file
  write PATH TEXT      write TEXT to a file
  ls PATH              list a directory, sorted; directories end in a slash
  connect HOST:PORT    open a TCP connection
  ask HOST:PORT TEXT   send a line by TCP and print the answer
  serve ADDRESS        answer each line that comes by TCP with itself, until it is `stop`
  ask-udp HOST:PORT TEXT   the same by UDP
  serve-udp ADDRESS    the same by UDP
  look-up NAME         print the addresses of a name
  hoard HOST:PORT N    open up to N connections and say how many there were
  tick                 print the smallest step that the clocks take, in microseconds
  eat MIB [MS]         allocate and touch MIB mebibytes, a line for each, then keep them for MS
  spin                 use the cpu, for ever
  recurse              call itself until the stack ends
  trap                 execute an unreachable instruction";

/// Wrong use, as shells and `brig` itself say it.
const EXIT_USAGE: u8 = 2;

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run(&args).unwrap_or_else(|error| {
        eprintln!("probe {}: {error}", args.join(" "));
        ExitCode::FAILURE
    })
}

fn run(args: &[&str]) -> Outcome {
    match args {
        ["args", rest @ ..] => rest.iter().for_each(|arg| println!("{arg}")),
        ["env"] => world::print_environment(),
        ["stdin"] => world::copy_stdin()?,
        ["stderr", text] => eprintln!("{text}"),
        ["lines", count] => load::print_lines(count.parse()?),
        ["ticker"] => load::tick(),
        ["sleep", ms] => load::sleep(ms.parse()?),
        ["exit", code] => return Ok(ExitCode::from(code.parse::<u8>()?)),
        ["cat", path] => world::print_file(path)?,
        ["write", path, text] => world::write_file(path, text)?,
        ["ls", path] => world::list_directory(path)?,
        ["connect", address] => world::connect(address)?,
        ["ask", address, text] => world::ask(address, text)?,
        ["serve", address] => world::serve(address)?,
        ["ask-udp", address, text] => world::ask_udp(address, text)?,
        ["serve-udp", address] => world::serve_udp(address)?,
        ["look-up", name] => world::look_up(name)?,
        ["hoard", address, most] => world::hoard(address, most.parse()?),
        ["tick"] => world::print_clock_step(),
        ["eat", mib] => load::eat(mib.parse()?, 0),
        ["eat", mib, keep_ms] => load::eat(mib.parse()?, keep_ms.parse()?),
        ["spin"] => load::spin(),
        ["recurse"] => println!("{}", load::recurse(0)),
        ["trap"] => std::process::abort(),
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    }
    Ok(ExitCode::SUCCESS)
}
