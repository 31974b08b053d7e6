//! Weights of two bytes or one for inference on the CPU, where decoding is bound by reading them.
//!
//! | format | bytes | a weight becomes |
//! |---|---|---|
//! | [`Bf16`](WeightFormat::Bf16) | 2 | its first 8 significant bits; the range of f32 |
//! | [`F16`](WeightFormat::F16) | 2 | its first 11 significant bits; at most 65,504 |
//! | [`Int8`](WeightFormat::Int8) | 1 | a multiple, -127..=127, of 1/127 of the largest of its row |
//!
//! Only the weights of linear maps, nearly all of a model, are stored so; activations, sums, states and all other
//! parameters stay in f32. An embedding stays in f32 too (one row is read for a token), a head tied to it gets a small
//! copy.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use mamba_core::{Params, WeightFormat, nn::Linear};
//! let fresh = Params::fresh(1, DType::F32, &Device::Cpu);
//! let exact = Linear::new(64, 32, false, &fresh.builder().pp("proj"))?;
//!
//! let small = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu).with_weight_format(WeightFormat::Int8);
//! let rounded = Linear::new(64, 32, false, &small.builder().pp("proj"))?;
//! let x = Tensor::ones((1, 64), DType::F32, &Device::Cpu)?;
//! let error = (exact.forward(&x)? - rounded.forward(&x)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
//! assert!(error < 0.01);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! [`Params::to_tensors`](crate::Params::to_tensors) gives the small tensors, so that they can be saved: 8-bit values as
//! U8 `NAME.weight`, which hold the bits of signed integers, with F32 `NAME.weight_scale`. Such a checkpoint loads in any
//! format.

use crate::Error;
use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the weights of linear maps are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// In the type of the model.
    #[default]
    Full,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 8-bit integers with a scale for each row.
    Int8,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Full, Self::Bf16, Self::F16, Self::Int8];

    /// Values and scales of a weight `(out, in)` f32.
    pub(crate) fn compress(self, weight: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match self {
            Self::Full => Ok((weight.clone(), None)),
            Self::Bf16 => Ok((weight.to_dtype(DType::BF16)?, None)),
            Self::F16 => {
                let most = weight.abs()?.max_all()?.to_scalar::<f32>()?;
                if most > 65504.0 {
                    bail!("a weight of {most} does not fit f16");
                }
                Ok((weight.to_dtype(DType::F16)?, None))
            }
            Self::Int8 => mamba_kernels::quantize_rows(weight).map(|(values, scales)| (values, Some(scales))),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.to_string() == text);
        known.ok_or_else(|| Error::Config(format!("weight format {text:?} is none of full, bf16, f16, int8")))
    }
}
