//! Masked-language-model pre-training of Caduceus on a genome, and what it is measured by.
//!
//! Blocks of the genome are held out for validation and test; training windows lie wholly between them. Held-out
//! windows do not overlap, every chosen base is replaced by `[MASK]`, and which bases are chosen never changes, so that
//! all evaluations, and the count models beside them, score the very same bases.

use crate::config::CaduceusConfig;
use crate::count_model::{CountModels, MAX_CONTEXT, Score};
use crate::error::{Error, Result};
use crate::genome::{Genome, GenomePosition, Interval, Split};
use crate::mask::{MaskConfig, chosen_positions, mask_row};
use crate::model::CaduceusForMaskedLm;
use crate::sampler::{SamplerConfig, WindowSampler, tile};
use candle_core::{D, Device, Tensor};
use mamba_core::Params;
use mamba_core::nn::cross_entropy;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_datasets::Fractions;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that decides a pre-training run, besides the genome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// The model.
    pub model: CaduceusConfig,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Windows and the split.
    pub data: DataConfig,
    /// Training begins with shorter windows; null for none of that.
    #[serde(default)]
    pub length_warmup: Option<LengthWarmup>,
    /// Whether blocks are computed again in the backward pass: less memory, a third more work, the same bits.
    #[serde(default)]
    pub recompute: bool,
}

/// Windows, and what is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Bases in a window.
    pub length: usize,
    /// Share of bases held out for validation.
    pub valid: f64,
    /// Share of bases held out for the test.
    pub test: f64,
    /// Bases in a held-out block; null for 50 kb, or less for a small genome.
    pub block: Option<usize>,
    /// Seed of the split, apart from that of the run: runs of different seeds hold out the same bases.
    pub split_seed: u64,
    /// Windows with a larger share of N are drawn again.
    pub max_n_share: f64,
    /// Validation windows that each evaluation scores at most, spread evenly; null for all. The test takes all.
    pub max_valid_windows: Option<usize>,
}

/// Training windows that double in length until they have [`DataConfig::length`] bases, with as many more of them in a
/// batch while they are shorter: every step sees about the same number of bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthWarmup {
    /// Bases in the first windows.
    pub from: usize,
    /// Steps until windows have their full length.
    pub steps: u64,
}

impl LengthWarmup {
    /// The lengths that windows of finally `full` bases have, one after the other.
    pub fn lengths(&self, full: usize) -> Vec<usize> {
        let mut lengths: Vec<usize> = std::iter::successors(Some(self.from.max(1)), |n| n.checked_mul(2))
            .take_while(|&n| n < full)
            .collect();
        lengths.push(full);
        lengths
    }

    /// Which of the lengths a step has.
    pub fn stage(&self, step: u64, full: usize) -> usize {
        let shorter = self.lengths(full).len() - 1;
        match step >= self.steps {
            true => shorter,
            false => (u128::from(step) * shorter as u128 / u128::from(self.steps)) as usize,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            length: 1024,
            valid: 0.05,
            test: 0.05,
            block: None,
            split_seed: 0,
            max_n_share: 0.5,
            max_valid_windows: Some(128),
        }
    }
}

/// Seed of the held-out masks.
const HELD_OUT_MASK_SEED: u64 = 0;
/// Windows that are scored at once, and the bases in them unless one has more.
const SCORE_BATCH: usize = 8;
const SCORE_BASES: usize = 8 * 1024;

/// A genome split into what is trained on and what is held out.
#[derive(Debug)]
pub struct PretrainData {
    genome: Genome,
    split: Split,
    length: usize,
}

impl PretrainData {
    /// Splits the genome.
    ///
    /// # Errors
    /// A genome too small for its split or its windows.
    pub fn new(genome: Genome, cfg: &DataConfig) -> Result<Self> {
        let held_out = Fractions { valid: cfg.valid, test: cfg.test };
        let split = Split::blocks(&genome, cfg.block, held_out, cfg.split_seed)?;
        Ok(Self { genome, split, length: cfg.length })
    }

    /// The genome.
    pub fn genome(&self) -> &Genome {
        &self.genome
    }

    /// What is held out.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// Non-overlapping windows of held-out intervals; of at most `limit` ones, spread evenly.
    fn windows(&self, intervals: &[Interval], limit: Option<usize>) -> Vec<Interval> {
        let all = tile(intervals, self.length, self.length.min(16));
        match limit {
            Some(limit) if limit < all.len() => (0..limit).map(|i| all[i * all.len() / limit]).collect(),
            _ => all,
        }
    }

    /// Validation windows.
    pub fn valid_windows(&self, limit: Option<usize>) -> Vec<Interval> {
        self.windows(&self.split.valid, limit)
    }

    /// Test windows.
    pub fn test_windows(&self) -> Vec<Interval> {
        self.windows(&self.split.test, None)
    }

