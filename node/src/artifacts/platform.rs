//! Which of an index's images is for this machine, and whether an image is.

use brig_api::oci::{Descriptor, ImageIndex, Platform};
use brig_api::reference::Reference;
use brig_api::unit_spec::Runtime;

use super::error::ArtifactError;
use super::image::ImageConfig;

/// Most platforms that an error lists.
const LISTED_MAX: usize = 12;

/// This machine in Go's names, as images use them.
#[must_use]
pub fn this_machine() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
}

fn fits(offered: &Platform, wanted: &Platform) -> bool {
    offered.os == wanted.os && offered.architecture == wanted.architecture
}

/// The entry for this machine, or the one for wasm, which runs on any: first what the task runs in, then the other, so
/// that the error can say what it is.
pub(crate) fn choose<'a>(
    reference: &Reference,
    index: &'a ImageIndex,
    wanted: &Platform,
    runtime: Runtime,
) -> Result<&'a Descriptor, ArtifactError> {
    let entry = |test: &dyn Fn(&Platform) -> bool| {
        index.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(test))
    };
    let native = || entry(&|offered| fits(offered, wanted));
    let wasm = || entry(&Platform::is_wasm);
    let found = match runtime {
        Runtime::Oci => native().or_else(wasm),
        Runtime::Wasm => wasm().or_else(native),
    };
    if let Some(found) = found {
        return Ok(found);
    }
    // An index of one entry that does not say what it is for: the image's configuration will.
    if let [only] = index.manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .map(|entry| {
            entry.platform.as_ref().map_or_else(|| "unknown".to_owned(), Platform::to_string)
        })
        .filter(|name| name != "unknown/unknown")
        .collect();
    names.dedup();
    names.truncate(LISTED_MAX);
    Err(mismatch(reference, &names.join(", "), wanted))
}

/// Checks the configuration's platform: an index, or nobody, may have named another.
pub(crate) fn check(
    reference: &Reference,
    config: &ImageConfig,
    wanted: &Platform,
) -> Result<(), ArtifactError> {
    // Very old images do not say.
    if config.platform.architecture.is_empty() || fits(&config.platform, wanted) {
        return Ok(());
    }
    Err(mismatch(reference, &config.platform.to_string(), wanted))
}

fn mismatch(reference: &Reference, offered: &str, wanted: &Platform) -> ArtifactError {
    let offered = if offered.is_empty() { "no platform at all" } else { offered };
    ArtifactError::Platform {
        reference: reference.to_string(),
        offered: offered.chars().filter(|c| !c.is_control()).take(300).collect(),
        wanted: wanted.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::Digest;

    fn index(platforms: &[Option<(&str, &str)>]) -> ImageIndex {
        let entry = |(nth, platform): (usize, &Option<(&str, &str)>)| {
            let sum = [u8::try_from(nth).unwrap(); 32];
            let mut descriptor = Descriptor::new("x", Digest::of_sha256(&sum), 1);
            descriptor.platform = platform.map(|(os, architecture)| Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: None,
            });
            descriptor
        };
        ImageIndex {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: platforms.iter().enumerate().map(entry).collect(),
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_entry_for_this_machine_is_taken_and_others_are_named() {
        let wanted =
            Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None };
        let reference: Reference = "team/web:1".parse().unwrap();
        let several = index(&[Some(("linux", "arm64")), Some(("linux", "amd64"))]);
        assert_eq!(
            choose(&reference, &several, &wanted, Runtime::Oci).unwrap(),
            &several.manifests[1]
        );
        let wasm = index(&[Some(("linux", "arm64")), Some(("wasip2", "wasm"))]);
        assert_eq!(choose(&reference, &wasm, &wanted, Runtime::Oci).unwrap(), &wasm.manifests[1]);
        let both = index(&[Some(("linux", "amd64")), Some(("wasi", "wasm"))]);
        for (runtime, nth) in [(Runtime::Oci, 0), (Runtime::Wasm, 1)] {
            assert_eq!(choose(&reference, &both, &wanted, runtime).unwrap(), &both.manifests[nth]);
        }
        let other = index(&[Some(("linux", "arm64")), Some(("windows", "amd64"))]);
        let error = choose(&reference, &other, &wanted, Runtime::Wasm).unwrap_err();
        assert_eq!(error.reason(), brig_api::lifecycle::Reason::InvalidArtifact);
        let text = error.to_string();
        assert!(
            text.contains("is for linux/arm64, windows/amd64; this node is linux/amd64"),
            "{text}"
        );
        assert!(choose(&reference, &index(&[None]), &wanted, Runtime::Oci).is_ok());
        assert!(choose(&reference, &index(&[]), &wanted, Runtime::Oci).is_err());
    }
}
