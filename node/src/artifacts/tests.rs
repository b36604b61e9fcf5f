//! Artifacts from a real registry over loopback, and layers that mean harm.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use brig_api::lifecycle::Reason;
use brig_api::wasm::WasmForm;
use brig_client::registry::{Quiet, RegistryOptions, Transferred};
use brig_server::registry::{MemoryIndex, Registry, RegistryConfig, router};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::unpack::{UnpackError, unpack};
use super::*;

fn digest(bytes: &[u8]) -> Digest {
    Digest::of_sha256(&Sha256::digest(bytes).into())
}

/// A tar with whatever one wants in its headers: the `tar` crate's own functions refuse hostile paths.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn put(mut self, kind: EntryType, path: &str, link: &str, mode: u32, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, bytes: &[u8]) -> Self {
        self.put(EntryType::Regular, path, "", 0o644, bytes)
    }

    fn folder(self, path: &str) -> Self {
        self.put(EntryType::Directory, path, "", 0o755, b"")
    }

    fn symlink(self, path: &str, to: &str) -> Self {
        self.put(EntryType::Symlink, path, to, 0o777, b"")
    }

    fn hard_link(self, path: &str, to: &str) -> Self {
        self.put(EntryType::Link, path, to, 0o644, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A folder to unpack into, beside one that must stay as it is.
struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
    outside: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    Place { _dir: dir, root, outside }
}

impl Place {
    fn unpack(&self, tar: &[u8]) -> Result<(), UnpackError> {
        unpack(tar, &self.root, UnpackLimits::default())
    }

    fn is_untouched_outside(&self) {
        let names: Vec<_> = std::fs::read_dir(&self.outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(std::fs::read_to_string(self.outside.join("secret")).unwrap(), "secret");
        assert_eq!(std::fs::metadata(self.outside.join("secret")).unwrap().nlink(), 1);
        assert_eq!(std::fs::read_dir(self.outside.parent().unwrap()).unwrap().count(), 2);
    }
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("not tried: whiteouts and owners need root");
    }
    is_root
}

#[test]
fn files_links_modes_and_times_are_kept() {
    let place = place();
    let tar = Tar::default()
        .folder("bin/")
        .put(EntryType::Regular, "bin/su", "", 0o4755, b"#!")
        .hard_link("bin/su2", "bin/su")
        .symlink("sbin", "/bin")
        .file("sbin/through", b"link")
        .file("deep/in/new/folders", b"x")
        .put(EntryType::Fifo, "pipe", "", 0o600, b"")
        .put(EntryType::Char, "null", "", 0o666, b"")
        .file("./bin/again", b"first")
        .file("bin/again", b"second")
        .end();
    place.unpack(&tar).unwrap();
    let at = |name: &str| std::fs::symlink_metadata(place.root.join(name)).unwrap();
    assert_eq!(at("bin/su").permissions().mode() & 0o7777, 0o4755);
    assert_eq!((at("bin/su").ino(), at("bin/su").nlink()), (at("bin/su2").ino(), 2));
    assert_eq!((at("bin/su").mtime(), at("bin").mtime()), (1_000_000, 1_000_000));
    assert_eq!(std::fs::read_link(place.root.join("sbin")).unwrap(), Path::new("/bin"));
    assert_eq!(std::fs::read_to_string(place.root.join("bin/through")).unwrap(), "link");
    assert_eq!(std::fs::read_to_string(place.root.join("bin/again")).unwrap(), "second");
    assert!(at("pipe").file_type().is_fifo() && !place.root.join("null").exists());
    assert!(at("deep/in/new/folders").is_file());
    if is_root() {
        assert_eq!((at("bin/su").uid(), at("bin/su").gid()), (1000, 1001));
    }
}

#[test]
fn whiteouts_become_what_overlayfs_wants() {
    if !is_root() {
        return;
    }
    let place = place();
    let tar = Tar::default()
        .file("etc/.wh.gone", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"")
        .file("kept", b"here")
        .file(".wh.kept", b"")
        .file(".wh.swap", b"")
        .folder("swap")
        .file(".wh..wh.plnk", b"")
        .end();
    place.unpack(&tar).unwrap();
    let gone = std::fs::symlink_metadata(place.root.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for folder in ["var", "swap"] {
        let mut value = [0; 8];
        let name = "trusted.overlay.opaque";
        let length = rustix::fs::getxattr(place.root.join(folder), name, &mut value).unwrap();
        assert_eq!(&value[..length], b"y", "{folder}");
    }
    assert_eq!(std::fs::read_to_string(place.root.join("kept")).unwrap(), "here");
    assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), 4);
}

