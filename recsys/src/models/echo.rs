//! EchoMamba4Rec (Wang, He and Zhu 2024, arXiv 2406.02638): a filter of frequencies, then Mamba in both directions, then a
//! gated linear unit.
//!
//! ```text
//! h₀ = LN(dropout(E[items]))
//! f  = LN(dropout(irfft(W ⊙ rfft(h))) + h)             the filter, over all positions at once
//! m  = LN(dropout(Mamba(f)) + f) + LN(dropout(reverse Mamba(f)) + f)
//! h' = LN(dropout(W₂(v ⊙ σ(g)) + m)),   v, g = W₁ m
//! scores = h·Eᵀ, of the last position
//! ```
//!
//! **Not causal.** Filter and backward Mamba see every item, so only the last position's answer is hidden: training takes
//! the loss there alone (`"positions": "last"`), a history that grows is read anew, and there is no state to keep.
//!
//! As in the published code a layer repeats its pair of mixers `num_layers` times, and the model has `num_layers` such
//! layers. That code lets the padding behind a history into filter and backward scan; here the filter sees zeros there, and
//! the scan begins at the last item. Its transformer block, which is built and never called, is left out.

use super::parts::{Dropout, INIT_STD, Initialization, LayerNorm, linear, new_mixer};
use candle_core::{DType, Device, Module, Result, Tensor, bail};
use mamba_core::mixer::Pass;
use mamba_core::nn::{Embedding, Linear};
use mamba_core::{Error, Init, Mamba1Config, Mixer, MixerConfig, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// Hyper-parameters, with the published code's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EchoMamba4RecConfig {
    /// Width of embedding and layers, d.
    pub hidden_size: usize,
    /// Number of layers, and of pairs of mixers in each.
    pub num_layers: usize,
    /// Dropout while training.
    pub dropout_prob: f64,
    /// Initial weights of the mixers.
    pub initialization: Initialization,
    /// The mixers; Mamba-1 in the paper.
    pub mixer: MixerConfig,
}

impl Default for EchoMamba4RecConfig {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            num_layers: 1,
            dropout_prob: 0.2,
            initialization: Initialization::default(),
            mixer: Mamba1Config { d_state: 32, ..Mamba1Config::default() }.into(),
        }
    }
}

impl EchoMamba4RecConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if self.hidden_size == 0 || self.num_layers == 0 {
            let (d, n) = (self.hidden_size, self.num_layers);
            return Err(Error::Config(format!("hidden_size {d} and num_layers {n} must be at least 1")));
        }
        if !(0.0..1.0).contains(&self.dropout_prob) {
            let p = self.dropout_prob;
            return Err(Error::Config(format!("dropout_prob is {p}, must be at least 0 and below 1")));
        }
        self.mixer.validate_for(self.hidden_size)
    }
}

/// The network without its head.
#[derive(Clone, Debug)]
pub struct EchoMamba4Rec {
    item_embedding: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    max_length: usize,
    dropout_prob: f64,
}

#[derive(Clone, Debug)]
struct Layer {
    filter: Filter,
    pairs: Vec<Pair>,
    glu: Glu,
}

/// A mixer for each direction.
#[derive(Clone, Debug)]
struct Pair {
    forward: (Mixer, LayerNorm),
    backward: (Mixer, LayerNorm),
}

impl EchoMamba4Rec {
    /// The parameters of the builder, for items `1..n_items` and padding, and sequences of at most `max_length` items.
    pub fn new(
        cfg: &EchoMamba4RecConfig,
        n_items: usize,
        max_length: usize,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let table = pb.pp("item_embedding").get((n_items, d), "weight", Init::Normal { std: INIT_STD })?;
        let direction = |mixer: ParamBuilder, norm: ParamBuilder| -> Result<(Mixer, LayerNorm)> {
            let mixer = new_mixer(d, &cfg.mixer, cfg.initialization, &mixer)?;
            Ok((mixer, LayerNorm::with_eps(d, 1e-5, &norm)?))
        };
        let layer = |i: usize| {
            let pb = pb.pp("mamba_layers").pp(i);
            let pair = |j: usize| {
                let part = |name: &str| pb.pp(name).pp(j);
                Ok(Pair {
                    forward: direction(part("mamba_forwards"), part("norms_forward"))?,
                    backward: direction(part("mamba_backwards"), part("norms_backward"))?,
                })
            };
            Ok(Layer {
                filter: Filter::new(d, max_length, &pb.pp("filter_layer"))?,
                pairs: (0..cfg.num_layers).map(pair).collect::<Result<_>>()?,
                glu: Glu::new(d, &pb.pp("glu"))?,
            })
        };
        Ok(Self {
            item_embedding: Embedding::from_tensor(table),
            norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?,
            layers: (0..cfg.num_layers).map(layer).collect::<Result<_>>()?,
            max_length,
            dropout_prob: cfg.dropout_prob,
        })
    }

    /// The item embedding `(n_items, d)`, which is the head's weight too.
    pub fn item_table(&self) -> &Tensor {
        self.item_embedding.weight()
    }

