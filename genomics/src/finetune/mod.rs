//! Fine-tuning: Caduceus as a classifier or a regressor of whole sequences, from scratch or from a checkpoint.
//!
//! [`FinetuneConfig`] holds the settings, [`Examples`] the encoded sequences, [`Finetuning`] is the task of the training
//! loop; [`Predictor`] opens what it leaves and turns sequences into probabilities or values; [`Report`] scores them.

mod model;
mod picture;
mod predictor;
mod report;
mod target;

pub use model::{
    HeadConfig, HeadPooling, SequenceBatch, SequenceModel, StemConfig, StrandUse, WIDEST_KERNEL,
};
pub use picture::ReportPicture;
pub use predictor::Predictor;
pub(crate) use predictor::merge_adapters;
pub use report::Report;
pub use target::{Kind, Target};

use crate::config::CaduceusConfig;
use crate::labelled::{Columns, LabelledSet};
use crate::metrics;
use crate::tokenizer::{N, is_base, reverse_complement_in_place};
use candle_core::{DType, Device, Tensor};
use mamba_core::nn::widen;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_core::{Error, LoraConfig, Params, Result, Rng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Everything that decides a fine-tuning run, besides the sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// The body.
    pub model: CaduceusConfig,
    /// What stands above and around it.
    pub head: HeadConfig,
    /// What is learnt, and how.
    pub task: TaskConfig,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Where the sequences come from, and what is held out.
    pub data: SplitConfig,
}

/// What is learnt, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskConfig {
    /// Classes or values.
    pub kind: Kind,
    /// What of the model is trained.
    pub mode: Mode,
    /// The adapters, where `mode` is `lora`.
    pub lora: LoraConfig,
    /// The metric of the validation sequences that decides which weights are best; null: `mcc` or `pearson`.
    pub metric: Option<Chosen>,
    /// Whether rare classes count as much as frequent ones.
    pub class_weights: bool,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Share of the bases that are replaced by N in training.
    pub mask: f64,
    /// Largest number of bases by which a sequence is moved in training, to either side; what comes in is N, and what
    /// leaves is lost.
    pub shift: usize,
    /// Passes over the training sequences; null: `train.steps` and `train.eval_every` hold, which it sets otherwise.
    pub epochs: Option<f64>,
}

impl Default for TaskConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Classification,
            mode: Mode::Full,
            lora: LoraConfig::default(),
            metric: None,
            class_weights: false,
            label_smoothing: 0.0,
            mask: 0.0,
            shift: 0,
            epochs: Some(20.0),
        }
    }
}

/// What of the model is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything
    #[default]
    Full,
    /// Head and stem only; the body stays as it is
    Frozen,
    /// Head, stem and low-rank adapters of the body
    Lora,
}

/// A metric of validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of metrics")]
pub enum Chosen {
    Loss,
    Accuracy,
    Mcc,
    F1,
    Auroc,
    Auprc,
    Mse,
    Mae,
    R2,
    Pearson,
    Spearman,
}

impl Chosen {
    fn of(name: &str, value: f64) -> Metric {
        match name {
            "loss" | "mse" | "mae" => Metric::down(name, value),
            _ => Metric::up(name, value),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::Mcc => "mcc",
            Self::F1 => "f1",
            Self::Auroc => "auroc",
            Self::Auprc => "auprc",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::R2 => "r2",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }

    fn fits(self, kind: Kind) -> bool {
        match self {
            Self::Loss => true,
            Self::Accuracy | Self::Mcc | Self::F1 | Self::Auroc | Self::Auprc => kind == Kind::Classification,
            Self::Mse | Self::Mae | Self::R2 | Self::Pearson | Self::Spearman => kind == Kind::Regression,
        }
    }
}

/// Columns, and what is held out where no files for it are given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// Names of the columns of tables.
    pub columns: Columns,
    /// Share of the training sequences held out for validation, if there is no file for it.
    pub valid: f64,
    /// Share held out for the test, if there is no file for it.
    pub test: f64,
    /// Seed of the split, apart from that of the run: runs of different seeds hold out the same sequences.
    pub split_seed: u64,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self { columns: Columns::default(), valid: 0.1, test: 0.1, split_seed: 0 }
    }
}

