//! Sequences to vectors.
//!
//! [`Embedder::embed`] is a pure function from a batch of sequences to a batch of vectors; nothing is read or
//! written, so that any engine can call it. A long record is cut into overlapping [windows](crate::windows):
//! [`Embedder::pool`] says what each window's core contributes, [`Pooled::merge`] joins the contributions, so that
//! every base counts once, and [`Embedder::vectors`] turns the whole into the record's vector.
//!
//! **Strands.** Caduceus sees both strands: PS in one pass, Ph in two, of the sequence and of its reverse complement.
//!
//! | [`StrandChoice`] | vector | of the reverse complement |
//! |---|---|---|
//! | `Both` | mean of the pooled strands, D values | the same |
//! | `Forward` | the strand as given, D values | another |
//! | `Concat` | one strand after the other, 2·D values | the halves change places |
//!
//! The first and the last hold bit for bit where a record fits into one window. A longer record's windows do not
//! lie where those of its reverse complement do, so there it holds as well as the overlap hides the windows' edges.
//!
//! **The same bits whatever the batch.** Padding is inert, sums run in f64 in the order of the bases, and a batch has
//! at least [`FEWEST_TOKENS`] tokens, since small matrix products sum in another order.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mamba_genomics::embed::{EmbedOptions, Embedder};
//! use mamba_genomics::{CaduceusCheckpoint, tokenizer};
//!
//! let checkpoint = CaduceusCheckpoint::bundled()?;
//! let embedder = Embedder::new(&checkpoint, EmbedOptions::default(), DType::F32, &Device::Cpu)?;
//! let sequence = [tokenizer::A, tokenizer::C, tokenizer::C, tokenizer::T];
//! let other_strand = tokenizer::reverse_complement(&sequence);
//! let vectors = embedder.embed(&[&sequence, &other_strand])?;
//! assert_eq!(vectors[0].len(), embedder.dim());
//! assert_eq!(vectors[0], vectors[1]);
//! # Ok::<(), mamba_core::Error>(())
//! ```

mod source;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use mamba_core::{Error, Result};
use serde::{Serialize, Serializer};

use crate::long::Strand;
use crate::tokenizer::{self, PAD};
use crate::{CaduceusCheckpoint, CaduceusForMaskedLm};

pub use source::Sequences;

/// Tokens in a batch, padding counted, from which on a matrix product gives each row the same bits whatever the
/// other rows are: products with at most 16 × 16 results sum in another order.
pub const FEWEST_TOKENS: usize = 512;

/// How the vectors of bases become rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// One row: the mean over all bases.
    #[default]
    Mean,
    /// One row: the largest value over all bases, channel by channel.
    Max,
    /// One row for each base.
    None,
}

/// Which strands a vector tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StrandChoice {
    /// The mean over both strands: a sequence and its reverse complement have the same vector
    #[default]
    Both,
    /// The strand as given
    Forward,
    /// Both strands, one after the other: twice as many values
    Concat,
}

/// Where in the model vectors are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// After the last block and the final norm.
    #[default]
    Last,
    /// The residual stream after so many blocks, without a norm; after 0 it is the embedding.
    After(usize),
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            _ => text.parse().map(Self::After).map_err(|_| "expected \"last\" or a number of blocks".into()),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::After(blocks) => blocks.fmt(f),
        }
    }
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a vector is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EmbedOptions {
    /// How the vectors of bases become rows.
    pub pooling: Pool,
    /// Where in the model they are taken.
    pub layer: Layer,
    /// Which strands they tell of.
    pub strand: StrandChoice,
}

/// A sequence, or a window of one, with the part that counts.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// Token ids; at least one.
    pub ids: &'a [u8],
    /// The part that is pooled; what lies around it is context.
    pub core: Range<usize>,
}

/// What some bases contribute to the vector of their record.
#[derive(Clone, Debug, PartialEq)]
pub struct Pooled {
    bases: u64,
    values: Values,
}

/// Channels of the forward strand, then of the reverse strand where it is used.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    Sums(Vec<f64>),
    Max(Vec<f32>),
    /// One row for each base, the strands already joined.
    Rows(Vec<f32>),
}

