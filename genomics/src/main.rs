//! The command line of mamba-genomics.

mod commands;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// DNA language models on a plain CPU: train Caduceus on FASTA files, and embed FASTA files with it.
#[derive(Parser)]
#[command(name = "mamba-genomics", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a small model on the bundled genome, embed it, and say what to do next
    Quickstart(commands::quickstart::Args),
    /// Pre-train a model on genomes by masked-language modelling
    Train(commands::train::Args),
    /// Score a checkpoint on the held-out part of a genome, beside count models
    Eval(commands::eval::Args),
    /// Train a classifier or a regressor of labelled sequences
    Finetune(commands::finetune::Args),
    /// Classify sequences, or predict values of them, by a fine-tuned model
    Predict(commands::predict::Args),
    /// Turn sequences into vectors
    Embed(commands::embed::Args),
    /// Score the variants of a VCF file
    Variants(commands::variants::Args),
    /// Models of proteins: train, score, infill
    Protein(commands::protein::Args),
    /// Say what is in a checkpoint
    Info(commands::info::Args),
    /// Public data sets: list, describe, download, import, verify
    Datasets(mamba_datasets::cli::DatasetsArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    mamba_core::cli::run_main(|| match cli.command {
        Command::Quickstart(args) => commands::quickstart::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Finetune(args) => commands::finetune::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Embed(args) => commands::embed::run(args),
        Command::Variants(args) => commands::variants::run(args),
        Command::Protein(args) => commands::protein::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Datasets(args) => {
            args.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mamba-genomics", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    })
}
