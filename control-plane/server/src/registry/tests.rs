//! The registry under real clients: ours over loopback, skopeo where it is installed, and bare requests.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use brig_api::Digest;
use brig_api::object::{Artifact, ArtifactKind};
use brig_api::oci::{Descriptor, MANIFEST};
use brig_api::reference::Reference;
use brig_client::registry::wasm::WasmPackage;
use brig_client::registry::{
    ContentStore, Quiet, RegistryClient, RegistryError as ClientError, RegistryOptions,
};
use futures::FutureExt as _;
use http::{Request, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tower::Service as _;

use super::{
    ArtifactIndex, GARBAGE_AGE_MIN, IndexFuture, MemoryIndex, NewArtifact, Registry,
    RegistryConfig, router,
};

/// A core module with nothing in it.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

struct Fixture {
    dir: tempfile::TempDir,
    index: Arc<MemoryIndex>,
    registry: Registry,
    address: String,
}

fn long_ago() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1)
}

fn far_ahead() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(10_000_000_000)
}

fn open(data: &Path, index: &Arc<MemoryIndex>, now: fn() -> SystemTime) -> Registry {
    let config = RegistryConfig { data: data.to_owned(), blob_bytes_max: 64 << 20, now };
    Registry::open(config, Arc::<MemoryIndex>::clone(index)).unwrap()
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let registry = open(dir.path(), &index, long_ago);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = router(registry.clone());
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    Fixture { dir, index, registry, address }
}

impl Fixture {
    fn client(&self) -> RegistryClient {
        let builtin = Some(format!("http://{}", self.address));
        RegistryClient::new(RegistryOptions { builtin, ..RegistryOptions::default() }).unwrap()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("registry/blobs/sha256").join(&hex[..2]).join(hex)
    }

    fn uploads(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("registry/uploads")).unwrap().count()
    }

    async fn ask(&self, method: &str, path: &str, body: impl Into<Body>) -> Response<Body> {
        self.ask_with(method, path, &[], body).await
    }

    async fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        router(self.registry.clone()).call(request).await.unwrap()
    }

    async fn push_blob(&self, bytes: &'static [u8]) -> Digest {
        let digest = digest(bytes);
        let path = format!("/v2/a/blobs/uploads/?digest={digest}");
        assert_eq!(self.ask("POST", &path, bytes).await.status(), StatusCode::CREATED);
        digest
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of_sha256(&Sha256::digest(bytes).into())
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

async fn body(response: Response<Body>) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn image_of(config: &Digest, size: u64) -> String {
    let config = Descriptor::new("application/vnd.oci.empty.v1+json", config.clone(), size);
    serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] })
        .to_string()
}

#[tokio::test]
async fn a_wasm_file_is_pushed_found_and_pulled() {
    let fixture = fixture().await;
    let client = fixture.client();
    let path = fixture.file("app.wasm", MODULE);
    let name = reference("team-a/dev/app:1");
    let first = client.push_wasm(&path, &name, &Quiet).await.unwrap();
    assert_eq!(first.blobs_known, 0);
    let again = client.push_wasm(&path, &name, &Quiet).await.unwrap();
    assert_eq!((again.bytes_sent, again.blobs_known, &again.digest), (0, 2, &first.digest));

    let described = fixture.registry.describe(&name).await.unwrap().unwrap();
    assert_eq!((&described.digest, described.kind), (&first.digest, ArtifactKind::Wasm));
    let pinned = reference("team-a/dev/app").pinned(first.digest.clone());
    assert_eq!(fixture.registry.resolve(&pinned).await.unwrap(), Some(first.digest.clone()));
    for unknown in ["team-a/dev/app:2", "team-b/app:1", "docker.io/team-a/dev/app:1"] {
        assert_eq!(fixture.registry.resolve(&reference(unknown)).await.unwrap(), None);
    }

    let store = ContentStore::open(fixture.dir.path().join("pulled")).unwrap();
    let (manifest, _) = client.pull(&name, &store, &Quiet).await.unwrap();
    assert_eq!(manifest.digest, first.digest);
    assert_eq!(std::fs::read(store.path(&digest(MODULE))).unwrap(), MODULE);
    assert_eq!(fixture.uploads(), 0);
}