impl FinetuneConfig {
    /// On a given body, with settings for a model that is already trained. Of one that was fine-tuned before, pooling,
    /// strands and stem are taken over.
    pub fn of_body(mut model: CaduceusConfig) -> Self {
        let before = model.other.remove(predictor::KEY);
        model.other.remove("id2label");
        let head = before.and_then(|before| serde_json::from_value(before.get("head")?.clone()).ok());
        let train = TrainConfig {
            batch_size: 32,
            learning_rate: 1e-3,
            warmup: 50,
            log_every: 50,
            patience: Some(10),
            ..TrainConfig::default()
        };
        let (task, data) = (TaskConfig::default(), SplitConfig::default());
        Self { model, head: head.unwrap_or_default(), task, train, data }
    }

    /// From scratch: a size of [`CaduceusConfig::preset`], or `motif`, two blocks of 64 channels behind convolutions, with
    /// the regularisation that some thousand sequences ask for.
    pub fn preset(name: &str) -> Option<Self> {
        if name != "motif" {
            return CaduceusConfig::preset(name).map(Self::of_body);
        }
        let mut cfg = Self::of_body(CaduceusConfig { d_model: 64, n_layer: 2, ..CaduceusConfig::default() });
        cfg.head = HeadConfig {
            pooling: HeadPooling::MeanMax,
            stem: Some(StemConfig { kernels: vec![7, 15], channels: 64, positions: 0 }),
            dropout: 0.2,
            ..cfg.head
        };
        cfg.task = TaskConfig { label_smoothing: 0.05, mask: 0.05, shift: 4, ..cfg.task };
        cfg.train = TrainConfig {
            batch_size: 64,
            learning_rate: 2e-3,
            ema: Some(0.995),
            betas: (0.9, 0.99),
            ..cfg.train
        };
        Some(cfg)
    }

    /// Refuses settings that fit no model or no task.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.head.validate(&self.model)?;
        self.task.lora.validate()?;
        self.train.validate()?;
        let TaskConfig { kind, metric, class_weights, label_smoothing, mask, epochs, .. } = &self.task;
        let problem = if !(0.0..1.0).contains(label_smoothing) {
            format!("task.label_smoothing is {label_smoothing}, must be at least 0 and below 1")
        } else if !(0.0..1.0).contains(mask) {
            format!("task.mask is {mask}, must be at least 0 and below 1")
        } else if epochs.is_some_and(|epochs| !(epochs > 0.0 && epochs.is_finite())) {
            "task.epochs must be above 0, or null".into()
        } else if *class_weights && *kind == Kind::Regression {
            "task.class_weights (--class-weights) is for classes, not for regression".into()
        } else if let Some(metric) = metric.filter(|metric| !metric.fits(*kind)) {
            format!("task.metric {} is not one of {kind}", metric.name())
        } else {
            return Ok(());
        };
        Err(Error::Config(problem))
    }

    /// Sets steps and evaluations by the epochs over `sequences`: an evaluation after each, but not in fewer than 20 steps or
    /// more than 200; the warm-up is at most a fifth of the steps.
    pub fn set_steps(&mut self, sequences: usize) {
        if let Some(epochs) = self.task.epochs {
            let per_step = self.train.batch_size.max(1) * self.train.accumulate.max(1);
            let per_epoch = sequences as f64 / per_step as f64;
            self.train.steps = ((epochs * per_epoch).ceil() as u64).max(1);
            self.train.eval_every = (per_epoch.round() as u64).clamp(20, 200);
            self.train.warmup = self.train.warmup.min(self.train.steps / 5);
        }
    }

    /// The metric that decides.
    pub fn metric(&self) -> Chosen {
        self.task.metric.unwrap_or(match self.task.kind {
            Kind::Classification => Chosen::Mcc,
            Kind::Regression => Chosen::Pearson,
        })
    }

    /// Parameters for a run: fresh ones, or those of a checkpoint, of which all or some are trained.
    pub fn params(
        &self,
        checkpoint: Option<mamba_core::Checkpoint>,
        dtype: DType,
        device: &Device,
    ) -> Result<Params> {
        let seed = self.train.seed;
        let params = match checkpoint {
            None => Params::fresh(seed, dtype, device),
            Some(checkpoint) => {
                let tensors = merge_adapters(&checkpoint.config, checkpoint.tensors)?;
                // Another task's head is of no use.
                let tensors = tensors.into_iter().filter(|(name, _)| !name.starts_with("score."));
                Params::trainable(tensors, seed, dtype, device)
            }
        };
        Ok(match self.task.mode {
            Mode::Full => params,
            Mode::Frozen => params.with_trained(&["score.", "stem."]),
            Mode::Lora => params.with_lora(&self.task.lora)?.with_trained(&["score.", "stem."]),
        })
    }
}

