//! A genome in memory, one byte per base, and its division into training, validation and test blocks.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::fasta::{FastaFiles, FastaOptions};
use crate::rng::{self, Stream};
use crate::tokenizer::SequenceCounts;

/// A record as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenomeRecord {
    /// The word after `>`.
    pub name: String,
    /// One token id per base: A, C, G, T or N.
    pub ids: Vec<u8>,
}

/// All records of some FASTA files.
#[derive(Clone, Debug, Default)]
pub struct Genome {
    records: Vec<GenomeRecord>,
    counts: SequenceCounts,
}

/// A run of bases of a record of a [`Genome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// Number of the record.
    pub record: usize,
    /// First base, 0-based.
    pub start0: usize,
    /// One past the last base, 0-based.
    pub end0: usize,
}

impl Interval {
    /// How many bases.
    pub fn len(&self) -> usize {
        self.end0.saturating_sub(self.start0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One base of a record of a [`Genome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenomePosition {
    /// Number of the record.
    pub record: usize,
    /// The base, 0-based.
    pub position0: usize,
}

impl Genome {
    /// Reads FASTA files; `-` is standard input.
    pub fn load(paths: impl IntoIterator<Item = impl Into<PathBuf>>, options: FastaOptions) -> Result<Self> {
        let mut files = FastaFiles::new(paths, options);
        let mut records: Vec<GenomeRecord> = Vec::new();
        for chunk in &mut files {
            let chunk = chunk?;
            match records.get_mut(chunk.record.index) {
                Some(record) => record.ids.extend_from_slice(&chunk.ids),
                None => records.push(GenomeRecord { name: chunk.record.name.clone(), ids: chunk.ids }),
            }
        }
        Ok(Self { counts: files.counts(), records })
    }

    /// A genome of records made elsewhere; its counts stay empty.
    pub fn from_records(records: Vec<GenomeRecord>) -> Self {
        Self { records, counts: SequenceCounts::default() }
    }

    /// The records in file order.
    pub fn records(&self) -> &[GenomeRecord] {
        &self.records
    }

    /// What was met in the files.
    pub fn counts(&self) -> &SequenceCounts {
        &self.counts
    }

    /// Bases in all records.
    pub fn len(&self) -> usize {
        self.records.iter().map(|record| record.ids.len()).sum()
    }

    /// Whether there is no base.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of an interval.
    ///
    /// # Panics
    /// If the interval does not lie in the genome.
    pub fn ids(&self, interval: Interval) -> &[u8] {
        &self.records[interval.record].ids[interval.start0..interval.end0]
    }

    /// Every record whole.
    pub fn intervals(&self) -> Vec<Interval> {
        let whole = |(record, r): (usize, &GenomeRecord)| Interval { record, start0: 0, end0: r.ids.len() };
        self.records.iter().enumerate().map(whole).collect()
    }
}

/// Disjoint parts of a genome, each sorted; neighbouring blocks of one part are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<Interval>,
    /// To choose by.
    pub valid: Vec<Interval>,
    /// To report on.
    pub test: Vec<Interval>,
}

impl Split {
    /// Cuts every record into blocks of `block_len` bases (its last block is what remains) and draws, by `seed`,
    /// `test_share` and `valid_share` of the blocks, rounded up. The rest is for training.
    pub fn blocks(
        genome: &Genome,
        block_len: usize,
        valid_share: f64,
        test_share: f64,
        seed: u64,
    ) -> Result<Self> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        if block_len == 0 {
            return Err(setting("block length", "0".into(), "at least 1"));
        }
        for (name, share) in [("validation share", valid_share), ("test share", test_share)] {
            if !(0.0..1.0).contains(&share) {
                return Err(setting(name, share.to_string(), "0 to 1, 1 not included"));
            }
        }
        let mut blocks: Vec<Interval> = Vec::new();
        for whole in genome.intervals() {
            let starts = (0..whole.end0).step_by(block_len);
            blocks.extend(starts.map(|start0| Interval {
                start0,
                end0: whole.end0.min(start0.saturating_add(block_len)),
                ..whole
            }));
        }
        let share_of = |share: f64| (share * blocks.len() as f64).ceil() as usize;
        let (n_test, n_valid) = (share_of(test_share), share_of(valid_share));
        if n_test + n_valid >= blocks.len() {
            let got = format!("{block_len} ({} blocks, {} held out)", blocks.len(), n_test + n_valid);
            return Err(setting("block length", got, "so many blocks that some are left to train on"));
        }
        let mut rng = rng::keyed(seed, 0, 0, Stream::Split);
        for i in 0..n_test + n_valid {
            let other = i + rng::below(&mut rng, (blocks.len() - i) as u64) as usize;
            blocks.swap(i, other);
        }
        let train = joined(blocks.split_off(n_test + n_valid));
        let valid = joined(blocks.split_off(n_test));
        Ok(Self { train, valid, test: joined(blocks) })
    }
}

fn joined(mut blocks: Vec<Interval>) -> Vec<Interval> {
    blocks.sort_unstable();
    let mut intervals: Vec<Interval> = Vec::new();
    for block in blocks {
        match intervals.last_mut() {
            Some(last) if last.record == block.record && last.end0 == block.start0 => last.end0 = block.end0,
            _ => intervals.push(block),
        }
    }
    intervals
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::A;

    fn genome(lengths: &[usize]) -> Genome {
        let record = |(i, &n): (usize, &usize)| GenomeRecord { name: format!("r{i}"), ids: vec![A; n] };
        Genome::from_records(lengths.iter().enumerate().map(record).collect())
    }

    proptest! {
        #[test]
        fn a_split_covers_each_base_exactly_once(
            lengths in proptest::collection::vec(1usize..500, 1..6), block in 1usize..60, seed in any::<u64>(),
        ) {
            let genome = genome(&lengths);
            let Ok(split) = Split::blocks(&genome, block, 0.1, 0.1, seed) else {
                let blocks: usize = lengths.iter().map(|n| n.div_ceil(block)).sum();
                prop_assert!(blocks <= 2);
                return Ok(());
            };
            let mut seen: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![0; n]).collect();
            for interval in split.train.iter().chain(&split.valid).chain(&split.test) {
                prop_assert!(!interval.is_empty());
                for count in &mut seen[interval.record][interval.start0..interval.end0] {
                    *count += 1;
                }
            }
            prop_assert!(seen.iter().flatten().all(|&count| count == 1));
            prop_assert_eq!(&split, &Split::blocks(&genome, block, 0.1, 0.1, seed).unwrap());
        }
    }

    #[test]
    fn neighbouring_blocks_are_joined_and_shares_are_kept() {
        let genome = genome(&[1000]);
        let split = Split::blocks(&genome, 10, 0.05, 0.1, 3).unwrap();
        let total = |part: &[Interval]| part.iter().map(Interval::len).sum::<usize>();
        assert_eq!((total(&split.train), total(&split.valid), total(&split.test)), (850, 50, 100));
        assert!(split.train.len() <= 16, "{} training intervals", split.train.len());
        assert_ne!(split, Split::blocks(&genome, 10, 0.05, 0.1, 4).unwrap());
        assert!(Split::blocks(&genome, 1000, 0.1, 0.1, 0).is_err());
        assert!(Split::blocks(&genome, 10, f64::NAN, 0.1, 0).is_err());
    }
}