impl Pooled {
    /// How many bases these are.
    pub fn bases(&self) -> u64 {
        self.bases
    }

    /// Adds the contribution of the bases that follow.
    ///
    /// # Panics
    /// If the two were pooled in different ways.
    pub fn merge(&mut self, next: Self) {
        self.bases += next.bases;
        match (&mut self.values, next.values) {
            (Values::Sums(all), Values::Sums(next)) => all.iter_mut().zip(next).for_each(|(a, b)| *a += b),
            (Values::Max(all), Values::Max(next)) => {
                all.iter_mut().zip(next).for_each(|(a, b)| *a = max(*a, b))
            }
            (Values::Rows(all), Values::Rows(next)) => all.extend(next),
            _ => panic!("contributions that were pooled in different ways"),
        }
    }
}

/// The larger; a value that is not a number stays.
fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// A model, ready to turn sequences into vectors.
#[derive(Clone, Debug)]
pub struct Embedder {
    model: CaduceusForMaskedLm,
    d_model: usize,
    options: EmbedOptions,
    device: Device,
    /// Bases in one pass of the model, padding counted, at which its widest tensor reaches [`LARGEST_TENSOR`].
    most_bases: usize,
    /// Longer pieces go through the model in chunks of so many bases, see [`crate::long`].
    chunk: Option<usize>,
}

/// Bytes of the largest tensor in a pass over several sequences; a longer single sequence still goes in one.
const LARGEST_TENSOR: usize = 2 << 30;

impl Embedder {
    /// Builds the checkpoint's model. A layer that it does not have is an [`Error::Config`].
    pub fn new(
        checkpoint: &CaduceusCheckpoint,
        options: EmbedOptions,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (d_model, n_layer) = (checkpoint.config().d_model, checkpoint.config().n_layer);
        if let Layer::After(blocks) = options.layer
            && blocks > n_layer
        {
            return Err(Error::Config(format!("layer {blocks}: the model has {n_layer} layers")));
        }
        // x and z of both strands are the widest there is.
        let widest = 4 * checkpoint.config().ssm_cfg.expand() * d_model * size_of::<f32>();
        let most_bases = (LARGEST_TENSOR / widest).max(1);
        let model = checkpoint.model(dtype, device)?;
        Ok(Self { model, d_model, options, device: device.clone(), most_bases, chunk: None })
    }

    /// Pieces of more than `chunk` bases go through the model chunk by chunk with its states carried over
    /// ([`crate::long`]): the same vectors up to rounding, with memory for whole records.
    pub fn in_chunks_of(mut self, chunk: usize) -> Self {
        self.chunk = Some(chunk.max(1));
        self
    }

    /// Values in a vector.
    pub fn dim(&self) -> usize {
        match self.options.strand {
            StrandChoice::Both | StrandChoice::Forward => self.d_model,
            StrandChoice::Concat => 2 * self.d_model,
        }
    }

    /// Sequences of token ids to vectors, one each; with [`Pool::None`] the rows of all bases, one after the other.
    pub fn embed(&self, sequences: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        let pieces: Vec<_> = sequences.iter().map(|ids| Piece { ids, core: 0..ids.len() }).collect();
        Ok(self.pool(&pieces)?.into_iter().map(|pooled| self.vectors(pooled)).collect())
    }

