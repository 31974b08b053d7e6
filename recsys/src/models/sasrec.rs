//! SASRec (Kang and McAuley 2018, arXiv 1808.09781) in RecBole's form: the transformer that Mamba4Rec is compared with.
//!
//! ```text
//! h₀ = dropout(LN(E[items] + P[positions]))
//! m  = LN(dropout(W · attention(h)) + h)
//! h' = LN(dropout(W₂ gelu(W₁ m)) + m)
//! scores = h·Eᵀ
//! ```
//!
//! Sequences come packed; attention alone needs them side by side, and pads them to the longest.

use super::parts::{Dropout, FeedForward, INIT_STD, LayerNorm, linear};
use candle_core::{D, DType, Device, Module, Result, Tensor, bail};
use mamba_core::nn::{Embedding, Linear};
use mamba_core::{Error, Init, ParamBuilder, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Hyper-parameters, with RecBole's names where it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SasRecConfig {
    /// Width of embedding and layers, d.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width inside the feed-forward layers.
    pub inner_size: usize,
    /// Dropout of embedding and layers while training.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention weights.
    pub attn_dropout_prob: f64,
}

impl Default for SasRecConfig {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            num_layers: 2,
            num_heads: 2,
            inner_size: 256,
            hidden_dropout_prob: 0.2,
            attn_dropout_prob: 0.2,
        }
    }
}

impl SasRecConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        let Self { hidden_size, num_layers, num_heads, inner_size, .. } = *self;
        if [hidden_size, num_layers, num_heads, inner_size].contains(&0) {
            let what = "hidden_size, num_layers, num_heads and inner_size must be at least 1";
            return Err(Error::Config(what.into()));
        }
        if hidden_size % num_heads != 0 {
            return Err(Error::Config(format!(
                "hidden_size {hidden_size} is not divided by num_heads {num_heads}"
            )));
        }
        for (name, p) in
            [("hidden_dropout_prob", self.hidden_dropout_prob), ("attn_dropout_prob", self.attn_dropout_prob)]
        {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Config(format!("{name} is {p}, must be at least 0 and below 1")));
            }
        }
        Ok(())
    }
}

/// The network without its head.
#[derive(Clone, Debug)]
pub struct SasRec {
    cfg: SasRecConfig,
    item_embedding: Embedding,
    position_embedding: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    ffn: FeedForward,
}

/// Where packed items go in padded rows, and back.
struct Padding {
    sequences: usize,
    longest: usize,
    /// For each place of the padded rows a packed item; any item where there is none.
    to_rows: Tensor,
    /// For each packed item its place in the padded rows.
    to_packed: Tensor,
    /// `(longest, longest)`, far below zero where a later item is looked at.
    mask: Tensor,
}