/// Encoded sequences with their labels as numbers: a class, or a value in units of the training values' deviation.
#[derive(Clone, Debug)]
pub struct Examples {
    sequences: Vec<Vec<u8>>,
    labels: Vec<f64>,
    hash: String,
}

impl Examples {
    /// Encodes the labels of a set.
    ///
    /// # Errors
    /// A label that is not one of the target's, by file and line.
    pub fn new(set: LabelledSet, target: &Target) -> crate::error::Result<Self> {
        let labels = set.rows.iter().map(|row| target.encode(row)).collect::<crate::error::Result<_>>()?;
        let mut text = Vec::new();
        for row in &set.rows {
            text.extend_from_slice(&row.ids);
            text.push(b'\n');
            text.extend_from_slice(row.label.as_deref().unwrap_or_default().as_bytes());
            text.push(b'\n');
        }
        let hash = mamba_datasets::job::sha256(&text);
        Ok(Self { sequences: set.rows.into_iter().map(|row| row.ids).collect(), labels, hash })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The token ids.
    pub fn sequences(&self) -> Vec<&[u8]> {
        self.sequences.iter().map(Vec::as_slice).collect()
    }

    /// The labels as numbers.
    pub fn labels(&self) -> &[f64] {
        &self.labels
    }
}

/// Fine-tuning as the training loop sees it.
pub struct Finetuning<'a> {
    cfg: &'a FinetuneConfig,
    target: &'a Target,
    train: &'a Examples,
    valid: &'a Examples,
    params: Params,
    model: SequenceModel,
    /// Weight of each class.
    weights: Vec<f64>,
    /// The epoch whose order is at hand.
    order: (u64, Vec<usize>),
    prepared: Prepared<Drawn>,
    device: Device,
}

/// The sequences of a step with their labels, and the generator that drew them, for what else is drawn.
struct Drawn {
    sequences: Vec<Vec<u8>>,
    labels: Vec<f64>,
    rng: Rng,
}

impl<'a> Finetuning<'a> {
    /// A run from `params`, made by [`FinetuneConfig::params`].
    ///
    /// # Errors
    /// Settings that make no model, checkpoints that do not fit it, a metric that the validation sequences do not define.
    pub fn new(
        cfg: &'a FinetuneConfig,
        target: &'a Target,
        train: &'a Examples,
        valid: &'a Examples,
        params: Params,
    ) -> Result<Self> {
        let model = SequenceModel::new(&cfg.model, &cfg.head, target.outputs(), &params.builder())?;
        // A checkpoint of a language model has neither; its adapters are new.
        params.check_with(|name| name.starts_with("score.") || name.starts_with("stem."), |_| false)?;
        let weights = match (target, cfg.task.class_weights) {
            (Target::Classes { names }, true) => balanced(names.len(), train.labels()),
            _ => vec![1.0; target.outputs()],
        };
        // Of predictions that vary: what is not defined then never is.
        let defined = match target {
            Target::Classes { names } => {
                let labels: Vec<usize> = valid.labels().iter().map(|&label| label as usize).collect();
                metrics::of_classes(names.len(), &labels, &vec![vec![1.0; names.len()]; labels.len()])
            }
            Target::Value { .. } => {
                let values: Vec<f64> = (0..valid.len()).map(|i| i as f64).collect();
                metrics::of_values(valid.labels(), &values)
            }
        };
        let metric = cfg.metric();
        if !valid.is_empty() && metric != Chosen::Loss && !defined.contains_key(metric.name()) {
            let name = metric.name();
            let message =
                format!("{name} is not defined on validation sequences without all labels; --metric loss");
            return Err(Error::Config(message));
        }
        let device = params.device().clone();
        let (order, prepared) = ((u64::MAX, Vec::new()), Prepared::default());
        Ok(Self { cfg, target, train, valid, params, model, weights, order, prepared, device })
    }

