//! The flags that name a log.

use anyhow::Result;
use mamba_core::cli::HintExt;
use mamba_recsys::data::{ColumnNames, Layout, Log, ReadOptions, SampleConfig, read_all};
use std::path::PathBuf;

/// The flags that name a log.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct LogArgs {
    /// Interaction log: files or folders (.inter, .csv, .tsv, .parquet, .txt, .dat) [default: a generated sample]
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Data")]
    pub(crate) data: Vec<PathBuf>,

    /// Layout of the files [default: by their endings]
    #[arg(long, value_enum, value_name = "LAYOUT", help_heading = "Data")]
    layout: Option<Layout>,

    /// Column of users [default: user_id, user, userId …]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    user_column: Option<String>,

    /// Column of items [default: item_id, item, movieId …]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    item_column: Option<String>,

    /// Column of times [default: timestamp, time …; without one, the order of the file]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    time_column: Option<String>,

    /// Names of all columns of CSV or TSV files that have no header, for example user,item,rating,time
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Data")]
    columns: Option<Vec<String>>,
}

impl LogArgs {
    /// How the files are read.
    pub(crate) fn options(&self) -> ReadOptions {
        let columns = ColumnNames {
            user: self.user_column.clone(),
            item: self.item_column.clone(),
            time: self.time_column.clone(),
        };
        ReadOptions { layout: self.layout, columns, header: self.columns.clone() }
    }

    /// The log, or the generated sample.
    pub(crate) fn read(&self) -> Result<Log> {
        if self.data.is_empty() {
            return Ok(SampleConfig::default().log());
        }
        read_all(&self.data, &self.options()).map_err(with_hint)
    }
}

/// Adds what the user could do about an error.
pub(crate) fn with_hint(error: mamba_recsys::Error) -> anyhow::Error {
    match error.hint() {
        Some(hint) => Err::<(), _>(error).hint(hint).expect_err("it is an error"),
        None => error.into(),
    }
}
