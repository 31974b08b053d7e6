//! One module for each subcommand: its flags, and the call into the library.

pub(crate) mod backtest;
pub(crate) mod bench_table;
pub(crate) mod eval;
pub(crate) mod forecast;
pub(crate) mod info;
pub(crate) mod table_flags;
pub(crate) mod train;

use anyhow::Result;
use mamba_timeseries::ForecastCheckpoint;
use mamba_timeseries::checkpoint::CheckpointConfig;
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::picture::MAX_PANELS;
use mamba_timeseries::split::Split;
use mamba_timeseries::table::{Table, TableOptions};
use std::path::{Path, PathBuf};
use table_flags::TableFlags;

/// The bundled sample: weather of New York's airports.
const SAMPLE: &[u8] = include_bytes!("../../samples/nyc_weather_2013.csv.gz");
const SAMPLE_NAME: &str = "nyc_weather_2013.csv.gz";

/// Where the rows come from: a file, or the bundled sample.
pub(crate) struct Source {
    /// The file, if one was named.
    pub(crate) path: Option<PathBuf>,
}

impl Source {
    /// A file, a set of `mamba-timeseries datasets list`, or the bundled sample.
    pub(crate) fn new(table_file: Option<&Path>) -> Result<Self> {
        Ok(Self { path: table_file.map(mamba_datasets::registry::resolve).transpose()? })
    }

    /// How the table is read, with what the sample needs.
    pub(crate) fn options(&self, options: &TableOptions) -> TableOptions {
        match &self.path {
            Some(_) => options.clone(),
            None => {
                let id = options.id.clone().or(Some("origin".into()));
                TableOptions { id, ..options.clone() }
            }
        }
    }

    /// Calls `read` with the path of the table.
    pub(crate) fn with_path<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        if let Some(path) = &self.path {
            return read(path);
        }
        let folder = std::env::temp_dir().join(format!("mamba-timeseries-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(SAMPLE_NAME);
        let result = std::fs::write(&path, SAMPLE).map_err(anyhow::Error::from).and_then(|()| read(&path));
        std::fs::remove_dir_all(&folder)?;
        result.map_err(|error| match error.downcast::<mamba_timeseries::Error>() {
            Ok(error) => error.at(Path::new(SAMPLE_NAME)).into(),
            Err(error) => error,
        })
    }

    /// The whole table.
    pub(crate) fn read(&self, options: &TableOptions) -> Result<Table> {
        let mut table = self.with_path(|path| Ok(Table::read(path, &self.options(options))?))?;
        if self.path.is_none() {
            table.path = SAMPLE_NAME.into();
        }
        Ok(table)
    }

    /// Refuses to write over the table, and pictures over the output.
    pub(crate) fn refuse_as_outputs(&self, out: Option<&Path>, plots: &[PathBuf]) -> Result<()> {
        let (table, output) = (self.path.as_deref().map(real), out.map(real));
        let plots = plots.iter().map(|plot| ("--plot", plot.as_path()));
        for (flag, path) in out.map(|out| ("--out", out)).into_iter().chain(plots) {
            let what = match Some(real(path)) {
                path if path == table => "the table itself",
                path if path == output && flag == "--plot" => "the file of --out",
                _ => continue,
            };
            let message = format!("{flag} {} is {what}; name another file", path.display());
            return Err(mamba_core::Error::Config(message).into());
        }
        Ok(())
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        let name = |path: &PathBuf| path.display().to_string();
        self.path.as_ref().map_or_else(|| "the bundled weather of New York's airports".into(), name)
    }
}

/// Where a file lies or is to lie, by whatever path.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let in_folder = || Some(std::fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?));
    std::fs::canonicalize(path).ok().or_else(in_folder).unwrap_or_else(|| absolute.clone())
}

/// A checkpoint, for a table that is read as that of the training was where no flag says otherwise.
pub(crate) fn open(folder: &Path, flags: &TableFlags) -> Result<ForecastCheckpoint> {
    let checkpoint = ForecastCheckpoint::open(folder)?;
    let config = checkpoint.config();
    let table = flags.over(TableOptions { columns: config.columns.clone(), ..config.table.clone() });
    Ok(checkpoint.with_table(table))
}

/// The columns that a picture shows, and words about it where they are not all.
pub(crate) fn shown(targets: &[usize], config: &CheckpointConfig) -> (Vec<usize>, Option<String>) {
    let shown: Vec<usize> = targets.iter().copied().take(MAX_PANELS).collect();
    let names: Vec<&str> = shown.iter().map(|&i| config.columns[i].as_str()).collect();
    let words =
        format!("the picture shows {} of {} columns: {}", shown.len(), targets.len(), names.join(", "));
    (shown, (targets.len() > MAX_PANELS).then_some(words))
}

/// What `--split` takes: shares of training and test rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares(pub(crate) Split);

impl std::str::FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shares =
            text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let (train, test) = shares.ok_or("expected two numbers, for example 0.7,0.2")?;
        Ok(Self(Split::Ratio { train, test }))
    }
}

/// The data of a table as a checkpoint wants it.
pub(crate) fn dataset_for(table: &Table, split: Split, config: &CheckpointConfig) -> Result<Dataset> {
    let zone = config.table.time_zone.as_deref().and_then(|zone| zone.parse().ok());
    Ok(Dataset::new(table, split, (config.seq_len, config.pred_len), zone, Some(&config.scaler))?)
}