    /// The training sequences of a step, changed as the settings say.
    fn batch(&mut self, step: u64, micro: usize) -> Drawn {
        let TrainConfig { seed, batch_size, accumulate, .. } = self.cfg.train;
        let index = step * accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(seed, "finetune step", index);
        let places: Vec<usize> =
            (0..batch_size as u64).map(|i| self.draw(index * batch_size as u64 + i)).collect();
        let sequences = places.iter().map(|&i| self.augmented(i, &mut rng)).collect();
        Drawn { sequences, labels: places.iter().map(|&i| self.train.labels[i]).collect(), rng }
    }

    /// The `k`-th training sequence over all epochs, each of which has its own order.
    fn draw(&mut self, k: u64) -> usize {
        let n = self.train.len() as u64;
        let epoch = k / n;
        if self.order.0 != epoch {
            let mut rng = Rng::stream(self.cfg.train.seed, "finetune order", epoch);
            self.order = (epoch, rng.permutation(n as usize));
        }
        self.order.1[(k % n) as usize]
    }

    /// A training sequence, changed as the settings say.
    fn augmented(&self, i: usize, rng: &mut Rng) -> Vec<u8> {
        let mut ids = self.train.sequences[i].clone();
        let TaskConfig { mask, shift, .. } = self.cfg.task;
        if shift > 0 {
            let by = rng.below(2 * shift + 1) as isize - shift as isize;
            shifted(&mut ids, by);
        }
        if mask > 0.0 {
            ids.iter_mut().filter(|id| is_base(**id)).for_each(|id| {
                if rng.uniform() < mask {
                    *id = N;
                }
            });
        }
        if !self.cfg.model.rcps && self.cfg.head.strands == StrandUse::Both && rng.uniform() < 0.5 {
            reverse_complement_in_place(&mut ids);
        }
        ids
    }
}

/// Moves a sequence to the right by `by` bases (to the left if negative); N comes in.
fn shifted(ids: &mut [u8], by: isize) {
    let n = by.unsigned_abs().min(ids.len());
    match by > 0 {
        true => {
            ids.rotate_right(n);
            ids[..n].fill(N);
        }
        false => {
            ids.rotate_left(n);
            let len = ids.len();
            ids[len - n..].fill(N);
        }
    }
}

/// Weights in inverse proportion to the classes' numbers, 1 on average over the examples.
fn balanced(classes: usize, labels: &[f64]) -> Vec<f64> {
    let mut counts = vec![0usize; classes];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    counts.iter().map(|&n| labels.len() as f64 / (classes * n.max(1)) as f64).collect()
}

