//! Choosing the device to compute on.

use crate::{Error, Result};
use candle_core::Device;
use std::fmt;
use std::str::FromStr;

/// What `--device` takes: `auto`, `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device where the build supports it and one opens, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device. Only `auto` falls back to the CPU.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(open_cuda(0).unwrap_or(Device::Cpu)),
            Self::Cuda(number) => open_cuda(number),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Device> {
    // One stream for all threads: what a loading thread uploads comes before what is computed from it.
    let open = || {
        let device = Device::new_cuda_with_stream(number)?;
        mamba_kernels::check_device(&device).map(|()| device)
    };
    open().map_err(|error: candle_core::Error| {
        let text = error.to_string();
        let known = [
            ("CUDA_ERROR_NO_DEVICE", "this machine has no NVIDIA GPU that the driver shows"),
            ("CUDA_ERROR_INVALID_DEVICE", "there is no GPU of that number: nvidia-smi lists them"),
            ("CUDA_ERROR_STUB_LIBRARY", "no NVIDIA driver is loaded"),
            ("CUDA_ERROR_INSUFFICIENT_DRIVER", "the NVIDIA driver is too old for this build's CUDA"),
            ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "driver and libcuda are of different versions"),
            ("CUDA_ERROR_OUT_OF_MEMORY", "other programs use all of its memory"),
        ];
        let reason = known.iter().find(|(code, _)| text.contains(code));
        // A backtrace may follow the first line.
        let first = text.lines().next().unwrap_or_default();
        let reason = reason.map_or_else(|| first.to_string(), |(code, words)| format!("{words} ({code})"));
        Error::Config(format!("device cuda:{number}: {reason}"))
    })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> Result<Device> {
    Err(Error::Config(format!("device cuda:{number}: this build has no CUDA support (feature `cuda`)")))
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::Config(format!("device {text:?} is none of auto, cpu, cuda:N"))),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// The device in words, as run files record it: `cpu` or `cuda:N`.
pub fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_back() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_so() {
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
        let message = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert_eq!(message, "device cuda:1: this build has no CUDA support (feature `cuda`)");
    }
}
