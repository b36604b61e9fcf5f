//! A `wasi:http/proxy` guest: a few routes that show who answers, and what a unit may do and what it may not.

use std::hint::black_box;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use wstd::http::{Body, Client, Error, Request, Response, StatusCode, Uri};

const MIB: usize = 1 << 20;

const ROUTES: &str = "\
/             a greeting that names the unit
/echo         the request's body
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

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let count = REQUESTS.fetch_add(1, Relaxed) + 1;
    let uri = request.uri().clone();
    match uri.path() {
        "/" => text(StatusCode::OK, greeting()),
        "/echo" => Ok(Response::new(request.into_body())),
        "/env" => text(StatusCode::OK, environment()),
        "/fetch" => fetch(&uri).await,
        "/eat" => eat(&uri),
        "/keep" => keep(&uri),
        "/count" => text(StatusCode::OK, format!("{count}\n")),
        "/trap" => unreachable!("as asked"),
        "/spin" => spin(),
        "/linger" => Ok(Response::new(linger())),
        path => match path.strip_prefix("/status/").map(str::parse::<StatusCode>) {
            Some(Ok(status)) => text(status, String::new()),
            Some(Err(error)) => text(StatusCode::BAD_REQUEST, format!("{path}: {error}\n")),
            None => text(StatusCode::NOT_FOUND, format!("nothing at {path}; there is\n{ROUTES}")),
        },
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

/// 200 when somebody answered, whatever the answer; 502 when the request was refused or failed.
async fn fetch(uri: &Uri) -> Result<Response<Body>, Error> {
    let Some(url) = parameter(uri, "url") else {
        return text(StatusCode::BAD_REQUEST, "say what to fetch: /fetch?url=http://…\n");
    };
    let request = match Request::get(&url).body(Body::empty()) {
        Ok(request) => request,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{url}: {error}\n")),
    };
    match ask(request).await {
        Ok((status, body)) => text(StatusCode::OK, format!("{url} answered {status}\n{body}")),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{url} was not reached: {error:#}\n")),
    }
}

async fn ask(request: Request<Body>) -> Result<(StatusCode, String), Error> {
    let mut response = Client::new().send(request).await?;
    let status = response.status();
    let body = response.body_mut().contents().await?;
    Ok((status, String::from_utf8_lossy(body).into_owned()))
}

fn eat(uri: &Uri) -> Result<Response<Body>, Error> {
    let Some(mib) = parameter(uri, "mib").and_then(|mib| mib.parse::<usize>().ok()) else {
        return text(StatusCode::BAD_REQUEST, "say how much to eat: /eat?mib=16\n");
    };
    let eaten: Vec<Vec<u8>> = (0..mib).map(|_| black_box(vec![1; MIB])).collect();
    text(StatusCode::OK, format!("ate {} MiB\n", eaten.len()))
}

fn keep(uri: &Uri) -> Result<Response<Body>, Error> {
    let Some(mib) = parameter(uri, "mib").and_then(|mib| mib.parse::<usize>().ok()) else {
        return text(StatusCode::BAD_REQUEST, "say how much to keep: /keep?mib=16\n");
    };
    for _ in 0..mib {
        black_box(black_box(vec![1_u8; MIB]).leak());
    }
    text(StatusCode::OK, format!("keeps {mib} MiB\n"))
}

fn linger() -> Body {
    let mut begun = Some("begun\n");
    Body::from_stream(futures_lite::stream::poll_fn(move |_| match begun.take() {
        Some(text) => Poll::Ready(Some(text)),
        None => spin(),
    }))
}

fn spin() -> ! {
    let mut value = 1_u64;
    loop {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn text(status: StatusCode, body: impl Into<Body>) -> Result<Response<Body>, Error> {
    let response =
        Response::builder().status(status).header("content-type", "text/plain; charset=utf-8");
    Ok(response.body(body.into())?)
}