/// Cross-entropy of `logits` `(B, classes)` with smoothed, weighted targets; the mean over the weights.
fn classes_loss(
    logits: &Tensor,
    labels: &[f64],
    weights: &[f64],
    smoothing: f64,
) -> candle_core::Result<Tensor> {
    let classes = weights.len();
    let mut targets = vec![0f32; labels.len() * classes];
    let total: f64 = labels.iter().map(|&label| weights[label as usize]).sum();
    for (row, &label) in targets.chunks_exact_mut(classes).zip(labels) {
        let weight = weights[label as usize] / total;
        row.fill((weight * smoothing / classes as f64) as f32);
        row[label as usize] += (weight * (1.0 - smoothing)) as f32;
    }
    let targets = Tensor::from_vec(targets, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    (candle_nn::ops::log_softmax(logits, 1)? * targets)?.sum_all()?.neg()
}

impl Task for Finetuning<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    /// The body's config as upstream writes it, with what stands above it under `finetune`.
    fn config(&self) -> Value {
        let mut cfg = self.cfg.model.clone();
        let adapters = (self.cfg.task.mode == Mode::Lora).then_some(&self.cfg.task.lora);
        let head = json!({ "head": &self.cfg.head, "target": self.target, "lora": adapters });
        cfg.other.insert(predictor::KEY.into(), head);
        if let Target::Classes { names } = self.target {
            let labels: serde_json::Map<_, _> =
                names.iter().enumerate().map(|(i, name)| (i.to_string(), json!(name))).collect();
            cfg.other.insert("id2label".into(), labels.into());
        }
        serde_json::to_value(cfg).expect("a config of plain values has a JSON form")
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        let batch = self.batch(step, micro);
        self.prepared.put(step, micro, batch);
    }

    fn train_step(&mut self, step: u64, micro: usize) -> Result<StepLoss> {
        let prepared = self.prepared.take(step, micro);
        let Drawn { sequences, labels, mut rng } = prepared.unwrap_or_else(|| self.batch(step, micro));
        let items = sequences.iter().map(Vec::len).sum();
        let sequences: Vec<&[u8]> = sequences.iter().map(Vec::as_slice).collect();
        let batch = SequenceBatch::new(&sequences, &self.device)?;
        let logits = widen(&self.model.forward_train(&batch, &mut rng)?)?; // (B, outputs)
        let loss = match self.target {
            Target::Classes { .. } => {
                classes_loss(&logits, &labels, &self.weights, self.cfg.task.label_smoothing)?
            }
            Target::Value { .. } => {
                let labels =
                    Tensor::from_vec(labels, logits.shape(), &self.device)?.to_dtype(logits.dtype())?;
                (logits - labels)?.sqr()?.mean_all()?
            }
        };
        Ok(StepLoss { loss, items })
    }

    fn evaluate(&mut self) -> Result<Vec<Metric>> {
        if self.valid.is_empty() {
            return Ok(Vec::new());
        }
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), self.params.dtype(), &self.device);
        let frozen = match self.cfg.task.mode {
            Mode::Lora => frozen.with_lora(&self.cfg.task.lora)?,
            _ => frozen,
        };
        let model =
            SequenceModel::new(&self.cfg.model, &self.cfg.head, self.target.outputs(), &frozen.builder())?;
        let outputs = predictor::outputs(&model, &self.valid.sequences(), &self.device)?;
        let (loss, figures) = match self.target {
            Target::Classes { names } => {
                let labels: Vec<usize> = self.valid.labels.iter().map(|&label| label as usize).collect();
                let rows: Vec<Vec<f64>> = outputs.iter().map(|row| predictor::softmax(row)).collect();
                let nats = |(row, &label): (&Vec<f64>, &usize)| -row[label].max(1e-30).ln();
                let loss = rows.iter().zip(&labels).map(nats).sum::<f64>() / labels.len() as f64;
                (loss, metrics::of_classes(names.len(), &labels, &rows))
            }
            Target::Value { .. } => {
                let values: Vec<f64> = outputs.iter().map(|row| f64::from(row[0])).collect();
                let figures = metrics::of_values(&self.valid.labels, &values);
                (figures["mse"], figures)
            }
        };
        let chosen = self.cfg.metric().name();
        let mut metrics: Vec<Metric> =
            figures.into_iter().map(|(name, value)| Chosen::of(name, value)).collect();
        metrics.push(Metric::down("loss", loss));
        metrics.sort_by_key(|metric| metric.name != chosen);
        // One class alone among the validation sequences has no area.
        if metrics[0].name != chosen {
            metrics.insert(0, Chosen::of(chosen, f64::NAN));
        }
        Ok(metrics)
    }

    fn data_fingerprint(&self) -> String {
        format!("train {} valid {}", self.train.hash, self.valid.hash)
    }

    fn unit(&self) -> &'static str {
        "bases"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{A, C, G, T};

    #[test]
    fn shifts_bring_in_n() {
        let moved = |by| {
            let mut ids = [A, C, G, T];
            shifted(&mut ids, by);
            ids
        };
        assert_eq!(moved(1), [N, A, C, G]);
        assert_eq!(moved(-2), [G, T, N, N]);
        assert_eq!(moved(0), [A, C, G, T]);
        assert_eq!(moved(9), [N; 4]);
    }

    #[test]
    fn weights_balance_the_classes() {
        assert_eq!(balanced(2, &[0.0, 0.0, 0.0, 1.0]), [4.0 / 6.0, 2.0]);
    }

    #[test]
    fn the_loss_of_classes_by_hand() {
        let logits = Tensor::new(&[[0f64, 3f64.ln()], [0.0, 0.0]], &Device::Cpu).unwrap();
        let loss = |weights: &[f64], smoothing| {
            classes_loss(&logits, &[1.0, 0.0], weights, smoothing).unwrap().to_scalar::<f64>().unwrap()
        };
        let (first, second) = (-(0.75f64.ln()), 2f64.ln());
        assert!((loss(&[1.0, 1.0], 0.0) - (first + second) / 2.0).abs() < 1e-6);
        assert!((loss(&[1.0, 3.0], 0.0) - (3.0 * first + second) / 4.0).abs() < 1e-6);
        let smoothed = -(0.9 * 0.75f64.ln() + 0.1 * 0.25f64.ln());
        assert!((loss(&[1.0, 1.0], 0.2) - (smoothed + second) / 2.0).abs() < 1e-6);
    }
}
