//! The subcommands.

pub(crate) mod compare;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod kt;
pub(crate) mod log;
pub(crate) mod score;
pub(crate) mod train;
