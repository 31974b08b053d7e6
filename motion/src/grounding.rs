//! Finding in a long motion what a text or a label says, and how well that goes.

use crate::conditions::{Asked, ClipConditions, Prompts};
use crate::dataset::Clip;
use crate::evaluation::{Figure, Row};
use crate::features::Frame;
use crate::join::join;
use crate::metrics::mean_and_interval;
use crate::models::{Condition, Grounder};
use crate::run::{GROUNDING, Shared, open_model};
use crate::tasks::Motions;
use crate::tasks::grounding::{GroundingTraining, StoredGrounder};
use crate::{Error, Result};
use candle_core::Device;
use mamba_core::Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// A stretch of a motion that shows what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its frames.
    pub frames: Range<usize>,
    /// Mean probability of its frames.
    pub score: f64,
}

/// Frames of a gap that is closed, and of a stretch that is left out.
const SHORTEST: usize = 5;

/// Stretches of frames whose probability is at least one half; gaps of fewer than five frames are closed, and stretches of
/// fewer than five left out.
pub fn stretches(probabilities: &[f32]) -> Vec<Found> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (i, _) in probabilities.iter().enumerate().filter(|&(_, &p)| p >= 0.5) {
        match ranges.last_mut() {
            Some(last) if i - last.end < SHORTEST => last.end = i + 1,
            _ => ranges.push(i..i + 1),
        }
    }
    ranges.retain(|range| range.len() >= SHORTEST);
    let found = |frames: Range<usize>| {
        let sum: f64 = probabilities[frames.clone()].iter().map(|&p| f64::from(p)).sum();
        Found { score: sum / frames.len() as f64, frames }
    };
    ranges.into_iter().map(found).collect()
}

/// Intersection over union of two sets of frames; of two empty ones 1.
pub fn intersection_over_union(a: &[bool], b: &[bool]) -> f64 {
    let count = |f: fn(bool, bool) -> bool| a.iter().zip(b).filter(|&(&a, &b)| f(a, b)).count() as f64;
    let union = count(|a, b| a || b);
    if union == 0.0 { 1.0 } else { count(|a, b| a && b) / union }
}

/// A long motion of parts of clips, and one question to it.
#[derive(Clone, Debug)]
pub struct Example {
    /// The motion.
    pub frames: Vec<Frame>,
    /// Whether each frame shows what is asked for.
    pub shown: Vec<bool>,
    /// What is asked for, one row.
    pub condition: Condition,
}

/// A long motion from random parts of clips. The question is about one of them; parts that it fits too count.
pub fn example(
    clips: &[&Clip],
    conditions: &ClipConditions,
    cfg: &GroundingTraining,
    drop_label: bool,
    rng: &mut Rng,
) -> Result<Example> {
    let n = cfg.min_parts + rng.below(cfg.max_parts - cfg.min_parts + 1);
    let mut parts: Vec<(usize, &[Frame])> = Vec::with_capacity(n);
    for _ in 0..n {
        let which = rng.below(clips.len());
        let frames = &clips[which].frames;
        let length = (cfg.min_frames + rng.below(cfg.max_frames - cfg.min_frames + 1)).min(frames.len());
        let start = rng.below(frames.len() - length + 1);
        parts.push((which, &frames[start..start + length]));
    }
    let frames = join(&parts.iter().map(|(_, part)| *part).collect::<Vec<_>>())?;
    let about = parts[rng.below(parts.len())].0;
    let drop = drop_label.then_some(crate::conditions::DropConfig { condition: 0.0, label: cfg.drop_label });
    let condition = conditions.draw(&[about], drop, rng);
    let fits = |which: usize| match &condition {
        Condition::Labels(rows) => {
            rows[0].iter().zip(&clips[which].labels).all(|(asked, has)| asked.is_none() || asked == has)
        }
        // Captions are of one clip; sentences made of labels fit all clips with these labels.
        Condition::Text(_) => {
            which == about || (clips[about].captions.is_empty() && clips[which].labels == clips[about].labels)
        }
    };
    let shown = parts.iter().flat_map(|&(which, part)| vec![fits(which); part.len()]).collect();
    Ok(Example { frames, shown, condition })
}

/// A grounding model, ready to be asked.
pub struct GroundingModel {
    shared: Shared,
    prompts: Prompts,
    grounder: Grounder,
    stored: StoredGrounder,
    device: Device,
}

