//! The command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use brig_api::Digest;

use crate::compiler::{CodeJob, CompileJob};

/// How long a shim without tasks and connections waits for more: an agent that restarts finds it again.
const IDLE_DEFAULT: Duration = Duration::from_secs(60);

const HELP: &str = "\
Runs the wasm tasks of a namespace. The node agent starts it.

Usage: brig-shim-wasm --dir DIR --cache CACHE [--idle-ms N]   with a listening unix socket as standard input
       brig-shim-wasm compile --module FILE --digest SHA256 --cache CACHE
       brig-shim-wasm compatibility                            says what is compiled for
       brig-shim-wasm export --digest SHA256 --cache CACHE     compiled code to standard output
       brig-shim-wasm import --digest SHA256 --cache CACHE     compiled code from standard input

  --dir DIR      its own directory; the agent has bound DIR/shim.sock
  --cache CACHE  compiled code, shared by the shims of the node
  --idle-ms N    ends after so many milliseconds without a task and a connection (60000)
";

/// What is asked of the program.
#[derive(Debug)]
pub(crate) enum Options {
    /// Be a shim.
    Shim(ShimOptions),
    /// Compile one module.
    Compile(CompileJob),
    /// Say what is compiled for.
    Compatibility,
    /// Write compiled code to standard output.
    Export(CodeJob),
    /// Take compiled code from standard input.
    Import(CodeJob),
    /// Explain.
    Help,
}

/// How to be a shim.
#[derive(Debug)]
pub(crate) struct ShimOptions {
    pub(crate) dir: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) idle: Duration,
}

/// The command line can't be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}; see brig-shim-wasm --help")]
pub(crate) struct WrongUse(String);

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, WrongUse> {
        let mut arguments = arguments.peekable();
        let verbs = ["compile", "compatibility", "export", "import"];
        let verb = arguments.next_if(|argument| verbs.iter().any(|verb| argument == verb));
        let verb = verb.as_deref().and_then(|verb| verb.to_str()).unwrap_or_default();
        if verb == "compatibility" {
            return Ok(Self::Compatibility);
        }
        let (mut dir, mut cache, mut module, mut digest, mut idle) = (None, None, None, None, None);
        while let Some(name) = arguments.next() {
            let name = name.to_string_lossy().into_owned();
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(Self::Help);
            }
            let place = match (name.as_str(), verb) {
                ("--dir", "") => &mut dir,
                ("--idle-ms", "") => &mut idle,
                ("--cache", _) => &mut cache,
                ("--module", "compile") => &mut module,
                ("--digest", "compile" | "export" | "import") => &mut digest,
                _ => return Err(WrongUse(format!("unknown argument `{name}`"))),
            };
            let value = arguments.next();
            *place = Some(value.ok_or_else(|| WrongUse(format!("`{name}` needs a value")))?);
        }
        let needed = |value: Option<OsString>, name: &str| {
            value.ok_or_else(|| WrongUse(format!("`{name}` is missing")))
        };
        let cache = needed(cache, "--cache")?.into();
        if !verb.is_empty() {
            let digest = needed(digest, "--digest")?.to_string_lossy().into_owned();
            let digest = Digest::new(&digest)
                .map_err(|error| WrongUse(format!("`--digest {digest}`: {error}")))?;
            return match verb {
                "export" => Ok(Self::Export(CodeJob { digest, cache })),
                "import" => Ok(Self::Import(CodeJob { digest, cache })),
                _ => {
                    let module = needed(module, "--module")?.into();
                    Ok(Self::Compile(CompileJob { module, digest, cache }))
                }
            };
        }
        let idle = match idle {
            Some(text) => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .map(Duration::from_millis)
                .ok_or_else(|| WrongUse("`--idle-ms` needs a number".to_owned()))?,
            None => IDLE_DEFAULT,
        };
        Ok(Self::Shim(ShimOptions { dir: needed(dir, "--dir")?.into(), cache, idle }))
    }
}

/// Writes the help.
pub(crate) fn print_help() -> std::io::Result<()> {
    std::io::stdout().write_all(HELP.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, WrongUse> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn both_forms_are_understood() {
        assert!(matches!(parse("--dir /d --cache /c"),
            Ok(Options::Shim(shim)) if shim.idle == IDLE_DEFAULT && shim.dir.ends_with("d")));
        assert!(matches!(parse("--cache /c --idle-ms 5 --dir /d"),
            Ok(Options::Shim(shim)) if shim.idle == Duration::from_millis(5)));
        let digest = Digest::of_sha256(&[1; 32]);
        assert!(matches!(parse(&format!("compile --module m --digest {digest} --cache /c")),
            Ok(Options::Compile(job)) if job.digest == digest));
        assert!(matches!(parse(&format!("export --digest {digest} --cache /c")),
            Ok(Options::Export(job)) if job.digest == digest));
        assert!(matches!(parse(&format!("import --cache /c --digest {digest}")),
            Ok(Options::Import(job)) if job.cache.ends_with("c")));
        assert!(matches!(parse("compatibility"), Ok(Options::Compatibility)));
        assert!(matches!(parse("--help"), Ok(Options::Help)));
    }

    #[test]
    fn wrong_use_is_named() {
        for (line, says) in [
            ("", "--cache"),
            ("--cache /c", "--dir"),
            ("--cache", "needs a value"),
            ("--dir /d --cache /c --module m", "--module"),
            ("import --cache /c", "--digest"),
            ("export --cache /c --module m", "--module"),
            ("compile --cache /c --module m --digest md5:1", "md5:1"),
            ("--dir /d --cache /c --idle-ms soon", "--idle-ms"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }
}
