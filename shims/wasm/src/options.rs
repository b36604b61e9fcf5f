//! The command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use brig_api::Digest;
use brig_api::unit_spec::Isolation;

use crate::compiler::{CodeJob, CompileJob};
use crate::engine::{Concurrency, Settings};

/// How long a shim without tasks and connections waits for more: an agent that restarts finds it again.
const IDLE_DEFAULT: Duration = Duration::from_secs(60);

const HELP: &str = "\
Runs wasm tasks. The node agent starts it.

Usage: brig-shim-wasm --dir DIR --cache CACHE [--isolation unit] [--idle-ms N]   with a listening unix socket as standard input
       brig-shim-wasm compile --module FILE --digest SHA256 --cache CACHE [--isolation unit]
       brig-shim-wasm compatibility     says what is compiled for
       brig-shim-wasm libraries         says what files it is run from
       brig-shim-wasm export --digest SHA256 --compatibility NAME --cache CACHE   compiled code to standard output
       brig-shim-wasm import --digest SHA256 --compatibility NAME --cache CACHE   compiled code from standard input

  --dir DIR         its own directory; the agent has bound DIR/shim.sock
  --cache CACHE     compiled code, shared by the shims of the node
  --isolation unit  for one task that has the process to itself, instead of those of a namespace
  --idle-ms N       ends after so many milliseconds without a task and a connection (60000)
";

/// What is asked of the program.
#[derive(Debug)]
pub(crate) enum Options {
    /// Be a shim.
    Shim(ShimOptions),
    /// See to it that a module is compiled.
    Compile(CompileJob),
    /// Compile from standard input to standard output.
    Transform(Settings),
    /// Say what is compiled for.
    Compatibility,
    /// Say what this program is run from.
    Libraries,
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
    pub(crate) isolation: Isolation,
    pub(crate) idle: Duration,
}

/// The command line can't be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}; see brig-shim-wasm --help")]
pub(crate) struct WrongUse(String);

/// Arguments by name.
struct Values(BTreeMap<String, String>);

impl Values {
    fn read(
        arguments: impl Iterator<Item = OsString>,
        known: &[&str],
    ) -> Result<Option<Self>, WrongUse> {
        let mut arguments = arguments.map(|text| text.to_string_lossy().into_owned());
        let mut values = BTreeMap::new();
        while let Some(name) = arguments.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            if !known.contains(&name.as_str()) {
                return Err(WrongUse(format!("unknown argument `{name}`")));
            }
            let value = arguments.next();
            let value = value.ok_or_else(|| WrongUse(format!("`{name}` needs a value")))?;
            values.insert(name, value);
        }
        Ok(Some(Self(values)))
    }

    fn needed(&mut self, name: &str) -> Result<String, WrongUse> {
        self.0.remove(name).ok_or_else(|| WrongUse(format!("`{name}` is missing")))
    }

    fn digest(&mut self) -> Result<Digest, WrongUse> {
        let text = self.needed("--digest")?;
        Digest::new(&text).map_err(|error| WrongUse(format!("`--digest {text}`: {error}")))
    }

    fn isolation(&mut self) -> Result<Isolation, WrongUse> {
        match self.0.remove("--isolation").as_deref() {
            None | Some("namespace") => Ok(Isolation::Namespace),
            Some("unit") => Ok(Isolation::Unit),
            Some(other) => {
                Err(WrongUse(format!("`--isolation` is namespace or unit, not {other}")))
            }
        }
    }

    fn concurrency(&mut self) -> Result<Concurrency, WrongUse> {
        match self.needed("--concurrency")?.as_str() {
            "off" => Ok(Concurrency::Off),
            "on" => Ok(Concurrency::On),
            other => Err(WrongUse(format!("`--concurrency` is on or off, not {other}"))),
        }
    }

    fn code_job(&mut self) -> Result<CodeJob, WrongUse> {
        Ok(CodeJob {
            digest: self.digest()?,
            cache: self.needed("--cache")?.into(),
            compatibility: self.needed("--compatibility")?,
        })
    }
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, WrongUse> {
        let mut arguments = arguments.peekable();
        let is_verb = |argument: &OsString| !argument.to_string_lossy().starts_with('-');
        let verb = arguments.next_if(is_verb).unwrap_or_default();
        let verb = verb.to_string_lossy();
        let known: &[&str] = match &*verb {
            "" => &["--dir", "--cache", "--isolation", "--idle-ms"],
            "compile" => &["--module", "--digest", "--cache", "--isolation"],
            "transform" => &["--concurrency", "--isolation"],
            "compatibility" | "libraries" => &[],
            "export" | "import" => &["--digest", "--compatibility", "--cache"],
            other => return Err(WrongUse(format!("unknown command `{other}`"))),
        };
        let Some(mut values) = Values::read(arguments, known)? else { return Ok(Self::Help) };
        Ok(match &*verb {
            "compile" => Self::Compile(CompileJob {
                module: values.needed("--module")?.into(),
                digest: values.digest()?,
                cache: values.needed("--cache")?.into(),
                isolation: values.isolation()?,
            }),
            "transform" => Self::Transform(Settings {
                concurrency: values.concurrency()?,
                isolation: values.isolation()?,
            }),
            "compatibility" => Self::Compatibility,
            "libraries" => Self::Libraries,
            "export" => Self::Export(values.code_job()?),
            "import" => Self::Import(values.code_job()?),
            _ => Self::Shim(ShimOptions {
                cache: values.needed("--cache")?.into(),
                dir: values.needed("--dir")?.into(),
                isolation: values.isolation()?,
                idle: match values.0.remove("--idle-ms") {
                    Some(text) => text.parse().map(Duration::from_millis).map_err(|_| {
                        WrongUse("`--idle-ms` needs a number of milliseconds".to_owned())
                    })?,
                    None => IDLE_DEFAULT,
                },
            }),
        })
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
        assert!(
            matches!(parse(&format!("export --digest {digest} --compatibility aa --cache /c")),
            Ok(Options::Export(job)) if job.digest == digest && job.compatibility == "aa")
        );
        assert!(
            matches!(parse(&format!("import --cache /c --compatibility aa --digest {digest}")),
            Ok(Options::Import(job)) if job.cache.ends_with("c"))
        );
        assert!(matches!(
            parse("transform --concurrency on --isolation unit"),
            Ok(Options::Transform(Settings {
                concurrency: Concurrency::On,
                isolation: Isolation::Unit
            }))
        ));
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
            ("transform --concurrency some", "some"),
            ("--dir /d --cache /c --isolation none", "none"),
            ("fly", "fly"),
            ("--dir /d --cache /c --idle-ms soon", "--idle-ms"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }
}
