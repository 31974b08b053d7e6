//! `metrics`: enhanced recordings against clean ones.

use super::table::ScoreTable;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format};
use mamba_datasets::registry::resolve;
use mamba_speech::audio::{files_in, read_mono};
use mamba_speech::metrics::{SAMPLE_RATE, score};
use mamba_speech::{Error, audio};
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `metrics`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-speech metrics --clean testset/clean --enhanced testset/enhanced --csv scores.csv")]
pub(crate) struct Args {
    /// Folder of clean recordings, or one of them
    #[arg(long, value_name = "PATH")]
    clean: PathBuf,

    /// Folder of enhanced recordings of the same names, or one of them
    #[arg(long, value_name = "PATH")]
    enhanced: PathBuf,

    /// Write the table as CSV too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let pairs = pairs(&args.clean, &args.enhanced)?;
    let scored: Vec<Result<_>> = pairs
        .par_iter()
        .map(|pair| {
            let (clean, enhanced) =
                (read_mono(&pair.clean, SAMPLE_RATE)?, read_mono(&pair.other, SAMPLE_RATE)?);
            let scores = score(&clean, &enhanced, SAMPLE_RATE).map_err(|e| about(&pair.other, e))?;
            Ok((pair.name.clone(), scores))
        })
        .collect();
    let (rows, code) = those_scored(scored)?;
    print(&ScoreTable { rows }, args.csv.as_deref(), args.common.format)?;
    Ok(code)
}

/// The scores of clips that have some; the others are reported, and the exit code is 1.
///
/// # Errors
/// The last one, if no clip has scores.
pub(crate) fn those_scored<T>(scored: Vec<Result<T>>) -> Result<(Vec<T>, ExitCode)> {
    let (all, mut rows, mut failed) = (scored.len(), Vec::new(), Vec::new());
    for result in scored {
        result.map_or_else(|error| failed.push(error), |row| rows.push(row));
    }
    let Some(last) = failed.pop() else { return Ok((rows, ExitCode::SUCCESS)) };
    for error in &failed {
        eprintln!("error: {error:#}");
    }
    if rows.is_empty() {
        return Err(last);
    }
    eprintln!("error: {last:#}\n{} of {all} clips have scores, the means are theirs", rows.len());
    Ok((rows, ExitCode::FAILURE))
}

/// Two files of one name.
pub(crate) struct PairOfFiles {
    pub(crate) name: String,
    pub(crate) clean: PathBuf,
    pub(crate) other: PathBuf,
}

/// Every clean file and its counterpart: the file of the same relative name, whatever its extension.
pub(crate) fn pairs(clean: &Path, other: &Path) -> Result<Vec<PairOfFiles>> {
    let (clean, other) = (&resolve(clean)?, &resolve(other)?);
    if clean.is_file() && other.is_file() {
        let name = clean.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![PairOfFiles { name, clean: clean.to_owned(), other: other.to_owned() }]);
    }
    let find = |path: PathBuf| {
        let relative = path.strip_prefix(clean).unwrap_or(&path).to_owned();
        let same = other.join(&relative);
        let candidates = audio::EXTENSIONS.iter().map(|e| same.with_extension(e));
        let found = std::iter::once(same.clone()).chain(candidates).find(|p| p.is_file());
        match found {
            Some(other) => Ok(PairOfFiles { name: relative.display().to_string(), clean: path, other }),
            None => Err(Error::NoCounterpart { path, folder: other.to_owned() }.into()),
        }
    };
    files_in(clean)?.into_iter().map(find).collect()
}

/// An error of a measurement, with the file that it is about.
pub(crate) fn about(path: &Path, error: Error) -> Error {
    match error {
        Error::Signal(reason) => Error::Audio { path: path.to_owned(), reason },
        other => other,
    }
}

/// The table on stdout, and as a file.
fn print(table: &ScoreTable, csv: Option<&Path>, format: Format) -> Result<()> {
    write_csv(table, csv)?;
    let text = match format {
        Format::Json => format!("{}\n", table.json()),
        Format::Human => table.human(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The table as a file, if one was asked for.
pub(crate) fn write_csv(table: &ScoreTable, csv: Option<&Path>) -> Result<()> {
    let Some(path) = csv else { return Ok(()) };
    let mut file = mamba_datasets::AtomicFile::create(path)?;
    file.write_all(table.csv().as_bytes())?;
    Ok(file.commit()?)
}
