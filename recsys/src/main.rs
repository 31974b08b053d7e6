//! The command line of mamba-recsys.

mod commands;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Sequential recommendation on a plain CPU: train Mamba4Rec on an interaction log, measure it by full ranking.
#[derive(Parser)]
#[command(name = "mamba-recsys", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model on an interaction log
    Train(commands::train::Args),
    /// Measure a model, or a baseline, on the held-out events of a log
    Eval(commands::eval::Args),
    /// Put the results of several runs side by side, with mean and deviation over seeds
    Compare(commands::compare::Args),
    /// Recommend items to every user of some event files: a batch job
    Score(commands::score::Args),
    /// Knowledge tracing: from students' answers to the chance that the next one is right
    Kt(commands::kt::Args),
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
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Score(args) => commands::score::run(args),
        Command::Kt(args) => commands::kt::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Datasets(args) => {
            args.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mamba-recsys", &mut script);
            std::io::stdout().lock().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    })
}
