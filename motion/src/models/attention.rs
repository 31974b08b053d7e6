//! Attention layers: the VAE's, the peer denoiser's, and the mixer in the middle of Motion Mamba.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::ops::softmax;
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Init, ParamBuilder, Rng, dropout};

const EPS: f64 = 1e-5;

/// Scaled dot-product attention with several heads.
#[derive(Clone, Debug)]
pub struct Attention {
    q: Linear,
    kv: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    /// Attention of width `d` with `heads` heads, which divide it.
    pub fn new(d: usize, heads: usize, pb: &ParamBuilder) -> Result<Self> {
        if heads == 0 || !d.is_multiple_of(heads) {
            candle_core::bail!("{heads} heads do not divide {d} channels");
        }
        Ok(Self {
            q: projection(d, d, &pb.pp("q"))?,
            kv: projection(d, 2 * d, &pb.pp("kv"))?,
            out: projection(d, d, &pb.pp("out"))?,
            heads,
        })
    }

    /// `x` `(B, L, d)` asks, `memory` `(B, M, d)` answers → `(B, L, d)`. `mask` `(B, M)` is added to the scores: 0 to
    /// see, a large negative number to hide.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, l, d) = x.dims3()?;
        let head = d / self.heads;
        let split = |x: &Tensor| x.reshape((b, (), self.heads, head))?.transpose(1, 2)?.contiguous();
        let [k, v] = self.kv.split(memory, [d, d])?; // (B, M, d)
        let q = split(&(self.q.forward(x)? * (head as f64).powf(-0.5))?)?; // (B, H, L, d/H)
        let mut scores = q.matmul(&split(&k)?.t()?)?; // (B, H, L, M)
        if let Some(mask) = mask {
            scores = scores.broadcast_add(&mask.unsqueeze(1)?.unsqueeze(1)?)?;
        }
        let y = softmax(&scores, D::Minus1)?.matmul(&split(&v)?)?; // (B, H, L, d/H)
        self.out.forward(&y.transpose(1, 2)?.reshape((b, l, d))?)
    }
}

/// A linear map with Xavier's weights and no bias at first, as torch initialises attention.
pub(super) fn projection(d_in: usize, d_out: usize, pb: &ParamBuilder) -> Result<Linear> {
    let init = Init::XavierUniform { fan_in: d_in, fan_out: d_out };
    let weight = pb.get((d_out, d_in), "weight", init)?;
    Ok(Linear::from_tensors(weight, Some(pb.get_no_decay(d_out, "bias", Init::Zeros)?)))
}

/// Settings of a stack of [`Layer`]s.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// Width.
    pub d: usize,
    /// Heads, which divide the width.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub d_ff: usize,
    /// Share of values that training drops at the end of each branch.
    pub dropout: f64,
}

/// A pre-norm transformer layer: attention to itself, optionally to a memory, feed-forward with ReLU (candle's GELU takes a
/// third of a training step on a CPU).
#[derive(Clone, Debug)]
pub struct Layer {
    attention: (Norm, Attention),
    memory: Option<(Norm, Attention)>,
    feed: (Norm, Linear, Linear),
    dropout: f64,
}

impl Layer {
    /// A layer; with `memory` it also attends to a second sequence.
    pub fn new(cfg: LayerConfig, memory: bool, pb: &ParamBuilder) -> Result<Self> {
        let LayerConfig { d, heads, d_ff, dropout } = cfg;
        let norm = |name: &str| Norm::new(NormKind::Layer, d, EPS, &pb.pp(name));
        let memory = match memory {
            true => Some((norm("memory_norm")?, Attention::new(d, heads, &pb.pp("memory"))?)),
            false => None,
        };
        Ok(Self {
            attention: (norm("attention_norm")?, Attention::new(d, heads, &pb.pp("attention"))?),
            memory,
            feed: (
                norm("feed_norm")?,
                projection(d, d_ff, &pb.pp("fc1"))?,
                projection(d_ff, d, &pb.pp("fc2"))?,
            ),
            dropout,
        })
    }

    /// `x` `(B, L, d)` → `(B, L, d)`; `mask` hides tokens of `x` as in [`Attention::forward`]; `rng` is given in training.
    pub fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        memory: Option<&Tensor>,
        mut rng: Option<&mut Rng>,
    ) -> Result<Tensor> {
        let mut drop = |y: Tensor| match &mut rng {
            Some(rng) if self.dropout > 0.0 => dropout(&y, self.dropout, rng),
            _ => Ok(y),
        };
        let (norm, attention) = &self.attention;
        let y = norm.forward(x)?;
        let mut x = (x + drop(attention.forward(&y, &y, mask)?)?)?;
        if let (Some((norm, attention)), Some(memory)) = (&self.memory, memory) {
            let y = attention.forward(&norm.forward(&x)?, memory, None)?;
            x = (x + drop(y)?)?;
        }
        let (norm, fc1, fc2) = &self.feed;
        let y = fc2.forward(&fc1.forward(&norm.forward(&x)?)?.relu()?)?;
        x + drop(y)?
    }
}

/// The mask that hides what lies beyond each row's length, behind `front` tokens that are always seen: `(B, front + L)`;
/// none if nothing is hidden.
pub fn padding_mask(lengths: &[usize], front: usize, len: usize, like: &Tensor) -> Result<Option<Tensor>> {
    /// Added to hidden scores; finite, so that a row that hides everything gives no NaN.
    const HIDE: f32 = -1e9;
    if lengths.iter().all(|&length| length >= len) {
        return Ok(None);
    }
    let row = |&n: &usize| (0..front + len).map(move |i| if i < front + n { 0.0 } else { HIDE });
    let values: Vec<f32> = lengths.iter().flat_map(row).collect();
    Tensor::from_vec(values, (lengths.len(), front + len), like.device())?.to_dtype(like.dtype()).map(Some)
}
