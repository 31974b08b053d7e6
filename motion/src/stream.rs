//! Motion of any length, made chunk by chunk: from nothing, continuing a clip, between clips, in the gaps of a clip.

use crate::conditions::{Asked, Prompts};
use crate::diffusion::{Diffusion, Sampler};
use crate::features::{Frame, N_FEATURES};
use crate::models::stream::Frames;
use crate::models::{Condition, StreamDenoiser, StreamState};
use crate::quaternion::{rotate, sub};
use crate::run::{STREAM, SampleOptions, Shared, open_model};
use crate::tasks::stream::{ENDING, StoredStream};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use mamba_core::Rng;
use std::f64::consts::PI;
use std::path::Path;

/// A piece of a motion.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Frames that stay exactly as they are.
    Keep(Vec<Frame>),
    /// Frames to make.
    Make {
        /// What they are to be.
        asked: Asked,
        /// How many.
        frames: usize,
    },
}

impl Piece {
    /// Its frames.
    pub fn len(&self) -> usize {
        match self {
            Self::Keep(frames) => frames.len(),
            Self::Make { frames, .. } => *frames,
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A denoiser of motion, ready to generate.
pub struct StreamGenerator {
    shared: Shared,
    prompts: Prompts,
    denoiser: StreamDenoiser,
    stored: StoredStream,
    device: Device,
}

impl StreamGenerator {
    /// Opens that of a run; `text_encoder` is where the run's text encoder lies now, if it used one.
    pub fn open(dir: &Path, text_encoder: Option<&Path>, device: &Device) -> Result<Self> {
        let shared = Shared::read(dir)?;
        let build = |cfg: &StoredStream, pb: &_| StreamDenoiser::new(&cfg.model, pb);
        let (stored, denoiser) = open_model(&dir.join(STREAM), device, build)?;
        let prompts = Prompts::open(&shared, text_encoder, device)?;
        Ok(Self { shared, prompts, denoiser, stored, device: device.clone() })
    }

    /// Labels and standardisation.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Most frames of a chunk.
    pub fn chunk(&self) -> usize {
        self.stored.training.chunk
    }

    /// A motion from its beginning, `count` times with different noise.
    ///
    /// # Errors
    /// A respacing that is none.
    pub fn start(&self, count: usize, options: &SampleOptions) -> Result<MotionStream<'_>> {
        let diffusion = Diffusion::new(&self.stored.training.diffusion, &options.respacing)?;
        let (state, options) = (StreamState::default(), options.clone());
        Ok(MotionStream { generator: self, diffusion, options, count, state, chunks: 0 })
    }

    /// Motions of pieces in a row, `count` times with different noise. What is made before kept frames leads to them. `seen`
    /// is told after each chunk how many frames are there, and says whether to go on; none if it says no.
    ///
    /// # Errors
    /// No pieces, one to make without frames, or what cannot be asked of this run.
    pub fn generate(
        &self,
        pieces: &[Piece],
        count: usize,
        options: &SampleOptions,
        mut seen: impl FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Vec<Frame>>>> {
        let idle = |piece: &Piece| matches!(piece, Piece::Make { frames: 0, .. });
        if pieces.iter().all(Piece::is_empty) || pieces.iter().any(idle) || count == 0 {
            return Err(Error::Motion("a motion needs frames to keep or to make".into()));
        }
        let mut stream = self.start(count, options)?;
        let mut motions: Vec<Vec<Frame>> = vec![Vec::new(); count];
        // How many of the next kept frames the stream has already taken in.
        let mut taken = 0;
        for (i, piece) in pieces.iter().enumerate() {
            match piece {
                Piece::Keep(frames) => {
                    stream.keep(&frames[taken..])?;
                    motions.iter_mut().for_each(|motion| motion.extend(frames));
                    taken = 0;
                }
                Piece::Make { asked, frames } => {
                    let condition = self.prompts.condition(&vec![asked; count])?;
                    let ending: &[Frame] = match pieces.get(i + 1) {
                        Some(Piece::Keep(next)) => &next[..next.len().min(ENDING).min(self.chunk() / 2)],
                        _ => &[],
                    };
                    taken = ending.len();
                    let chunks = self.chunks(*frames, ending);
                    let last = chunks.len() - 1;
                    for (n, (chunk, ending)) in chunks.into_iter().enumerate() {
                        let made = stream.make(&condition, chunk, ending)?;
                        motions.iter_mut().zip(made).for_each(|(motion, made)| motion.extend(made));
                        let whole = i + 1 == pieces.len() && n == last;
                        if !seen(motions[0].len()) && !whole {
                            return Ok(None);
                        }
                    }
                }
            }
        }
        Ok(Some(motions))
    }

    /// Chunks of about equal length for so many frames, of which the last leads to `ending`.
    fn chunks<'a>(&self, frames: usize, ending: &'a [Frame]) -> Vec<(usize, &'a [Frame])> {
        let n = (frames + ending.len()).div_ceil(self.chunk()).max(1);
        let total = frames + ending.len();
        let bounds: Vec<usize> = (0..=n).map(|i| (i * total / n).min(frames)).collect();
        let mut chunks: Vec<(usize, &[Frame])> =
            bounds.windows(2).map(|pair| (pair[1] - pair[0], &ending[..0])).collect();
        if let Some(last) = chunks.last_mut() {
            last.1 = ending;
        }
        chunks
    }
}

/// Motions in the making.
pub struct MotionStream<'a> {
    generator: &'a StreamGenerator,
    diffusion: Diffusion,
    options: SampleOptions,
    count: usize,
    state: StreamState,
    /// Chunks made.
    chunks: u64,
}

impl MotionStream<'_> {
    /// Takes in frames as they are, the same for every motion.
    pub fn keep(&mut self, frames: &[Frame]) -> Result<()> {
        for chunk in frames.chunks(self.generator.chunk()) {
            let values = self.rows(chunk)?;
            self.generator.denoiser.remember(&values, &mut self.state)?;
        }
        Ok(())
    }

