//! Caduceus under a classifier or a regressor of whole sequences, as it is fine-tuned and as it predicts.
//!
//! Without a stem this is [`crate::CaduceusForSequenceClassification`]. A **stem** adds to the embedding what
//! convolutions of several widths see around each base,
//!
//! ```text
//! x_t = E[b_t] + P[t] + Σ_k U_k silu(W_k · onehot(b_{t-k/2} … b_{t+k/2}) + c_k)
//! ```
//!
//! with P, if there is one, a table of positions: motifs of a dozen bases, and their place in the sequence, then need no
//! pre-training. On the other strand of Caduceus-PS the stem reads that strand, so the model stays equivariant.

use crate::config::CaduceusConfig;
use crate::model::Caduceus;
use crate::tokenizer::{A, BASES, PAD};
use candle_core::{D, Device, Module, Result, Tensor, bail};
use mamba_core::nn::Linear;
use mamba_core::rng::dropout;
use mamba_core::{Error, Init, ParamBuilder, Rng};
use mamba_kernels::{Segment, Segments};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The part above and around the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// Which strands decide.
    pub strands: StrandUse,
    /// How the vectors of bases become one.
    pub pooling: HeadPooling,
    /// Convolutions beside the embedding; null for none, as upstream.
    pub stem: Option<StemConfig>,
    /// Probability with which values between the blocks, and of the pooled vector, are dropped in training.
    pub dropout: f64,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { strands: StrandUse::Both, pooling: HeadPooling::Mean, stem: None, dropout: 0.0 }
    }
}

/// Which strands decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum StrandUse {
    /// Both alike: PS shares its parameters between them; Ph trains on either at random and predicts with the mean of
    /// both (post-hoc conjoining)
    #[default]
    Both,
    /// The given one: for sequences that were cut out in the direction of a gene
    Given,
}

/// How the vectors of bases become one vector of the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum HeadPooling {
    /// Their mean
    #[default]
    Mean,
    /// Their largest value, channel by channel
    Max,
    /// Both, one after the other
    MeanMax,
}

/// Convolutions beside the embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StemConfig {
    /// Widths in bases.
    pub kernels: Vec<usize>,
    /// Filters of each width.
    pub channels: usize,
    /// Rows of the table of positions, counted from the beginning of each strand; a longer sequence's further bases take
    /// the last. 0: no table.
    pub positions: usize,
}

impl Default for StemConfig {
    fn default() -> Self {
        Self { kernels: vec![7, 15], channels: 64, positions: 0 }
    }
}

/// Widest convolution of a stem.
pub const WIDEST_KERNEL: usize = 31;

