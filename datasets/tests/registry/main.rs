//! Data sets by name, against a server in this process.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod fetch;
mod import;
mod server;
mod shipped;
