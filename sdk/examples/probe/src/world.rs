//! What asks the world outside for something: environment, standard input, files, network. Each may be refused.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

pub fn print_environment() {
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    for (name, value) in variables {
        println!("{name}={value}");
    }
}

pub fn copy_stdin() -> io::Result<()> {
    io::copy(&mut io::stdin().lock(), &mut io::stdout().lock())?;
    Ok(())
}

pub fn print_file(path: &str) -> io::Result<()> {
    io::copy(&mut std::fs::File::open(path)?, &mut io::stdout().lock())?;
    Ok(())
}

pub fn write_file(path: &str, text: &str) -> io::Result<()> {
    std::fs::write(path, text)?;
    println!("wrote {} bytes to {path}", text.len());
    Ok(())
}

pub fn list_directory(path: &str) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    for name in names {
        println!("{name}");
    }
    Ok(())
}

pub fn connect(address: &str) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    println!("connected to {}", stream.peer_addr()?);
    Ok(())
}

pub fn ask(address: &str, text: &str) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    writeln!(stream.get_mut(), "{text}")?;
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    print!("{answer}");
    Ok(())
}

pub fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let mut stream = BufReader::new(stream?);
        let mut line = String::new();
        while stream.read_line(&mut line)? > 0 {
            stream.get_mut().write_all(line.as_bytes())?;
            if line.trim_end() == "stop" {
                return Ok(());
            }
            line.clear();
        }
    }
    Ok(())
}

/// Longest datagram that is answered.
const DATAGRAM_BYTES_MAX: usize = 1500;

pub fn ask_udp(address: &str, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.send(text.as_bytes())?;
    let mut answer = [0; DATAGRAM_BYTES_MAX];
    let length = socket.recv(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer[..length]));
    Ok(())
}

pub fn serve_udp(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening on {}", socket.local_addr()?);
    let mut datagram = [0; DATAGRAM_BYTES_MAX];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], from)?;
        if &datagram[..length] == b"stop" {
            return Ok(());
        }
    }
}

pub fn look_up(name: &str) -> io::Result<()> {
    for address in (name, 0).to_socket_addrs()? {
        println!("{}", address.ip());
    }
    Ok(())
}

pub fn hoard(address: &str, most: usize) {
    let mut streams = Vec::new();
    while streams.len() < most {
        match TcpStream::connect(address) {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                println!("{} connections, then: {error}", streams.len());
                return;
            }
        }
    }
    println!("{} connections", streams.len());
}

#[expect(clippy::disallowed_methods, reason = "it is there to show what clocks it is given")]
pub fn print_clock_step() {
    let began = Instant::now();
    let mut steps = Vec::new();
    let (mut last, mut last_wall) = (began, SystemTime::now());
    while began.elapsed() < Duration::from_millis(50) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        steps.push(now.duration_since(last));
        steps.extend(wall.duration_since(last_wall));
        (last, last_wall) = (now, wall);
    }
    let smallest = steps.iter().filter(|step| !step.is_zero()).min();
    println!("{}", smallest.map_or(0, Duration::as_micros));
}