impl HeadConfig {
    /// Refuses settings that make no head on this body.
    pub fn validate(&self, body: &CaduceusConfig) -> mamba_core::Result<()> {
        let problem = if !(0.0..1.0).contains(&self.dropout) {
            format!("head.dropout is {}, must be at least 0 and below 1", self.dropout)
        } else if body.rcps && self.strands == StrandUse::Given {
            "head.strands is given, but model.rcps makes a model of both strands; --set model.rcps=false"
                .into()
        } else if let Some(stem) = &self.stem
            && (stem.channels == 0 || stem.kernels.iter().any(|k| !(1..=WIDEST_KERNEL).contains(k)))
        {
            format!(
                "head.stem has {} channels and kernels {:?}, must have at least 1 and kernels of 1 to {WIDEST_KERNEL}",
                stem.channels, stem.kernels
            )
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }
}

/// Sequences as one tensor: rows of equal length, or all behind each other in one row, which wastes nothing.
#[derive(Clone, Debug)]
pub struct SequenceBatch {
    input_ids: Tensor,
    segments: Option<Segments>,
    count: usize,
}

impl SequenceBatch {
    /// At least one sequence of token ids, none empty.
    pub fn new(sequences: &[&[u8]], device: &Device) -> Result<Self> {
        if let Some(i) = sequences.iter().position(|ids| ids.is_empty()) {
            bail!("sequence {i} of the batch is empty")
        }
        let Some(first) = sequences.first() else { bail!("a batch needs a sequence") };
        let (count, len) = (sequences.len(), first.len());
        if sequences.iter().all(|ids| ids.len() == len) {
            let ids: Vec<u32> =
                sequences.iter().flat_map(|ids| ids.iter().map(|&id| u32::from(id))).collect();
            return Ok(Self {
                input_ids: Tensor::from_vec(ids, (count, len), device)?,
                segments: None,
                count,
            });
        }
        // Padding that is as wide as half a kernel keeps the stem from looking into a neighbour.
        let (mut ids, mut items) = (Vec::new(), Vec::with_capacity(count));
        for sequence in sequences {
            let start = ids.len();
            ids.extend(sequence.iter().map(|&id| u32::from(id)));
            items.push(Segment { row: 0, start, end: ids.len() });
            ids.resize(ids.len() + WIDEST_KERNEL / 2, u32::from(PAD));
        }
        let len = ids.len();
        let input_ids = Tensor::from_vec(ids, (1, len), device)?;
        Ok(Self { input_ids, segments: Some(Segments::new(1, len, items)?), count })
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Caduceus with a linear map of the pooled hidden states to classes or to a value.
#[derive(Clone, Debug)]
pub struct SequenceModel {
    body: Caduceus,
    stem: Option<Stem>,
    score: Linear,
    head: HeadConfig,
}

impl SequenceModel {
    /// Parameters `caduceus.backbone.*`, `stem.*` and `score`.
    pub fn new(cfg: &CaduceusConfig, head: &HeadConfig, outputs: usize, pb: &ParamBuilder) -> Result<Self> {
        head.validate(cfg).map_err(candle_core::Error::wrap)?;
        pb.params().discard("caduceus.backbone.embeddings.word_embeddings.complement_map");
        let d = cfg.d_model;
        let width = if head.pooling == HeadPooling::MeanMax { 2 * d } else { d };
        let init = Init::Normal { std: cfg.initializer_cfg.initializer_range };
        let score = Linear::from_tensors(pb.get((outputs, width), "score.weight", init)?, None);
        let stem = head.stem.as_ref().map(|stem| Stem::new(stem, d, &pb.pp("stem"))).transpose()?;
        Ok(Self { body: Caduceus::new(cfg, pb)?, stem, score, head: head.clone() })
    }

    /// Logits, or values, `(sequences, outputs)`, as in evaluation: with both strands where both decide.
    pub fn forward(&self, batch: &SequenceBatch) -> Result<Tensor> {
        let segments = batch.segments.as_ref();
        let given = self.run(&batch.input_ids, segments, None)?;
        if self.body.is_rcps() || self.head.strands == StrandUse::Given {
            return Ok(given);
        }
        let other = self.body.reverse_complement_segments(&batch.input_ids, segments)?;
        (given + self.run(&other, segments, None)?)? / 2.0
    }

    /// The same in training: of the strand as given alone for Ph, with dropout drawn from `rng`.
    pub fn forward_train(&self, batch: &SequenceBatch, rng: &mut Rng) -> Result<Tensor> {
        self.run(&batch.input_ids, batch.segments.as_ref(), Some(rng))
    }

    fn run(&self, ids: &Tensor, segments: Option<&Segments>, mut rng: Option<&mut Rng>) -> Result<Tensor> {
        let p = self.head.dropout;
        let mut drop = |x: Tensor| match &mut rng {
            Some(rng) if p > 0.0 => dropout(&x, p, rng),
            _ => Ok(x),
        };
        let strands = self.body.forward_with(ids, segments, |i, rows, hidden| match (i, &self.stem) {
            (0, Some(stem)) => hidden + stem.forward(rows, segments)?,
            (0, None) => Ok(hidden),
            _ => drop(hidden),
        })?;
        let mut score = |x: &Tensor| self.score.forward(&drop(self.head.pooling.pool(x, segments)?)?);
        let given = score(&strands.forward)?;
        match &strands.reverse {
            Some(reverse) => (given + score(reverse)?)? / 2.0,
            None => Ok(given),
        }
    }
}

impl HeadPooling {
    /// `(B, L, D)` → `(sequences, D)`, or `(sequences, 2·D)` for both.
    fn pool(self, x: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
        match self {
            Self::Mean => mean(x, segments),
            Self::Max => max(x, segments),
            Self::MeanMax => Tensor::cat(&[mean(x, segments)?, max(x, segments)?], 1), // (sequences, 2·D)
        }
    }
}

fn mean(x: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
    let Some(segments) = segments else { return x.mean(1) };
    let (rows, mask) = as_rows(x, segments, 0.0)?;
    let lengths: Vec<f32> = segments.iter().map(|s| s.len() as f32).collect();
    let lengths = Tensor::from_vec(lengths, (segments.count(), 1), x.device())?.to_dtype(x.dtype())?;
    rows.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&lengths)
}

fn max(x: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
    let Some(segments) = segments else { return x.max(1) };
    let (rows, below) = as_rows(x, segments, -1e30)?;
    rows.broadcast_add(&below)?.max(1)
}

/// Segments of `(B, L, D)` as rows `(sequences, longest, D)`; and `(sequences, longest, 1)`: for `fill` 0 a mask of ones
/// where the sequence is, else `fill` where it is not.
fn as_rows(x: &Tensor, segments: &Segments, fill: f64) -> Result<(Tensor, Tensor)> {
    let (batch, len, d) = x.dims3()?;
    let longest = segments.iter().map(Segment::len).max().unwrap_or(0);
    let (inside, outside) = if fill == 0.0 { (1.0, 0.0) } else { (0.0, fill as f32) };
    let (mut places, mut marks) = (Vec::new(), Vec::new());
    for s in segments.iter() {
        let first = (s.row * len + s.start) as u32;
        places.extend((0..longest).map(|t| first + if t < s.len() { t as u32 } else { 0 }));
        marks.extend((0..longest).map(|t| if t < s.len() { inside } else { outside }));
    }
    let n = segments.count();
    let places = Tensor::from_vec(places, n * longest, x.device())?;
    let rows = x.reshape((batch * len, d))?.index_select(&places, 0)?.reshape((n, longest, d))?; // (n, longest, D)
    let marks = Tensor::from_vec(marks, (n, longest, 1), x.device())?.to_dtype(x.dtype())?;
    Ok((rows, marks))
}

/// Convolutions over one-hot bases, as products with windows that are laid out on the host: the input has no gradient.
#[derive(Clone, Debug)]
struct Stem {
    /// Width, filters, map to the body's channels.
    convolutions: Vec<(usize, Linear, Linear)>,
    /// `(positions, D)`.
    positions: Option<Tensor>,
}

impl Stem {
    fn new(cfg: &StemConfig, d: usize, pb: &ParamBuilder) -> Result<Self> {
        let convolution = |(i, &k): (usize, &usize)| {
            let (pb, channels) = (pb.pp("convolutions").pp(i), cfg.channels);
            // Of a window's 4·k values k are 1: so the filters' outputs have deviation 1.
            let filters = Init::Normal { std: 1.0 / (k as f64).sqrt() };
            let filters =
                Linear::with_init((channels, 4 * k), filters, Some(Init::Zeros), &pb.pp("filters"))?;
            Ok((k, filters, Linear::new(channels, d, false, &pb.pp("out"))?))
        };
        let positions = match cfg.positions {
            0 => None,
            n => Some(pb.get((n, d), "positions", Init::Normal { std: 0.02 })?),
        };
        let convolutions = cfg.kernels.iter().enumerate().map(convolution).collect::<Result<_>>()?;
        Ok(Self { convolutions, positions })
    }

