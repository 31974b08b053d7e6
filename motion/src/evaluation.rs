//! Generated motions against held-out ones, repeated with new noise.

use crate::conditions::Asked;
use crate::dataset::{Clip, MotionData, Role};
use crate::features::{Frame, to_poses};
use crate::metrics::{self, mean_and_interval};
use crate::models::Evaluator;
use crate::run::{Generator, Request, SampleOptions, Shared, embed_motions};
use crate::stream::{Piece, StreamGenerator};
use crate::{Error, Result};
use candle_core::{DType, Device};
use mamba_core::Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// A figure over repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its mean.
    pub mean: f64,
    /// Half of its 95 % confidence interval.
    pub interval: f64,
}

/// Figures of a kind of motions, by name.
pub type Row = BTreeMap<&'static str, Figure>;

/// Names of the figures, in the order in which people read them.
pub const FIGURES: [&str; 11] = [
    "fid",
    "r_precision_1",
    "r_precision_2",
    "r_precision_3",
    "matching",
    "diversity",
    "multimodality",
    "foot_skating",
    "jerk",
    "bone_error",
    "floor_penetration",
];

/// The windows that motions are compared on.
pub struct Comparison<'a> {
    evaluator: &'a Evaluator,
    shared: &'a Shared,
    device: &'a Device,
    /// The held-out windows, and the combination of labels of each.
    windows: Vec<(&'a [Frame], usize)>,
    /// Windows of training clips by combination.
    training: BTreeMap<usize, Vec<&'a [Frame]>>,
    labels: Vec<metrics::Point>,
    held_out: Vec<metrics::Point>,
    /// What the windows were cut from.
    pub role: Role,
}

impl<'a> Comparison<'a> {
    /// Non-overlapping windows of the test clips; without any of sufficient length, of the training clips.
    ///
    /// # Errors
    /// No clip as long as a window.
    pub fn new(
        data: &'a MotionData,
        shared: &'a Shared,
        evaluator: &'a Evaluator,
        device: &'a Device,
    ) -> Result<Self> {
        let window = evaluator.config().window;
        let cut = |role: Role| -> Vec<(&'a [Frame], usize)> {
            let combination = |clip: &Clip| {
                let labels: Option<Vec<usize>> = clip.labels.iter().copied().collect();
                evaluator.config().combinations.iter().position(|known| Some(known) == labels.as_ref())
            };
            let clips = data.clips.iter().filter(|clip| clip.role == role && !clip.name.ends_with('~'));
            let labelled = clips.filter_map(|clip| Some((clip, combination(clip)?)));
            labelled.flat_map(|(clip, c)| clip.frames.chunks_exact(window).map(move |w| (w, c))).collect()
        };
        let mut training: BTreeMap<usize, Vec<&[Frame]>> = BTreeMap::new();
        for (frames, combination) in cut(Role::Train) {
            training.entry(combination).or_default().push(frames);
        }
        let (windows, role) = match cut(Role::Test) {
            none if none.is_empty() => (cut(Role::Train), Role::Train),
            windows => (windows, Role::Test),
        };
        if windows.len() < 2 {
            return Err(Error::Motion(format!(
                "{} windows of {window} frames, expected at least 2",
                windows.len()
            )));
        }
        let rows = evaluator.embed_labels(&evaluator.config().combinations)?;
        let labels = rows.to_dtype(DType::F64)?.to_vec2()?;
        let frames: Vec<&[Frame]> = windows.iter().map(|(frames, _)| *frames).collect();
        let held_out = embed_motions(evaluator, &frames, &shared.standard, device)?;
        Ok(Self { evaluator, shared, device, windows, training, labels, held_out, role })
    }

    /// Windows that are compared.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there are none; there always are some.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The held-out windows themselves: FID 0 by definition, and the best that retrieval can do.
    pub fn held_out(&self, repetitions: u64) -> Result<Row> {
        let motions: Vec<Vec<Frame>> = self.windows.iter().map(|(frames, _)| frames.to_vec()).collect();
        self.row(repetitions, |_| Ok(motions.clone()))
    }

    /// Windows of training clips with the same labels, drawn anew each time: how far real motions are from each other.
    pub fn training(&self, repetitions: u64) -> Result<Row> {
        self.row(repetitions, |repetition| {
            let mut rng = Rng::stream(repetition, "training windows", 0);
            let draw = |(own, combination): &(&[Frame], usize)| match self.training.get(combination) {
                Some(windows) => windows[rng.below(windows.len())].to_vec(),
                None => own.to_vec(),
            };
            Ok(self.windows.iter().map(draw).collect())
        })
    }

