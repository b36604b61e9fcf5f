//! A program that says of everything that it was compiled.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// `compatibility`, and `compile --module M --digest D --cache C …`
const SCRIPT: &str = r#"#!/bin/sh
if [ "$1" = compatibility ]; then echo '{"namespace": ["aa", "ab"], "unit": ["ba", "bb"]}'; exit; fi
digest=${5#sha256:}
mkdir -p "$7/aa" && touch "$7/aa/$digest.code" && echo '{"Ok": {"compatibility": "aa", "is_new": false}}'
"#;

/// Makes one in that directory.
pub(crate) fn make(dir: &Path) -> PathBuf {
    let path = dir.join("fake-compiler");
    if !path.exists() {
        let new = dir.join("fake-compiler.new");
        let mut file =
            std::fs::File::options().write(true).create_new(true).mode(0o755).open(&new).unwrap();
        file.write_all(SCRIPT.as_bytes()).unwrap();
        drop(file);
        std::fs::rename(new, &path).unwrap();
    }
    path
}
