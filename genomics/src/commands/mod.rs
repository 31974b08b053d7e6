//! One module for each subcommand: its flags, and the call into the library.

pub mod embed;
pub mod eval;
pub mod info;
pub mod train;