    /// Input ids and labels of one held-out window: every chosen base masked, always the same ones.
    fn masked(&self, window: Interval) -> (Vec<u32>, Vec<u32>) {
        let ids = self.genome.ids(window);
        let (mut input_ids, mut labels) = (vec![0; ids.len()], vec![0; ids.len()]);
        let key = (HELD_OUT_MASK_SEED, window.record as u64, window.start0 as u64);
        mask_row(ids, &MaskConfig::EVAL, key, &mut input_ids, &mut labels);
        (input_ids, labels)
    }

    /// The bases that held-out windows are scored on.
    pub fn scored_positions(&self, windows: &[Interval]) -> Vec<GenomePosition> {
        let positions = |&window: &Interval| {
            let labels = self.masked(window).1;
            chosen_positions(window, &labels).collect::<Vec<_>>()
        };
        windows.iter().flat_map(positions).collect()
    }

    /// A model's cross-entropy and accuracy on the chosen bases of held-out windows; `seen` is told after each batch how
    /// many windows are done.
    ///
    /// # Errors
    /// [`Error::NoPositions`] if no base was chosen.
    pub fn score(
        &self,
        model: &CaduceusForMaskedLm,
        pad_token_id: u32,
        windows: &[Interval],
        device: &Device,
        mut seen: impl FnMut(usize),
    ) -> mamba_core::Result<HeldOutScore> {
        let (mut nats, mut right, mut bases, mut done) = (0.0, 0, 0, 0);
        let at_once = (SCORE_BASES / self.length.max(1)).clamp(1, SCORE_BATCH);
        for batch in windows.chunks(at_once) {
            let longest = batch.iter().map(Interval::len).max().unwrap_or(0);
            let lengths: Vec<usize> = batch.iter().map(Interval::len).collect();
            let (mut input_ids, mut labels) = (Vec::new(), Vec::new());
            for &window in batch {
                let (mut ids, mut targets) = self.masked(window);
                ids.resize(longest, pad_token_id);
                targets.resize(longest, pad_token_id);
                input_ids.extend(ids);
                labels.extend(targets);
            }
            let chosen = labels.iter().filter(|&&label| label != pad_token_id).count();
            let shape = (batch.len(), longest);
            let labels = Tensor::from_vec(labels, shape, device)?;
            let logits = model.forward(&Tensor::from_vec(input_ids, shape, device)?, Some(&lengths))?;
            let loss = cross_entropy(&logits, &labels, Some(pad_token_id))?;
            nats += f64::from(loss.to_scalar::<f32>()?) * chosen as f64;
            let likeliest = logits.argmax(D::Minus1)?.flatten_all()?.to_vec1::<u32>()?;
            let labels = labels.flatten_all()?.to_vec1::<u32>()?;
            let hits = likeliest.iter().zip(&labels).filter(|&(a, b)| a == b && *b != pad_token_id).count();
            right += hits;
            bases += chosen;
            done += batch.len();
            seen(done);
        }
        if bases == 0 {
            return Err(mamba_core::Error::other(Error::NoPositions {
                role: "held-out",
                count: windows.len(),
            }));
        }
        let n = bases as f64;
        Ok(HeldOutScore {
            loss: nats / n,
            bits: nats / n / std::f64::consts::LN_2,
            accuracy: right as f64 / n,
            bases,
        })
    }

    /// The best count models by the chosen validation bases, on the chosen bases of the test windows.
    ///
    /// # Errors
    /// No base to choose or to score by.
    pub fn count_models(&self) -> Result<CountModelScores> {
        let valid = self.scored_positions(&self.valid_windows(None));
        let test = self.scored_positions(&self.test_windows());
        let models = CountModels::choose(&self.genome, &self.split.train, &valid, MAX_CONTEXT)?;
        let name = |left: usize, right: usize| format!("{left} left, {right} right");
        Ok(CountModelScores {
            causal: models.causal.bits_per_base(&self.genome, &test)?,
            causal_context: name(models.causal.left(), 0),
            two_sided: models.two_sided.bits_per_base(&self.genome, &test)?,
            two_sided_context: name(models.two_sided.left(), models.two_sided.right()),
        })
    }
}

/// A model's figures on held-out bases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HeldOutScore {
    /// Cross-entropy in nats.
    pub loss: f64,
    /// Cross-entropy in bits per base.
    pub bits: f64,
    /// Share of bases for which the true base was the most likely one.
    pub accuracy: f64,
    /// Bases scored.
    pub bases: usize,
}

/// The best count models on the same bases.
#[derive(Clone, Debug, PartialEq)]
pub struct CountModelScores {
    /// The best one that sees only what stands before a base.
    pub causal: Score,
    /// Its context.
    pub causal_context: String,
    /// The best one that sees both sides.
    pub two_sided: Score,
    /// Its context.
    pub two_sided_context: String,
}