    /// The longest sequence.
    pub fn positions(&self) -> usize {
        self.max_length
    }

    /// `items` `(1, L)` → `(1, L, d)`, of which only a sequence's last position is blind to its answer; with a generator,
    /// dropout is on.
    pub fn forward(&self, items: &Tensor, segments: &Segments, rng: Option<&mut Rng>) -> Result<Tensor> {
        let mut dropout = Dropout::new(self.dropout_prob, rng);
        let embedded = self.item_embedding.forward(items)?; // (1, L, d)
        let mut hidden = self.norm.forward(&dropout.apply(embedded)?, None)?;
        let rows = Rows::new(segments, self.max_length, items, hidden.dtype())?;
        for layer in &self.layers {
            hidden = layer.filter.forward(&hidden, &rows, &mut dropout)?;
            for Pair { forward, backward } in &layer.pairs {
                let mut way = |(mixer, norm): &(Mixer, LayerNorm), reverse: bool| {
                    let pass = Pass { segments: Some(segments), reverse, state: None };
                    let mixed = mixer.forward_pass(&hidden, pass)?;
                    norm.forward(&dropout.apply(mixed)?, Some(&hidden))
                };
                let (ahead, back) = (way(forward, false)?, way(backward, true)?);
                hidden = (ahead + back)?;
            }
            hidden = layer.glu.forward(&hidden, &mut dropout)?;
        }
        Ok(hidden)
    }
}

/// Where packed items go in rows of one length, and back; places are outermost, so that one matrix product transforms all
/// sequences and channels.
struct Rows {
    sequences: usize,
    /// For each place of each sequence a packed item; any item where there is none.
    to_rows: Tensor,
    /// 1 where there is an item, else 0: `(length, sequences, 1)`.
    mask: Tensor,
    /// For each packed item its row.
    to_packed: Tensor,
}

impl Rows {
    fn new(segments: &Segments, length: usize, items: &Tensor, dtype: DType) -> Result<Self> {
        let sequences = segments.count();
        let longest = segments.iter().map(mamba_kernels::Segment::len).max().unwrap_or(0);
        if items.dim(0)? != 1 || segments.has_padding() {
            bail!("EchoMamba4Rec takes one row of packed sequences, got {:?}", items.dims())
        }
        if longest > length {
            bail!("EchoMamba4Rec filters {length} positions, and a sequence has {longest}")
        }
        let (mut to_rows, mut mask) = (vec![0u32; length * sequences], vec![0f32; length * sequences]);
        let mut to_packed = Vec::with_capacity(items.dim(1)?);
        for (sequence, segment) in segments.iter().enumerate() {
            for (place, item) in (segment.start..segment.end).enumerate() {
                let row = place * sequences + sequence;
                (to_rows[row], mask[row]) = (item as u32, 1.0);
                to_packed.push(row as u32);
            }
        }
        let device = items.device();
        Ok(Self {
            sequences,
            to_rows: Tensor::new(to_rows, device)?,
            mask: Tensor::from_vec(mask, (length, sequences, 1), device)?.to_dtype(dtype)?,
            to_packed: Tensor::new(to_packed, device)?,
        })
    }
}

/// A learned filter of frequencies (Zhou and others 2022, arXiv 2202.13556): `LN(dropout(irfft(W ⊙ rfft(x))) + x)`. The
/// transforms of so short sequences are matrix products.
#[derive(Clone, Debug)]
struct Filter {
    /// Real and imaginary part, `(1, frequencies, d, 2)`.
    weight: Tensor,
    norm: LayerNorm,
    fourier: Fourier,
}

/// Transforms of `length` values to `length / 2 + 1` frequencies and back, scaled to keep the norm.
#[derive(Clone, Debug)]
struct Fourier {
    /// Values to the real and imaginary parts, `(frequencies, length)` each.
    ahead: [Tensor; 2],
    /// Real and imaginary parts to values, `(length, frequencies)` each.
    back: [Tensor; 2],
}

impl Fourier {
    fn new(length: usize, dtype: DType, device: &Device) -> Result<Self> {
        let frequencies = length / 2 + 1;
        let scale = 1.0 / (length as f64).sqrt();
        // The product is reduced first: an angle of many turns would lose digits.
        let angle = |f: usize, t: usize| TAU * ((f * t) % length) as f64 / length as f64;
        // A frequency between the first and the middle one stands for its mirror image too.
        let times = |f: usize| if f == 0 || 2 * f == length { scale } else { 2.0 * scale };
        let matrix = |rows: usize, columns: usize, value: &dyn Fn(usize, usize) -> f64| {
            let values: Vec<f64> = (0..rows * columns).map(|i| value(i / columns, i % columns)).collect();
            Tensor::from_vec(values, (rows, columns), device)?.to_dtype(dtype)
        };
        Ok(Self {
            ahead: [
                matrix(frequencies, length, &|f, t| scale * angle(f, t).cos())?,
                matrix(frequencies, length, &|f, t| -scale * angle(f, t).sin())?,
            ],
            back: [
                matrix(length, frequencies, &|t, f| times(f) * angle(f, t).cos())?,
                matrix(length, frequencies, &|t, f| -times(f) * angle(f, t).sin())?,
            ],
        })
    }
}

