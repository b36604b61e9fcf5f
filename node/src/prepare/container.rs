//! What a container runs: the image's configuration and the unit's spec together, by the rules that images are
//! written for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use brig_api::lifecycle::Reason;
use brig_api::unit_spec::OciProgram;
use brig_shim::message::StartOci;

use crate::plan::Fault;
use crate::program::ImageConfig;

/// Where programs are looked for when neither image nor spec says so; what container engines set.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image that was fetched.
pub(super) struct Image<'a> {
    pub config: &'a ImageConfig,
    pub layers: Vec<PathBuf>,
    pub reference: &'a str,
}

/// Merges; the image's environment is put under `env`.
pub(super) fn merge(
    oci: &OciProgram,
    image: Image<'_>,
    scratch: PathBuf,
    architecture: &str,
    env: &mut BTreeMap<String, String>,
) -> Result<StartOci, Fault> {
    let Image { config, layers, reference } = image;
    let invalid = |message| Fault { reason: Reason::InvalidArtifact, message };
    if !config.architecture.is_empty() && config.architecture != architecture {
        return Err(invalid(format!(
            "image `{reference}` is for {}, this node is {architecture}: push an image for {architecture}, or require `arch = {}` of the node",
            config.architecture, config.architecture
        )));
    }
    let args = command(oci, config);
    if args.is_empty() {
        return Err(invalid(format!(
            "image `{reference}` names no program and the task neither: give it a `command`"
        )));
    }
    for variable in &config.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    env.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    let working_dir = oci.working_dir.clone().unwrap_or_else(|| config.working_dir.clone());
    Ok(StartOci {
        layers,
        scratch,
        args,
        user: user(oci, config).to_owned(),
        working_dir: if working_dir.is_empty() { "/".to_owned() } else { working_dir },
        read_only_root: oci.read_only_root,
        stop_signal: config.stop_signal.clone(),
    })
}

/// As whom the program runs: the spec's word wins over the image's.
pub(super) fn user<'a>(oci: &'a OciProgram, config: &'a ImageConfig) -> &'a str {
    oci.user.as_deref().unwrap_or(&config.user)
}

/// The spec's command takes the place of the image's entrypoint and drops the image's default arguments; the
/// spec's arguments take the place of those.
fn command(oci: &OciProgram, config: &ImageConfig) -> Vec<String> {
    let (program, arguments) = if !oci.command.is_empty() {
        (&oci.command, &oci.args)
    } else if !oci.args.is_empty() {
        (&config.entrypoint, &oci.args)
    } else {
        (&config.entrypoint, &config.cmd)
    };
    program.iter().chain(arguments).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn entrypoint_and_arguments_are_replaced_as_images_expect() {
        for (entrypoint, cmd, command_of_spec, args, expected) in [
            ("e", "c", "", "", "e c"),
            ("e", "c", "", "a", "e a"),
            ("e", "c", "x", "", "x"),
            ("e", "c", "x", "a b", "x a b"),
            ("", "c d", "", "", "c d"),
            ("", "c d", "", "a", "a"),
        ] {
            let config = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            let oci = OciProgram {
                command: words(command_of_spec),
                args: words(args),
                ..OciProgram::default()
            };
            assert_eq!(command(&oci, &config), words(expected), "{entrypoint}|{cmd}|{args}");
        }
    }

    fn merged(
        oci: &OciProgram,
        config: &ImageConfig,
    ) -> Result<(StartOci, BTreeMap<String, String>), Fault> {
        let mut env = BTreeMap::from([("A".to_owned(), "spec".to_owned())]);
        let image = Image { config, layers: vec![], reference: "team/web:1" };
        merge(oci, image, "/scratch".into(), "amd64", &mut env).map(|start| (start, env))
    }

    #[test]
    fn the_spec_wins_over_the_image() {
        let config = ImageConfig {
            architecture: "amd64".into(),
            env: words("A=image B=image=x C"),
            entrypoint: words("run"),
            user: "www".into(),
            working_dir: "/srv".into(),
            stop_signal: Some("SIGQUIT".into()),
            ..ImageConfig::default()
        };
        let (start, env) = merged(&OciProgram::default(), &config).unwrap();
        assert_eq!(
            (env["A"].as_str(), env["B"].as_str(), env["C"].as_str()),
            ("spec", "image=x", "")
        );
        assert_eq!(env["PATH"], PATH_DEFAULT);
        assert_eq!((start.user.as_str(), start.working_dir.as_str()), ("www", "/srv"));
        assert_eq!(start.stop_signal.as_deref(), Some("SIGQUIT"));
        let oci = OciProgram {
            user: Some("0".into()),
            working_dir: Some("/tmp".into()),
            ..OciProgram::default()
        };
        let (start, _) = merged(&oci, &config).unwrap();
        assert_eq!((start.user.as_str(), start.working_dir.as_str()), ("0", "/tmp"));
    }

    #[test]
    fn an_image_that_can_not_run_says_why() {
        let other = ImageConfig { architecture: "arm64".into(), ..ImageConfig::default() };
        let fault = merged(&OciProgram::default(), &other).unwrap_err();
        assert!(fault.message.contains("arm64") && fault.message.contains("team/web:1"));
        let fault = merged(&OciProgram::default(), &ImageConfig::default()).unwrap_err();
        assert!(fault.message.contains("`command`"), "{}", fault.message);
    }
}
