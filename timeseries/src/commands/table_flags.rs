//! The flags by which tables are read.

use mamba_timeseries::table::{Decimal, Duplicates, Gaps, Missing, TableOptions};

/// How a table is read. What is not given is as the settings or the checkpoint say.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TableFlags {
    /// Column with the time [default when training: the first that holds times]
    #[arg(long, value_name = "COLUMN", help_heading = "Table")]
    time: Option<String>,
    /// Column that names the series a row belongs to [default when training: all rows are one series]
    #[arg(long, value_name = "COLUMN", help_heading = "Table")]
    id: Option<String>,
    /// Decimal mark of the numbers [default when training: recognised]
    #[arg(long, value_enum, value_name = "MARK", help_heading = "Table")]
    decimal: Option<Decimal>,
    /// Notation of the times, for example %d/%m/%Y %H:%M [default when training: recognised]
    #[arg(long, value_name = "PATTERN", help_heading = "Table")]
    time_format: Option<String>,
    /// Zone of times that do not name one, for example Europe/Berlin; days and months are its own, and times are written
    /// with its offset [default when training: UTC, written without offset]
    #[arg(long, value_name = "ZONE", help_heading = "Table")]
    time_zone: Option<String>,
    /// Words and numbers that mean a missing value, beside empty, NA, N/A, NaN, null, none, - and ?; separated by commas
    #[arg(
        long,
        value_name = "VALUES",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Table"
    )]
    missing_values: Vec<String>,
    /// Rows with the same time [default when training: error; with a preset: keep]
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Table")]
    duplicates: Option<Duplicates>,
    /// Times without a row [default when training: fill; with a preset: keep]
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Table")]
    gaps: Option<Gaps>,
    /// Missing values [default when training: forward]
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Table")]
    missing: Option<Missing>,
}

impl TableFlags {
    /// Options, changed where a flag was given.
    pub(crate) fn over(&self, options: TableOptions) -> TableOptions {
        TableOptions {
            time: self.time.clone().or(options.time),
            id: self.id.clone().or(options.id),
            columns: options.columns,
            decimal: self.decimal.or(options.decimal),
            numbers: options.numbers,
            time_format: self.time_format.clone().or(options.time_format),
            time_zone: self.time_zone.clone().or(options.time_zone),
            missing_values: match self.missing_values.is_empty() {
                true => options.missing_values,
                false => self.missing_values.clone(),
            },
            duplicates: self.duplicates.unwrap_or(options.duplicates),
            gaps: self.gaps.unwrap_or(options.gaps),
            missing: self.missing.unwrap_or(options.missing),
        }
    }
}