/// Makes a tar that knows where it is unpacked.
type Make = Box<dyn Fn(&Place) -> Tar>;

#[test]
fn hostile_tars_write_nothing_outside() {
    let outside = |place: &Place, name: &str| place.outside.join(name).display().to_string();
    let tars: Vec<(&str, Make)> = vec![
        ("climbs", Box::new(|_| Tar::default().file("../outside/new", b"x"))),
        ("climbs late", Box::new(|_| Tar::default().file("a/../../outside/new", b"x"))),
        ("is absolute", Box::new(move |p| Tar::default().file(&outside(p, "new"), b"x"))),
        (
            "writes through a link",
            Box::new(move |p| Tar::default().symlink("out", &outside(p, "")).file("out/new", b"x")),
        ),
        (
            "writes through a relative link",
            Box::new(|_| Tar::default().symlink("out", "../outside").file("out/secret", b"x")),
        ),
        (
            "replaces a link's target",
            Box::new(move |p| Tar::default().symlink("s", &outside(p, "secret")).file("s", b"x")),
        ),
        (
            "makes a folder of a link",
            Box::new(|_| {
                Tar::default().symlink("out", "../outside").folder("out").file("out/new", b"x")
            }),
        ),
        (
            "links hard to outside",
            Box::new(move |p| Tar::default().hard_link("hard", &outside(p, "secret"))),
        ),
        ("links hard upwards", Box::new(|_| Tar::default().hard_link("h", "../outside/secret"))),
        (
            "links hard through a link",
            Box::new(|_| Tar::default().symlink("out", "../outside").hard_link("h", "out/secret")),
        ),
        (
            "links hard to a link, then writes",
            Box::new(|_| {
                Tar::default().symlink("s", "../outside/secret").hard_link("h", "s").file("h", b"x")
            }),
        ),
        (
            "removes through a link",
            Box::new(|_| Tar::default().symlink("o", "../outside").file("o/.wh.secret", b"")),
        ),
        ("is a whiteout of the parent", Box::new(|_| Tar::default().file("a/.wh...", b""))),
        ("replaces the root", Box::new(|_| Tar::default().symlink("./", "../outside"))),
    ];
    for (name, make) in tars {
        let place = place();
        let result = place.unpack(&make(&place).end());
        println!("{name}: {result:?}");
        place.is_untouched_outside();
    }
    let place = place();
    let error = place.unpack(&Tar::default().file("../new", b"").end()).unwrap_err();
    assert!(error.to_string().contains("`../new` climbs out"), "{error}");
}