#[tokio::test]
async fn an_upload_in_chunks_takes_them_in_order_and_survives_a_restart() {
    let fixture = fixture().await;
    let begun = fixture.ask("POST", "/v2/a/b/blobs/uploads/", "").await;
    assert_eq!((begun.status(), header(&begun, "range")), (StatusCode::ACCEPTED, "0-0"));
    let place = header(&begun, "location").to_owned();
    let chunk = |range: &'static str, bytes: &'static str| {
        let (fixture, place) = (&fixture, &place);
        async move { fixture.ask_with("PATCH", place, &[("content-range", range)], bytes).await }
    };
    assert_eq!(header(&chunk("0-4", "hello").await, "range"), "0-4");
    let early = chunk("9-13", "world").await;
    assert_eq!(early.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!((header(&early, "range"), header(&early, "location")), ("0-4", place.as_str()));
    let restarted =
        Fixture { registry: open(fixture.dir.path(), &fixture.index, long_ago), ..fixture };
    let state = restarted.ask("GET", &place, "").await;
    assert_eq!((state.status(), header(&state, "range")), (StatusCode::NO_CONTENT, "0-4"));
    let done = restarted.ask("PUT", &format!("{place}?digest={}", digest(b"hello!")), "!").await;
    assert_eq!(done.status(), StatusCode::CREATED);
    assert_eq!(std::fs::read(restarted.blob(&digest(b"hello!"))).unwrap(), b"hello!");
    assert_eq!(restarted.ask("GET", &place, "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(restarted.uploads(), 0);
}

#[tokio::test]
async fn what_is_not_as_announced_leaves_nothing_behind() {
    let fixture = fixture().await;
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(b"right"));
    let wrong = fixture.ask("POST", &path, "wrong").await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert!(body(wrong).await.contains("DIGEST_INVALID"));
    assert_eq!(fixture.uploads(), 0);
    let huge = vec![0_u8; (64 << 20) + 1];
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&huge));
    let refused = fixture.ask("POST", &path, huge).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fixture.uploads(), 0);
    for bad in ["/v2/../a/manifests/1", "/v2/A/manifests/1", "/v2/a/manifests/%2e%2e", "/v2/x"] {
        let status = fixture.ask("GET", bad, "").await.status();
        assert!(status == StatusCode::BAD_REQUEST || status == StatusCode::NOT_FOUND, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_added_to_an_upload_that_ends_does_not_get_into_the_blob() {
    let fixture = fixture().await;
    for round in 0_u32..100 {
        let begun = fixture.ask("POST", "/v2/a/blobs/uploads/", "").await;
        let place = header(&begun, "location").to_owned();
        let bytes = format!("blob {round}");
        assert_eq!(
            fixture.ask("PATCH", &place, bytes.clone()).await.status(),
            StatusCode::ACCEPTED
        );
        let digest = digest(bytes.as_bytes());
        let end = format!("{place}?digest={digest}");
        let (ended, added) =
            tokio::join!(fixture.ask("PUT", &end, ""), fixture.ask("PATCH", &place, "more"));
        // Whichever came first, the other one is told.
        if ended.status() == StatusCode::CREATED {
            assert_eq!(added.status(), StatusCode::NOT_FOUND);
            assert_eq!(std::fs::read(fixture.blob(&digest)).unwrap(), bytes.as_bytes());
        } else {
            assert_eq!(ended.status(), StatusCode::BAD_REQUEST);
            assert!(!fixture.blob(&digest).exists());
        }
    }
}

#[tokio::test]
async fn a_manifest_is_no_web_page() {
    let fixture = fixture().await;
    let config = fixture.push_blob(b"{}").await;
    let page = image_of(&config, 2).replace(&format!("\"{MANIFEST}\""), "\"text/html\"");
    let refused = fixture.ask("PUT", "/v2/a/manifests/1", page).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert!(body(refused).await.contains("MANIFEST_INVALID"));
}

#[tokio::test]
async fn a_manifest_is_taken_only_with_all_that_it_names() {
    let fixture = fixture().await;
    let image = image_of(&digest(b"{}"), 2);
    let early = fixture.ask("PUT", "/v2/a/manifests/1", image.clone()).await;
    assert_eq!(early.status(), StatusCode::BAD_REQUEST);
    assert!(body(early).await.contains("MANIFEST_BLOB_UNKNOWN"));
    let config = fixture.push_blob(b"{}").await;
    let wrong_size = fixture.ask("PUT", "/v2/a/manifests/1", image_of(&config, 3)).await;
    assert!(body(wrong_size).await.contains("SIZE_INVALID"));
    let put = fixture.ask("PUT", "/v2/a/manifests/1", image.clone()).await;
    assert_eq!(put.status(), StatusCode::CREATED);
    let by_digest = format!("/v2/a/manifests/{}", header(&put, "docker-content-digest"));
    for path in ["/v2/a/manifests/1", &by_digest] {
        let found = fixture.ask("GET", path, "").await;
        assert_eq!(header(&found, "content-type"), MANIFEST);
        assert_eq!(body(found).await, image);
    }
    assert_eq!(fixture.ask("DELETE", &by_digest, "").await.status(), StatusCode::ACCEPTED);
    for path in ["/v2/a/manifests/1", &by_digest, "/v2/a/tags/list"] {
        assert_eq!(fixture.ask("GET", path, "").await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let junk = fixture.ask("PUT", "/v2/a/manifests/1", "junk").await;
    assert!(body(junk).await.contains("MANIFEST_INVALID"));
}

#[tokio::test]
async fn a_manifest_that_its_tag_names_already_is_renewed_and_not_written_again() {
    let fixture = fixture().await;
    let config = fixture.push_blob(b"{}").await;
    let image = image_of(&config, 2);
    let path = "/v2/a/manifests/1";
    let put = async |registry: &Registry| {
        let request = Request::put(path).body(Body::from(image.clone())).unwrap();
        let answer = router(registry.clone()).call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        Digest::new(header(&answer, "docker-content-digest")).unwrap()
    };
    let blob = fixture.blob(&put(&fixture.registry).await);
    let file = || std::fs::metadata(&blob).unwrap();
    let first = file();
    let later = open(fixture.dir.path(), &fixture.index, far_ahead);
    put(&later).await;
    assert_eq!(file().ino(), first.ino());
    assert_eq!(file().modified().unwrap(), far_ahead(), "the collector leaves it alone");
    for damaged in ["", "{}", &format!("{image} ")] {
        std::fs::write(&blob, damaged).unwrap();
        put(&later).await;
        assert_eq!(std::fs::read_to_string(&blob).unwrap(), image, "it is healed");
    }
    std::fs::remove_file(fixture.blob(&config)).unwrap();
    let without = fixture.ask("PUT", path, image.clone()).await;
    assert!(body(without).await.contains("MANIFEST_BLOB_UNKNOWN"));
}

#[tokio::test]
async fn a_wasm_program_that_is_there_is_named_by_one_request() {
    let fixture = fixture().await;
    let path = fixture.file("app.wasm", MODULE);
    let package = WasmPackage::read(&path).await.unwrap();
    let client = brig_client::Client::new(&format!("http://{}", fixture.address), None).unwrap();
    let (name, other) = (reference("team/app:1"), reference("run/app:latest"));
    assert!(!client.wasm_name(&package, &name).await.unwrap(), "it has to be pushed");
    let pushed = fixture.client().push_wasm_package(&package, &name, &Quiet).await.unwrap();
    assert_eq!(&pushed.digest, package.digest());
    for name in [name, other] {
        assert!(client.wasm_name(&package, &name).await.unwrap());
        assert_eq!(fixture.registry.resolve(&name).await.unwrap().as_ref(), Some(package.digest()));
    }
}

#[tokio::test]
async fn blobs_are_mounted_and_read_in_parts_and_names_are_listed() {
    let fixture = fixture().await;
    let blob = fixture.push_blob(b"0123456789").await;
    let path = format!("/v2/b/c/blobs/{blob}");
    let part = fixture.ask_with("GET", &path, &[("range", "bytes=2-4")], "").await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(header(&part, "content-range"), "bytes 2-4/10");
    assert_eq!(body(part).await, "234");
    let head = fixture.ask("HEAD", &path, "").await;
    assert_eq!((head.status(), header(&head, "content-length")), (StatusCode::OK, "10"));
    let mount = format!("/v2/b/c/blobs/uploads/?mount={blob}&from=a");
    assert_eq!(fixture.ask("POST", &mount, "").await.status(), StatusCode::CREATED);
    let config = fixture.push_blob(b"{}").await;
    for tag in ["2", "1", "3"] {
        let path = format!("/v2/b/c/manifests/{tag}");
        fixture.ask("PUT", &path, image_of(&config, 2)).await;
    }
    let first = fixture.ask("GET", "/v2/b/c/tags/list?n=2", "").await;
    assert_eq!(header(&first, "link"), "</v2/b/c/tags/list?n=2&last=2>; rel=\"next\"");
    assert_eq!(body(first).await, r#"{"name":"b/c","tags":["1","2"]}"#);
    let rest = fixture.ask("GET", "/v2/b/c/tags/list?n=2&last=2", "").await;
    assert_eq!(body(rest).await, r#"{"name":"b/c","tags":["3"]}"#);
    let catalog = fixture.ask("GET", "/v2/_catalog", "").await;
    assert_eq!(body(catalog).await, r#"{"repositories":["b/c"]}"#);
}

#[tokio::test]
async fn a_corrupt_blob_is_found_by_its_reader_and_healed_by_a_push() {
    let fixture = fixture().await;
    let client = fixture.client();
    let (path, name) = (fixture.file("app.wasm", MODULE), reference("team/app:1"));
    client.push_wasm(&path, &name, &Quiet).await.unwrap();
    let blob = fixture.blob(&digest(MODULE));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let store = ContentStore::open(fixture.dir.path().join("pulled")).unwrap();
    let error = client.pull(&name, &store, &Quiet).await.unwrap_err();
    assert!(matches!(error, ClientError::BlobMissing { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(digest(MODULE).as_str()) && text.contains("push"), "{text}");
    assert_eq!(client.push_wasm(&path, &name, &Quiet).await.unwrap().blobs_known, 1);
    client.pull(&name, &store, &Quiet).await.unwrap();
}

#[tokio::test]
async fn garbage_goes_when_it_is_old_and_nothing_names_it() {
    let fixture = fixture().await;
    let (kept, pinned, lost) = (
        fixture.push_blob(b"kept").await,
        fixture.push_blob(b"pinned").await,
        fixture.push_blob(b"lost").await,
    );
    let put = async |tag: &str, config: &Digest, size| {
        let path = format!("/v2/a/manifests/{tag}");
        let put = fixture.ask("PUT", &path, image_of(config, size)).await;
        Digest::new(header(&put, "docker-content-digest")).unwrap()
    };
    put("kept", &kept, 4).await;
    let pin = put("moved", &pinned, 6).await;
    put("moved", &lost, 4).await;
    fixture.ask("DELETE", "/v2/a/manifests/moved", "").await;
    fixture.ask("POST", "/v2/a/blobs/uploads/", "").await;
    let now = open(fixture.dir.path(), &fixture.index, long_ago);
    let pins = [pin];
    assert_eq!(now.collect(&pins, Duration::ZERO).await.unwrap().blobs, 0);
    let later = open(fixture.dir.path(), &fixture.index, far_ahead);
    let collected = later.collect(&pins, GARBAGE_AGE_MIN).await.unwrap();
    assert_eq!((collected.blobs, collected.uploads), (2, 1));
    let is_there = |digest: &Digest| fixture.blob(digest).exists();
    assert!(is_there(&kept) && is_there(&pinned) && !is_there(&lost));
}

/// An index in whose listing a client is told that the registry has a blob.
struct Asked(PathBuf);

impl ArtifactIndex for Asked {
    fn put(&self, _: NewArtifact) -> IndexFuture<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> IndexFuture<'a, Option<Artifact>> {
        async { Ok(None) }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> IndexFuture<'a, Vec<Artifact>> {
        let blob = std::fs::File::options().append(true).open(&self.0).unwrap();
        blob.set_modified(far_ahead()).unwrap();
        async { Ok(Vec::new()) }.boxed()
    }

    fn delete<'a>(&'a self, _: &'a str, _: &'a str) -> IndexFuture<'a, bool> {
        async { Ok(false) }.boxed()
    }
}

#[tokio::test]
async fn a_blob_that_is_asked_for_while_garbage_is_collected_stays() {
    let fixture = fixture().await;
    let blob = fixture.push_blob(b"asked for").await;
    let path = fixture.blob(&blob);
    let data = fixture.dir.path().to_owned();
    let config = RegistryConfig { data, blob_bytes_max: 1, now: far_ahead };
    let registry = Registry::open(config, Arc::new(Asked(path.clone()))).unwrap();
    assert_eq!(registry.collect(&[], GARBAGE_AGE_MIN).await.unwrap().blobs, 0);
    assert!(path.exists());
}

#[tokio::test]
async fn a_manifest_about_another_is_listed_and_kept_with_it() {
    let fixture = fixture().await;
    let config = fixture.push_blob(b"{}").await;
    let put = fixture.ask("PUT", "/v2/a/manifests/1", image_of(&config, 2)).await;
    let subject = Digest::new(header(&put, "docker-content-digest")).unwrap();
    let mut signature: serde_json::Value = serde_json::from_str(&image_of(&config, 2)).unwrap();
    signature["subject"] =
        serde_json::to_value(Descriptor::new(MANIFEST, subject.clone(), 9)).unwrap();
    signature["artifactType"] = "application/x.signature".into();
    let signature = signature.to_string();
    let path = format!("/v2/a/manifests/{}", digest(signature.as_bytes()));
    let put = fixture.ask("PUT", &path, signature.clone()).await;
    assert_eq!(header(&put, "oci-subject"), subject.as_str());
    let path = format!("/v2/a/referrers/{subject}?artifactType=application/x.signature");
    assert!(
        body(fixture.ask("GET", &path, "").await)
            .await
            .contains(digest(signature.as_bytes()).as_str())
    );
    let path = format!("/v2/a/referrers/{subject}?artifactType=other");
    assert!(body(fixture.ask("GET", &path, "").await).await.contains("\"manifests\":[]"));
    let later = open(fixture.dir.path(), &fixture.index, far_ahead);
    assert_eq!(later.collect(&[], GARBAGE_AGE_MIN).await.unwrap().blobs, 0);
}

/// Runs a program; false, with a reason on standard output, when it cannot be run here.
fn run(program: &str, args: &[&str]) -> bool {
    match Command::new(program).args(args).output() {
        Ok(done) if done.status.success() => true,
        Ok(done) => panic!("{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr)),
        Err(error) if std::env::var_os("BRIG_TEST_IMAGES").is_some() => {
            panic!("{program}: {error}")
        }
        Err(error) => {
            println!("not tried: {program} cannot be run here ({error})");
            false
        }
    }
}

/// Takes a small disk away again.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_half_written_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mount.is_ok_and(|done| done.status.success()) {
        println!("not tried: mounting a small disk needs root");
        return;
    }
    let _mounted = Mounted(dir.path().to_owned());
    let index = Arc::new(MemoryIndex::default());
    let registry = open(dir.path(), &index, long_ago);
    let bytes = vec![1_u8; 4 << 20];
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&bytes));
    let request = Request::post(&path).body(Body::from(bytes)).unwrap();
    let full = router(registry).call(request).await.unwrap();
    assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
    let text = body(full).await;
    assert!(text.contains("disk is full") && text.contains("uploads"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path().join("registry/uploads")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_in_and_out() {
    let Some(images) = std::env::var_os("BRIG_TEST_IMAGES") else {
        println!("not tried: BRIG_TEST_IMAGES names no folder with OCI layouts");
        return;
    };
    let fixture = fixture().await;
    let layout = PathBuf::from(images).join("layout");
    let from = format!("oci:{}:busybox", layout.display());
    let name = format!("docker://{}/team/busybox:1", fixture.address);
    let back = fixture.dir.path().join("back");
    let to = format!("oci:{}:back", back.display());
    let copied = tokio::task::spawn_blocking(move || {
        run("skopeo", &["copy", "--dest-tls-verify=false", &from, &name])
            && run("skopeo", &["copy", "--src-tls-verify=false", &name, &to])
    });
    if !copied.await.unwrap() {
        return;
    }
    let described = fixture.registry.describe(&reference("team/busybox:1")).await.unwrap().unwrap();
    assert_eq!(described.kind, ArtifactKind::Image);
    assert!(back.join("blobs/sha256").join(described.digest.hex()).is_file());
    // The same layout, pushed by our client as a folder and as a tar, is the same image; nothing is sent twice.
    let client = fixture.client();
    let again = client.push_layout(&back, &reference("team/copy:back"), &Quiet).await.unwrap();
    assert_eq!((again.bytes_sent, &again.digest), (0, &described.digest));
    let tar = fixture.dir.path().join("back.tar");
    assert!(run(
        "tar",
        &["-cf", &tar.display().to_string(), "-C", &back.display().to_string(), "."]
    ));
    let again = client.push_layout(&tar, &reference("team/copy:tar"), &Quiet).await.unwrap();
    assert_eq!((again.bytes_sent, &again.digest), (0, &described.digest));
}
