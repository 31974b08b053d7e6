//! Interaction logs: from files to sequences of items, and what of them is held out.
//!
//! [`read_all`] knows RecBole's atomic files, CSV, TSV, Parquet and three plain text layouts, and gives a [`Log`]: who
//! touched what, in file order, perhaps with times. [`Dataset::new`] filters it (k-core, duplicates, short histories),
//! orders each user's events by time (ties and missing times keep the file's order) and numbers the items.
//! [`Split`] says which events are trained on and which are asked for.

mod columns;
mod filter;
mod read;
mod sample;
mod split;
mod table;
mod text;

pub use columns::{ColumnNames, Columns};
pub use filter::{Dataset, Duplicates, FilterConfig};
pub use read::{Layout, ReadOptions, files_of, for_each_chunk, read_all};
pub use sample::SampleConfig;
pub use split::{Query, Split, SplitConfig};

use crate::Ids;

/// Events in file order.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Who.
    pub user: Ids,
    /// What.
    pub item: Ids,
    /// When, in the unit of the file; `None` where the file has no times and its order is all there is.
    pub time: Option<Vec<f64>>,
    /// Users whom the file names without an event: an empty list. Nothing can be learnt from them, but they can be scored.
    pub idle: Ids,
}

impl Log {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.user.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.user.is_empty()
    }
}