impl SasRec {
    /// The parameters of the builder, for items `1..n_items` and padding, and sequences of at most `max_length` items.
    pub fn new(cfg: &SasRecConfig, n_items: usize, max_length: usize, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let table = |name: &str, rows: usize| {
            let table = pb.pp(name).get((rows, d), "weight", Init::Normal { std: INIT_STD })?;
            Ok::<_, candle_core::Error>(Embedding::from_tensor(table))
        };
        let layer = |i: usize| {
            let pb = pb.pp("trm_encoder.layer").pp(i);
            let attention = pb.pp("multi_head_attention");
            let map = |name: &str| linear(d, d, &attention.pp(name));
            Ok(Layer {
                query: map("query")?,
                key: map("key")?,
                value: map("value")?,
                dense: map("dense")?,
                norm: LayerNorm::new(d, &attention.pp("LayerNorm"))?,
                ffn: FeedForward::new(
                    d,
                    cfg.inner_size,
                    ["dense_1", "dense_2", "LayerNorm"],
                    &pb.pp("feed_forward"),
                )?,
            })
        };
        Ok(Self {
            cfg: cfg.clone(),
            item_embedding: table("item_embedding", n_items)?,
            position_embedding: table("position_embedding", max_length)?,
            norm: LayerNorm::new(d, &pb.pp("LayerNorm"))?,
            layers: (0..cfg.num_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The item embedding `(n_items, d)`, which is the head's weight too.
    pub fn item_table(&self) -> &Tensor {
        self.item_embedding.weight()
    }

    /// The longest sequence.
    pub fn positions(&self) -> usize {
        self.position_embedding.weight().dims()[0]
    }

    /// `items` `(1, L)` → `(1, L, d)`; with a generator, dropout is on.
    pub fn forward(&self, items: &Tensor, segments: &Segments, mut rng: Option<&mut Rng>) -> Result<Tensor> {
        let positions: Vec<u32> = segments.iter().flat_map(|s| 0..s.len() as u32).collect();
        let limit = self.positions();
        if items.dim(0)? != 1 || positions.len() != items.dim(1)? {
            bail!("SASRec takes one row of packed sequences, got {:?}", items.dims())
        }
        if positions.iter().any(|&position| position as usize >= limit) {
            bail!("SASRec knows {limit} positions, and a sequence is longer")
        }
        let positions = Tensor::new(positions, items.device())?.unsqueeze(0)?; // (1, L)
        let padding = Padding::new(segments, self.item_table().dtype(), items.device())?;
        let embedded =
            (self.item_embedding.forward(items)? + self.position_embedding.forward(&positions)?)?;
        let p = self.cfg.hidden_dropout_prob;
        let mut hidden =
            Dropout::new(p, rng.as_deref_mut()).apply(self.norm.forward(&embedded, None)?)?.squeeze(0)?; // (L, d)
        for layer in &self.layers {
            let attended = self.attention(layer, &hidden, &padding, rng.as_deref_mut())?;
            let mut dropout = Dropout::new(p, rng.as_deref_mut());
            let mixed = layer.norm.forward(&dropout.apply(attended)?, Some(&hidden))?;
            hidden = layer.ffn.forward(&mixed, &mut dropout, false)?;
        }
        hidden.unsqueeze(0) // (1, L, d)
    }

    /// `(L, d)` → `(L, d)`.
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        padding: &Padding,
        rng: Option<&mut Rng>,
    ) -> Result<Tensor> {
        let (n, len, heads) = (padding.sequences, padding.longest, self.cfg.num_heads);
        let width = x.dim(1)? / heads;
        let rows = |map: &Linear| {
            let rows = map.forward(x)?.index_select(&padding.to_rows, 0)?; // (n·len, d)
            rows.reshape((n, len, heads, width))?.transpose(1, 2)?.contiguous() // (n, heads, len, width)
        };
        let (query, key, value) = (rows(&layer.query)?, rows(&layer.key)?, rows(&layer.value)?);
        let scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? / (width as f64).sqrt())?; // (n, heads, len, len)
        let weights = candle_nn::ops::softmax(&scores.broadcast_add(&padding.mask)?, D::Minus1)?;
        let weights = Dropout::new(self.cfg.attn_dropout_prob, rng).apply(weights)?;
        let context = weights.matmul(&value)?.transpose(1, 2)?.contiguous()?; // (n, len, heads, width)
        let context = context.reshape((n * len, heads * width))?.index_select(&padding.to_packed, 0)?; // (L, d)
        layer.dense.forward(&context)
    }
}

impl Padding {
    fn new(segments: &Segments, dtype: DType, device: &Device) -> Result<Self> {
        let sequences = segments.count();
        let longest = segments.iter().map(mamba_kernels::Segment::len).max().unwrap_or(0);
        let mut to_rows = vec![0u32; sequences * longest];
        let mut to_packed = Vec::new();
        for (row, segment) in segments.iter().enumerate() {
            for (place, item) in (segment.start..segment.end).enumerate() {
                to_rows[row * longest + place] = item as u32;
                to_packed.push((row * longest + place) as u32);
            }
        }
        let later = |i: usize| if i % longest > i / longest { -10_000f64 } else { 0.0 };
        let mask: Vec<f64> = (0..longest * longest).map(later).collect();
        Ok(Self {
            sequences,
            longest,
            to_rows: Tensor::new(to_rows, device)?,
            to_packed: Tensor::new(to_packed, device)?,
            mask: Tensor::from_vec(mask, (longest, longest), device)?.to_dtype(dtype)?,
        })
    }
}