    /// Token ids `(B, L)` → `(B, L, D)`. `segments` may be those of the first rows of several like ones.
    fn forward(&self, ids: &Tensor, segments: Option<&Segments>) -> Result<Tensor> {
        let (batch, len) = ids.dims2()?;
        let rows = ids.to_vec2::<u32>()?;
        let mut sum: Option<Tensor> = None;
        let mut add = |x: Tensor| {
            sum = Some(match sum.take() {
                Some(sum) => (sum + x)?,
                None => x,
            });
            Ok::<_, candle_core::Error>(())
        };
        for (k, filters, out) in &self.convolutions {
            let windows = Tensor::from_vec(windows(&rows, *k), (batch * len, 4 * k), ids.device())?; // (B·L, 4·k)
            let windows = windows.to_dtype(filters.weight().dtype())?;
            add(out.forward(&filters.forward(&windows)?.silu()?)?)?; // (B·L, D)
        }
        if let Some(table) = &self.positions {
            let last = table.dim(0)? as u32 - 1;
            let mut places: Vec<u32> = (0..batch * len).map(|i| ((i % len) as u32).min(last)).collect();
            for s in segments.into_iter().flat_map(Segments::iter) {
                let of = segments.map_or(1, Segments::batch);
                for row in (s.row..batch).step_by(of) {
                    let places = &mut places[row * len + s.start..row * len + s.end];
                    places.iter_mut().enumerate().for_each(|(t, place)| *place = (t as u32).min(last));
                }
            }
            add(table.index_select(&Tensor::from_vec(places, batch * len, ids.device())?, 0)?)?;
        }
        let Some(sum) = sum else { bail!("a stem needs a kernel or a table of positions") };
        let d = sum.dim(D::Minus1)?;
        sum.reshape((batch, len, d))
    }
}

/// One-hot windows of `k` tokens around each token, `(B·L, k, 4)`; what is no base, or outside the row, is zero.
fn windows(rows: &[Vec<u32>], k: usize) -> Vec<f32> {
    let len = rows.first().map_or(0, Vec::len);
    let mut values = vec![0f32; rows.len() * len * 4 * k];
    values.par_chunks_exact_mut((len * 4 * k).max(1)).zip(rows).for_each(|(values, row)| {
        for (t, window) in values.chunks_exact_mut(4 * k).enumerate() {
            let first = t as isize - (k / 2) as isize;
            for (i, onehot) in window.chunks_exact_mut(4).enumerate() {
                let id = usize::try_from(first + i as isize).ok().and_then(|at| row.get(at));
                if let Some(base) = id.and_then(|id| id.checked_sub(u32::from(A)))
                    && (base as usize) < BASES.len()
                {
                    onehot[base as usize] = 1.0;
                }
            }
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{C, G, N, T, reverse_complement};
    use crate::{CaduceusForSequenceClassification, Pooling};
    use candle_core::DType;
    use mamba_core::Params;

    const CPU: Device = Device::Cpu;

    fn config(rcps: bool) -> CaduceusConfig {
        CaduceusConfig { d_model: 16, n_layer: 3, rcps, ..CaduceusConfig::default() }
    }

    fn model(rcps: bool, head: &HeadConfig) -> SequenceModel {
        let params = Params::fresh(3, DType::F64, &CPU);
        SequenceModel::new(&config(rcps), head, 2, &params.builder()).unwrap()
    }

    fn logits(model: &SequenceModel, sequences: &[&[u8]]) -> Vec<Vec<f64>> {
        model.forward(&SequenceBatch::new(sequences, &CPU).unwrap()).unwrap().to_vec2().unwrap()
    }

    fn near(a: &[Vec<f64>], b: &[Vec<f64>]) {
        let pairs = a.concat().into_iter().zip(b.concat());
        assert_eq!(a.len(), b.len());
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-10), "{:?}", pairs.collect::<Vec<_>>());
    }

    fn heads() -> Vec<HeadConfig> {
        let stem = Some(StemConfig { kernels: vec![4, 7], channels: 8, positions: 6 });
        let pooling = [HeadPooling::Mean, HeadPooling::Max, HeadPooling::MeanMax];
        pooling
            .into_iter()
            .flat_map(|pooling| {
                [None, stem.clone()].map(|stem| HeadConfig { pooling, stem, ..HeadConfig::default() })
            })
            .collect()
    }

    #[test]
    fn without_a_stem_it_is_upstreams_model() {
        for (rcps, pooling, theirs) in
            [(true, HeadPooling::Mean, Pooling::Mean), (false, HeadPooling::Max, Pooling::Max)]
        {
            let head = HeadConfig { pooling, ..HeadConfig::default() };
            let upstream = Params::fresh(3, DType::F64, &CPU);
            let pb = upstream.builder();
            let upstream =
                CaduceusForSequenceClassification::new(&config(rcps), 2, theirs, true, &pb).unwrap();
            let ids = [A, C, G, T, T, A, N, C, G];
            let input = Tensor::new(&[ids.map(u32::from)], &CPU).unwrap();
            near(
                &logits(&model(rcps, &head), &[&ids]),
                &upstream.forward(&input, None).unwrap().to_vec2().unwrap(),
            );
        }
    }

    #[test]
    fn packed_sequences_count_as_if_each_stood_alone() {
        let sequences: [&[u8]; 3] = [&[A, C, G, T, T, A, C], &[G], &[T, T, N, A, C, C, C, C, G, A, T]];
        for head in heads() {
            for rcps in [true, false] {
                let model = model(rcps, &head);
                let alone: Vec<_> = sequences.iter().flat_map(|ids| logits(&model, &[ids])).collect();
                near(&logits(&model, &sequences), &alone);
            }
        }
    }

    #[test]
    fn both_strands_give_the_same_and_the_given_one_does_not() {
        let ids = [A, C, G, T, T, A, C, C, T, N, A, G];
        let other = reverse_complement(&ids);
        for head in heads() {
            for rcps in [true, false] {
                let model = model(rcps, &head);
                near(&logits(&model, &[&ids]), &logits(&model, &[&other]));
            }
            let model = model(false, &HeadConfig { strands: StrandUse::Given, ..head });
            assert_ne!(logits(&model, &[&ids]), logits(&model, &[&other]));
        }
    }

    #[test]
    fn windows_are_centred_and_end_with_the_row() {
        let row = [A, C, N, T].map(u32::from).to_vec();
        let one = |base: usize| (0..4).map(|i| if i == base { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let none = vec![0.0; 4];
        let got = windows(&[row], 3);
        assert_eq!(got[..12], [none.clone(), one(0), one(1)].concat());
        assert_eq!(got[24..36], [one(1), none.clone(), one(3)].concat());
        assert_eq!(got[36..], [none.clone(), one(3), none].concat());
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let stem = Some(StemConfig { kernels: vec![5], channels: 8, positions: 4 });
        let head = HeadConfig { stem, pooling: HeadPooling::MeanMax, dropout: 0.1, ..HeadConfig::default() };
        let params = Params::fresh(3, DType::F64, &CPU);
        let model = SequenceModel::new(&config(true), &head, 2, &params.builder()).unwrap();
        let batch = SequenceBatch::new(&[&[A, C, G, T, N, A, A], &[C, G, T]], &CPU).unwrap();
        let loss = model.forward_train(&batch, &mut Rng::new(1)).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        for param in params.named() {
            let grad = grads.get(param.tensor()).unwrap_or_else(|| panic!("{}", param.name()));
            let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(size.is_finite() && size > 0.0, "{}: {size}", param.name());
        }
    }
}
