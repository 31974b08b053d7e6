//! The folder of a training: its runs, and what they share.
//!
//! | path | holds |
//! |---|---|
//! | `motion.json` | labels, text encoder, standardisation, how clips were cut |
//! | `evaluator/`, `vae/`, `denoiser/`, `peer/`, `stream/`, `grounding/` | a run folder of each part that was asked for |

use crate::conditions::{Asked, Prompts, TextSource};
use crate::config::MotionConfig;
use crate::dataset::{LabelGroup, Standard};
use crate::diffusion::{Diffusion, Sampler};
use crate::features::Frame;
use crate::models::{Denoiser, Evaluator, EvaluatorConfig, MotionVae, VaeConfig};
use crate::tasks::{Motions, StoredDenoiser};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use mamba_core::{Params, Rng, checkpoint};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file with what the runs share.
pub const SHARED: &str = "motion.json";
/// Folder of the evaluator.
pub const EVALUATOR: &str = "evaluator";
/// Folder of the VAE.
pub const VAE: &str = "vae";
/// Folder of the denoiser.
pub const DENOISER: &str = "denoiser";
/// Folder of the transformer beside it.
pub const PEER: &str = "peer";
/// Folder of the denoiser of motion itself.
pub const STREAM: &str = "stream";
/// Folder of the grounding model.
pub const GROUNDING: &str = "grounding";

/// What the runs share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Settings of the training.
    pub config: MotionConfig,
    /// Labels.
    pub groups: Vec<LabelGroup>,
    /// The text encoder, if conditions are texts.
    #[serde(default)]
    pub text: Option<TextSource>,
    /// Standardisation of the features.
    pub standard: Standard,
    /// SHA-256 of the clips.
    pub data: String,
}

impl Shared {
    /// Reads `motion.json`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(SHARED);
        let text = std::fs::read(&path).map_err(Error::read(&path))?;
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))
    }

    /// Writes `motion.json`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(SHARED);
        let mut text = serde_json::to_vec(self).map_err(|e| Error::file(&path, e))?;
        text.push(b'\n');
        crate::formats::write_whole(&path, &text)
    }

    /// The labels that a text asks for: values of any groups, separated by `/`, each in the group that has it.
    ///
    /// # Errors
    /// A value that no group has, or a second one of a group.
    pub fn labels(&self, text: &str) -> Result<Vec<Option<usize>>> {
        let mut labels = vec![None; self.groups.len()];
        for value in text.split('/').map(str::trim).filter(|value| !value.is_empty()) {
            // A value may be in two groups: the first that is still open takes it.
            let place = self.groups.iter().enumerate().find_map(|(i, group)| {
                let id = group.values.iter().position(|known| known == value)?;
                labels[i].is_none().then_some((i, id))
            });
            let Some((group, id)) = place else {
                if let Some(group) = self.groups.iter().find(|group| group.values.iter().any(|v| v == value))
                {
                    let message =
                        format!("{text:?} asks for more than one {}, the last is {value:?}", group.name);
                    return Err(Error::Motion(message));
                }
                let known = self.groups.iter().map(|g| format!("{}: {}", g.name, g.values.join(", ")));
                let known = known.collect::<Vec<_>>().join("; ");
                return Err(Error::Motion(format!("no label is called {value:?}; there are {known}")));
            };
            labels[group] = Some(id);
        }
        Ok(labels)
    }

    /// The names of labels, separated by `/`.
    pub fn name(&self, labels: &[Option<usize>]) -> String {
        let names = self.groups.iter().zip(labels).filter_map(|(group, id)| group.values.get((*id)?));
        names.cloned().collect::<Vec<_>>().join("/")
    }
}

/// A folder's config and its weights for inference; `build` makes the model.
pub fn open_model<C: DeserializeOwned, M>(
    dir: &Path,
    device: &Device,
    build: impl FnOnce(&C, &mamba_core::ParamBuilder) -> candle_core::Result<M>,
) -> Result<(C, M)> {
    let loaded = checkpoint::load_dir(dir)?;
    let cfg: C = loaded.parse_config().map_err(|e| Error::file(dir, e))?;
    let params = Params::frozen(loaded.tensors, DType::F32, device);
    let model = build(&cfg, &params.builder()).map_err(|e| Error::file(dir, e))?;
    params.check().map_err(|e| Error::file(dir, e))?;
    Ok((cfg, model))
}

/// The longest motion that a run's VAE knows, in frames; none without a VAE.
///
/// # Errors
/// A config that is none.
pub fn longest_of_latents(dir: &Path) -> Result<Option<usize>> {
    let path = dir.join(VAE).join(checkpoint::CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::formats::read_text(&path)?;
    let cfg: VaeConfig = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
    Ok(Some(cfg.max_frames))
}

/// The evaluator of a run.
pub fn open_evaluator(dir: &Path, device: &Device) -> Result<(EvaluatorConfig, Evaluator)> {
    open_model(&dir.join(EVALUATOR), device, Evaluator::new)
}

/// One motion to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it is to be.
    pub asked: Asked,
    /// Frames at 20 a second.
    pub frames: usize,
}

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// Scale of the classifier-free guidance; 1 for none.
    pub guidance: f64,
    /// Steps taken, see [`respaced`](crate::diffusion::respaced).
    pub respacing: String,
    /// DDPM or DDIM.
    pub sampler: Sampler,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { guidance: 2.0, respacing: "50".into(), sampler: Sampler::Ddim { eta: 0.0 }, seed: 0 }
    }
}

