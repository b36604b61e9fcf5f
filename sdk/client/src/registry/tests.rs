//! The client against small servers that misbehave.

use std::sync::{Arc, Mutex};

use brig_api::Digest;
use brig_api::oci::Descriptor;
use brig_api::reference::Reference;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// What a server does with a request: bytes to send before it hangs up.
type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// A server that gives `answer` to each request's head; what it was asked, and its address.
async fn server(answer: Answer) -> (Arc<Mutex<Vec<String>>>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match socket.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let head = String::from_utf8(head).unwrap();
            log.lock().unwrap().push(head.clone());
            socket.write_all(&answer(&head)).await.unwrap();
            // Closing with the request read makes an orderly end, so that the client sees all bytes.
            let _ = socket.shutdown().await;
        }
    });
    (asked, address)
}

fn reply(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of_sha256(&Sha256::digest(bytes).into())
}

fn start_of(head: &str) -> Option<usize> {
    let (_, range) = head.split_once("range: bytes=")?;
    range.split_once('-')?.0.parse().ok()
}

fn partials(store: &ContentStore) -> usize {
    std::fs::read_dir(store.root().join("partial")).unwrap().count()
}

fn client() -> RegistryClient {
    RegistryClient::new(RegistryOptions::default()).unwrap()
}

fn reference(address: &str) -> Reference {
    format!("{address}/team/app:1").parse().unwrap()
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let served = content.clone();
    let (asked, address) = server(Box::new(move |head| {
        let start = start_of(head).unwrap_or(0);
        let rest = &served[start..];
        let cut = &rest[..rest.len().min(150_000)];
        let range = format!("Content-Range: bytes {start}-399999/400000\r\n");
        match start {
            0 => reply("200 OK", "", rest.len(), cut),
            _ => reply("206 Partial Content", &range, rest.len(), cut),
        }
    }))
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = ContentStore::open(dir.path()).unwrap();
    let blob = Descriptor::new("x", digest(&content), content.len() as u64);
    client().blob(&reference(&address), &blob, &store, &Quiet).await.unwrap();
    assert_eq!(std::fs::read(store.path(&blob.digest)).unwrap(), content);
    let starts: Vec<_> = asked.lock().unwrap().iter().map(|head| start_of(head)).collect();
    assert_eq!(starts, [None, Some(150_000), Some(300_000)]);
    assert_eq!(partials(&store), 0);
}

#[tokio::test]
async fn a_start_from_an_earlier_process_is_used_only_if_the_digest_is_right() {
    let content = vec![7; 5000];
    for (begun, starts) in [
        (vec![7; 2000], vec![Some(2000)]),
        (vec![8; 2000], vec![Some(2000), None]),
        (vec![8; 9000], vec![None]),
    ] {
        let served = content.clone();
        let (asked, address) = server(Box::new(move |head| match start_of(head) {
            None => reply("200 OK", "", served.len(), &served),
            Some(start) => {
                let range = format!("Content-Range: bytes {start}-4999/5000\r\n");
                reply("206 Partial Content", &range, 5000 - start, &served[start..])
            }
        }))
        .await;
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        let blob = Descriptor::new("x", digest(&content), 5000);
        std::fs::write(dir.path().join("partial").join(blob.digest.hex()), begun).unwrap();
        client().blob(&reference(&address), &blob, &store, &Quiet).await.unwrap();
        assert_eq!(std::fs::read(store.path(&blob.digest)).unwrap(), content);
        let asked: Vec<_> = asked.lock().unwrap().iter().map(|head| start_of(head)).collect();
        assert_eq!(asked, starts);
    }
}

