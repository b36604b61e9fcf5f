//! `wasi:http` services of WASI 0.2 and 0.3: requests, their limits, and instances that answer several of them. What holds
//! for both is tried with a guest of each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use brig_api::logline::Stream;
use brig_api::unit_spec::InstanceReuse;
use brig_shim::message::{StartProgram, StartTask, StartWasm, StopSignal};

use crate::shim_client::{ShimClient, WAIT, wait_until};
use crate::shim_contract::{Fixture, output};
use crate::wasm_programs::guest;
use crate::wasm_shim::Wasm;

/// The service of WASI 0.3.
const MODERN_WEB: &str = "modern-web.wasm";

/// Two modules with a test for each case: with a service of WASI 0.2, and with one of 0.3 that has the same routes.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod wasi_0_2 {
            $(#[test]
            fn $case() {
                super::$case("web.wasm");
            })*
        }
        mod wasi_0_3 {
            $(#[test]
            fn $case() {
                super::$case(super::MODERN_WEB);
            })*
        }
    };
}

on_both!(
    an_http_service_answers_each_request_with_a_fresh_instance,
    a_request_that_names_no_host_is_its_clients_fault,
    a_request_beyond_the_memory_limit_fails_alone,
    a_request_beyond_its_deadline_is_cut_off,
    a_request_whose_client_has_gone_does_not_run_on,
    what_runs_on_after_its_client_has_gone_still_counts_as_running,
    outgoing_requests_reach_allowed_hosts_only,
    a_service_that_is_asked_to_end_finishes_what_it_has,
    a_service_that_does_not_end_is_killed,
    an_instance_is_fresh_unless_reuse_is_asked_for,
    an_instance_answers_as_many_requests_as_it_may,
    requests_of_one_connection_share_an_instance_too,
    an_instance_that_trapped_answers_500_says_where_and_is_not_used_again,
    an_instance_whose_client_left_it_is_not_used_again,
    memory_of_an_idle_instance_counts_until_its_time_is_over,
    processor_time_is_charged_in_every_request_of_an_instance,
    an_idle_instance_makes_room_for_a_request_that_needs_its_memory,
    bodies_are_streamed_both_ways_and_the_instance_is_used_again,
    requests_beyond_the_limit_wait_for_their_turn,
    a_response_that_does_not_begin_in_time_is_given_up,
    idle_instances_do_not_keep_a_service_that_is_asked_to_end,
    requests_are_answered_side_by_side,
);

/// An http service that runs.
struct Service {
    fixture: Fixture,
    client: ShimClient,
    task: StartTask,
    address: SocketAddr,
}

impl Service {
    fn start(web: &str, change: impl FnOnce(&mut StartWasm)) -> Self {
        let fixture = Fixture::new(&Wasm);
        let mut client = fixture.shim.connect();
        let mut wasm = guest(web, &[]);
        wasm.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        change(&mut wasm);
        let mut task = fixture.task("web", StartProgram::Wasm(wasm));
        task.env.insert("UNIT_NAME".into(), "shop-1".into());
        client.start(&task);
        let address = client.wait_running(&task.key).expect("an address");
        Self { fixture, client, task, address }
    }

    fn get(&self, path: &str) -> (u16, String) {
        ask(self.address, "GET", path, "")
    }

    fn notes(&self) -> String {
        output(&self.task.log, Stream::Stderr)
    }
}

/// One request on its own connection: status and body.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a whole answer");
    let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { unchunked(body) } else { body.to_owned() })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

fn an_http_service_answers_each_request_with_a_fresh_instance(web: &str) {
    let service = Service::start(web, |_| ());
    assert_eq!(service.get("/"), (200, "Hello from shop-1!\n".to_owned()));
    assert_eq!(service.get("/status/418").0, 418);
    let large = "0123456789abcdef".repeat(1 << 14);
    assert_eq!(ask(service.address, "POST", "/echo", &large), (200, large));
    assert_eq!(service.get("/env").1, "UNIT_NAME=shop-1\n");
    assert_eq!(service.get("/eat?mib=16").0, 200);
}

