//! Training as the training loop sees it.

use crate::config::{Loss, RunConfig};
use crate::data::Log;
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::eval::evaluate;
use crate::models::Model;
use crate::recommender::Recommender;
use crate::sampler::{PackedBatch, Sampler};
use candle_core::{D, Device, Tensor};
use candle_nn::ops::sigmoid;
use mamba_core::nn::widen;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task};
use mamba_core::{Params, Rng};
use mamba_kernels::{Segments, linear_cross_entropy};
use serde_json::{Value, json};

/// A log, filtered and split.
#[derive(Debug)]
pub struct TrainingData {
    /// Each user's items.
    pub dataset: Dataset,
    /// What is held out.
    pub split: Split,
    /// Training events of each item; place 0 is padding.
    pub popularity: Vec<u64>,
}

impl TrainingData {
    /// Filters and splits a log.
    ///
    /// # Errors
    /// A log of which too little is left.
    pub fn new(log: &Log, cfg: &crate::config::DataConfig) -> Result<Self> {
        let dataset = Dataset::new(log, &cfg.filter)?;
        let split = Split::new(&dataset, &cfg.split)?;
        let popularity = dataset.popularity(split.train_events(&dataset));
        Ok(Self { dataset, split, popularity })
    }
}

/// A run.
pub struct Training<'a> {
    cfg: &'a RunConfig,
    data: &'a TrainingData,
    params: Params,
    model: Model,
    sampler: Sampler,
    prepared: Prepared<PackedBatch>,
    device: Device,
}

impl<'a> Training<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint.
    ///
    /// # Errors
    /// Settings that make no model, or a checkpoint that does not fit it.
    pub fn new(cfg: &'a RunConfig, data: &'a TrainingData, params: Params) -> mamba_core::Result<Self> {
        let n_items = data.dataset.items.n_items();
        let model = Model::new(&cfg.model, n_items, cfg.data.max_length, &params.builder())?;
        params.check()?;
        let (objective, seed) = (&cfg.objective, cfg.train.seed);
        let sampler = Sampler::new(&data.dataset, &data.split, objective, cfg.data.max_length, seed);
        let device = params.device().clone();
        Ok(Self { cfg, data, params, model, sampler, prepared: Prepared::default(), device })
    }

    fn batch(&mut self, step: u64, micro: usize) -> PackedBatch {
        let (data, train) = (self.data, &self.cfg.train);
        let index = step * train.accumulate as u64 + micro as u64;
        self.sampler.batch(&data.dataset, &data.split, index, train.batch_size)
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.sampler.steps_per_epoch(self.cfg.train.batch_size)
    }

    /// The loss of the vectors `(n, d)` against their answers; `index` keys what is drawn.
    fn loss(&self, hidden: &Tensor, targets: Vec<u32>, index: u64) -> candle_core::Result<Tensor> {
        let table = self.model.item_table();
        let n_items = table.dim(0)?;
        let tensor = |ids: Vec<u32>| {
            let n = ids.len();
            Tensor::from_vec(ids, n, &self.device)
        };
        let mut rng = Rng::stream(self.cfg.train.seed, "negatives", index);
        let mut draw = || 1 + rng.below(n_items - 1) as u32;
        match self.cfg.objective.loss {
            Loss::Softmax => linear_cross_entropy(hidden, table, &tensor(targets)?),
            Loss::SampledSoftmax => {
                let mut items: Vec<u32> = (0..self.cfg.objective.negatives).map(|_| draw()).collect();
                items.extend(&targets);
                items.sort_unstable();
                items.dedup();
                let place = |target: &u32| items.partition_point(|item| item < target) as u32;
                let targets = targets.iter().map(place).collect();
                linear_cross_entropy(hidden, &table.index_select(&tensor(items)?, 0)?, &tensor(targets)?)
            }
            Loss::Bpr => {
                let negatives = targets.iter().map(|_| draw()).collect();
                let score = |items: Vec<u32>| -> candle_core::Result<Tensor> {
                    widen(&(hidden * table.index_select(&tensor(items)?, 0)?)?.sum(D::Minus1)?) // (n)
                };
                bpr_loss(&score(targets)?, &score(negatives)?)
            }
        }
    }
}

/// Mean of `-ln(1e-10 + σ(answer - other))`, as RecBole computes it; the gradient is finite whatever the difference.
pub fn bpr_loss(answer: &Tensor, other: &Tensor) -> candle_core::Result<Tensor> {
    (sigmoid(&(answer - other)?)? + 1e-10)?.log()?.mean_all()?.neg()
}

impl Task for Training<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        json!({
            "n_items": self.data.dataset.items.n_items(),
            "max_length": self.cfg.data.max_length,
            "model": self.cfg.model,
        })
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        let batch = self.batch(step, micro);
        self.prepared.put(step, micro, batch);
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let (train, index) = (&self.cfg.train, step * self.cfg.train.accumulate as u64 + micro as u64);
        let prepared = self.prepared.take(step, micro);
        let PackedBatch { items, cu_seqlens, targets, rows } =
            prepared.unwrap_or_else(|| self.batch(step, micro));
        let len = items.len();
        let items = Tensor::from_vec(items, (1, len), &self.device)?;
        let mut rng = Rng::stream(train.seed, "dropout", index);
        let hidden = self.model.forward(&items, &Segments::packed(&cu_seqlens)?, Some(&mut rng))?; // (1, L, d)
        let mut hidden = hidden.squeeze(0)?; // (L, d)
        if let Some(rows) = rows {
            let n = rows.len();
            hidden = hidden.index_select(&Tensor::from_vec(rows, n, &self.device)?, 0)?; // (answers, d)
        }
        Ok(StepLoss { loss: self.loss(&hidden, targets, index)?, items: len })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let TrainingData { dataset, split, popularity } = self.data;
        let (n_items, max_length) = (dataset.items.n_items(), self.cfg.data.max_length);
        let recommender = Recommender::frozen(&self.cfg.model, n_items, max_length, &self.params)?;
        let metrics = evaluate(&recommender, dataset, &split.valid, popularity, &self.cfg.eval, |_| ())?;
        Ok(vec![
            Metric::up("ndcg@10", metrics.ndcg[&10]),
            Metric::up("hit@10", metrics.hit[&10]),
            Metric::up("mrr@10", metrics.mrr[&10]),
        ])
    }

    /// Of the sequences, and of the settings that decide what is held out.
    fn data_fingerprint(&self) -> String {
        let text = format!("{:?} {}", self.cfg.data, self.data.dataset.fingerprint());
        mamba_datasets::job::sha256(text.as_bytes())
    }

    fn unit(&self) -> &'static str {
        "items"
    }
}