#[tokio::test]
async fn wrong_bytes_are_thrown_away_and_both_digests_named() {
    let (_, address) = server(Box::new(|_| reply("200 OK", "", 3, b"bad"))).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ContentStore::open(dir.path()).unwrap();
    let blob = Descriptor::new("x", digest(b"god"), 3);
    let error = client().blob(&reference(&address), &blob, &store, &Quiet).await.unwrap_err();
    let text = error.to_string();
    for part in [digest(b"god").as_str(), digest(b"bad").as_str(), "push the artifact again"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!store.has(&blob.digest) && partials(&store) == 0);
    let longer = Descriptor::new("x", digest(b"ba"), 2);
    let error = client().blob(&reference(&address), &longer, &store, &Quiet).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_the_token_to_the_registry() {
    let place = Arc::new(Mutex::new(String::new()));
    let here = Arc::clone(&place);
    let manifest = r#"{"schemaVersion":2,"manifests":[]}"#;
    let (asked, address) = server(Box::new(move |head| {
        if head.starts_with("GET /token?") {
            return reply("200 OK", "", 15, br#"{"token":"t0k"}"#);
        }
        if head.contains("authorization: Bearer t0k") {
            return reply("200 OK", "", manifest.len(), manifest.as_bytes());
        }
        let realm = here.lock().unwrap().clone();
        let ask =
            format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"s\"\r\n");
        reply("401 Unauthorized", &ask, 0, b"")
    }))
    .await;
    place.lock().unwrap().clone_from(&address);
    let login = Credential { user: "me".to_owned(), password: "secret".to_owned() };
    let credentials = Credentials::default().with(&address, login);
    let options = RegistryOptions { credentials, ..RegistryOptions::default() };
    let client = RegistryClient::new(options).unwrap();
    client.manifest(&reference(&address)).await.unwrap();
    client.manifest(&reference(&address)).await.unwrap();
    let asked = asked.lock().unwrap();
    // First try, token, again; the second time the token is known.
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[1].contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", asked[1]);
    assert!(asked[1].contains("authorization: Basic bWU6c2VjcmV0"), "{}", asked[1]);
    assert!(!asked[0].contains("Basic") && !asked[2].contains("Basic"));
}

#[tokio::test]
async fn a_token_service_without_tls_elsewhere_gets_no_password() {
    let ask = "WWW-Authenticate: Bearer realm=\"http://elsewhere.example/token\"\r\n";
    let (_, address) = server(Box::new(move |_| reply("401 Unauthorized", ask, 0, b""))).await;
    let error = client().manifest(&reference(&address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorised { .. }), "{error}");
    assert!(error.to_string().contains("not https"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_said_with_the_name_and_the_way_out() {
    let body = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone\u001b[31m"}]}"#;
    let (_, address) =
        server(Box::new(move |_| reply("404 Not Found", "", body.len(), body))).await;
    let reference = reference(&address);
    let error = client().manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("team/app:1") && error.contains("push it first"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let store = ContentStore::open(dir.path()).unwrap();
    let blob = Descriptor::new("x", digest(b"x"), 1);
    let error = client().blob(&reference, &blob, &store, &Quiet).await.unwrap_err().to_string();
    assert!(error.contains("gone") && error.contains(blob.digest.as_str()), "{error}");
    assert!(!error.contains('\u{1b}'), "{error}");
    let builtin: Reference = "team/app:1".parse().unwrap();
    let error = client().manifest(&builtin).await.unwrap_err().to_string();
    assert!(error.contains("no server is configured"), "{error}");
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_a_broken_connection_not_a_corrupt_manifest() {
    let manifest = br#"{"schemaVersion":2,"manifests":[]}"#;
    let (_, address) =
        server(Box::new(|_| reply("200 OK", "", manifest.len(), &manifest[..10]))).await;
    let reference = reference(&address);
    for reference in [reference.pinned(digest(manifest)), reference] {
        let error = client().manifest(&reference).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    }
    let (_, address) =
        server(Box::new(|_| reply("200 OK", "", (4 << 20) + 1, &vec![0; (4 << 20) + 1]))).await;
    let error = client().manifest(&self::reference(&address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Manifest { .. }), "{error}");
}

#[tokio::test]
async fn an_error_does_not_tell_the_signature_of_a_redirect() {
    let (_, address) = server(Box::new(|head| {
        if head.starts_with("GET /signed?") {
            return Vec::new();
        }
        reply("307 Temporary Redirect", "Location: /signed?signature=s3cret\r\n", 0, b"")
    }))
    .await;
    let error = client().manifest(&reference(&address)).await.unwrap_err().to_string();
    assert!(error.contains("/signed") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn the_clusters_own_registry_needs_neither_certificates_nor_a_proxy() {
    let manifest = br#"{"schemaVersion":2,"manifests":[]}"#;
    let (asked, address) =
        server(Box::new(|_| reply("200 OK", "", manifest.len(), manifest))).await;
    let options = RegistryOptions {
        builtin: Some(format!("http://{address}")),
        builtin_token: Some("t0k".to_owned()),
        ..RegistryOptions::default()
    };
    let client = RegistryClient::new(options).unwrap();
    client.manifest(&"team/app:1".parse().unwrap()).await.unwrap();
    assert!(asked.lock().unwrap()[0].contains("authorization: Bearer t0k"));
    assert!(client.inner.is_for_the_cluster_alone(), "the client of other registries was made");
}
