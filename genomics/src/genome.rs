//! A genome in memory, one byte per base, and its division into training, validation and test blocks.

use std::path::PathBuf;

use crate::error::Result;
use crate::fasta::{FastaFiles, FastaOptions};
use crate::tokenizer::SequenceCounts;
use mamba_datasets::{Fractions, genome_split};

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
    /// Holds out whole blocks of `block` bases, drawn by `seed`: `valid` and `test` of all bases. Without `block`, 50 kb,
    /// or less for a genome that has too few such blocks.
    pub fn blocks(genome: &Genome, block: Option<usize>, held_out: Fractions, seed: u64) -> Result<Self> {
        let lengths: Vec<u64> = genome.records.iter().map(|record| record.ids.len() as u64).collect();
        let split = genome_split(&lengths, block.map(|block| block as u64), held_out, seed)?;
        let own = |intervals: &[mamba_datasets::Interval]| intervals.iter().map(Interval::from).collect();
        Ok(Self { train: own(&split.train), valid: own(&split.valid), test: own(&split.test) })
    }
}

impl From<&mamba_datasets::Interval> for Interval {
    fn from(i: &mamba_datasets::Interval) -> Self {
        Self { record: i.record, start0: i.start as usize, end0: i.end as usize }
    }
}

impl From<&Interval> for mamba_datasets::Interval {
    fn from(i: &Interval) -> Self {
        Self { record: i.record, start: i.start0 as u64, end: i.end0 as u64 }
    }
}
