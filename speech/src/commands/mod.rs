//! One file for each subcommand.

pub(crate) mod enhance;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod recordings;
pub(crate) mod separate;
pub(crate) mod table;
pub(crate) mod tag;
pub(crate) mod train;
