//! One module for each subcommand: its flags, and the call into the library.

pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod ground;
pub(crate) mod info;
pub(crate) mod resume;
pub(crate) mod train;
