//! Compressed spectra: magnitudes raised to a power, phases kept.
//!
//! ```text
//! magnitude = |X|^γ      phase = arg X      complex = magnitude · e^{i·phase}
//! ```
//!
//! Those of half precision are computed in f32.

use crate::products;
use crate::stft::{StftConfig, istft, stft};
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use mamba_core::nn::widen;

/// A compressed spectrum, `(B, frames, bins)` each.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Magnitudes raised to the power γ.
    pub mag: Tensor,
    /// Phases in radians; whole turns do not matter.
    pub pha: Tensor,
}

impl Spectrum {
    /// Of signals `(B, samples)`. No gradient flows through the phase of silence.
    pub fn of(signal: &Tensor, cfg: &StftConfig, compress: f64) -> Result<Self> {
        let x = stft(&widen(signal)?, cfg)?;
        let of =
            Self::from_parts(&x.narrow(3, 0, 1)?.squeeze(3)?, &x.narrow(3, 1, 1)?.squeeze(3)?, compress)?;
        Ok(Self { mag: of.mag.to_dtype(signal.dtype())?, pha: of.pha.to_dtype(signal.dtype())? })
    }

    /// From the real and imaginary parts of an uncompressed spectrum.
    pub fn from_parts(re: &Tensor, im: &Tensor, compress: f64) -> Result<Self> {
        let mag = (re.sqr()? + im.sqr()?)?.sqrt()?.powf(compress)?;
        Ok(Self { mag, pha: atan2(im, re)? })
    }

    /// Real and imaginary parts of the uncompressed spectrum.
    pub fn parts(&self, compress: f64) -> Result<(Tensor, Tensor)> {
        let mag = self.mag.powf(1.0 / compress)?;
        Ok(((&mag * self.pha.cos()?)?, (&mag * self.pha.sin()?)?))
    }

    /// Real and imaginary parts of the compressed spectrum, `(B, frames, bins, 2)`.
    pub fn complex(&self) -> Result<Tensor> {
        Tensor::stack(&[(&self.mag * self.pha.cos()?)?, (&self.mag * self.pha.sin()?)?], 3)
    }

    /// The signals `(B, (frames - 1)·hop)`.
    pub fn signal(&self, cfg: &StftConfig, compress: f64) -> Result<Tensor> {
        let (re, im) = Self { mag: widen(&self.mag)?, pha: widen(&self.pha)? }.parts(compress)?;
        istft(&Tensor::stack(&[re, im], 3)?, cfg)?.to_dtype(self.mag.dtype())
    }
}

/// The compressed complex spectrum `(B, frames, bins, 2)` of signals, with gradients that stay finite in silence:
/// `X · (|X|² + 1e-10)^((γ - 1)/2)`.
pub fn compressed_complex(signal: &Tensor, cfg: &StftConfig, compress: f64) -> Result<Tensor> {
    let x = stft(&widen(signal)?, cfg)?;
    let power = (x.sqr()?.sum_keepdim(3)? + 1e-10)?;
    x.broadcast_mul(&power.powf((compress - 1.0) / 2.0)?)?.to_dtype(signal.dtype())
}

/// The angle of the points `(x, y)`, from -π to π, elementwise.
pub fn atan2(y: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (of_y, of_x) = (widen(y)?, widen(x)?);
    let angle = match x.device() {
        Device::Cpu => of_y.contiguous()?.apply_op2(&of_x.contiguous()?, Atan2)?,
        _ => products::atan2(&of_y, &of_x)?,
    };
    angle.to_dtype(y.dtype())
}

struct Atan2;

impl CustomOp2 for Atan2 {
    fn name(&self) -> &'static str {
        "atan2"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        fn slice<'a, T: WithDType>(s: &'a CpuStorage, l: &Layout) -> Result<&'a [T]> {
            let Some((start, end)) = l.contiguous_offsets() else {
                bail!("atan2: expected contiguous tensors")
            };
            Ok(&T::cpu_storage_as_slice(s)?[start..end])
        }
        if l1.shape() != l2.shape() {
            bail!("atan2: shapes {:?} and {:?}", l1.dims(), l2.dims());
        }
        let angles = match (s1, s2) {
            (CpuStorage::F32(_), CpuStorage::F32(_)) => {
                let pairs = slice::<f32>(s1, l1)?.iter().zip(slice::<f32>(s2, l2)?);
                CpuStorage::F32(pairs.map(|(y, x)| y.atan2(*x)).collect())
            }
            (CpuStorage::F64(_), CpuStorage::F64(_)) => {
                let pairs = slice::<f64>(s1, l1)?.iter().zip(slice::<f64>(s2, l2)?);
                CpuStorage::F64(pairs.map(|(y, x)| y.atan2(*x)).collect())
            }
            _ => bail!("atan2: expected two tensors of f32 or of f64"),
        };
        Ok((angles, l1.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        x: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (y, x) = (y.detach(), x.detach());
        // 1e-20: the origin has no angle; its gradient is 0.
        let squares = ((x.sqr()? + y.sqr()?)? + 1e-20)?;
        let scaled = (grad.detach() / squares)?;
        Ok((Some((&scaled * x)?), Some((scaled * y)?.neg()?)))
    }
}
