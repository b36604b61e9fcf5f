//! An http service of WASI 0.3, `wasi:http/service`: the routes of `web`, and a few that show what 0.3 has besides. Its
//! standard library speaks WASI 0.2.

use std::hint::black_box;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::wit_bindgen::{StreamReader, StreamResult, spawn_local};
use wasip3::{wit_future, wit_stream};

const MIB: usize = 1 << 20;
/// Read of a body at a time.
const READ_BYTES: usize = 16 << 10;

const ROUTES: &str = "\
/             a greeting that names the unit
/echo         the request's body, read and written
/pass         the request's body, handed on as it is
/fail         an error in place of a response
/told         says on standard error how the response was sent
/env          the environment, sorted
/status/N     an empty answer with status N
/fetch?url=U  asks U and reports what it said
/eat?mib=N    allocates and touches N mebibytes
/keep?mib=N   the same, and keeps them
/count        which request of its instance this is: always 1 where each request has a fresh instance
/trap         traps
/spin         uses the cpu, for ever
/linger       begins to answer, then does the same
";

/// Requests of this instance.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

struct Web;

wasip3::http::service::export!(Web);

impl wasip3::exports::http::handler::Guest for Web {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let count = REQUESTS.fetch_add(1, Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(match path {
            "/" => text(200, greeting()),
            "/echo" => stream(copy(body_of(request))),
            "/pass" => stream(body_of(request)),
            "/fail" => return Err(ErrorCode::InternalError(Some("as asked".to_owned()))),
            "/told" => told(),
            "/env" => text(200, environment()),
            "/fetch" => fetch(query).await,
            "/eat" => eat(query),
            "/keep" => keep(query),
            "/count" => text(200, format!("{count}\n")),
            "/trap" => unreachable!("as asked"),
            "/spin" => spin(),
            "/linger" => linger(),
            path => match path.strip_prefix("/status/").map(str::parse) {
                Some(Ok(status)) => text(status, String::new()),
                Some(Err(error)) => text(400, format!("{path}: {error}\n")),
                None => text(404, format!("nothing at {path}; there is\n{ROUTES}")),
            },
        })
    }
}

fn greeting() -> String {
    match std::env::var("UNIT_NAME") {
        Ok(unit) => format!("Hello from {unit}!\n"),
        Err(_) => "Hello from a unit without a name!\n".to_owned(),
    }
}

fn environment() -> String {
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

fn body_of(request: Request) -> StreamReader<u8> {
    let (_, processed) = wit_future::new(|| Ok(()));
    Request::consume_body(request, processed).0
}

/// What comes, written to another stream as it comes.
fn copy(mut from: StreamReader<u8>) -> StreamReader<u8> {
    let (mut writer, reader) = wit_stream::new();
    spawn_local(async move {
        loop {
            let (result, bytes) = from.read(Vec::with_capacity(READ_BYTES)).await;
            let rest = writer.write_all(bytes).await;
            if !rest.is_empty() || matches!(result, StreamResult::Dropped) {
                return;
            }
        }
    });
    reader
}

fn told() -> Response {
    let (mut writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, sent) = Response::new(Fields::new(), Some(reader), trailers);
    spawn_local(async move {
        writer.write_all(b"listen\n".to_vec()).await;
        drop(writer);
        eprintln!("sent: {:?}", sent.await);
    });
    response
}

/// 200 when somebody answered, whatever the answer; 502 when the request was refused or failed.
async fn fetch(query: &str) -> Response {
    let Some(url) = parameter(query, "url") else {
        return text(400, "say what to fetch: /fetch?url=http://…\n".to_owned());
    };
    match ask(&url).await {
        Ok((status, body)) => text(200, format!("{url} answered {status}\n{body}")),
        Err(error) => text(502, format!("{url} was not reached: {error}\n")),
    }
}

async fn ask(url: &str) -> Result<(u16, String), String> {
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (_, trailers) = wit_future::new(|| Ok(None));
    let request = Request::new(Fields::new(), None, trailers, None).0;
    let is_set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    is_set.map_err(|()| "no url")?;
    let response = client::send(request).await.map_err(|error| error.to_string())?;
    let status = response.get_status_code();
    let (_, processed) = wit_future::new(|| Ok(()));
    let (body, trailers) = Response::consume_body(response, processed);
    let body = body.collect().await;
    trailers.await.map_err(|error| error.to_string())?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn eat(query: &str) -> Response {
    let Some(mib) = parameter(query, "mib").and_then(|mib| mib.parse::<usize>().ok()) else {
        return text(400, "say how much to eat: /eat?mib=16\n".to_owned());
    };
    let eaten: Vec<Vec<u8>> = (0..mib).map(|_| black_box(vec![1; MIB])).collect();
    text(200, format!("ate {} MiB\n", eaten.len()))
}

fn keep(query: &str) -> Response {
    let Some(mib) = parameter(query, "mib").and_then(|mib| mib.parse::<usize>().ok()) else {
        return text(400, "say how much to keep: /keep?mib=16\n".to_owned());
    };
    for _ in 0..mib {
        black_box(black_box(vec![1_u8; MIB]).leak());
    }
    text(200, format!("keeps {mib} MiB\n"))
}

fn linger() -> Response {
    let (mut writer, reader) = wit_stream::new();
    spawn_local(async move {
        writer.write_all(b"begun\n".to_vec()).await;
        spin();
    });
    stream(reader)
}

fn spin() -> ! {
    let mut value = 1_u64;
    loop {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn text(status: u16, body: String) -> Response {
    let (mut writer, reader) = wit_stream::new();
    spawn_local(async move {
        // Nobody is left to be told when the client takes no more.
        let _ = writer.write_all(body.into_bytes()).await;
    });
    let response = stream(reader);
    if response.set_status_code(status).is_err() {
        eprintln!("{status} is no status");
    }
    response
}

fn stream(body: StreamReader<u8>) -> Response {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let kind = ("content-type".to_owned(), b"text/plain; charset=utf-8".to_vec());
    let headers = Fields::from_list(&[kind]).unwrap_or_else(|_| Fields::new());
    Response::new(headers, Some(body), trailers).0
}
