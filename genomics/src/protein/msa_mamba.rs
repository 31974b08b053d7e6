//! MSAMamba, a model of aligned sequences: a selective scan along each sequence, attention across the rows (Thoutam and
//! Ellsworth 2024, "MSAMamba: adapting subquadratic models to long-context DNA MSA analysis").
//!
//! The paper says that the scan runs along the sequence dimension, apart from attention along the dimension of the rows,
//! and that training is sparse in the rows: only some of them are scanned. No code was published. What it leaves open is
//! decided here as follows, and said so that figures are not taken for the paper's.
//!
//! | open | here |
//! |---|---|
//! | direction of the scan | both, with tied projections (Caduceus' mixer) |
//! | order | add, norm, scan; add, norm, attention: pre-norm branches on one residual stream |
//! | which rows are scanned | the first `scan_rows`, the query first; the others reach it by attention |
//! | attention | softmax over the rows of a column, `n_head` heads, no position: context rows have no order |
//! | feed-forward | none |
//! | head | shares the embedding; masked residues of the query are learnt |
//! | letters | amino acids or bases alike: the tokens of [`Alphabet`] |

use std::collections::BTreeMap;

use candle_core::{D, Module, Result, Tensor, bail};
use mamba_core::bidirectional::{Combine, Orientation};
use mamba_core::nn::{Embedding, Linear, Norm, NormKind, cross_entropy};
use mamba_core::{BiMamba, Error, Init, MixerConfig, ParamBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protein::alphabet::{Alphabet, PAD};

/// `config.json` of MSAMamba.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsaMambaConfig {
    /// Width.
    pub d_model: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// The mixers.
    pub ssm_cfg: MixerConfig,
    /// Attention heads.
    pub n_head: usize,
    /// Rows that are scanned, the query among them; null for all.
    pub scan_rows: Option<usize>,
    /// Added under the norms' root.
    pub norm_epsilon: f64,
    /// What else the file says, kept as it is.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for MsaMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 64,
            n_layer: 3,
            vocab_size: Alphabet::Homologs.len(),
            ssm_cfg: MixerConfig::default(),
            n_head: 4,
            scan_rows: Some(2),
            norm_epsilon: 1e-5,
            other: BTreeMap::from([("model_type".to_string(), Value::from("msa_mamba"))]),
        }
    }
}

impl MsaMambaConfig {
    /// Refuses settings that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.ssm_cfg.validate_for(self.d_model)?;
        let known = Alphabet::Homologs.len();
        if self.n_layer == 0 || self.n_head == 0 || self.scan_rows == Some(0) || self.vocab_size < known {
            return Err(Error::Config(format!(
                "n_layer {}, n_head {} and scan_rows {:?} must be at least 1, vocab_size {} at least {known}",
                self.n_layer, self.n_head, self.scan_rows, self.vocab_size
            )));
        }
        if !self.d_model.is_multiple_of(self.n_head) {
            return Err(Error::Config(format!(
                "d_model {} is no multiple of n_head {}",
                self.d_model, self.n_head
            )));
        }
        Ok(())
    }
}

/// Embedding, layers and tied head.
#[derive(Clone, Debug)]
pub struct MsaMamba {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm_f: Norm,
    scan_rows: Option<usize>,
}

#[derive(Clone, Debug)]
struct Layer {
    scan: (Norm, BiMamba),
    attention: (Norm, RowAttention),
}

/// Multi-head attention over the rows of each column.
#[derive(Clone, Debug)]
struct RowAttention {
    qkv: Linear,
    out: Linear,
    heads: usize,
}

impl RowAttention {
    fn new(d: usize, heads: usize, residuals: usize, pb: &ParamBuilder) -> Result<Self> {
        let out = Init::linear(d).scaled(1.0 / (residuals as f64).sqrt());
        Ok(Self {
            qkv: Linear::new(d, 3 * d, false, &pb.pp("qkv_proj"))?,
            out: Linear::with_init((d, d), out, None, &pb.pp("out_proj"))?,
            heads,
        })
    }

