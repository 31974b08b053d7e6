//! The command line of mamba-timeseries.

mod commands;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Forecasts of time series on a plain CPU: train S-Mamba, Bi-Mamba+ or TimeMachine on a table, and forecast with it.
#[derive(Parser)]
#[command(name = "mamba-timeseries", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a forecaster on a table
    Train(Box<commands::train::Args>),
    /// Test a checkpoint on the held-out part of a table, beside naive forecasts
    Eval(commands::eval::Args),
    /// Forecast what comes after the last rows of every series, with intervals and a picture
    Forecast(commands::forecast::Args),
    /// Forecast from many past rows, and hold the forecasts against what came
    Backtest(commands::backtest::Args),
    /// Train and test models over the horizons and seeds of a benchmark
    BenchTable(Box<commands::bench_table::Args>),
    /// Say what is in a checkpoint
    Info(commands::info::Args),
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
        Command::Eval(args) => commands::eval::run(args),
        Command::Forecast(args) => commands::forecast::run(args),
        Command::Backtest(args) => commands::backtest::run(args),
        Command::BenchTable(args) => commands::bench_table::run(*args),
        Command::Info(args) => commands::info::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mamba-timeseries", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    })
}