    /// What each piece contributes to the vector of its record. More pieces than should be in memory at once go through
    /// the model in several passes.
    pub fn pool(&self, pieces: &[Piece<'_>]) -> Result<Vec<Pooled>> {
        if let Some(chunk) = self.chunk
            && let Some(long) = pieces.iter().position(|piece| piece.ids.len() > chunk)
        {
            let mut pooled = self.pool(&pieces[..long])?;
            pooled.push(self.pool_in_chunks(&pieces[long], chunk)?);
            pooled.extend(self.pool(&pieces[long + 1..])?);
            return Ok(pooled);
        }
        let longest = pieces.iter().map(|piece| piece.ids.len()).max().unwrap_or(0);
        let at_once = (self.most_bases / longest.max(1)).max(1);
        let passes = pieces.chunks(at_once).map(|pieces| self.pool_at_once(pieces));
        Ok(passes.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn pool_in_chunks(&self, piece: &Piece<'_>, chunk: usize) -> Result<Pooled> {
        check(0, piece)?;
        let body = self.model.body();
        let given: Vec<u32> = piece.ids.iter().map(|&id| u32::from(id)).collect();
        let layer = match self.options.layer {
            Layer::Last => None,
            Layer::After(blocks) => Some(blocks),
        };
        let mut strands = vec![(Strand::Forward, given, piece.core.clone())];
        if self.options.strand != StrandChoice::Forward {
            let core = piece.ids.len() - piece.core.end..piece.ids.len() - piece.core.start;
            strands.push(match body.is_rcps() {
                true => (Strand::Reverse, strands[0].1.clone(), core),
                false => {
                    let reverse = tokenizer::reverse_complement(piece.ids);
                    (Strand::Forward, reverse.into_iter().map(u32::from).collect(), core)
                }
            });
        }
        let mut values = Vec::with_capacity(strands.len());
        for (strand, ids, core) in strands {
            let mut all: Option<Pooled> = None;
            body.forward_chunks(&ids, strand, layer, chunk, |start, hidden| {
                let end = start + hidden.dim(1)?;
                let (from, to) = (start.max(core.start), end.min(core.end));
                if from < to {
                    let host = host(&hidden.narrow(1, from - start, to - from)?.contiguous()?)?;
                    let part = self.pool_bases(vec![host.chunks_exact(self.d_model)]);
                    let part = Pooled { bases: (to - from) as u64, values: part };
                    match &mut all {
                        None => all = Some(part),
                        Some(all) => all.merge(part),
                    }
                }
                Ok(())
            })?;
            values.extend(all.map(|pooled| pooled.values));
        }
        Ok(Pooled { bases: piece.core.len() as u64, values: self.join(values) })
    }

    /// The values of one strand, or of both one after the other; rows are joined base by base.
    fn join(&self, strands: Vec<Values>) -> Values {
        let mut strands = strands.into_iter();
        match (strands.next(), strands.next()) {
            (Some(Values::Sums(forward)), Some(Values::Sums(reverse))) => {
                Values::Sums([forward, reverse].concat())
            }
            (Some(Values::Max(forward)), Some(Values::Max(reverse))) => {
                Values::Max([forward, reverse].concat())
            }
            (Some(Values::Rows(forward)), Some(Values::Rows(reverse))) => {
                let d = self.d_model;
                self.pool_bases(vec![forward.chunks_exact(d), reverse.chunks_exact(d)])
            }
            (Some(one), _) => one,
            (None, _) => Values::Sums(Vec::new()),
        }
    }

    fn pool_at_once(&self, pieces: &[Piece<'_>]) -> Result<Vec<Pooled>> {
        let strands = self.run(pieces)?;
        let len = strands[0].len() / (pieces.len() * self.d_model);
        let pooled = pieces.iter().enumerate().map(|(i, piece)| {
            let row = i * len * self.d_model..(i + 1) * len * self.d_model;
            let bases: Vec<Bases<'_>> = strands
                .iter()
                .enumerate()
                .map(|(strand, values)| {
                    // A base lies as far from the end of the one strand as from the beginning of the other.
                    let core = match strand {
                        0 => piece.core.clone(),
                        _ => piece.ids.len() - piece.core.end..piece.ids.len() - piece.core.start,
                    };
                    let values = &values[row.clone()][core.start * self.d_model..core.end * self.d_model];
                    values.chunks_exact(self.d_model)
                })
                .collect();
            Pooled { bases: piece.core.len() as u64, values: self.pool_bases(bases) }
        });
        Ok(pooled.collect())
    }

    /// Pools the vectors of a piece's core, strand by strand.
    fn pool_bases(&self, strands: Vec<Bases<'_>>) -> Values {
        let (width, bases) = (strands.len() * self.d_model, strands[0].len());
        match self.options.pooling {
            Pool::Mean => {
                let mut sums = vec![0.0; width];
                for (sums, bases) in sums.chunks_exact_mut(self.d_model).zip(strands) {
                    for base in bases {
                        sums.iter_mut().zip(base).for_each(|(sum, &x)| *sum += f64::from(x));
                    }
                }
                Values::Sums(sums)
            }
            Pool::Max => {
                let mut largest = vec![f32::NEG_INFINITY; width];
                for (largest, bases) in largest.chunks_exact_mut(self.d_model).zip(strands) {
                    for base in bases {
                        largest.iter_mut().zip(base).for_each(|(largest, &x)| *largest = max(*largest, x));
                    }
                }
                Values::Max(largest)
            }
            Pool::None => {
                let mut strands = strands.into_iter();
                let forward = strands.next().into_iter().flatten();
                let mut rows = Vec::with_capacity(bases * self.dim());
                match strands.next() {
                    None => rows.extend(forward.flatten()),
                    Some(reverse) => {
                        for (forward, reverse) in forward.zip(reverse.rev()) {
                            let wide = |x: &f32| f64::from(*x);
                            self.join_strands(forward.iter().map(wide), reverse.iter().map(wide), &mut rows);
                        }
                    }
                }
                Values::Rows(rows)
            }
        }
    }

    /// A contribution as vectors, [`Embedder::dim`] values each: one, or with [`Pool::None`] one for each base.
    pub fn vectors(&self, pooled: Pooled) -> Vec<f32> {
        let values: Vec<f64> = match pooled.values {
            Values::Rows(rows) => return rows,
            Values::Max(values) => values.into_iter().map(f64::from).collect(),
            Values::Sums(sums) => sums.into_iter().map(|sum| sum / pooled.bases as f64).collect(),
        };
        let (forward, reverse) = values.split_at(self.d_model);
        let mut vector = Vec::with_capacity(self.dim());
        self.join_strands(forward.iter().copied(), reverse.iter().copied(), &mut vector);
        vector
    }

    /// Appends the vector of a base or a record whose strands have the vectors `forward` and `reverse`.
    fn join_strands(
        &self,
        forward: impl Iterator<Item = f64>,
        reverse: impl Iterator<Item = f64>,
        vectors: &mut Vec<f32>,
    ) {
        match self.options.strand {
            StrandChoice::Forward => vectors.extend(forward.map(|x| x as f32)),
            StrandChoice::Both => vectors.extend(forward.zip(reverse).map(|(f, r)| ((f + r) / 2.0) as f32)),
            StrandChoice::Concat => vectors.extend(forward.chain(reverse).map(|x| x as f32)),
        }
    }

    /// Hidden states `(B, L, D)` of the forward strand, and of the reverse strand in its own direction if it is used.
    fn run(&self, pieces: &[Piece<'_>]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.ids.len()).collect();
        pieces.iter().enumerate().try_for_each(|(i, piece)| check(i, piece))?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let len = longest.max(FEWEST_TOKENS.div_ceil(pieces.len()));
        let mut ids = vec![u32::from(PAD); pieces.len() * len];
        for (row, piece) in ids.chunks_exact_mut(len).zip(pieces) {
            row.iter_mut().zip(piece.ids).for_each(|(slot, &id)| *slot = u32::from(id));
        }
        let ids = Tensor::from_vec(ids, (pieces.len(), len), &self.device)?; // (B, L)
        let lengths = lengths.iter().any(|&n| n < len).then_some(lengths.as_slice());

        let body = self.model.body();
        let forward = |ids: &Tensor| match self.options.layer {
            Layer::Last => body.forward(ids, lengths),
            Layer::After(blocks) => body.forward_to(ids, lengths, blocks),
        };
        let strands = forward(&ids)?;
        let mut states = vec![host(&strands.forward)?];
        if self.options.strand != StrandChoice::Forward {
            states.push(match &strands.reverse {
                Some(reverse) => host(reverse)?,
                None => host(&forward(&body.reverse_complement(&ids, lengths)?)?.forward)?,
            });
        }
        Ok(states)
    }
}

fn check(i: usize, piece: &Piece<'_>) -> Result<()> {
    if piece.core.is_empty() || piece.core.end > piece.ids.len() {
        let (core, len) = (&piece.core, piece.ids.len());
        return Err(Error::other(format!("embed: piece {i} has {len} bases, of which {core:?} count")));
    }
    Ok(())
}

/// The vectors of some bases of one strand.
type Bases<'a> = std::slice::ChunksExact<'a, f32>;

fn host(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests;
