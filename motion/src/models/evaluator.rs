//! The evaluator: motions and labels in one space, where a motion lies near the labels that it was made for. FID,
//! diversity, multimodality, R-precision and matching score are measured there, as in Guo et al. 2022.
//!
//! ```text
//! motion   frames → linear → bidirectional Mamba blocks → mean over the frames → linear → (B, dim)
//! labels   sum of each group's embedding → two linear maps                              → (B, dim)
//! loss     cross-entropy of the true labels among all combinations, by -|motion - labels|²
//! ```

use super::attention::projection;
use crate::features::N_FEATURES;
use candle_core::{Module, Result, Tensor};
use mamba_core::bidirectional::{BiMamba, Combine, Orientation};
use mamba_core::nn::{Embedding, Linear, Norm, NormKind, cross_entropy};
use mamba_core::{Error, Init, MixerConfig, ParamBuilder};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of the evaluator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatorConfig {
    /// Width of the blocks.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Dimensions of the common space.
    pub dim: usize,
    /// Frames of a motion.
    pub window: usize,
    /// The mixers.
    #[serde(default)]
    pub ssm_cfg: MixerConfig,
    /// Values of each group of labels.
    pub sizes: Vec<usize>,
    /// All combinations of labels that the clips have.
    pub combinations: Vec<Vec<usize>>,
}

impl EvaluatorConfig {
    /// Refuses sizes that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        let wrong = self.combinations.iter().any(|c| {
            c.len() != self.sizes.len() || c.iter().zip(&self.sizes).any(|(value, size)| value >= size)
        });
        if [self.d_model, self.n_layer, self.dim, self.sizes.len()].contains(&0) || self.window < 2 || wrong {
            return Err(Error::Config(
                "evaluator: sizes must be at least 1, window 2, combinations within sizes".into(),
            ));
        }
        Ok(())
    }
}

/// The evaluator.
#[derive(Clone, Debug)]
pub struct Evaluator {
    cfg: EvaluatorConfig,
    input: Linear,
    blocks: Vec<(Norm, BiMamba)>,
    norm: Norm,
    motion: Linear,
    tables: Vec<Embedding>,
    labels: [Linear; 2],
}

impl Evaluator {
    /// A model under `pb`.
    pub fn new(cfg: &EvaluatorConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::from)?;
        let d = cfg.d_model;
        let norm = |pb: ParamBuilder| Norm::new(NormKind::Rms, d, 1e-5, &pb);
        let block = |i: usize| {
            let pb = pb.pp("blocks").pp(i);
            let mixer = BiMamba::new(d, &cfg.ssm_cfg, (true, true), Combine::Add, cfg.n_layer, &pb)?;
            Ok((norm(pb.pp("norm"))?, mixer))
        };
        let table = |(i, &size): (usize, &usize)| {
            let weight =
                pb.pp("labels").pp(i).get_no_decay((size, d), "weight", Init::Normal { std: 1.0 })?;
            Ok(Embedding::from_tensor(weight))
        };
        Ok(Self {
            input: projection(N_FEATURES, d, &pb.pp("input"))?,
            blocks: (0..cfg.n_layer).map(block).collect::<Result<_>>()?,
            norm: norm(pb.pp("norm"))?,
            motion: projection(d, cfg.dim, &pb.pp("motion"))?,
            tables: cfg.sizes.iter().enumerate().map(table).collect::<Result<_>>()?,
            labels: [projection(d, d, &pb.pp("label_fc1"))?, projection(d, cfg.dim, &pb.pp("label_fc2"))?],
            cfg: cfg.clone(),
        })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &EvaluatorConfig {
        &self.cfg
    }

    /// Motions `(B, L, 263)` of the given lengths → `(B, dim)`.
    pub fn embed_motions(&self, motion: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let l = motion.dim(1)?;
        let segments = Segments::right_padded(l, lengths)?;
        let mut x = self.input.forward(motion)?; // (B, L, d)
        for (norm, mixer) in &self.blocks {
            x = (&x + mixer.forward(&norm.forward(&x)?, Orientation::Given, Some(&segments))?)?;
        }
        let share = |&n: &usize| (0..l).map(move |i| if i < n { 1.0 / n as f32 } else { 0.0 });
        let weights = Tensor::from_iter(lengths.iter().flat_map(share), x.device())?;
        let weights = weights.to_dtype(x.dtype())?.reshape((lengths.len(), 1, l))?; // (B, 1, L)
        self.motion.forward(&weights.matmul(&self.norm.forward(&x)?)?.squeeze(1)?)
    }

    /// Labels, one value of each group a row → `(B, dim)`.
    pub fn embed_labels(&self, rows: &[Vec<usize>]) -> Result<Tensor> {
        let group = |(i, table): (usize, &Embedding)| {
            let ids = rows.iter().map(|row| row[i] as u32);
            table.forward(&Tensor::from_iter(ids, table.weight().device())?)
        };
        let groups = self.tables.iter().enumerate().map(group).collect::<Result<Vec<_>>>()?;
        let Some((first, rest)) = groups.split_first() else { candle_core::bail!("evaluator: no labels") };
        let sum = rest.iter().try_fold(first.clone(), |sum, group| sum + group)?; // (B, d)
        self.labels[1].forward(&self.labels[0].forward(&sum)?.gelu()?)
    }

    /// Logits of each motion over all combinations: `(B, combinations)`.
    pub fn logits(&self, motion: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let motions = self.embed_motions(motion, lengths)?; // (B, dim)
        let labels = self.embed_labels(&self.cfg.combinations)?; // (C, dim)
        let products = motions.matmul(&labels.t()?)?; // (B, C)
        let squares = products.affine(-2.0, 0.0)?.broadcast_add(&motions.sqr()?.sum_keepdim(1)?)?;
        squares.broadcast_add(&labels.sqr()?.sum(1)?.unsqueeze(0)?)?.neg()
    }

    /// The loss of motions that belong to these combinations.
    pub fn loss(&self, motion: &Tensor, lengths: &[usize], combinations: &[usize]) -> Result<Tensor> {
        let targets = Tensor::from_iter(combinations.iter().map(|&c| c as u32), motion.device())?;
        cross_entropy(&self.logits(motion, lengths)?, &targets, None)
    }
}
