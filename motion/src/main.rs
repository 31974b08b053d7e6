//! The command line of mamba-motion.

mod commands;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write as _;
use std::process::ExitCode;

/// Motion generation with Motion Mamba: train on motion capture, generate by label or text, continue, search, measure, watch.
#[derive(Parser)]
#[command(name = "mamba-motion", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the models on motion capture
    Train(Box<commands::train::Args>),
    /// Generate motions by label or text, continue and fill in motions, make long ones
    Generate(Box<commands::generate::Args>),
    /// Find in motions what a text or a label says
    Ground(commands::ground::Args),
    /// Measure generated motions against held-out ones
    Eval(commands::eval::Args),
    /// Say what is in a training's folder
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
        Command::Train(args) => commands::train::run(*args),
        Command::Generate(args) => commands::generate::run(*args),
        Command::Ground(args) => commands::ground::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Datasets(args) => {
            args.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mamba-motion", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    })
}
