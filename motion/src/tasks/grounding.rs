//! Training of the grounding model, on long motions that are made of parts of clips.

use super::{Motions, TrainingSet};
use crate::Result;
use crate::conditions::ClipConditions;
use crate::dataset::Clip;
use crate::features::Frame;
use crate::grounding::{Example, example, intersection_over_union, stretches};
use crate::models::{Condition, Grounder, GrounderConfig};
use candle_core::{DType, Tensor};
use mamba_core::run_folder::Metric;
use mamba_core::train::{StepLoss, Task, TrainConfig};
use mamba_core::{Params, Rng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of the training beside its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroundingTraining {
    /// Fewest parts of a long motion.
    pub min_parts: usize,
    /// Most parts.
    pub max_parts: usize,
    /// Fewest frames of a part, where the clip has so many.
    pub min_frames: usize,
    /// Most frames of a part.
    pub max_frames: usize,
    /// Share of questions that leave one label open.
    pub drop_label: f64,
}

impl Default for GroundingTraining {
    fn default() -> Self {
        Self { min_parts: 3, max_parts: 6, min_frames: 30, max_frames: 80, drop_label: 0.3 }
    }
}

impl GroundingTraining {
    /// Refuses what makes no training.
    pub fn validate(&self) -> mamba_core::Result<()> {
        let Self { min_parts, max_parts, min_frames, max_frames, drop_label } = *self;
        if min_parts < 1 || min_parts > max_parts || min_frames < 2 || min_frames > max_frames {
            return Err(mamba_core::Error::Config(format!(
                "grounding.training: parts {min_parts} to {max_parts} must rise from 1, frames {min_frames} to {max_frames} from 2"
            )));
        }
        if !(0.0..=1.0).contains(&drop_label) {
            return Err(mamba_core::Error::Config(format!(
                "grounding.training.drop_label is {drop_label}, expected 0 to 1"
            )));
        }
        Ok(())
    }
}

/// What is stored of a grounding model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredGrounder {
    /// The network.
    pub model: GrounderConfig,
    /// Its training.
    pub training: GroundingTraining,
}

/// Training of the grounding model.
pub struct GroundingTask<'a> {
    cfg: StoredGrounder,
    train: &'a TrainConfig,
    set: TrainingSet<'a>,
    conditions: ClipConditions,
    valid_conditions: ClipConditions,
    params: Params,
    grounder: Grounder,
}

impl<'a> GroundingTask<'a> {
    /// A training of `params` on the clips of `set`, and what is known of them.
    pub fn new(
        cfg: StoredGrounder,
        train: &'a TrainConfig,
        set: TrainingSet<'a>,
        [conditions, valid_conditions]: [ClipConditions; 2],
        params: Params,
    ) -> Result<Self> {
        cfg.training.validate()?;
        let grounder = Grounder::new(&cfg.model, &params.builder())?;
        params.check()?;
        Ok(Self { cfg, train, set, conditions, valid_conditions, params, grounder })
    }

    fn examples(
        &self,
        count: usize,
        clips: &[&Clip],
        conditions: &ClipConditions,
        drop_label: bool,
        rng: &mut Rng,
    ) -> Result<Vec<Example>> {
        (0..count).map(|_| example(clips, conditions, &self.cfg.training, drop_label, rng)).collect()
    }
}

/// Examples as tensors.
struct Batch {
    motions: Motions,
    condition: Condition,
    /// `(B, L)`.
    shown: Tensor,
}

impl Batch {
    fn new(examples: &[Example], set: &TrainingSet<'_>, params: &Params) -> Result<Self> {
        let parts: Vec<&[Frame]> = examples.iter().map(|example| &example.frames[..]).collect();
        let motions = Motions::new(&parts, set.standard, params.device())?;
        let l = motions.values.dim(1)?;
        let row = |example: &Example| {
            let mut row: Vec<f32> = example.shown.iter().map(|&shown| f32::from(u8::from(shown))).collect();
            row.resize(l, 0.0);
            row
        };
        let shown: Vec<f32> = examples.iter().flat_map(row).collect();
        let shown = Tensor::from_vec(shown, (examples.len(), l), params.device())?;
        let condition = Condition::concat(examples.iter().map(|example| &example.condition))?;
        Ok(Self { motions, condition, shown })
    }
}

/// Long motions that decide which weights are best.
const SCORED: usize = 48;
/// Long motions of a validation batch.
const SCORE_BATCH: usize = 8;

impl Task for GroundingTask<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let index = step * self.train.accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(self.train.seed, "grounding batch", index);
        let examples =
            self.examples(self.train.batch_size, &self.set.train, &self.conditions, true, &mut rng)?;
        let Batch { motions, condition, shown } = Batch::new(&examples, &self.set, &self.params)?;
        let loss = self.grounder.loss(&motions.values, &motions.lengths, &condition, &shown)?;
        Ok(StepLoss { loss, items: motions.lengths.iter().sum() })
    }

    /// Mean intersection over union on long motions of held-out clips, the same every time.
    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        if self.set.valid.is_empty() {
            return Ok(Vec::new());
        }
        let frozen = Params::frozen(self.params.to_tensors(), DType::F32, self.params.device());
        let grounder = Grounder::new(&self.cfg.model, &frozen.builder())?;
        let mut rng = Rng::stream(0, "grounding valid", 0);
        let examples = self.examples(SCORED, &self.set.valid, &self.valid_conditions, false, &mut rng)?;
        let (mut loss, mut iou) = (0.0, 0.0);
        for examples in examples.chunks(SCORE_BATCH) {
            let Batch { motions, condition, shown } = Batch::new(examples, &self.set, &frozen)?;
            let part = grounder.loss(&motions.values, &motions.lengths, &condition, &shown)?;
            loss += examples.len() as f64 * f64::from(part.to_scalar::<f32>()?);
            let logits = grounder.forward(&motions.values, &motions.lengths, &condition)?;
            let rows = candle_nn::ops::sigmoid(&logits)?.to_vec2::<f32>()?;
            for (row, example) in rows.iter().zip(examples) {
                let mut said = vec![false; example.shown.len()];
                for found in stretches(&row[..said.len()]) {
                    said[found.frames].fill(true);
                }
                iou += intersection_over_union(&said, &example.shown);
            }
        }
        let n = SCORED as f64;
        Ok(vec![Metric::up("mean_iou", iou / n), Metric::down("loss", loss / n)])
    }

    fn data_fingerprint(&self) -> String {
        self.set.fingerprint.clone()
    }

    fn unit(&self) -> &'static str {
        "frames"
    }
}
