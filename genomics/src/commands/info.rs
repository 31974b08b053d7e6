use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: mamba_core::cli::CommonArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.common.start()?;
    Ok(ExitCode::SUCCESS)
}