    /// Goes on with the noise that would follow after so many chunks more.
    pub fn skip_noise(&mut self, chunks: u64) {
        self.chunks += chunks;
    }

    /// The next frames of every motion; with `ending`, they lead to those frames, which are taken in too but not returned.
    ///
    /// # Errors
    /// A condition that is not the model's, or not one for each motion.
    pub fn make(
        &mut self,
        condition: &Condition,
        frames: usize,
        ending: &[Frame],
    ) -> Result<Vec<Vec<Frame>>> {
        let Self { generator, diffusion, options, count, state, chunks } = self;
        let StreamGenerator { denoiser, device, shared, .. } = *generator;
        let (n, l) = (*count, frames + ending.len());
        // Each motion has its own noise, so that its neighbours do not matter.
        let noise = |name: &str| -> candle_core::Result<Tensor> {
            let rows = (0..n).map(|row| {
                let mut rng = Rng::stream(options.seed, &format!("chunk {chunks} {name}"), row as u64);
                rng.normal_tensor((1, l, N_FEATURES), 0.0, 1.0, DType::F32, device)
            });
            Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let is_given = (0..n * l).map(|i| if i % l < frames { 0f32 } else { 1.0 });
        let given = Tensor::from_iter(is_given, device)?.reshape((n, l, 1))?;
        let free = given.affine(-1.0, 1.0)?;
        let mut kept = vec![0f32; frames * N_FEATURES];
        kept.extend(shared.standard.forward(ending));
        let kept = Tensor::from_vec(kept, (1, l, N_FEATURES), device)?.repeat((n, 1, 1))?;
        let settle = |x: &Tensor| x.broadcast_mul(&free)? + &kept;
        let values = diffusion.sample(
            options.sampler,
            noise("start")?,
            None,
            |x, steps| {
                let frames = Frames::chunk(settle(x)?, given.clone())?;
                denoiser.guided(&frames, steps, condition, state, options.guidance)
            },
            |step, like| match options.sampler {
                Sampler::Ddim { eta: 0.0 } => like.zeros_like(),
                _ => noise(&format!("step {step}")),
            },
        )?;
        let values = settle(&values)?;
        denoiser.remember(&values, state)?;
        *chunks += 1;
        let motion = |row: usize| {
            let values = values.get(row)?.narrow(0, 0, frames)?.flatten_all()?.to_vec1::<f32>()?;
            shared.standard.inverse(&values)
        };
        (0..n).map(motion).collect()
    }

    /// Standardised frames, once for every motion.
    fn rows(&self, frames: &[Frame]) -> Result<Tensor> {
        let values = self.generator.shared.standard.forward(frames);
        let values = Tensor::from_vec(values, (1, frames.len(), N_FEATURES), &self.generator.device)?;
        Ok(values.repeat((self.count, 1, 1))?)
    }
}

/// Lets the frames that `motion` keeps of `original`, which has as many, lie and face where they did there: what the frames
/// in the gaps lack is spread over them. `kept` says which frames are; those after the last kept one stay as they are.
pub fn land(motion: &mut [Frame], original: &[Frame], kept: &[bool]) {
    let mut start = 0;
    while let Some(a) = (start..kept.len()).find(|&i| !kept[i]) {
        let Some(b) = (a..kept.len()).find(|&i| kept[i]) else { return };
        let n = (b - a) as f64;
        // Half the turn that is missing, the shorter way round.
        let turned = |frames: &[Frame]| frames[..b].iter().map(|frame| frame[0]).sum::<f64>();
        let missing = turned(original) - turned(motion);
        let missing = missing - (missing / PI).round() * PI;
        motion[a..b].iter_mut().for_each(|frame| frame[0] += missing / n);
        let path = |frames: &[Frame]| crate::features::root_path(&frames[..=b]);
        let (turns, places) = path(motion);
        let way = sub(path(original).1[b], places[b]);
        for (frame, turn) in motion[a..b].iter_mut().zip(&turns[a + 1..]) {
            let step = rotate(*turn, [way[0] / n, 0.0, way[2] / n]);
            frame[1] += step[0];
            frame[2] += step[2];
            for velocity in frame[crate::features::VELOCITIES].chunks_exact_mut(3) {
                velocity[0] += step[0];
                velocity[2] += step[2];
            }
        }
        start = b;
    }
}
