//! `metrics.jsonl`: what a run measured, one JSON object per line.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Smaller is better.
    Minimize,
    /// Larger is better.
    Maximize,
}

impl Goal {
    /// Whether `new` beats `old`, if there is one; never true of a value that is not finite.
    pub fn improves(self, new: f64, old: Option<f64>) -> bool {
        new.is_finite()
            && old.is_none_or(|old| match self {
                Self::Minimize => new < old,
                Self::Maximize => new > old,
            })
    }

    /// `↓` or `↑`.
    pub fn arrow(self) -> char {
        match self {
            Self::Minimize => '↓',
            Self::Maximize => '↑',
        }
    }
}

/// One figure of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name, for example `ndcg@10`; `loss` is drawn in the loss curve.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Which way it gets better.
    pub goal: Goal,
}

impl Metric {
    /// A metric that gets better as it falls.
    pub fn down(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, goal: Goal::Minimize }
    }

    /// A metric that gets better as it rises.
    pub fn up(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, goal: Goal::Maximize }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A stretch of training.
    Train {
        /// Steps taken.
        step: u64,
        /// Mean loss since the line before.
        loss: f64,
        /// Learning rate of the last step.
        lr: f64,
        /// Norm of the last gradient, before clipping.
        grad_norm: f64,
        /// Items (tokens, frames) per second since the line before.
        rate: f64,
        /// The most memory so far, in bytes, as [`crate::device::peak_memory`] counts; absent where nobody says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peak_memory: Option<u64>,
        /// Seconds of training so far, over all resumed parts.
        seconds: f64,
    },
    /// An evaluation.
    Valid {
        /// Steps taken.
        step: u64,
        /// Figures by name; null where a figure is not finite.
        metrics: BTreeMap<String, Option<f64>>,
        /// Whether the weights were the best so far and were saved.
        best: bool,
        /// Seconds of training so far, over all resumed parts.
        seconds: f64,
    },
}

impl Record {
    /// Steps taken at that time.
    pub fn step(&self) -> u64 {
        match self {
            Self::Train { step, .. } | Self::Valid { step, .. } => *step,
        }
    }
}

/// `metrics.jsonl`, open for appending and locked.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file and cuts it back to the records at or before `step`, dropping a half-written last line.
    pub(super) fn open(path: PathBuf, step: u64) -> Result<Self> {
        let failed = |e| Error::io(&path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::run_folder(&path, "another process is training in this folder"));
            }
            // a file system without locks: go on unprotected
            Ok(()) | Err(TryLockError::Error(_)) => (),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let keep: usize =
            whole_lines(&bytes).take_while(|(_, record)| record.step() <= step).map(|(len, _)| len).sum();
        if keep < bytes.len() {
            file.set_len(keep as u64).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(keep as u64)).map_err(failed)?;
        Ok(Self { path, file })
    }

    /// Appends a record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(Error::other)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(whole_lines(&bytes).map(|(_, record)| record).collect())
}

/// Records with the lengths of their lines, up to the first line that is not whole.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, Record)> {
    bytes.split_inclusive(|&b| b == b'\n').map_while(|line| {
        let text = line.strip_suffix(b"\n")?;
        Some((line.len(), serde_json::from_slice(text).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record::Valid {
            step,
            metrics: BTreeMap::from([("loss".into(), Some(0.1)), ("odd".into(), None)]),
            best: true,
            seconds: 0.5,
        }
    }

    #[test]
    fn resuming_cuts_later_and_half_written_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(path.clone(), 0).unwrap();
        [1, 2, 2, 3].iter().for_each(|&step| log.append(&record(step)).unwrap());
        log.file.write_all(br#"{"kind":"valid","step":2,"metr"#).unwrap();
        assert!(MetricsLog::open(path.clone(), 9).unwrap_err().to_string().contains("another process"));
        drop(log);
        let steps = |path: &Path| read(path).unwrap().iter().map(Record::step).collect::<Vec<_>>();
        assert_eq!(steps(&path), [1, 2, 2, 3]);
        let mut log = MetricsLog::open(path.clone(), 2).unwrap();
        log.append(&record(7)).unwrap();
        assert_eq!(steps(&path), [1, 2, 2, 7]);
    }

    #[test]
    fn only_finite_values_improve() {
        assert!(Goal::Minimize.improves(1.0, Some(2.0)) && Goal::Maximize.improves(2.0, Some(1.0)));
        assert!(Goal::Maximize.improves(-9.0, None) && !Goal::Maximize.improves(1.0, Some(1.0)));
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!Goal::Minimize.improves(odd, None) && !Goal::Maximize.improves(odd, Some(0.0)));
        }
    }
}
