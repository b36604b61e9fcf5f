//! The server's side of its nodes: sessions, assignments, who is in touch, streams for logs and exec.

pub(crate) mod assignment;
pub(crate) mod contact;
pub(crate) mod mail;
pub(crate) mod session;
pub(crate) mod stream;
