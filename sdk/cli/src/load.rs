//! Reads manifests from files, directories and standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use brig_api::manifest::{Format, MANIFEST_BYTES_MAX, Manifest, parse};
use brig_api::unit_spec::UnitSpec;

use crate::failure::Failure;

const ENDINGS: [&str; 4] = ["yaml", "yml", "toml", "json"];

/// Every manifest in `paths`, in their order (files of a directory by name). Every fault of every file at once.
pub(crate) fn manifests(
    paths: &[PathBuf],
    namespace: Option<&str>,
) -> Result<Vec<Manifest<UnitSpec>>, Failure> {
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for path in paths {
        for (name, text) in texts(path)? {
            match parse(&text, Format::of_file_name(&name), namespace) {
                Ok(manifests) => found.extend(manifests),
                Err(errors) => faults.extend(errors.iter().map(|error| format!("{name}: {error}"))),
            }
        }
    }
    if !faults.is_empty() {
        return Err(Failure::usage(faults.join("\n")));
    }
    if found.is_empty() {
        let names =
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!(
            "no manifests in {names}: expected maps with `kind` and `name`"
        )));
    }
    for manifest in &found {
        if let Err(errors) = manifest.clone().check() {
            let key = manifest.key();
            faults.extend(errors.iter().map(|error| format!("{key}: {error}")));
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(Failure::usage(faults.join("\n"))) }
}

fn texts(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    if path == Path::new("-") {
        return Ok(vec![(
            "standard input".to_owned(),
            read(std::io::stdin().lock(), "standard input")?,
        )]);
    }
    if path.is_dir() {
        let mut files: Vec<_> = std::fs::read_dir(path)
            .map_err(|error| fault(path, &error))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| {
                file.is_file()
                    && file.extension().is_some_and(|e| ENDINGS.iter().any(|known| e == *known))
            })
            .collect();
        files.sort();
        if files.is_empty() {
            let endings = ENDINGS.join(", .");
            return Err(Failure::usage(format!(
                "{}: no manifests (.{endings}) in this directory",
                path.display()
            )));
        }
        return files.iter().map(|file| text(file)).collect();
    }
    Ok(vec![text(path)?])
}

fn text(path: &Path) -> Result<(String, String), Failure> {
    let file = std::fs::File::open(path).map_err(|error| fault(path, &error))?;
    let name = path.display().to_string();
    let text = read(file, &name)?;
    Ok((name, text))
}

fn fault(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}

fn read(from: impl Read, name: &str) -> Result<String, Failure> {
    let limit = u64::try_from(MANIFEST_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    from.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{name}: larger than {MANIFEST_BYTES_MAX} bytes, which no manifest is"
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("{name}: not UTF-8 text, so no manifest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_the_order_of_names_and_other_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.yaml"), "kind: config\nname: b\ndata: {}\n").unwrap();
        std::fs::write(dir.path().join("a.toml"), "kind = 'config'\nname = 'a'\ndata = {}\n")
            .unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no manifest").unwrap();
        let names: Vec<_> =
            manifests(&[dir.path().into()], None).unwrap().iter().map(|m| m.key().name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn every_fault_is_told_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "kind: service\nname: a\nreplica: 1\nunit: {}")
            .unwrap();
        std::fs::write(dir.path().join("b.json"), "{").unwrap();
        let message = manifests(&[dir.path().into()], None).unwrap_err().message;
        assert!(
            message.contains("a.yaml")
                && message.contains("`replicas`")
                && message.contains("b.json"),
            "{message}"
        );
        let binary = dir.path().join("c.yaml");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        assert!(manifests(&[binary], None).unwrap_err().message.contains("UTF-8"));
        assert!(
            manifests(&["/nonexistent".into()], None).unwrap_err().message.contains("/nonexistent")
        );
    }
}