/// A VAE and a denoiser, ready to generate.
pub struct Generator {
    shared: Shared,
    prompts: Prompts,
    vae: MotionVae,
    denoiser: Denoiser,
    stored: StoredDenoiser,
    device: Device,
    dir: PathBuf,
}

/// Motions that are generated at once.
const BATCH: usize = 32;

impl Generator {
    /// Opens a run; `network` is [`DENOISER`] or [`PEER`], `text_encoder` where the run's text encoder lies now, if it used
    /// one.
    pub fn open(dir: &Path, network: &str, text_encoder: Option<&Path>, device: &Device) -> Result<Self> {
        let shared = Shared::read(dir)?;
        let prompts = Prompts::open(&shared, text_encoder, device)?;
        let (_, vae) = open_model(&dir.join(VAE), device, MotionVae::new)?;
        let (stored, denoiser) =
            open_model(&dir.join(network), device, |cfg: &StoredDenoiser, pb| Denoiser::new(&cfg.model, pb))?;
        Ok(Self { shared, prompts, vae, denoiser, stored, device: device.clone(), dir: dir.to_owned() })
    }

    /// Labels and standardisation.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Most frames of a motion.
    pub fn max_frames(&self) -> usize {
        self.vae.config().max_frames
    }

    /// Motions for requests, as features. The same request, place in the list and seed give the same motion, up to
    /// rounding, whatever else is asked for. `go_on` is asked after each batch; if it says no, the first motions are all.
    pub fn generate(
        &self,
        requests: &[Request],
        options: &SampleOptions,
        go_on: impl Fn() -> bool,
    ) -> Result<Vec<Vec<Frame>>> {
        let most = self.max_frames();
        if let Some(request) = requests.iter().find(|request| !(2..=most).contains(&request.frames)) {
            let (frames, dir) = (request.frames, self.dir.display());
            return Err(Error::Motion(format!("{frames} frames asked of {dir}, which makes 2 to {most}")));
        }
        let diffusion = Diffusion::new(&self.stored.training.diffusion, &options.respacing)?;
        let mut motions = Vec::with_capacity(requests.len());
        for (i, batch) in requests.chunks(BATCH).enumerate() {
            motions.extend(self.batch(batch, i * BATCH, options, &diffusion)?);
            if !go_on() {
                break;
            }
        }
        Ok(motions)
    }

    fn batch(
        &self,
        requests: &[Request],
        first: usize,
        options: &SampleOptions,
        diffusion: &Diffusion,
    ) -> Result<Vec<Vec<Frame>>> {
        let (tokens, d) = (self.stored.model.latent_tokens, self.stored.model.latent_dim);
        // Each motion has its own noise, so that its neighbours in the batch do not matter.
        let noise = |name: &str| -> candle_core::Result<Tensor> {
            let rows = (0..requests.len()).map(|i| {
                let mut rng = Rng::stream(options.seed, name, (first + i) as u64);
                rng.normal_tensor((1, tokens, d), 0.0, 1.0, DType::F32, &self.device)
            });
            Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let asked: Vec<&Asked> = requests.iter().map(|request| &request.asked).collect();
        let condition = self.prompts.condition(&asked)?;
        let lengths: Vec<usize> = requests.iter().map(|request| request.frames).collect();
        let z = diffusion.sample(
            options.sampler,
            noise("start")?,
            None,
            |z, steps| self.denoiser.guided(z, steps, &condition, &lengths, options.guidance),
            |step, like| match options.sampler {
                Sampler::Ddim { eta: 0.0 } => like.zeros_like(),
                _ => noise(&format!("step {step}")),
            },
        )?;
        let decoded = self.vae.decode(&(z / self.stored.latent_scale)?, &lengths, None)?; // (B, L, 263)
        let rows = lengths.iter().enumerate().map(|(i, &n)| {
            let values = decoded.get(i)?.narrow(0, 0, n)?.flatten_all()?.to_vec1::<f32>()?;
            self.shared.standard.inverse(&values)
        });
        rows.collect()
    }

    /// What the VAE makes of motions: encoded to the mean and decoded.
    pub fn reconstruct(&self, motions: &[&[Frame]]) -> Result<Vec<Vec<Frame>>> {
        let mut decoded = Vec::new();
        for batch in motions.chunks(BATCH) {
            let batch = Motions::new(batch, &self.shared.standard, &self.device)?;
            let latent = self.vae.encode(&batch.values, &batch.lengths, None)?;
            let values = self.vae.decode(&latent.mean, &batch.lengths, None)?;
            for (i, &n) in batch.lengths.iter().enumerate() {
                let values = values.get(i)?.narrow(0, 0, n)?.flatten_all()?.to_vec1::<f32>()?;
                decoded.push(self.shared.standard.inverse(&values)?);
            }
        }
        Ok(decoded)
    }
}

/// Points of motions of equal length in the evaluator's space.
pub fn embed_motions(
    evaluator: &Evaluator,
    motions: &[&[Frame]],
    standard: &Standard,
    device: &Device,
) -> Result<Vec<Vec<f64>>> {
    let mut points = Vec::with_capacity(motions.len());
    for batch in motions.chunks(BATCH) {
        let batch = Motions::new(batch, standard, device)?;
        let rows = evaluator.embed_motions(&batch.values, &batch.lengths)?.to_dtype(DType::F64)?;
        points.extend(rows.to_vec2::<f64>()?);
    }
    Ok(points)
}
