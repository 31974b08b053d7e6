//! What of a series is trained on, validated on and tested on, and the windows in each part.
//!
//! Parts follow each other in time. A window is `seq_len` rows of look-back and `pred_len` rows of target; it belongs to the
//! part in which its whole target lies. Look-backs of the validation and test parts may reach into the part before, as
//! in the published benchmarks: those rows are past when the forecast is made. Nothing of training lies after
//! the training part.
//!
//! ```
//! use mamba_timeseries::split::{Part, Split};
//!
//! let parts = Split::Ett { rows_per_hour: 1 }.parts(17_420, 96, 96)?;
//! assert_eq!(parts.windows(Part::Train).len(), 8_449);
//! assert_eq!(parts.windows(Part::Test).len(), 2_785);
//! # Ok::<(), mamba_core::Error>(())
//! ```

use mamba_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// How a series is split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Split {
    /// That of the ETT data sets: 12, 4 and 4 months of 30 days; rows after them are not used.
    Ett {
        /// 1 for ETTh, 4 for ETTm.
        rows_per_hour: usize,
    },
    /// Shares of the rows; the validation part is what training and test leave.
    Ratio {
        /// Share of the training part.
        train: f64,
        /// Share of the test part.
        test: f64,
    },
}

impl Default for Split {
    fn default() -> Self {
        Self::Ratio { train: 0.7, test: 0.2 }
    }
}

/// A part of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is learnt from.
    Train,
    /// What decides when to stop, between settings, and how wide intervals are.
    Valid,
    /// What figures are reported on.
    Test,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Valid => "validation",
            Self::Test => "test",
        })
    }
}

/// The rows of each part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    train: Range<usize>,
    valid: Range<usize>,
    test: Range<usize>,
    seq_len: usize,
    pred_len: usize,
}

impl Split {
    /// Splits a series of `rows` rows. A part without room for one window is an error.
    pub fn parts(self, rows: usize, seq_len: usize, pred_len: usize) -> Result<Parts> {
        let (train, valid, test) = match self {
            Self::Ett { rows_per_hour } => {
                let month = 30 * 24 * rows_per_hour;
                if rows_per_hour == 0 || rows < 20 * month {
                    return Err(Error::other(crate::Error::Mismatch(format!(
                        "the split of ETT takes {} rows, the series has {rows}; --split 0.7,0.2 takes shares",
                        20 * month
                    ))));
                }
                (0..12 * month, 12 * month..16 * month, 16 * month..20 * month)
            }
            Self::Ratio { train, test } => {
                if !(train > 0.0 && test >= 0.0 && train + test <= 1.0) {
                    return Err(Error::Config(format!(
                        "the shares of training and test are {train} and {test}, must be above 0 and at most 1 together"
                    )));
                }
                let (train, test) = ((rows as f64 * train) as usize, (rows as f64 * test) as usize);
                (0..train, train..rows - test, rows - test..rows)
            }
        };
        let parts = Parts { train, valid, test, seq_len, pred_len };
        for part in [Part::Train, Part::Valid, Part::Test] {
            // without a share, a test is not wanted
            if parts.windows(part).is_empty() && !(part == Part::Test && parts.test.is_empty()) {
                let (has, need) = (parts.rows(part).len(), parts.needs(part));
                return Err(Error::other(crate::Error::Mismatch(format!(
                    "the {part} part has {has} of the series' {rows} rows; {need} are needed to look back {seq_len} and \
                     forecast {pred_len}: shorten them or take other shares"
                ))));
            }
        }
        Ok(parts)
    }
}

impl Parts {
    /// The rows of a part.
    pub fn rows(&self, part: Part) -> Range<usize> {
        match part {
            Part::Train => self.train.clone(),
            Part::Valid => self.valid.clone(),
            Part::Test => self.test.clone(),
        }
    }

    /// First rows of the targets of a part's windows: a window's look-back ends, and its target begins, there.
    pub fn windows(&self, part: Part) -> Range<usize> {
        let rows = self.rows(part);
        let first = rows.start.max(self.seq_len);
        first..(rows.end + 1).saturating_sub(self.pred_len).max(first)
    }

    /// Rows that a part needs for one window.
    fn needs(&self, part: Part) -> usize {
        match part {
            Part::Train => self.seq_len + self.pred_len,
            Part::Valid | Part::Test => self.pred_len,
        }
    }
}
