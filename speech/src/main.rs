//! The command line of mamba-speech.

mod commands;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write as _;
use std::process::ExitCode;

/// Speech with Mamba on a plain CPU: clean noisy recordings, part talkers, tag clips; train the models, measure them.
#[derive(Parser)]
#[command(name = "mamba-speech", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Clean noisy recordings of any length
    Enhance(commands::enhance::Args),
    /// Train a model on clean speech and noise, mixed on the fly
    Train(commands::train::Args),
    /// Score a checkpoint on pairs of noisy and clean recordings
    Eval(commands::eval::Args),
    /// Score enhanced recordings against clean ones: PESQ, STOI, SI-SDR, CSIG …
    Metrics(commands::metrics::Args),
    /// Part the talkers of a recording, and train and measure models for it
    Separate(commands::separate::Args),
    /// Tell the class of sounds, spoken digits for example, and train and measure models for it
    Tag(commands::tag::Args),
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
        Command::Enhance(args) => commands::enhance::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Metrics(args) => commands::metrics::run(args),
        Command::Separate(args) => commands::separate::run(args),
        Command::Tag(args) => commands::tag::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Datasets(args) => {
            args.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mamba-speech", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    })
}
