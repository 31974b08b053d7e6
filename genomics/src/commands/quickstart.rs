//! `quickstart`: train on the bundled genome, embed it, say what to do next.

use crate::commands::{embed, train};
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `quickstart`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-genomics quickstart --minutes 1")]
pub(crate) struct Args {
    /// Folder for everything that it makes
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    out: PathBuf,

    /// Minutes of training at most
    #[arg(long, value_name = "M", default_value_t = 2.0)]
    minutes: f64,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let model = args.out.join("model");
    let code = train::run(train::Args::for_run(&model, args.minutes, args.common.clone()))?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let fasta = mamba_datasets::sample("lambda")?.write_to(&args.out)?;
    let vectors = args.out.join("lambda.parquet");
    embed::run(embed::Args::for_run(&fasta, &model, &vectors, args.common.clone()))?;
    if args.common.format == Format::Human {
        writeln!(
            std::io::stdout().lock(),
            "\nDone. In {}:\n  {}  the trained model\n  {}  how its loss fell\n  {}  one vector for each 1,024 bases of the phage\n\n\
             Next, with your own sequences:\n  mamba-genomics embed your.fa.gz --out vectors.parquet\n  \
             mamba-genomics train your_genome.fa.gz --out runs/mine --preset base --minutes 60\n  \
             mamba-genomics info {}",
            args.out.display(),
            model.display(),
            model.join("loss.svg").display(),
            vectors.display(),
            model.display(),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
