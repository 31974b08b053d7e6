//! Training and prediction.

use super::metrics::measure;
use super::model::{Mamba4Kt, Mamba4KtConfig, START, interaction};
use super::{AnswerLog, Student};
use crate::ItemMap;
use candle_core::{DType, Device, Tensor};
use mamba_core::nn::widen;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_core::{Params, Result, Rng};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Everything that decides a training run, besides the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtConfig {
    /// The model.
    pub model: Mamba4KtConfig,
    /// Optimizer and schedule; `batch_size` counts students.
    pub train: TrainConfig,
}

impl KtConfig {
    /// Refuses settings that make no run.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.train.validate()
    }
}

/// Answers, divided by students.
#[derive(Clone, Debug)]
pub struct KtData {
    /// The skills of the training answers.
    pub skills: ItemMap,
    /// Trained on.
    pub train: Vec<Student>,
    /// Asked for while training.
    pub valid: Vec<Student>,
    /// Asked for in the end.
    pub test: Vec<Student>,
}

impl KtData {
    /// Numbers the skills of three logs; those that are not trained on are unknown.
    pub fn new(train: &AnswerLog, valid: &AnswerLog, test: &AnswerLog) -> Self {
        let skills = train.skills();
        let [train, valid, test] = [train, valid, test].map(|log| log.numbered(&skills));
        Self { skills, train, valid, test }
    }

    /// Rows of the skill table: skills and the unknown one.
    pub fn n_skills(&self) -> usize {
        self.skills.n_items()
    }

    /// Training answers of each skill; place 0 is the unknown one.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.n_skills()];
        self.train.iter().flat_map(|s| &s.skills).for_each(|&skill| counts[skill as usize] += 1);
        counts
    }
}

/// Students back to back.
struct Packed {
    interactions: Vec<u32>,
    skills: Vec<u32>,
    right: Vec<f32>,
    cu_seqlens: Vec<usize>,
}

impl Packed {
    /// At each place the answers before it, and the question that is answered there.
    fn new<'a>(students: impl Iterator<Item = &'a Student>) -> Self {
        let (mut interactions, mut skills, mut right) = (Vec::new(), Vec::new(), Vec::new());
        let mut cu_seqlens = vec![0];
        for student in students {
            let answers = student.skills.iter().zip(&student.right);
            let before = answers.map(|(&skill, &right)| interaction(skill, right));
            interactions.extend(std::iter::once(START).chain(before).take(student.skills.len()));
            skills.extend(&student.skills);
            right.extend(student.right.iter().map(|&right| f32::from(u8::from(right))));
            cu_seqlens.push(skills.len());
        }
        Self { interactions, skills, right, cu_seqlens }
    }

    /// Log odds of right answers, `(L)`.
    fn forward(
        &self,
        model: &Mamba4Kt,
        device: &Device,
        rng: Option<&mut Rng>,
    ) -> candle_core::Result<Tensor> {
        let row = |ids: &[u32]| Tensor::new(ids, device)?.unsqueeze(0); // (1, L)
        let segments = Segments::packed(&self.cu_seqlens)?;
        model.forward(&row(&self.interactions)?, &row(&self.skills)?, &segments, rng)
    }
}

/// Mean of `-ln p(answer)` over log odds `z` `(L)` and answers 0 or 1: `softplus(z) - right·z`, which no size overflows.
pub fn bce_loss(z: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
    let softplus = (z.relu()? + (z.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    (softplus - z * right)?.mean_all()
}

/// Answers that are predicted at once.
const BATCH_ANSWERS: usize = 1 << 14;

/// The probability of a right answer at every question of every student, each from the answers before it; `seen` is told
/// after each batch how many students are done.
///
/// # Errors
/// Those of the model.
pub fn predict(
    model: &Mamba4Kt,
    students: &[Student],
    device: &Device,
    mut seen: impl FnMut(usize),
) -> candle_core::Result<Vec<Vec<f32>>> {
    let mut results = Vec::with_capacity(students.len());
    let mut rest = students;
    while !rest.is_empty() {
        let mut answers = 0;
        let fits = rest.iter().take_while(|student| {
            answers += student.skills.len();
            answers <= BATCH_ANSWERS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let packed = Packed::new(batch.iter());
        let log_odds = packed.forward(model, device, None)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        results.extend(packed.cu_seqlens.windows(2).map(|ends| -> Vec<f32> {
            log_odds[ends[0]..ends[1]].iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect()
        }));
        seen(results.len());
    }
    Ok(results)
}

/// A run.
pub struct KtTraining<'a> {
    cfg: &'a KtConfig,
    data: &'a KtData,
    params: Params,
    model: Mamba4Kt,
    prepared: Prepared<Packed>,
    device: Device,
}

impl<'a> KtTraining<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint.
    ///
    /// # Errors
    /// Settings that make no model, or a checkpoint that does not fit it.
    pub fn new(cfg: &'a KtConfig, data: &'a KtData, params: Params) -> Result<Self> {
        let model = Mamba4Kt::new(&cfg.model, data.n_skills(), &params.builder())?;
        params.check()?;
        let device = params.device().clone();
        Ok(Self { cfg, data, params, model, prepared: Prepared::default(), device })
    }

    /// The students of a micro-batch, counted over all steps.
    fn batch(&self, index: u64) -> Packed {
        let train = &self.cfg.train;
        let steps = Self::steps_per_epoch(self.data, train.batch_size);
        let order = Rng::stream(train.seed, "order", index / steps).permutation(self.data.train.len());
        let from = (index % steps) as usize * train.batch_size;
        let chosen = &order[from..(from + train.batch_size).min(order.len())];
        Packed::new(chosen.iter().map(|&student| &self.data.train[student]))
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(data: &KtData, batch_size: usize) -> u64 {
        data.train.len().div_ceil(batch_size.max(1)) as u64
    }
}

impl Task for KtTraining<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        json!({ "n_skills": self.data.n_skills(), "model": self.cfg.model })
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        let index = step * self.cfg.train.accumulate as u64 + micro as u64;
        self.prepared.put(step, micro, self.batch(index));
    }

    fn train_step(&mut self, step: u64, micro: usize) -> Result<StepLoss> {
        let index = step * self.cfg.train.accumulate as u64 + micro as u64;
        let packed = self.prepared.take(step, micro).unwrap_or_else(|| self.batch(index));
        let mut rng = Rng::stream(self.cfg.train.seed, "dropout", index);
        let log_odds = widen(&packed.forward(&self.model, &self.device, Some(&mut rng))?)?; // (L)
        let right = Tensor::new(&packed.right[..], &self.device)?.to_dtype(log_odds.dtype())?;
        Ok(StepLoss { loss: bce_loss(&log_odds, &right)?, items: packed.right.len() })
    }

    fn evaluate(&mut self) -> Result<Vec<Metric>> {
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), self.params.dtype(), &self.device);
        let model = Mamba4Kt::new(&self.cfg.model, self.data.n_skills(), &frozen.builder())?;
        let scores = predict(&model, &self.data.valid, &self.device, |_| ())?.concat();
        let right: Vec<bool> = self.data.valid.iter().flat_map(|s| &s.right).copied().collect();
        let figures = measure(&scores, &right);
        Ok(vec![Metric::up("auc", figures.auc), Metric::up("accuracy", figures.accuracy)])
    }

    fn data_fingerprint(&self) -> String {
        let KtData { train, valid, .. } = self.data;
        mamba_datasets::job::sha256(format!("{train:?} {valid:?}").as_bytes())
    }

    fn unit(&self) -> &'static str {
        "answers"
    }
}
