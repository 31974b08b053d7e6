//! The subcommands.

pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod log;
pub(crate) mod train;