#[test]
fn bombs_are_stopped() {
    let place = place();
    let many = Tar::default().file("a", b"").file("b", b"").file("c/d/e/f", b"").end();
    let limits = UnpackLimits { bytes_max: 1 << 20, entries_max: 4 };
    let error = unpack(many.as_slice(), &place.root, limits).unwrap_err();
    assert!(matches!(error, UnpackError::TooManyEntries { entries_max: 4 }), "{error}");
    // A long name of gigabytes would be read into memory.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    let stream = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(b'a'));
    let error = unpack(stream, &place.root, limits).unwrap_err();
    assert!(error.to_string().contains("extension header"), "{error}");
    // Any number of extension headers may come before an entry, and what they say is kept until then.
    let mut endless = Tar::default();
    for number in 0..8 {
        // The length is that of the whole record, its own digits included.
        let record = format!("200010 {number:02}={}\n", "x".repeat(199_999));
        assert_eq!(record.len(), 200_010);
        endless = endless.put(EntryType::XHeader, "pax", "", 0, record.as_bytes());
    }
    let endless = endless.file("a", b"").end();
    let error = place.unpack(&endless).unwrap_err();
    assert!(error.to_string().contains("extension headers"), "{error}");
    // Zeros after the end are hashed, not kept; but not for ever.
    let bomb = std::io::Read::chain(many.as_slice(), std::io::repeat(0));
    let store =
        LayerStore::open(place.root.join("layers"), UnpackLimits { entries_max: 9, ..limits })
            .unwrap();
    let blob = place.root.join("blob");
    let mut packed = flate2::write::GzEncoder::new(
        std::fs::File::create(&blob).unwrap(),
        flate2::Compression::fast(),
    );
    std::io::copy(&mut std::io::Read::take(bomb, 2 << 20), &mut packed).unwrap();
    packed.finish().unwrap();
    let error = store.unpack(&blob, &digest(b"")).unwrap_err();
    assert!(matches!(error, ArtifactError::Unpack(UnpackError::TooLarge { .. })), "{error}");
    assert_eq!(std::fs::read_dir(place.root.join("layers")).unwrap().count(), 0);
}

#[test]
fn what_is_no_tar_is_refused() {
    for broken in [&b"not a tar"[..], &[7; 2048], &Tar::default().file("a", b"xyz").0[..600]] {
        let error = place().unpack(broken).unwrap_err();
        assert!(matches!(error, UnpackError::Broken { .. }), "{error}");
    }
}

fn now() -> SystemTime {
    UNIX_EPOCH
}

struct Fixture {
    dir: tempfile::TempDir,
    client: RegistryClient,
    server: tokio::task::JoinHandle<()>,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("server");
    let config = RegistryConfig { data, blob_bytes_max: 1 << 30, now };
    let registry = Registry::open(config, Arc::new(MemoryIndex::default())).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let builtin = Some(format!("http://{}", listener.local_addr().unwrap()));
    let service = router(registry);
    let server = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    let options = RegistryOptions { builtin, ..RegistryOptions::default() };
    Fixture { dir, client: RegistryClient::new(options).unwrap(), server }
}

impl Fixture {
    fn artifacts(&self) -> Artifacts {
        let data = self.dir.path().join("node");
        Artifacts::open(&data, self.client.clone(), UnpackLimits::default()).unwrap()
    }

    /// Pushes an image of one layer, from a layout made here.
    async fn push_image(
        &self,
        name: &str,
        architecture: &str,
        tar: &[u8],
        diff_id: &Digest,
    ) -> Transferred {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(tar).unwrap();
        self.push_layer(name, architecture, (&packed.finish().unwrap(), "tar+gzip"), diff_id).await
    }

    /// Pushes an image of this layer: its blob, and the end of its media type.
    async fn push_layer(
        &self,
        name: &str,
        architecture: &str,
        (blob, ending): (&[u8], &str),
        diff_id: &Digest,
    ) -> Transferred {
        let layout = self.dir.path().join(name);
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let put = |bytes: &[u8]| {
            std::fs::write(layout.join("blobs/sha256").join(digest(bytes).hex()), bytes).unwrap();
            serde_json::json!({ "digest": digest(bytes), "size": bytes.len() })
        };
        let mut layer = put(blob);
        layer["mediaType"] = format!("application/vnd.oci.image.layer.v1.{ending}").into();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["/a"] },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] }
        });
        let mut config = put(config.to_string().as_bytes());
        config["mediaType"] = brig_api::oci::IMAGE_CONFIG.into();
        let manifest =
            serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        let mut manifest = put(manifest.to_string().as_bytes());
        manifest["mediaType"] = brig_api::oci::MANIFEST.into();
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        std::fs::write(layout.join("oci-layout"), "{}").unwrap();
        let reference = format!("team/{name}:1").parse().unwrap();
        self.client.push_layout(&layout, &reference, &Quiet).await.unwrap()
    }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[tokio::test]
