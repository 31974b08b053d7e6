//! Mixers that see both sides of a token.
//!
//! Scheme A of the models here, Caduceus' `BiMambaWrapper` (Schiff et al. 2024, arXiv 2403.03234, section 3.1): a mixer
//! from left to right and one from right to left, whose outputs are combined. Their `in_proj` and `out_proj` may be tied;
//! then the input is projected once for both directions, and so is the output of their sum.

use crate::ParamBuilder;
use crate::mixer::{AnySsm, Mixer, MixerConfig, MixerState, Pass, Ssm};
use crate::nn::{Linear, flip};
use candle_core::{Module, Result, Tensor};
use mamba_kernels::Segments;
use serde::{Deserialize, Serialize};

/// How the outputs of the two directions are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Their sum.
    #[default]
    Add,
    /// Their element-wise product.
    #[serde(rename = "ew_multiply")]
    Multiply,
}

/// In which sense a bidirectional mixer reads its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orientation {
    /// As it is.
    #[default]
    Given,
    /// As the mixer that satisfies `f'(x) = flip(f(flip(x)))`, where `flip` reverses tokens and channels: the two
    /// directions change roles and the weights' channels are reversed, so that no activation is flipped.
    Flipped,
}

/// The second direction of a [`BiMamba`].
#[derive(Clone, Debug)]
enum Reverse {
    /// Only what lies between the projections is its own.
    Tied(AnySsm),
    Untied(Mixer),
}

/// A bidirectional mixer of any kind.
#[derive(Clone, Debug)]
pub struct BiMamba {
    forward: Mixer,
    reverse: Option<Reverse>,
    combine: Combine,
}

impl BiMamba {
    /// Parameters under `mamba_fwd` and `mamba_rev`. `tied` shares the projections; without `bidirectional` there is
    /// only the forward mixer. `n_residual` as in [`Mixer::new`].
    pub fn new(
        d_model: usize,
        cfg: impl Into<MixerConfig>,
        (bidirectional, tied): (bool, bool),
        combine: Combine,
        n_residual: usize,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let cfg = &cfg.into();
        let forward = Mixer::new(d_model, cfg, n_residual, &pb.pp("mamba_fwd"))?;
        let rev = pb.pp("mamba_rev");
        let reverse = match (bidirectional, tied) {
            (false, _) => None,
            (true, true) => {
                // Checkpoints may hold copies of the shared projections; they are the same tensors.
                let shared = rev.params();
                let projections = if cfg.bias() { &["weight", "bias"][..] } else { &["weight"] };
                for projection in ["in_proj", "out_proj"] {
                    for part in projections {
                        shared.discard(&format!("{}.{projection}.{part}", rev.prefix()));
                    }
                }
                Some(Reverse::Tied(AnySsm::create(d_model, cfg, &rev)?))
            }
            (true, false) => Some(Reverse::Untied(Mixer::new(d_model, cfg, n_residual, &rev)?)),
        };
        Ok(Self { forward, reverse, combine })
    }

    /// `(B, L, d_model)` → `(B, L, d_model)`.
    pub fn forward(
        &self,
        x: &Tensor,
        orientation: Orientation,
        segments: Option<&Segments>,
    ) -> Result<Tensor> {
        let flipped = orientation == Orientation::Flipped;
        let directions = Directions { x, segments, flipped };
        let Some(reverse) = &self.reverse else {
            let y = directions.run(&self.forward, false)?;
            return directions.output(&self.forward)?.forward(&y);
        };
        let (y_forward, y_reverse) = match reverse {
            Reverse::Tied(ssm) => {
                let projected = directions.project(&self.forward)?;
                let run = |ssm: &AnySsm, reverse: bool| {
                    ssm.mix(&projected, Pass { segments, reverse: reverse != flipped, state: None })
                };
                (run(self.forward.ssm(), false)?, run(ssm, true)?)
            }
            Reverse::Untied(mixer) => (directions.run(&self.forward, false)?, directions.run(mixer, true)?),
        };
        let out_forward = directions.output(&self.forward)?;
        match (reverse, self.combine) {
            // out_proj is linear: one projection of the sum. Upstream adds its bias once for each direction.
            (Reverse::Tied(_), Combine::Add) => {
                let y = out_forward.forward(&(y_forward + y_reverse)?)?;
                match out_forward.bias() {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            }
            (reverse, combine) => {
                let out_reverse = match reverse {
                    Reverse::Tied(_) => out_forward.clone(),
                    Reverse::Untied(mixer) => directions.output(mixer)?,
                };
                let (a, b) = (out_forward.forward(&y_forward)?, out_reverse.forward(&y_reverse)?);
                match combine {
                    Combine::Add => a + b,
                    Combine::Multiply => a * b,
                }
            }
        }
    }
}

/// One direction at a time, for sequences that do not fit into memory at once.
impl BiMamba {
    /// How the directions are combined.
    pub fn combine(&self) -> Combine {
        self.combine
    }

    /// Whether there are two directions.
    pub fn is_bidirectional(&self) -> bool {
        self.reverse.is_some()
    }

    /// The part of the output that the mixer reading from left to right, or with `reverse` from right to left, makes; none
    /// if there is no such mixer. `x` `(B, L, d_model)` is a chunk of a longer sequence whose chunks come in reading
    /// order, and `state` what that mixer remembers of those before. [`combine`](Self::combine) of both parts is what
    /// [`forward`](Self::forward) gives.
    pub fn forward_one_way(
        &self,
        x: &Tensor,
        orientation: Orientation,
        reverse: bool,
        state: &mut MixerState,
    ) -> Result<Option<Tensor>> {
        let flipped = orientation == Orientation::Flipped;
        // Flipped, the two mixers read in each other's direction.
        let (ssm, owner) = match (&self.reverse, reverse != flipped) {
            (_, false) => (self.forward.ssm(), &self.forward),
            (None, true) => return Ok(None),
            (Some(Reverse::Tied(ssm)), true) => (ssm, &self.forward),
            (Some(Reverse::Untied(mixer)), true) => (mixer.ssm(), mixer),
        };
        let directions = Directions { x, segments: None, flipped };
        let pass = Pass { segments: None, reverse, state: Some(state) };
        let y = ssm.mix(&directions.project(owner)?, pass)?; // (B, L, d_inner)
        directions.output(owner)?.forward(&y).map(Some)
    }
}

/// One input on its way through the directions.
struct Directions<'a> {
    x: &'a Tensor,
    segments: Option<&'a Segments>,
    flipped: bool,
}

impl Directions<'_> {
    /// The projections of the input.
    fn project(&self, mixer: &Mixer) -> Result<Vec<Tensor>> {
        match self.flipped {
            true => mixer.ssm().project(&mixer.in_proj().flip_input()?, self.x),
            false => mixer.ssm().project(mixer.in_proj(), self.x),
        }
    }

    fn output(&self, mixer: &Mixer) -> Result<Linear> {
        match self.flipped {
            true => mixer.out_proj().flip_output(),
            false => Ok(mixer.out_proj().clone()),
        }
    }

    fn run(&self, mixer: &Mixer, reverse: bool) -> Result<Tensor> {
        let pass = Pass { segments: self.segments, reverse: reverse != self.flipped, state: None };
        mixer.ssm().mix(&self.project(mixer)?, pass)
    }
}

/// Tokens and channels of `(B, L, D)` reversed.
pub fn flip_tokens_and_channels(x: &Tensor) -> Result<Tensor> {
    flip(&flip(x, 1)?, 2)
}