/// Pre-training as the training loop sees it.
pub struct Pretraining<'a> {
    cfg: &'a PretrainConfig,
    data: &'a PretrainData,
    params: Params,
    model: CaduceusForMaskedLm,
    /// One for each length of the warm-up, the last of full length.
    samplers: Vec<WindowSampler>,
    valid: Vec<Interval>,
    prepared: Prepared<MaskedBatch>,
    device: Device,
}

/// Windows of one length, row by row: what the model sees, and what it is asked.
struct MaskedBatch {
    input_ids: Vec<u32>,
    labels: Vec<u32>,
    length: usize,
}

impl<'a> Pretraining<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint.
    ///
    /// # Errors
    /// Settings that make no model, checkpoints that do not fit it, a genome without a training window.
    pub fn new(cfg: &'a PretrainConfig, data: &'a PretrainData, params: Params) -> mamba_core::Result<Self> {
        let other = mamba_core::Error::other;
        let lengths = match &cfg.length_warmup {
            None => vec![cfg.data.length],
            Some(warmup) if warmup.from == 0 || warmup.from > cfg.data.length => {
                return Err(mamba_core::Error::Config(format!(
                    "length_warmup.from is {}: expected 1 to the full length of {}",
                    warmup.from, cfg.data.length
                )));
            }
            Some(warmup) => warmup.lengths(cfg.data.length),
        };
        let sampler = |length: usize| {
            let sampler = SamplerConfig {
                length,
                max_n_share: cfg.data.max_n_share,
                // PS sees both strands at once; Ph learns them by augmentation.
                reverse_complement: !cfg.model.rcps,
            };
            WindowSampler::new(&data.genome, &data.split.train, sampler).map_err(other)
        };
        let samplers = lengths.into_iter().map(sampler).collect::<mamba_core::Result<_>>()?;
        let model = CaduceusForMaskedLm::new(&cfg.model, &params.builder())?.recomputed(cfg.recompute);
        params.check()?;
        let device = params.device().clone();
        let valid = data.valid_windows(cfg.data.max_valid_windows);
        Ok(Self { cfg, data, params, model, samplers, valid, prepared: Prepared::default(), device })
    }

    fn batch(&self, step: u64, micro: usize) -> MaskedBatch {
        let (full, seed) = (self.cfg.data.length, self.cfg.train.seed);
        let stage = self.cfg.length_warmup.map_or(0, |warmup| warmup.stage(step, full));
        let sampler = &self.samplers[stage];
        let length = sampler.length();
        let batch = self.cfg.train.batch_size * (full / length);
        let mut ids = vec![0u8; length];
        let (mut input_ids, mut labels) = (vec![0u32; batch * length], vec![0u32; batch * length]);
        let rows = input_ids.chunks_exact_mut(length).zip(labels.chunks_exact_mut(length));
        for (i, (input_ids, labels)) in rows.enumerate() {
            let row = (micro * batch + i) as u64;
            sampler.sample(&self.data.genome, seed, step, row, &mut ids);
            mask_row(&ids, &MaskConfig::TRAIN, (seed, step, row), input_ids, labels);
        }
        MaskedBatch { input_ids, labels, length }
    }

    /// The model with its present weights.
    pub fn model(&self) -> &CaduceusForMaskedLm {
        &self.model
    }
}

impl Task for Pretraining<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg.model).expect("a config of plain values has a JSON form")
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        self.prepared.put(step, micro, self.batch(step, micro));
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let batch = self.prepared.take(step, micro).unwrap_or_else(|| self.batch(step, micro));
        let (shape, items) = ((batch.input_ids.len() / batch.length, batch.length), batch.input_ids.len());
        let input_ids = Tensor::from_vec(batch.input_ids, shape, &self.device)?;
        let labels = Tensor::from_vec(batch.labels, shape, &self.device)?;
        Ok(StepLoss { loss: self.model.loss(&input_ids, &labels, None)?, items })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let pad = self.cfg.model.pad_token_id;
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), self.params.dtype(), &self.device);
        let model = CaduceusForMaskedLm::new(&self.cfg.model, &frozen.builder())?;
        let score = self.data.score(&model, pad, &self.valid, &self.device, |_| ())?;
        Ok(vec![
            Metric::down("loss", score.loss),
            Metric::down("bits", score.bits),
            Metric::up("accuracy", score.accuracy),
        ])
    }

    /// Of the bases and the settings that decide the split.
    fn data_fingerprint(&self) -> String {
        let mut text = format!("{:?}", self.cfg.data);
        if let Some(warmup) = self.cfg.length_warmup {
            text.push_str(&format!(" {warmup:?}"));
        }
        for record in self.data.genome.records() {
            text.push_str(&format!(" {} {}", record.name, mamba_datasets::job::sha256(&record.ids)));
        }
        mamba_datasets::job::sha256(text.as_bytes())
    }

    fn unit(&self) -> &'static str {
        "bases"
    }
}
