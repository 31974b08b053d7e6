//! `protein`: models of amino-acid sequences.

mod infill;
mod score;
mod train;

use anyhow::Result;
use mamba_core::cli::HintExt;
use mamba_genomics::protein::alphabet::Alphabet;
use mamba_genomics::protein::reader;
use mamba_genomics::protein::score::ProteinScorer;
use mamba_genomics::protein::{ProteinConfig, ProteinModel, task};
use std::io::{self, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Train ProtMamba, PTM-Mamba or MSAMamba on proteins
    Train(train::Args),
    /// Likelihoods of proteins, or of substitutions in them
    Score(score::Args),
    /// Fill spans of a protein with new residues, or generate new members of a family
    Infill(infill::Args),
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let result = match args.command {
        Command::Train(args) => train::run(args),
        Command::Score(args) => score::run(args),
        Command::Infill(args) => infill::run(args),
    };
    result.map_err(super::embed::with_hint)
}

/// A checkpoint's model, ready to score, with its context.
fn scorer(
    checkpoint: &Path,
    context: &[PathBuf],
    most: usize,
    common: &mamba_core::cli::CommonArgs,
    device: &candle_core::Device,
) -> Result<(ProteinScorer, ProteinConfig)> {
    let (model, config) = ProteinModel::load(checkpoint, common.dtype(), device)
        .hint("train a model with `mamba-genomics protein train`, or name a published checkpoint's folder")?;
    let alphabet = config.alphabet();
    let mut homologs = reader::read_all(&super::sequence_files(context)?, alphabet)?;
    if homologs.len() > most {
        homologs.truncate(most);
        if !common.quiet {
            eprintln!("context: the first {most} homologs (--context-limit)");
        }
    }
    Ok((ProteinScorer::new(model, &config, homologs, device)?, config))
}

/// Names and residues of all proteins of some files.
fn residues(paths: &[PathBuf], alphabet: Alphabet) -> Result<Vec<(String, Vec<u32>)>> {
    let paths = super::sequence_files(paths)?;
    let proteins = reader::read_all(&paths, alphabet)?;
    Ok(proteins.into_iter().map(|protein| (protein.name.clone(), protein.residues(alphabet))).collect())
}

/// The table that ends a training.
fn print_scores(stdout: &mut StdoutLock<'_>, rows: &[(&str, &task::ProteinScore)]) -> io::Result<()> {
    for (name, score) in rows {
        writeln!(
            stdout,
            "  {name:<22} {:.4} bits per residue, perplexity {:.2}, accuracy {:.4}",
            score.bits, score.perplexity, score.accuracy
        )?;
    }
    Ok(())
}