impl GroundingModel {
    /// Opens that of a run; `text_encoder` is where the run's text encoder lies now, if it used one.
    pub fn open(dir: &Path, text_encoder: Option<&Path>, device: &Device) -> Result<Self> {
        let shared = Shared::read(dir)?;
        let build = |cfg: &StoredGrounder, pb: &_| Grounder::new(&cfg.model, pb);
        let (stored, grounder) = open_model(&dir.join(GROUNDING), device, build)?;
        let prompts = Prompts::open(&shared, text_encoder, device)?;
        Ok(Self { shared, prompts, grounder, stored, device: device.clone() })
    }

    /// Labels and standardisation.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The probability of each frame's showing what is asked for.
    ///
    /// # Errors
    /// No frames, or what cannot be asked of this run.
    pub fn probabilities(&self, motion: &[Frame], asked: &Asked) -> Result<Vec<f32>> {
        self.probabilities_of(motion, &self.prompts.condition(&[asked])?)
    }

    fn probabilities_of(&self, motion: &[Frame], condition: &Condition) -> Result<Vec<f32>> {
        if motion.is_empty() {
            return Err(Error::Motion("a motion without frames shows nothing".into()));
        }
        let motions = Motions::new(&[motion], &self.shared.standard, &self.device)?;
        let logits = self.grounder.forward(&motions.values, &motions.lengths, condition)?;
        Ok(candle_nn::ops::sigmoid(&logits)?.squeeze(0)?.to_vec1()?)
    }

    /// Where a motion shows what is asked for.
    pub fn ground(&self, motion: &[Frame], asked: &Asked) -> Result<Vec<Found>> {
        Ok(stretches(&self.probabilities(motion, asked)?))
    }

    /// What sentences or labels the clips have, as this model is asked.
    pub fn conditions(&self, clips: &[&Clip]) -> Result<ClipConditions> {
        self.prompts.clips(clips)
    }

    /// Figures over `count` long motions of parts of the clips, which depend on `seed`: mean intersection over union with the
    /// frames that show what is asked for, the share of questions where it is at least 0.5 and 0.7, and for comparison what
    /// saying all frames, and what one stretch of the right length at a random place would get.
    ///
    /// # Errors
    /// No clips.
    pub fn evaluate(&self, clips: &[&Clip], count: usize, seed: u64, mut seen: impl FnMut()) -> Result<Row> {
        if clips.is_empty() {
            return Err(Error::Motion("no clips to ask about".into()));
        }
        let conditions = self.conditions(clips)?;
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for i in 0..count {
            let mut rng = Rng::stream(seed, "grounding", i as u64);
            let Example { frames, shown, condition } =
                example(clips, &conditions, &self.stored.training, false, &mut rng)?;
            let mut said = vec![false; shown.len()];
            for found in stretches(&self.probabilities_of(&frames, &condition)?) {
                said[found.frames].fill(true);
            }
            let iou = intersection_over_union(&said, &shown);
            let length = shown.iter().filter(|&&shown| shown).count();
            let start = rng.below(shown.len() - length + 1);
            let guess: Vec<bool> = (0..shown.len()).map(|i| (start..start + length).contains(&i)).collect();
            let all = vec![true; shown.len()];
            for (name, value) in [
                ("mean_iou", iou),
                ("iou_0.5", f64::from(u8::from(iou >= 0.5))),
                ("iou_0.7", f64::from(u8::from(iou >= 0.7))),
                ("mean_iou_of_all_frames", intersection_over_union(&all, &shown)),
                ("mean_iou_of_a_guess", intersection_over_union(&guess, &shown)),
            ] {
                values.entry(name).or_default().push(value);
            }
            seen();
        }
        let figure =
            |values: Vec<f64>| mean_and_interval(&values).map(|(mean, interval)| Figure { mean, interval });
        Ok(values.into_iter().filter_map(|(name, values)| Some((name, figure(values)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_close_gaps_and_leave_specks_out() {
        let mut p = vec![0.1f32; 40];
        p[3..12].fill(0.9);
        p[14..20].fill(0.7); // a gap of two
        p[30..33].fill(0.99); // too short
        let found = stretches(&p);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].frames, 3..20);
        assert!((found[0].score - (9.0 * 0.9 + 2.0 * 0.1 + 6.0 * 0.7) / 17.0).abs() < 1e-6);
        assert!(stretches(&[0.4; 20]).is_empty() && stretches(&[]).is_empty());
    }

    #[test]
    fn overlap_is_counted_by_hand() {
        let a = [true, true, false, false];
        assert_eq!(intersection_over_union(&a, &[false, true, true, false]), 1.0 / 3.0);
        assert_eq!(intersection_over_union(&a, &[false; 4]), 0.0);
        assert_eq!(intersection_over_union(&[false; 4], &[false; 4]), 1.0);
    }
}