async fn wasm_is_fetched_once_and_again_when_its_file_was_changed() {
    let fixture = fixture().await;
    let bytes = b"\0asm\x01\0\0\0";
    let file = fixture.dir.path().join("a.wasm");
    std::fs::write(&file, bytes).unwrap();
    let name = reference("team/a:1");
    let pushed = fixture.client.push_wasm(&file, &name, &Quiet).await.unwrap();
    let wasm = fixture.artifacts().fetch_wasm(&name, &Quiet).await.unwrap();
    assert_eq!((wasm.digest.clone(), wasm.form), (digest(bytes), WasmForm::Module));
    assert_eq!(wasm.manifest, pushed.digest);
    assert_eq!(wasm.config.unwrap().os, "wasip1");
    std::fs::write(&wasm.path, b"changed").unwrap();
    let wasm = fixture.artifacts().fetch_wasm(&name, &Quiet).await.unwrap();
    assert_eq!(std::fs::read(wasm.path).unwrap(), bytes);
    let error = fixture.artifacts().fetch_image(&name, &Quiet).await.unwrap_err();
    assert!(error.to_string().contains("write `wasm"), "{error}");
    assert_eq!(error.reason(), Reason::InvalidArtifact);
    fixture.server.abort();
    let pinned = name.pinned(pushed.digest);
    fixture.artifacts().fetch_wasm(&pinned, &Quiet).await.unwrap();
}

#[tokio::test]
async fn a_program_that_was_looked_at_needs_only_its_file() {
    let fixture = fixture().await;
    let file = fixture.dir.path().join("a.wasm");
    std::fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
    let name = reference("team/a:1");
    let pushed = fixture.client.push_wasm(&file, &name, &Quiet).await.unwrap();
    let (artifacts, pinned) = (fixture.artifacts(), name.pinned(pushed.digest));
    let first = artifacts.fetch_wasm(&pinned, &Quiet).await.unwrap();
    fixture.server.abort();
    let manifest = first.path.with_file_name(first.manifest.hex());
    std::fs::remove_file(manifest).unwrap();
    let again = artifacts.fetch_wasm(&pinned, &Quiet).await.unwrap();
    assert_eq!((again.path, again.digest), (first.path.clone(), first.digest));
    let error = artifacts.fetch_image(&pinned, &Quiet).await.unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidArtifact);
    std::fs::remove_file(first.path).unwrap();
    let error = artifacts.fetch_wasm(&pinned, &Quiet).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PullFailed, "it is looked for again: {error}");
}

#[tokio::test]
async fn an_image_is_unpacked_once_for_all_who_ask() {
    let fixture = fixture().await;
    let tar = Tar::default().file("a", b"hello").end();
    let machine = this_machine().architecture;
    let pushed = fixture.push_image("web", &machine, &tar, &digest(&tar)).await;
    let (artifacts, name) = (fixture.artifacts(), reference("team/web:1"));
    let (one, two) = futures::future::join(
        artifacts.fetch_image(&name, &Quiet),
        artifacts.fetch_image(&name, &Quiet),
    )
    .await;
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.layers, two.layers);
    assert_eq!(std::fs::read_to_string(one.layers[0].join("a")).unwrap(), "hello");
    assert_eq!(one.config.process().cmd.unwrap(), ["/a"]);
    fixture.server.abort();
    let pinned = name.pinned(pushed.digest);
    assert_eq!(artifacts.fetch_image(&pinned, &Quiet).await.unwrap().layers, one.layers);
}