impl Filter {
    fn new(d: usize, length: usize, pb: &ParamBuilder) -> Result<Self> {
        let shape = (1, length / 2 + 1, d, 2);
        let weight = pb.get(shape, "complex_weight", Init::Normal { std: INIT_STD })?;
        let fourier = Fourier::new(length, weight.dtype(), weight.device())?;
        Ok(Self { weight, norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?, fourier })
    }

    /// `(1, L, d)` → `(1, L, d)`.
    fn forward(&self, x: &Tensor, rows: &Rows, dropout: &mut Dropout<'_>) -> Result<Tensor> {
        let filtered = dropout.apply(self.filter(x, rows)?)?;
        self.norm.forward(&filtered, Some(x))
    }

    /// Every sequence convolved with the weights' transform, around the end of its `length` places.
    fn filter(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let (n, d) = (rows.sequences, x.dim(2)?);
        let length = self.fourier.back[0].dim(0)?;
        let frequencies = length / 2 + 1;
        let x = x.squeeze(0)?.index_select(&rows.to_rows, 0)?.reshape((length, n, d))?; // (length, n, d)
        let x = x.broadcast_mul(&rows.mask)?.reshape((length, n * d))?; // (length, n·d)
        let transform = |matrix: &Tensor| matrix.matmul(&x)?.reshape((frequencies, n, d));
        let (re, im) = (transform(&self.fourier.ahead[0])?, transform(&self.fourier.ahead[1])?);
        let part = |i: usize| self.weight.narrow(3, i, 1)?.contiguous()?.reshape((frequencies, 1, d));
        let (a, b) = (part(0)?, part(1)?);
        let product_re = (re.broadcast_mul(&a)? - im.broadcast_mul(&b)?)?; // (frequencies, n, d)
        let product_im = (re.broadcast_mul(&b)? + im.broadcast_mul(&a)?)?;
        let back = |matrix: &Tensor, part: Tensor| matrix.matmul(&part.reshape((frequencies, n * d))?);
        let y = (back(&self.fourier.back[0], product_re)? + back(&self.fourier.back[1], product_im)?)?;
        y.reshape((length * n, d))?.index_select(&rows.to_packed, 0)?.unsqueeze(0) // (1, L, d)
    }
}

/// A gated linear unit with residual: `LN(dropout(W₂(v ⊙ σ(g)) + x))`, `v, g = W₁ x`.
#[derive(Clone, Debug)]
struct Glu {
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
}

impl Glu {
    fn new(d: usize, pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            fc1: linear(d, 2 * d, &pb.pp("fc1"))?,
            fc2: linear(d, d, &pb.pp("fc2"))?,
            norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, dropout: &mut Dropout<'_>) -> Result<Tensor> {
        let d = x.dim(2)?;
        let [value, gate] = self.fc1.split(x, [d, d])?;
        let gated = self.fc2.forward(&(value * candle_nn::ops::sigmoid(&gate)?)?)?; // (1, L, d)
        self.norm.forward(&dropout.apply((gated + x)?)?, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mamba_core::Params;

    /// `irfft(W ⊙ rfft(x))` is the circular convolution with the weights' inverse transform.
    #[test]
    fn the_filter_is_a_circular_convolution() -> Result<()> {
        for length in [1, 2, 5, 8] {
            let params = Params::fresh(3, DType::F64, &Device::Cpu);
            let filter = Filter::new(2, length, &params.builder())?;
            let n = length.min(5);
            let items = Tensor::zeros((1, n), DType::U32, &Device::Cpu)?;
            let rows = Rows::new(&Segments::packed(&[0, n])?, length, &items, DType::F64)?;
            let values: Vec<f64> = (0..2 * n).map(|i| (i as f64 * 1.3).sin()).collect();
            let x = Tensor::from_vec(values.clone(), (1, n, 2), &Device::Cpu)?;
            let got = filter.filter(&x, &rows)?.flatten_all()?.to_vec1::<f64>()?;
            let weight = filter.weight.flatten_all()?.to_vec1::<f64>()?;
            for channel in 0..2 {
                let kernel = |t: usize| -> f64 {
                    let of = |f: usize| {
                        let angle = TAU * (f * t) as f64 / length as f64;
                        let [a, b] = [0, 1].map(|part| weight[(f * 2 + channel) * 2 + part]);
                        let twice = if f == 0 || 2 * f == length { 1.0 } else { 2.0 };
                        twice * (a * angle.cos() - b * angle.sin())
                    };
                    (0..length / 2 + 1).map(of).sum::<f64>() / length as f64
                };
                for t in 0..n {
                    let want: f64 =
                        (0..n).map(|s| values[2 * s + channel] * kernel((length + t - s) % length)).sum();
                    assert!((got[2 * t + channel] - want).abs() < 1e-12, "length {length}, place {t}");
                }
            }
        }
        Ok(())
    }
}
