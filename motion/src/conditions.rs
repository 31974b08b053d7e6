//! From clips, and from what is asked for, to what denoisers are told: labels, or the vectors of sentences.

use crate::dataset::{Clip, LabelGroup};
use crate::models::{Condition, ConditionConfig};
use crate::run::Shared;
use crate::text::TextEncoder;
use crate::{Error, Result};
use candle_core::Device;
use mamba_core::Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The text encoder that a training used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSource {
    /// Its folder.
    pub folder: PathBuf,
    /// Its vector of one sentence, by which it is known again.
    pub probe: Vec<f32>,
}

/// The sentence of [`TextSource::probe`].
const PROBE: &str = "a person walks forward";

impl TextSource {
    /// An encoder's.
    pub fn of(folder: &Path, encoder: &TextEncoder) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(Error::read(folder))?;
        Ok(Self { folder, probe: encoder.encode(&[PROBE])?.remove(0) })
    }

    /// The encoder, from its folder or from another one.
    ///
    /// # Errors
    /// A folder that holds none, or another one.
    pub fn open(&self, folder: Option<&Path>, device: &Device) -> Result<TextEncoder> {
        let folder = folder.unwrap_or(&self.folder);
        let encoder = TextEncoder::open(folder, device)?;
        let probe = encoder.encode(&[PROBE])?.remove(0);
        let far = probe.iter().zip(&self.probe).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if probe.len() != self.probe.len() || far > 1e-3 {
            return Err(Error::file(folder, "not the text encoder of the training"));
        }
        Ok(encoder)
    }
}

/// Sentences about a clip: its captions, or what its labels make.
pub fn sentences(clip: &Clip, groups: &[LabelGroup]) -> Vec<String> {
    if !clip.captions.is_empty() {
        return clip.captions.clone();
    }
    of_labels(&clip.labels, groups)
}

/// Sentences that labels make, the plainest first; none of no labels.
fn of_labels(labels: &[Option<usize>], groups: &[LabelGroup]) -> Vec<String> {
    let words = |value: &str| value.replace(['-', '_'], " ");
    let named: Vec<(&str, String)> = groups
        .iter()
        .zip(labels)
        .filter_map(|(group, &id)| Some((group.name.as_str(), words(group.values.get(id?)?))))
        .collect();
    let content: Vec<&str> =
        named.iter().filter(|(name, _)| *name == CONTENT).map(|(_, v)| v.as_str()).collect();
    let others: String = named
        .iter()
        .filter(|(name, _)| *name != CONTENT)
        .map(|(name, value)| format!(", {name} {value}"))
        .collect();
    if named.is_empty() {
        return Vec::new();
    }
    let content = if content.is_empty() { "moving".to_string() } else { content.join(" ") };
    ["", "a person: ", "someone does this: "].map(|start| format!("{start}{content}{others}")).into()
}

/// The group of labels that says what is done.
const CONTENT: &str = "content";

/// What is known of each clip, as denoisers are told.
#[derive(Clone, Debug)]
pub enum ClipConditions {
    /// Labels.
    Labels {
        /// Values of each group.
        sizes: Vec<usize>,
        /// Of each clip.
        rows: Vec<Vec<Option<usize>>>,
    },
    /// Vectors of the sentences about each clip.
    Text {
        /// Channels of a vector.
        dim: usize,
        /// Of each clip.
        rows: Vec<Vec<Vec<f32>>>,
    },
}

/// How often conditions are left out in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropConfig {
    /// Share of motions whose whole condition is dropped, for classifier-free guidance.
    pub condition: f64,
    /// Share of motions of which one label is dropped, so that any may be left open.
    pub label: f64,
}

impl Default for DropConfig {
    fn default() -> Self {
        Self { condition: 0.1, label: 0.1 }
    }
}

impl ClipConditions {
    /// Of clips; by their sentences if there is an encoder.
    ///
    /// # Errors
    /// A sentence that cannot be encoded.
    pub fn new(clips: &[&Clip], groups: &[LabelGroup], encoder: Option<&TextEncoder>) -> Result<Self> {
        let Some(encoder) = encoder else {
            let sizes = groups.iter().map(|group| group.values.len()).collect();
            return Ok(Self::Labels { sizes, rows: clips.iter().map(|clip| clip.labels.clone()).collect() });
        };
        let texts: Vec<Vec<String>> = clips.iter().map(|clip| sentences(clip, groups)).collect();
        let mut vectors: BTreeMap<&str, Vec<f32>> =
            texts.iter().flatten().map(|text| (text.as_str(), Vec::new())).collect();
        let all: Vec<&str> = vectors.keys().copied().collect();
        for (text, vector) in all.iter().zip(encoder.encode(&all)?) {
            vectors.insert(text, vector);
        }
        let rows =
            texts.iter().map(|texts| texts.iter().map(|text| vectors[text.as_str()].clone()).collect());
        Ok(Self::Text { dim: encoder.dim(), rows: rows.collect() })
    }

    /// What a model of them is conditioned on.
    pub fn config(&self) -> ConditionConfig {
        match self {
            Self::Labels { sizes, .. } => ConditionConfig::Labels { sizes: sizes.clone() },
            Self::Text { dim, .. } => ConditionConfig::Text { dim: *dim },
        }
    }