fn a_request_that_names_no_host_is_its_clients_fault(web: &str) {
    let service = Service::start(web, |_| ());
    for head in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nhost: \u{fc}\r\n\r\n"] {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some("400"), "{answer}");
    }
    assert_eq!(service.notes(), "", "the program is not to blame");
}

fn a_request_beyond_the_memory_limit_fails_alone(web: &str) {
    let service = Service::start(web, |_| ());
    let (status, _) = service.get("/eat?mib=500");
    assert_eq!(status, 503);
    wait_until("the log says why", || service.notes().contains("64Mi"));
    assert_eq!(service.get("/").0, 200);
}

fn a_request_beyond_its_deadline_is_cut_off(web: &str) {
    let service = Service::start(web, |wasm| wasm.deadline_ms = Some(300));
    let spinning = std::thread::spawn({
        let address = service.address;
        move || ask(address, "GET", "/spin", "").0
    });
    assert_eq!(service.get("/").0, 200, "others go on beside a spinner");
    assert_eq!(spinning.join().unwrap(), 504);
}

fn a_request_whose_client_has_gone_does_not_run_on(web: &str) {
    let mut service = Service::start(web, |_| ());
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.write_all(b"GET /spin HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    wait_until("the request runs", || service.client.usage(&service.task.key).memory_bytes > 0);
    drop(stream);
    wait_until("its guest is gone", || service.client.usage(&service.task.key).memory_bytes == 0);
    assert_eq!(service.get("/").0, 200);
}

fn what_runs_on_after_its_client_has_gone_still_counts_as_running(web: &str) {
    let service = Service::start(web, |wasm| {
        wasm.http_limits.max_concurrent = 1;
        wasm.http_limits.timeout_ms = 200;
    });
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"GET /linger HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut answer = BufReader::new(&stream).lines().map(Result::unwrap);
    assert!(answer.any(|line| line == "begun"));
    drop(stream);
    for _ in 0..5 {
        assert_eq!(service.get("/").0, 503, "there is one place, and it is taken");
    }
}

fn outgoing_requests_reach_allowed_hosts_only(web: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        }
    });
    let service = Service::start(web, |wasm| wasm.allow_hosts = vec![format!("127.0.0.1:{port}")]);
    let (status, body) = service.get(&format!("/fetch?url=http://127.0.0.1:{port}/"));
    assert!(status == 200 && body.contains("hello"), "{status} {body}");
    let (status, _) = service.get("/fetch?url=http://127.0.0.1:1/");
    assert_eq!(status, 502);
    assert!(service.notes().contains("127.0.0.1:1") && service.notes().contains("allow_hosts"));
}

fn a_service_that_is_asked_to_end_finishes_what_it_has(web: &str) {
    let mut service = Service::start(web, |_| ());
    assert_eq!(service.get("/").0, 200);
    service.client.stop(&service.task.key, StopSignal::Terminate);
    let record = service.client.wait_exited(&service.task.key);
    assert_eq!((record.code, record.reason), (0, None));
    assert!(TcpStream::connect(service.address).is_err(), "nothing listens any more");
}