#[tokio::test]
async fn a_wasm_program_in_an_image_is_found_by_its_entry_point() {
    let fixture = fixture().await;
    let program = b"\0asm\x0d\0\x01\0";
    let tar = Tar::default().file("a", program).end();
    let pushed = fixture.push_image("legacy", "wasm", &tar, &digest(&tar)).await;
    let (artifacts, name) = (fixture.artifacts(), reference("team/legacy:1"));
    let found = artifacts.fetch_wasm(&name, &Quiet).await.unwrap();
    assert_eq!((found.digest.clone(), found.form), (digest(program), WasmForm::Component));
    assert_eq!(
        (std::fs::read(&found.path).unwrap().as_slice(), &found.manifest),
        (&program[..], &pushed.digest)
    );
    let error = artifacts.fetch_image(&name, &Quiet).await.unwrap_err();
    assert!(error.to_string().contains("write `wasm"), "{error}");
    fixture.server.abort();
    assert_eq!(
        artifacts.fetch_wasm(&name.pinned(pushed.digest), &Quiet).await.unwrap().path,
        found.path
    );
}

#[tokio::test]
async fn an_image_for_wasm_without_a_wasm_program_says_what_it_has() {
    let fixture = fixture().await;
    let artifacts = fixture.artifacts();
    for (name, tar, says) in [
        ("script", Tar::default().file("a", b"#!/bin/sh\n").end(), "text"),
        ("empty", Tar::default().file("b", b"").end(), "entry point `a`"),
    ] {
        fixture.push_image(name, "wasm", &tar, &digest(&tar)).await;
        let name = reference(&format!("team/{name}:1"));
        let error = artifacts.fetch_wasm(&name, &Quiet).await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidArtifact);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_file_is_read_from_the_highest_layer_and_from_no_other_place() {
    let dir = tempfile::tempdir().unwrap();
    let [low, high] = ["low", "high"].map(|name| dir.path().join(name));
    for layer in [&low, &high] {
        std::fs::create_dir(layer).unwrap();
    }
    std::fs::write(dir.path().join("secret"), b"outside").unwrap();
    std::fs::write(low.join("a"), b"low").unwrap();
    std::fs::write(low.join("b"), b"low").unwrap();
    std::fs::write(high.join("b"), b"high").unwrap();
    std::os::unix::fs::symlink("../secret", high.join("up")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), high.join("away")).unwrap();
    let layers = [low, high];
    let read = |path: &str, max| layers::read_file(&layers, Path::new(path), max).unwrap();
    assert_eq!(read("a", 10).unwrap(), b"low");
    assert_eq!(read("b", 10).unwrap(), b"high");
    for path in ["up", "away", "../secret", "none", "a/b", "."] {
        assert_eq!(read(path, 10), None, "{path}");
    }
    assert_eq!(read("b", 3), None, "it is too large");
}

#[tokio::test]
async fn a_layer_that_is_not_compressed_is_its_own_blob() {
    let fixture = fixture().await;
    let tar = Tar::default().file("a", b"hello").end();
    let machine = this_machine().architecture;
    fixture.push_layer("plain", &machine, (&tar, "tar"), &digest(&tar)).await;
    let image = fixture.artifacts().fetch_image(&reference("team/plain:1"), &Quiet).await.unwrap();
    assert_eq!(std::fs::read_to_string(image.layers[0].join("a")).unwrap(), "hello");
}

