//! One module for each subcommand: its flags, and the call into the library.

pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod finetune;
pub(crate) mod info;
pub(crate) mod predict;
mod predictions;
pub(crate) mod protein;
pub(crate) mod quickstart;
pub(crate) mod train;
pub(crate) mod variants;

use std::path::{Path, PathBuf};

/// FASTA arguments as paths: the name of a data set stands for its file, `-` for standard input.
pub(crate) fn sequence_files(arguments: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let path = |argument: &PathBuf| match argument.to_str() {
        Some(text) if argument != Path::new("-") => Ok(mamba_datasets::registry::resolve(text)?),
        _ => Ok(argument.clone()),
    };
    arguments.iter().map(path).collect()
}
