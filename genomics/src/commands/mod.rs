//! One module for each subcommand: its flags, and the call into the library.

pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod quickstart;
pub(crate) mod train;