#[tokio::test]
async fn images_that_cannot_run_here_say_why() {
    let fixture = fixture().await;
    let tar = Tar::default().file("a", b"hello").end();
    let machine = this_machine().architecture;
    fixture.push_image("foreign", "riscv64", &tar, &digest(&tar)).await;
    fixture.push_image("liar", &machine, &tar, &digest(b"other")).await;
    let hostile = Tar::default().file("../a", b"").end();
    fixture.push_image("hostile", &machine, &hostile, &digest(&hostile)).await;
    let artifacts = fixture.artifacts();
    for (name, says) in [
        ("foreign", format!("is for linux/riscv64; this node is linux/{machine}")),
        ("liar", format!("unpacks to {}", digest(&tar))),
        ("hostile", "climbs out".to_owned()),
    ] {
        let name = reference(&format!("team/{name}:1"));
        let error = artifacts.fetch_image(&name, &Quiet).await.unwrap_err();
        assert!(error.to_string().contains(&says), "{error}");
        assert_eq!(error.reason(), Reason::InvalidArtifact);
    }
    let error = artifacts.fetch(&reference("team/none:1"), Runtime::Oci, &Quiet).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PullFailed, "{error}");
    let layers = fixture.dir.path().join("node/artifacts/layers");
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 0);
}

/// Takes a mount away again.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Mounts something at `at`; None, with a reason on standard output, where that is not allowed.
fn mount(at: &Path, args: &[&str]) -> Option<Mounted> {
    std::fs::create_dir_all(at).unwrap();
    let done = Command::new("mount").args(args).arg(at).output();
    if done.is_ok_and(|done| done.status.success()) {
        return Some(Mounted(at.to_owned()));
    }
    println!("not tried: mounting needs root");
    None
}

#[tokio::test]
async fn a_full_disk_is_its_own_reason_and_leaves_room_behind() {
    let fixture = fixture().await;
    let tar = Tar::default().file("big", &vec![0; 8 << 20]).end();
    fixture.push_image("big", &this_machine().architecture, &tar, &digest(&tar)).await;
    let Some(_mounted) =
        mount(&fixture.dir.path().join("node"), &["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
    else {
        return;
    };
    let error = fixture
        .artifacts()
        .fetch(&reference("team/big:1"), Runtime::Oci, &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::DiskFull, "{error}");
    assert!(error.to_string().contains("artifacts"), "{error}");
    let layers = fixture.dir.path().join("node/artifacts/layers");
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 0);
}

#[tokio::test]
async fn real_images_are_what_overlayfs_shows() {
    let Some(images) = std::env::var_os("BRIG_TEST_IMAGES") else {
        println!("not tried: BRIG_TEST_IMAGES names no folder with OCI layouts");
        return;
    };
    let fixture = fixture().await;
    let layout = PathBuf::from(images).join("layout");
    let artifacts = fixture.artifacts();
    for tag in ["busybox", "whiteouts", "foreign"] {
        let name = reference(&format!("team/real:{tag}"));
        fixture.client.push_layout(&layout, &name, &Quiet).await.unwrap();
    }
    let foreign =
        artifacts.fetch(&reference("team/real:foreign"), Runtime::Oci, &Quiet).await.unwrap_err();
    assert!(matches!(foreign, ArtifactError::Platform { .. }), "{foreign}");
    let busybox = artifacts.fetch_image(&reference("team/real:busybox"), &Quiet).await.unwrap();
    assert!(busybox.layers[0].join("bin/busybox").is_file());
    let image = artifacts.fetch_image(&reference("team/real:whiteouts"), &Quiet).await.unwrap();
    assert_eq!((image.layers.len(), &image.layers[0]), (3, &busybox.layers[0]));
    let lower: Vec<_> = image.layers.iter().rev().map(|path| path.display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    let at = fixture.dir.path().join("root");
    let Some(_mounted) = mount(&at, &["-t", "overlay", "-o", &options, "overlay"]) else { return };
    let names = |folder: &str| {
        let entries = std::fs::read_dir(at.join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!((names("data"), names("hidden")), (vec!["keep".to_owned()], vec!["new".to_owned()]));
    assert_eq!(names("link"), ["inside"]);
    assert!(at.join("swap").is_file() && at.join("bin/busybox").is_file());
}