fn a_service_that_does_not_end_is_killed(web: &str) {
    let mut service = Service::start(web, |_| ());
    let spinning = std::thread::spawn({
        let address = service.address;
        move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /spin HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    wait_until("the request runs", || {
        service.client.usage(&service.task.key).used.cpu_ns > 20_000_000
    });
    service.client.stop(&service.task.key, StopSignal::Terminate);
    service.client.stop(&service.task.key, StopSignal::Kill);
    let record = service.client.wait_exited(&service.task.key);
    assert_eq!((record.code, record.reason), (137, None));
    spinning.join().unwrap();
    drop(service.fixture);
}

/// Starts a service that reuses its instances.
fn reusing(
    web: &str,
    max_requests: u32,
    idle_ms: u64,
    change: impl FnOnce(&mut StartWasm),
) -> Service {
    Service::start(web, |wasm| {
        wasm.http_limits.reuse = Some(InstanceReuse { max_requests, idle_ms });
        change(wasm);
    })
}

/// Longer than any test.
const HOUR_MS: u64 = 3_600_000;

/// A request whose body has begun, and is being echoed: it keeps an instance until it is finished.
struct Held {
    answer: BufReader<TcpStream>,
}

impl Held {
    fn begin(service: &Service) -> Self {
        Self::begin_at(service, "/echo")
    }

    /// At a route that sends back what it is sent.
    fn begin_at(service: &Service, path: &str) -> Self {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        let mut held = Self { answer: BufReader::new(stream) };
        held.send("first");
        while held.line() != "" {}
        assert_eq!(held.chunk(), "first", "it is answered before its body has ended");
        held
    }

    fn send(&mut self, text: &str) {
        write!(self.answer.get_mut(), "{:x}\r\n{text}\r\n", text.len()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answer.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn chunk(&mut self) -> String {
        let size = usize::from_str_radix(&self.line(), 16).expect("the size of a chunk");
        let mut bytes = vec![0; size + 2];
        self.answer.read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    }

    fn finish(mut self) {
        self.send("last");
        assert_eq!(self.chunk(), "last");
        self.send("");
        assert_eq!(self.chunk(), "");
    }
}

fn an_instance_is_fresh_unless_reuse_is_asked_for(web: &str) {
    let service = Service::start(web, |_| ());
    for _ in 0..3 {
        assert_eq!(service.get("/count"), (200, "1\n".to_owned()));
    }
}

fn an_instance_answers_as_many_requests_as_it_may(web: &str) {
    let service = reusing(web, 3, HOUR_MS, |_| ());
    let counts: Vec<_> = (0..7).map(|_| service.get("/count").1).collect();
    assert_eq!(counts, ["1\n", "2\n", "3\n", "1\n", "2\n", "3\n", "1\n"]);
}

fn requests_of_one_connection_share_an_instance_too(web: &str) {
    let service = reusing(web, 100, HOUR_MS, |_| ());
    let mut stream = BufReader::new(TcpStream::connect(service.address).unwrap());
    stream.get_ref().set_read_timeout(Some(WAIT)).unwrap();
    for count in 1..=3 {
        stream.get_mut().write_all(b"GET /count HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(String::from_utf8_lossy(&body), format!("{count}\n"));
    }
}

fn an_instance_that_trapped_answers_500_says_where_and_is_not_used_again(web: &str) {
    let service = reusing(web, 100, HOUR_MS, |_| ());
    assert_eq!(service.get("/count").1, "1\n");
    assert_eq!(service.get("/count").1, "2\n");
    assert_eq!(service.get("/trap").0, 500);
    wait_until("the log says where", || {
        let notes = service.notes();
        notes.contains("GET /trap: trapped: ") && notes.contains("  0: ")
    });
    assert_eq!(service.get("/count").1, "1\n");
}

fn an_instance_whose_client_left_it_is_not_used_again(web: &str) {
    let mut service = reusing(web, 100, HOUR_MS, |_| ());
    assert_eq!(service.get("/count").1, "1\n");
    let before = service.client.usage(&service.task.key).used.cpu_ns;
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.write_all(b"GET /spin HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    wait_until("it spins", || {
        service.client.usage(&service.task.key).used.cpu_ns > before + 10_000_000
    });
    drop(stream);
    wait_until("it is gone", || service.client.usage(&service.task.key).memory_bytes == 0);
    assert_eq!(service.get("/count").1, "1\n");
}

fn memory_of_an_idle_instance_counts_until_its_time_is_over(web: &str) {
    let mut service = reusing(web, 100, HOUR_MS, |_| ());
    assert_eq!(service.get("/keep?mib=20").0, 200);
    assert!(service.client.usage(&service.task.key).memory_bytes > 20 << 20);
    let mut service = reusing(web, 100, 50, |_| ());
    assert_eq!(service.get("/keep?mib=20").0, 200);
    wait_until("it is gone", || service.client.usage(&service.task.key).memory_bytes == 0);
    assert_eq!(service.get("/count").1, "1\n");
    wait_until("the next, too", || service.client.usage(&service.task.key).memory_bytes == 0);
}

fn processor_time_is_charged_in_every_request_of_an_instance(web: &str) {
    let mut service = reusing(web, 100, HOUR_MS, |_| ());
    let mut before = 0;
    for _ in 0..3 {
        assert_eq!(service.get("/eat?mib=8").0, 200);
        let now = service.client.usage(&service.task.key).used.cpu_ns;
        assert!(now > before + 100_000, "{before} {now}");
        before = now;
    }
}

fn an_idle_instance_makes_room_for_a_request_that_needs_its_memory(web: &str) {
    let service = reusing(web, 100, HOUR_MS, |_| ());
    let held = Held::begin(&service);
    assert_eq!(service.get("/keep?mib=30").0, 200, "in a second instance");
    held.finish();
    // The limit is 64 MiB. This is the first instance's: it was used last.
    assert_eq!(service.get("/eat?mib=40").0, 200);
}

fn bodies_are_streamed_both_ways_and_the_instance_is_used_again(web: &str) {
    let service = reusing(web, 100, HOUR_MS, |_| ());
    let mut held = Held::begin(&service);
    for text in ["second", "third"] {
        held.send(text);
        assert_eq!(held.chunk(), text);
    }
    held.finish();
    assert_eq!(service.get("/count").1, "2\n");
}

fn requests_beyond_the_limit_wait_for_their_turn(web: &str) {
    let service = Service::start(web, |wasm| {
        wasm.http_limits.max_concurrent = 1;
        wasm.http_limits.timeout_ms = 3_000;
    });
    let held = Held::begin(&service);
    assert_eq!(service.get("/").0, 503, "its turn did not come in time");
    held.finish();
    assert_eq!(service.get("/").0, 200);
}

fn a_response_that_does_not_begin_in_time_is_given_up(web: &str) {
    let mut service = Service::start(web, |wasm| wasm.http_limits.timeout_ms = 3_000);
    assert_eq!(service.get("/spin").0, 504);
    wait_until("its guest is gone", || service.client.usage(&service.task.key).memory_bytes == 0);
    assert!(service.notes().contains("GET /spin: no response within 3s"), "{}", service.notes());
}

fn idle_instances_do_not_keep_a_service_that_is_asked_to_end(web: &str) {
    let mut service = reusing(web, 100, HOUR_MS, |_| ());
    assert_eq!(service.get("/count").1, "1\n");
    let held = Held::begin(&service);
    service.client.stop(&service.task.key, StopSignal::Terminate);
    held.finish();
    let record = service.client.wait_exited(&service.task.key);
    assert_eq!((record.code, record.reason), (0, None));
}

fn requests_are_answered_side_by_side(web: &str) {
    let service = Service::start(web, |_| ());
    let mut held: Vec<_> = (0..20).map(|_| Held::begin(&service)).collect();
    for (index, held) in held.iter_mut().enumerate() {
        held.send(&format!("{index}"));
    }
    for (index, held) in held.iter_mut().enumerate() {
        assert_eq!(held.chunk(), format!("{index}"));
    }
    held.into_iter().for_each(Held::finish);
}

#[test]
fn an_error_in_place_of_a_response_is_told() {
    let service = Service::start(MODERN_WEB, |_| ());
    assert_eq!(service.get("/fail").0, 502);
    wait_until("the log says why", || {
        service.notes().contains("GET /fail: the program answered with an error: ")
    });
}

#[test]
fn a_body_that_is_handed_on_flows_after_its_guest_has_ended() {
    let mut service = Service::start(MODERN_WEB, |_| ());
    let mut held = Held::begin_at(&service, "/pass");
    wait_until("the guest has ended", || service.client.usage(&service.task.key).memory_bytes == 0);
    for text in ["second", "third"] {
        held.send(text);
        assert_eq!(held.chunk(), text);
    }
    held.finish();
}

#[test]
fn a_service_learns_how_its_response_was_sent() {
    let service = Service::start(MODERN_WEB, |_| ());
    assert_eq!(service.get("/told"), (200, "listen\n".to_owned()));
    wait_until("it was told", || service.notes().contains("sent: Ok"));
}
