//! What asks the world outside for something: environment, standard input, files, network. Each may be refused.

use std::io;
use std::net::TcpStream;

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
