//! Bytes that nobody who means well would send: each is refused with a problem, and the server goes on.

use brig_api::request::BODY_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::api::plain_client;
use super::harness::{Cluster, soon};

/// Sends bytes as they are and returns what comes back until the server closes.
async fn raw(cluster: &Cluster, request: &str) -> String {
    let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that cuts the connection is right, too.
    let _ = soon("an answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str, host: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_lead_nowhere_but_to_routes() {
    let cluster = Cluster::start().await;
    for path in [
        "/v1/namespaces/%2e%2e/units/x",
        "/v1/namespaces/..%2f..%2fetc/units/passwd",
        "/v1/namespaces/default/units/%2e%2e%2f%2e%2e",
        "/v1/namespaces/default/units/x%00",
        "/v1/namespaces/default/units/%ff%fe",
        "/v1/namespaces/default/units/..",
        "/v1/../v1/version/..",
        "/v1/nodes/%2Fetc%2Fpasswd",
        "/v1/artifacts/..%2f..%2fx:1",
        "/v1/units?namespace=%2e%2e",
        "/v1/watch?since=-1",
        "/v1/watch?since=99999999999999999999999",
        "/v1/events?limit=99999999999",
        "//v1/version",
    ] {
        let answer = raw(&cluster, &get(path, "localhost", "")).await;
        let status: u16 = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        assert!((400..500).contains(&status), "{path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_are_refused() {
    let cluster = Cluster::start().await;
    for (host, more) in [
        ("evil.example", ""),
        ("localhost", "Origin: http://evil.example\r\n"),
        ("localhost", "Origin: null\r\nUpgrade: websocket\r\n"),
    ] {
        let answer = raw(&cluster, &get("/v1/version", host, more)).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_too_large_too_deep_or_no_json_are_refused() {
    let cluster = Cluster::start().await;
    let http = plain_client();
    let post = |body: Vec<u8>| {
        http.post(cluster.url("/v1/apply")).header("content-type", "application/json").body(body)
    };
    let huge = post(vec![b' '; BODY_BYTES_MAX + 1]).send().await.unwrap();
    assert_eq!(huge.status(), 413);
    assert!(huge.text().await.unwrap().contains("too-large"));
    let deep = format!("{{\"manifests\":{}", "[".repeat(100_000)).into_bytes();
    for body in [deep, b"{".to_vec(), vec![0xff; 100], b"null".to_vec(), b"{} {}".to_vec()] {
        let answer = post(body).send().await.unwrap();
        assert_eq!(answer.status(), 422, "{}", answer.text().await.unwrap());
    }
    assert!(cluster.client.version().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_costs_one_connection() {
    let cluster = Cluster::start().await;
    for bytes in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)),
    ] {
        raw(&cluster, bytes).await;
    }
    assert!(cluster.client.version().await.is_ok());
}