    /// The conditions of some clips; of several sentences one is drawn. `drop` leaves some out.
    pub fn draw(&self, clips: &[usize], drop: Option<DropConfig>, rng: &mut Rng) -> Condition {
        let drop = drop.unwrap_or(DropConfig { condition: 0.0, label: 0.0 });
        match self {
            Self::Labels { rows, .. } => {
                let row = |&clip: &usize| {
                    let mut labels = rows[clip].clone();
                    let (all, one, which) = (rng.uniform(), rng.uniform(), rng.below(labels.len().max(1)));
                    if all < drop.condition {
                        labels.fill(None);
                    } else if one < drop.label && labels.len() > 1 {
                        labels[which] = None;
                    }
                    labels
                };
                Condition::Labels(clips.iter().map(row).collect())
            }
            Self::Text { rows, .. } => {
                let row = |&clip: &usize| {
                    let texts = &rows[clip];
                    let (all, which) = (rng.uniform(), rng.below(texts.len().max(1)));
                    if all < drop.condition { None } else { texts.get(which).cloned() }
                };
                Condition::Text(clips.iter().map(row).collect())
            }
        }
    }
}

/// What a motion is to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// A value or any of each group of labels.
    Labels(Vec<Option<usize>>),
    /// What a sentence says.
    Text(String),
}

/// Turns what is asked of a training's models into conditions.
pub struct Prompts {
    groups: Vec<LabelGroup>,
    encoder: Option<TextEncoder>,
}

impl Prompts {
    /// Those of a training. `text_encoder` is where its text encoder lies now, if it used one.
    pub fn open(shared: &Shared, text_encoder: Option<&Path>, device: &Device) -> Result<Self> {
        let encoder = match (&shared.text, text_encoder) {
            (Some(source), folder) => Some(source.open(folder, device)?),
            (None, Some(_)) => {
                return Err(Error::Motion("the training used no text encoder: it knows labels".into()));
            }
            (None, None) => None,
        };
        Ok(Self { groups: shared.groups.clone(), encoder })
    }

    /// What is known of clips, as the training's models are told.
    pub fn clips(&self, clips: &[&Clip]) -> Result<ClipConditions> {
        ClipConditions::new(clips, &self.groups, self.encoder.as_ref())
    }

    /// One condition for each row.
    ///
    /// # Errors
    /// A text of a training on labels, or one that cannot be encoded.
    pub fn condition(&self, asked: &[&Asked]) -> Result<Condition> {
        let Some(encoder) = &self.encoder else {
            let labels = |asked: &&Asked| match asked {
                Asked::Labels(labels) => Ok(labels.clone()),
                Asked::Text(text) => Err(Error::Motion(format!(
                    "{text:?} is a text, but the training knows labels only; train with --text-encoder"
                ))),
            };
            return Ok(Condition::Labels(asked.iter().map(labels).collect::<Result<_>>()?));
        };
        let text = |asked: &&Asked| match asked {
            Asked::Labels(labels) => of_labels(labels, &self.groups).into_iter().next(),
            Asked::Text(text) => Some(text.clone()),
        };
        let texts: Vec<Option<String>> = asked.iter().map(text).collect();
        let mut known: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for text in texts.iter().flatten() {
            if !known.contains_key(text.as_str()) {
                known.insert(text, encoder.encode(&[text])?.remove(0));
            }
        }
        let vector = |text: &Option<String>| Some(known[text.as_ref()?.as_str()].clone());
        Ok(Condition::Text(texts.iter().map(vector).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<LabelGroup> {
        let group = |name: &str, values: &[&str]| LabelGroup {
            name: name.into(),
            values: values.iter().map(|value| value.to_string()).collect(),
        };
        vec![group("content", &["walk", "wave-left-hand"]), group("style", &["happy", "sad"])]
    }

    #[test]
    fn labels_make_sentences() {
        let texts = |labels: &[Option<usize>]| of_labels(labels, &groups());
        assert_eq!(texts(&[Some(1), Some(0)])[0], "wave left hand, style happy");
        assert_eq!(texts(&[Some(0), None])[1], "a person: walk");
        assert_eq!(texts(&[None, Some(1)])[0], "moving, style sad");
        assert!(texts(&[None, None]).is_empty());
    }

    #[test]
    fn dropped_conditions_are_open_and_others_are_whole() {
        let sizes = vec![2, 2];
        let conditions = ClipConditions::Labels { sizes, rows: vec![vec![Some(1), Some(0)]] };
        let mut rng = Rng::new(0);
        let whole = Condition::Labels(vec![vec![Some(1), Some(0)]]);
        assert!((0..50).all(|_| conditions.draw(&[0], None, &mut rng) == whole));
        let drop = Some(DropConfig { condition: 0.5, label: 0.5 });
        let Condition::Labels(rows) = conditions.draw(&[0; 400], drop, &mut rng) else { unreachable!() };
        let open = |n: usize| rows.iter().filter(|row| row.iter().flatten().count() == n).count();
        assert!((150..250).contains(&open(0)) && (60..140).contains(&open(1)), "{} {}", open(0), open(1));
    }
}
