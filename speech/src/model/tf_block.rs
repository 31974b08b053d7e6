//! A block that mixes over time and then over frequency.

use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::Pass;
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Init, Mixer, MixerConfig, MixerState, ParamBuilder};

/// `x + W·[x + Mamba(RMS(x)); the same from the other end] + b` over time, then over frequency.
#[derive(Clone, Debug)]
pub(crate) struct TfMambaBlock {
    time: Axis,
    frequency: Axis,
}

/// The mixers along one axis, and the map that joins them.
#[derive(Clone, Debug)]
struct Axis {
    directions: Vec<Direction>,
    /// The joining map: (directions · C, C), and its bias.
    join: (Tensor, Tensor),
}

/// A pre-norm residual mixer.
#[derive(Clone, Debug)]
struct Direction {
    norm: Norm,
    mixer: Mixer,
    reverse: bool,
}

impl TfMambaBlock {
    /// Of `c` channels, with `eps` under the root of the norms; a `causal` one does not look ahead in time.
    pub(crate) fn new(
        c: usize,
        mixer: &MixerConfig,
        eps: f64,
        causal: bool,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let axis = |both, names| Axis::new(c, mixer, eps, both, names, pb);
        Ok(Self {
            time: axis(!causal, ("time_mamba", "tlinear"))?,
            frequency: axis(true, ("freq_mamba", "flinear"))?,
        })
    }

    /// `(B, T, F, C)` → `(B, T, F, C)`; `state` is that of the mixer over time.
    pub(crate) fn forward(&self, x: &Tensor, state: Option<&mut MixerState>) -> Result<Tensor> {
        let (b, t, f, c) = x.dims4()?;
        let by_bin = x.transpose(1, 2)?.contiguous()?.reshape((b * f, t, c))?;
        let by_bin = self.time.forward(&by_bin, state)?;
        let by_frame = by_bin.reshape((b, f, t, c))?.transpose(1, 2)?.contiguous()?.reshape((b * t, f, c))?;
        self.frequency.forward(&by_frame, None)?.reshape((b, t, f, c))
    }
}

impl Axis {
    fn new(
        c: usize,
        mixer: &MixerConfig,
        eps: f64,
        both: bool,
        (mamba, join): (&str, &str),
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let directions = [("forward_blocks", false), ("backward_blocks", true)];
        let directions = &directions[..if both { 2 } else { 1 }];
        let mixers = directions.iter().map(|&(name, reverse)| {
            let pb = pb.pp(mamba).pp(name).pp(0);
            let norm = Norm::new(NormKind::Rms, c, eps, &pb.pp("norm"))?;
            let mixer = Mixer::new(c, mixer, 1, &pb.pp("mixer"))?;
            Ok(Direction { norm, mixer, reverse })
        });
        let mixers = mixers.collect::<Result<Vec<_>>>()?;
        // A transposed convolution of one tap: (in, out, 1). Torch counts the outputs as its fan.
        let pb = pb.pp(join);
        let weight = pb.get((directions.len() * c, c, 1), "weight", Init::linear(c))?.squeeze(2)?;
        let bias = pb.get_no_decay(c, "bias", Init::linear(c))?;
        Ok(Self { directions: mixers, join: (weight, bias) })
    }

    /// `(N, L, C)` → `(N, L, C)`.
    fn forward(&self, x: &Tensor, mut state: Option<&mut MixerState>) -> Result<Tensor> {
        let (weight, bias) = &self.join;
        let c = bias.dim(0)?;
        let mut sum = x.clone();
        for (i, direction) in self.directions.iter().enumerate() {
            let pass = Pass { segments: None, reverse: direction.reverse, state: state.take() };
            let y = (direction.mixer.forward_pass(&direction.norm.forward(x)?, pass)? + x)?;
            let part = weight.narrow(0, i * c, c)?.t()?.contiguous()?; // (out, in)
            let join = Linear::from_tensors(part, (i == 0).then(|| bias.clone()));
            sum = (sum + join.forward(&y)?)?;
        }
        Ok(sum)
    }
}
