//! Where the labelled sequences come from, and how they are parted.

use super::Args;
use anyhow::Result;
use mamba_core::Error;
use mamba_core::train::Console;
use mamba_datasets::Fractions;
use mamba_genomics::finetune::{FinetuneConfig, Kind, SplitConfig};
use mamba_genomics::labelled::{LabelledSet, Parts, group_key, leaks, split};
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;

/// What was given.
pub(super) struct Data {
    pub(super) train: LabelledSet,
    valid: Option<LabelledSet>,
    test: Option<LabelledSet>,
}

/// Sequences that two parts share, on either strand.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Leaks {
    /// Of validation and test: those that training has too, before any was dropped.
    valid: usize,
    test: usize,
    /// Of the test: those that validation has too.
    valid_test: usize,
    /// Of training: those that were removed.
    dropped: usize,
}

/// Reads all files.
pub(super) fn read(args: &Args, cfg: &SplitConfig) -> Result<Data> {
    let table = |path: &Path| LabelledSet::from_table(path, &cfg.columns);
    let mut train = LabelledSet::default();
    for class in &args.class {
        let Some((name, path)) =
            class.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty())
        else {
            return Err(Error::Config(format!("--class {class}: expected NAME=FASTA")).into());
        };
        train.rows.extend(LabelledSet::from_fasta(Path::new(path), name)?.rows);
    }
    if let Some(path) = &args.table {
        train = table(path)?;
    }
    let read = |path: &Option<std::path::PathBuf>| path.as_deref().map(table).transpose();
    Ok(Data { train, valid: read(&args.valid)?, test: read(&args.test)? })
}

/// Holds out what was not given; counts, or removes, what two parts share.
pub(super) fn parts(
    data: Data,
    cfg: &FinetuneConfig,
    args: &Args,
    console: &Console,
) -> Result<(Parts, Leaks)> {
    let Data { train, valid, test } = data;
    let share = |given: &Option<LabelledSet>, share: f64| if given.is_some() { 0.0 } else { share };
    let held_out = Fractions { valid: share(&valid, cfg.data.valid), test: share(&test, cfg.data.test) };
    let stratify = cfg.task.kind == Kind::Classification;
    let mut parts = match (held_out.valid, held_out.test) {
        (0.0, 0.0) => Parts { train, ..Parts::default() },
        _ => split(&train, held_out, stratify, cfg.data.split_seed)?,
    };
    parts.valid = valid.unwrap_or(parts.valid);
    parts.test = test.unwrap_or(parts.test);
    let mut found = Leaks {
        valid: leaks(&parts.train, &parts.valid),
        test: leaks(&parts.train, &parts.test),
        valid_test: leaks(&parts.valid, &parts.test),
        dropped: 0,
    };
    for (name, part, n) in [("validation", &parts.valid, found.valid), ("test", &parts.test, found.test)] {
        if n > 0 {
            let what = if args.drop_leaks {
                "their copies in training are removed"
            } else {
                "--drop-leaks removes them"
            };
            console.note(&format!(
                "{n} of {} {name} sequences are among the training sequences too, on either strand; {what}",
                part.rows.len()
            ));
        }
    }
    if found.valid_test > 0 {
        console.note(&format!(
            "{} of {} test sequences are among the validation sequences too",
            found.valid_test,
            parts.test.rows.len()
        ));
    }
    if args.drop_leaks {
        let held_out = parts.valid.rows.iter().chain(&parts.test.rows);
        let keys: HashSet<Vec<u8>> = held_out.map(|row| group_key(&row.ids)).collect();
        let before = parts.train.rows.len();
        parts.train.rows.retain(|row| !keys.contains(&group_key(&row.ids)));
        found.dropped = before - parts.train.rows.len();
        if parts.train.rows.is_empty() {
            return Err(Error::Config("--drop-leaks leaves nothing to train on".into()).into());
        }
    }
    Ok((parts, found))
}
