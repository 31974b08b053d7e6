//! Labelled sequences: read from tables or FASTA files, split so that no sequence straddles the parts.
//!
//! [`Rows`] streams the rows of a CSV, TSV or Parquet file with a header; [`LabelledSet`] holds some files' rows in
//! memory. [`split`] and [`k_fold`] keep a sequence, its copies and its reverse complement on one side; [`leaks`] counts
//! where given parts do not.
//!
//! ```
//! use mamba_genomics::labelled::{Columns, LabelledSet, leaks};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("train.csv");
//! std::fs::write(&path, "sequence,label\nACGT,0\nAACC,1\nGGTT,1\n")?;
//! let set = LabelledSet::from_table(&path, &Columns::default())?;
//! assert_eq!(set.rows[1].label.as_deref(), Some("1"));
//! let part = |i: usize| LabelledSet { rows: vec![set.rows[i].clone()] };
//! assert_eq!(leaks(&part(1), &part(2)), 1); // GGTT is the other strand of AACC
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod parquet;
mod split;
mod table;

pub use split::{Parts, group_key, k_fold, leaks, split};
pub use table::{Columns, Rows};

use crate::error::{Error, Result};
use crate::fasta::{FastaOptions, FastaReader};
use std::path::Path;

/// A sequence of a table or a FASTA file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name: the id column, the record's name, or the number of the row from 1.
    pub id: String,
    /// Token ids; at least one.
    pub ids: Vec<u8>,
    /// The text of its label, if there is one.
    pub label: Option<String>,
    /// `file:line` or `file, row n`, for messages.
    pub place: String,
}

/// Sequences with labels, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledSet {
    /// The sequences; every one has a label.
    pub rows: Vec<Row>,
}

impl LabelledSet {
    /// All rows of a CSV, TSV or Parquet file.
    ///
    /// # Errors
    /// What is wrong with the file, by line; a file without rows.
    pub fn from_table(path: &Path, columns: &Columns) -> Result<Self> {
        let rows = Rows::open(path, columns, true)?.collect::<Result<Vec<_>>>()?;
        match rows.is_empty() {
            true => {
                Err(Error::Table { place: path.display().to_string(), reason: "there are no rows".into() })
            }
            false => Ok(Self { rows }),
        }
    }

    /// All records of a FASTA file, each with the same label.
    ///
    /// # Errors
    /// What is wrong with the file, by line.
    pub fn from_fasta(path: &Path, label: &str) -> Result<Self> {
        let mut rows: Vec<Row> = Vec::new();
        for chunk in FastaReader::open(path, FastaOptions::default())? {
            let chunk = chunk?;
            match rows.last_mut() {
                Some(row) if chunk.start0 > 0 => row.ids.extend(chunk.ids),
                _ => rows.push(Row {
                    id: chunk.record.name.clone(),
                    place: format!("{}, record {:?}", path.display(), chunk.record.name),
                    ids: chunk.ids,
                    label: Some(label.to_string()),
                }),
            }
        }
        Ok(Self { rows })
    }

    /// The rows at some places, in that order.
    pub fn select(&self, places: &[usize]) -> Self {
        Self { rows: places.iter().map(|&i| self.rows[i].clone()).collect() }
    }

    /// Tokens over all sequences.
    pub fn bases(&self) -> usize {
        self.rows.iter().map(|row| row.ids.len()).sum()
    }
}
