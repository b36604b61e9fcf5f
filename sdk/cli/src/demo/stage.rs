//! The running `brig dev` of the tour, and the ways in which the tour talks to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::failure::{FAILED, Failure};
use crate::say;

/// How long `brig dev` may take to get ready, and to stop.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Time between looks at a state that the tour waits for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Most of an answer that is printed, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub(super) struct Stage {
    own: PathBuf,
    dev: Child,
    server: String,
    folder: Option<tempfile::TempDir>,
}

impl Stage {
    /// Starts `brig dev` on a free port in a temporary directory and waits until it is ready.
    pub(super) fn open() -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let folder = tempfile::Builder::new().prefix("brig-demo-").tempdir()?;
        let log = std::fs::File::create(folder.path().join("dev.log"))?;
        let mut dev = Command::new(&own)
            .args(["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path())
            // The shims are built: `brig dev` need not look again.
            .env_remove("CARGO_PKG_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let server = match dev.stdout.take().and_then(ready_line) {
            Some(server) => server,
            None => {
                let _ = dev.kill();
                let _ = dev.wait();
                let log =
                    std::fs::read_to_string(folder.path().join("dev.log")).unwrap_or_default();
                return Err(Failure::new(FAILED, format!("`brig dev` did not get ready:\n{log}")));
            }
        };
        Ok(Self { own, dev, server, folder: Some(folder) })
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn data(&self) -> &Path {
        self.folder.as_ref().map_or_else(|| Path::new(""), tempfile::TempDir::path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.own);
        command.args(arguments).env("BRIG_SERVER", &self.server).env_remove("BRIG_NAMESPACE");
        command
    }

    /// Prints a command as a user would type it, and runs it.
    pub(super) fn brig(&self, arguments: &[&str]) -> Result<(), Failure> {
        let typed = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        say(&format!("$ brig {typed}"));
        let status = self.command(arguments).status()?;
        if status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(self.data().join("dev.log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(20).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        Err(Failure::new(
            FAILED,
            format!("`brig {typed}` ended with {status}; the last lines of `brig dev`:\n{tail}"),
        ))
    }

    fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let output = self.command(arguments).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(Failure::new(
                FAILED,
                format!("`brig {}` ended with {}", arguments.join(" "), output.status),
            ));
        }
        Ok(serde_json::from_slice(&output.stdout).map_err(anyhow::Error::from)?)
    }

    fn units(&self, namespace: &str, owner: &str) -> Result<Vec<Value>, Failure> {
        let units = self.json(&["ps", "--namespace", namespace, "-o", "json"])?;
        let units = units.as_array().cloned().unwrap_or_default();
        Ok(units.into_iter().filter(|unit| unit["owner"] == owner).collect())
    }

    /// Does the node run containers?
    pub(super) fn has_containers(&self) -> Result<bool, Failure> {
        let nodes = self.json(&["get", "nodes", "-o", "json"])?;
        Ok(nodes.to_string().contains("\"oci\""))
    }

    pub(super) fn has_unit_of(&self, namespace: &str, owner: &str) -> Result<bool, Failure> {
        Ok(!self.units(namespace, owner)?.is_empty())
    }

    /// The name of a running unit of a service.
    pub(super) fn unit_of(&self, namespace: &str, owner: &str) -> Result<String, Failure> {
        let units = self.units(namespace, owner)?;
        let running = units.iter().find(|unit| unit["state"] == "running");
        let name = running.and_then(|unit| unit["name"].as_str());
        name.map(str::to_owned)
            .ok_or_else(|| Failure::new(FAILED, format!("service `{owner}` has no running unit")))
    }

    /// Where the running units of a service listen.
    pub(super) fn endpoints(&self, namespace: &str, owner: &str) -> Result<Vec<String>, Failure> {
        let mut urls = Vec::new();
        for unit in self.units(namespace, owner)? {
            let found = unit["endpoints"].as_array().cloned().unwrap_or_default();
            urls.extend(found.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        Ok(urls)
    }

    /// Waits until so many units of a service run.
    pub(super) fn wait_for_running(
        &self,
        namespace: &str,
        owner: &str,
        count: usize,
        patience: Duration,
    ) -> Result<(), Failure> {
        self.wait(&format!("{count} running unit(s) of service `{owner}`"), patience, || {
            let units = self.units(namespace, owner)?;
            Ok(units.iter().filter(|unit| unit["state"] == "running").count() >= count)
        })
    }

    /// Waits until a job has succeeded.
    pub(super) fn wait_for_job(
        &self,
        namespace: &str,
        name: &str,
        patience: Duration,
    ) -> Result<(), Failure> {
        self.wait(&format!("the end of job `{name}`"), patience, || {
            let job = self.json(&["get", "job", name, "--namespace", namespace, "-o", "json"])?;
            Ok(job["state"] == "succeeded")
        })
    }

    fn wait(
        &self,
        what: &str,
        patience: Duration,
        is_so: impl Fn() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let looks = patience.as_millis() / LOOK_EVERY.as_millis();
        for _ in 0..looks {
            if is_so()? {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.brig(&["ps", "-o", "wide"])?;
        self.brig(&["events"])?;
        Err(Failure::new(FAILED, format!("waited {} s for {what}: see above", patience.as_secs())))
    }

    /// Prints a request as a user would type it, and the answer.
    pub(super) fn get(&self, url: &str) -> Result<(), Failure> {
        say(&format!("$ curl {url}/"));
        let host = url.strip_prefix("http://").unwrap_or(url);
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(START_TIME_MAX))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if !head.starts_with("HTTP/1.1 200") {
            return Err(Failure::new(
                FAILED,
                format!("{url} answered: {}", head.lines().next().unwrap_or("")),
            ));
        }
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        say(if is_chunked { unchunked(body) } else { body.to_owned() }.trim_end());
        Ok(())
    }

    /// Returns at Ctrl-C, which also reaches `brig dev`: both are in the terminal's foreground.
    pub(super) fn wait_for_interrupt(&mut self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(tokio::signal::ctrl_c())?)
    }

    /// Stops `brig dev` as its user would, and removes the directory.
    pub(super) fn close(mut self) -> Result<(), Failure> {
        let pid = rustix::process::Pid::from_child(&self.dev);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(std::io::Error::from)?;
        let status = self.dev.wait()?;
        if let Some(folder) = self.folder.take() {
            folder.close()?;
        }
        let is_ended_well = status.success() || status.signal().is_some();
        if is_ended_well {
            Ok(())
        } else {
            Err(Failure::new(FAILED, format!("`brig dev` ended with {status}")))
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only after a panic or an early return; `close` has waited already, and then this does nothing.
        let _ = self.dev.kill();
        let _ = self.dev.wait();
    }
}

fn ready_line(out: impl Read) -> Option<String> {
    BufReader::new(out)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("ready ").map(str::to_owned))
}

/// A word as a shell needs it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The bytes of a body in chunks (RFC 9112, section 7.1), as far as they are well-formed.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or("");
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_needs_them() {
        assert_eq!(quoted("-o"), "-o");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(unchunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), "hello!");
        assert_eq!(unchunked("ffff\r\nshort"), "");
    }
}