    /// What the VAE leaves of the held-out windows.
    pub fn reconstructed(&self, generator: &Generator) -> Result<Row> {
        let frames: Vec<&[Frame]> = self.windows.iter().map(|(frames, _)| *frames).collect();
        let motions = generator.reconstruct(&frames)?;
        self.row(1, |_| Ok(motions.clone()))
    }

    /// Motions generated for the labels of the held-out windows.
    pub fn generated(
        &self,
        generator: &Generator,
        options: &SampleOptions,
        repetitions: u64,
        mut seen: impl FnMut(),
    ) -> Result<Row> {
        let request = |(frames, combination): &(&[Frame], usize)| {
            let labels = self.evaluator.config().combinations[*combination].iter().map(|&label| Some(label));
            Request { asked: Asked::Labels(labels.collect()), frames: frames.len() }
        };
        let requests: Vec<Request> = self.windows.iter().map(request).collect();
        self.row(repetitions, |repetition| {
            let seed = options.seed.wrapping_add(repetition);
            let motions = generator.generate(&requests, &SampleOptions { seed, ..options.clone() }, || true);
            seen();
            motions
        })
    }

    /// The same by a denoiser of motion itself.
    pub fn streamed(
        &self,
        generator: &StreamGenerator,
        options: &SampleOptions,
        repetitions: u64,
        mut seen: impl FnMut(),
    ) -> Result<Row> {
        let combinations = &self.evaluator.config().combinations;
        self.row(repetitions, |repetition| {
            let mut motions: Vec<Vec<Frame>> = vec![Vec::new(); self.windows.len()];
            // Windows of one kind are made at once.
            for (kind, labels) in combinations.iter().enumerate() {
                let places: Vec<usize> =
                    (0..self.windows.len()).filter(|&i| self.windows[i].1 == kind).collect();
                if places.is_empty() {
                    continue;
                }
                let asked = Asked::Labels(labels.iter().map(|&label| Some(label)).collect());
                let piece = Piece::Make { asked, frames: self.evaluator.config().window };
                let seed = Rng::stream(options.seed.wrapping_add(repetition), "kind", kind as u64).next_u64();
                let options = SampleOptions { seed, ..options.clone() };
                let made =
                    generator.generate(&[piece], places.len(), &options, |_| true)?.unwrap_or_default();
                places.into_iter().zip(made).for_each(|(i, made)| motions[i] = made);
            }
            seen();
            Ok(motions)
        })
    }

    fn row(&self, repetitions: u64, mut motions: impl FnMut(u64) -> Result<Vec<Vec<Frame>>>) -> Result<Row> {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for repetition in 0..repetitions {
            for (name, value) in self.figures(&motions(repetition)?, repetition)? {
                values.entry(name).or_default().push(value);
            }
        }
        let figure =
            |values: Vec<f64>| mean_and_interval(&values).map(|(mean, interval)| Figure { mean, interval });
        Ok(values.into_iter().filter_map(|(name, values)| Some((name, figure(values)?))).collect())
    }

    fn figures(&self, motions: &[Vec<Frame>], repetition: u64) -> Result<Vec<(&'static str, f64)>> {
        let frames: Vec<&[Frame]> = motions.iter().map(Vec::as_slice).collect();
        let points = embed_motions(self.evaluator, &frames, &self.shared.standard, self.device)?;
        let kinds: Vec<usize> = self.windows.iter().map(|(_, kind)| *kind).collect();
        let mut rng = Rng::stream(repetition, "metrics", 0);
        let retrieval = metrics::retrieval(&points, &self.labels, &kinds, &mut rng);
        let poses: Vec<_> = motions.iter().map(|motion| to_poses(motion)).collect();
        let physical = |f: fn(&[crate::skeleton::Pose]) -> f64| {
            metrics::mean(&poses.iter().map(|poses| f(poses)).collect::<Vec<_>>())
        };
        let [p1, p2, p3] = retrieval.precision;
        let all = [
            ("fid", Some(metrics::frechet_distance(&points, &self.held_out))),
            ("r_precision_1", Some(p1)),
            ("r_precision_2", Some(p2)),
            ("r_precision_3", Some(p3)),
            ("matching", Some(retrieval.matching)),
            ("diversity", metrics::diversity(&points, &mut rng)),
            ("multimodality", metrics::multimodality(&points, &kinds)),
            ("foot_skating", physical(metrics::foot_skating)),
            ("jerk", physical(metrics::jerk)),
            ("bone_error", physical(metrics::bone_error)),
            ("floor_penetration", physical(metrics::floor_penetration)),
        ];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }
}