    /// `(B, R, L, D)` → `(B, R, L, D)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, rows, len, d) = x.dims4()?;
        let [q, k, v] = self.qkv.split(x, [d, d, d])?; // (B, R, L, D)
        // (B, R, L, D) → (B·L, H, R, D/H)
        let heads = |t: Tensor| {
            t.reshape((batch, rows, len, self.heads, d / self.heads))?
                .permute((0, 2, 3, 1, 4))?
                .contiguous()?
                .reshape((batch * len, self.heads, rows, d / self.heads))
        };
        let (q, k, v) = (heads(q)?, heads(k)?, heads(v)?);
        let scale = ((d / self.heads) as f64).powf(-0.5);
        let weights = (q.matmul(&k.t()?)? * scale)?; // (B·L, H, R, R)
        let y = candle_nn::ops::softmax(&weights, D::Minus1)?.matmul(&v)?; // (B·L, H, R, D/H)
        let y = y
            .reshape((batch, len, self.heads, rows, d / self.heads))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((batch, rows, len, d))?;
        self.out.forward(&y)
    }
}

impl MsaMamba {
    /// Parameters `embedding`, `layers.i.*`, `norm_f`.
    pub fn new(cfg: &MsaMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (d, residuals) = (cfg.d_model, 2 * cfg.n_layer);
        let norm = |pb: ParamBuilder| Norm::new(NormKind::Rms, d, cfg.norm_epsilon, &pb);
        let embedding = pb.pp("embedding").get((cfg.vocab_size, d), "weight", Init::Normal { std: 0.02 })?;
        let layer = |i: usize| {
            let pb = pb.pp("layers").pp(i);
            let mixer = BiMamba::new(d, &cfg.ssm_cfg, (true, true), Combine::Add, residuals, &pb.pp("scan"))?;
            Ok(Layer {
                scan: (norm(pb.pp("scan_norm"))?, mixer),
                attention: (
                    norm(pb.pp("attention_norm"))?,
                    RowAttention::new(d, cfg.n_head, residuals, &pb.pp("attention"))?,
                ),
            })
        };
        Ok(Self {
            embedding: Embedding::from_tensor(embedding),
            layers: (0..cfg.n_layer).map(layer).collect::<Result<_>>()?,
            norm_f: norm(pb.pp("norm_f"))?,
            scan_rows: cfg.scan_rows,
        })
    }

    /// `input_ids` `(B, R, L)` u32, the query in row 0 → logits of the query `(B, L, vocabulary)`.
    pub fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (batch, rows, len) = input_ids.dims3()?;
        if rows == 0 {
            bail!("an alignment of no rows");
        }
        let scanned = self.scan_rows.map_or(rows, |n| n.min(rows));
        let mut x = self.embedding.forward(input_ids)?; // (B, R, L, D)
        let d = x.dim(3)?;
        for (i, Layer { scan, attention }) in self.layers.iter().enumerate() {
            let some = x.narrow(1, 0, scanned)?.contiguous()?.reshape((batch * scanned, len, d))?; // (B·S, L, D)
            let change = scan.1.forward(&scan.0.forward(&some)?, Orientation::Given, None)?;
            let some = (some + change)?.reshape((batch, scanned, len, d))?;
            x = match scanned == rows {
                true => some,
                false => Tensor::cat(&[&some, &x.narrow(1, scanned, rows - scanned)?.contiguous()?], 1)?,
            };
            let change = attention.1.forward(&attention.0.forward(&x)?)?;
            x = (x + change)?;
            if i + 1 == self.layers.len() {
                x = x.narrow(1, 0, 1)?.contiguous()?; // (B, 1, L, D)
            }
        }
        let query = self.norm_f.forward(&x.squeeze(1)?)?; // (B, L, D)
        Linear::from_tensors(self.embedding.weight().clone(), None).forward(&query)
    }

    /// Mean cross-entropy in nats over the labels `(B, L)` u32 of the query that are not `<pad>`.
    pub fn loss(&self, input_ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        cross_entropy(&self.forward(input_ids)?, labels, Some(PAD))
    }
}
