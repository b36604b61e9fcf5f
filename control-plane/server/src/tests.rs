//! The server under real clients and scripted nodes, in this process, on SQLite and (smoke) on PostgreSQL.

mod api;
mod harness;
mod hostile;
mod leadership;
mod nodes;
mod simulate;
mod watches;
