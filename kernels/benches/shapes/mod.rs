//! The real shapes that every op is measured on.

use candle_core::{DType, Result, Tensor, Var};
use mamba_kernels::testing::pseudo_random;

/// A shape that a model of the catalogue runs.
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub batch: usize,
    pub len: usize,
    /// Channels inside the mixer.
    pub d_inner: usize,
    pub d_state: usize,
    pub d_conv: usize,
}

/// Caduceus over 131 k bases and over Genomic Benchmarks, Mamba4Rec on ML-1M, S-Mamba on ETTh1 (seven variates), and a
/// 130 M language model.
pub const SHAPES: [Shape; 5] = [
    Shape { name: "caduceus_131k", batch: 1, len: 131_072, d_inner: 512, d_state: 16, d_conv: 4 },
    Shape { name: "caduceus_gb_1k", batch: 8, len: 1024, d_inner: 236, d_state: 16, d_conv: 4 },
    Shape { name: "ml1m_200", batch: 64, len: 200, d_inner: 128, d_state: 32, d_conv: 4 },
    Shape { name: "etth1_7", batch: 32, len: 7, d_inner: 256, d_state: 2, d_conv: 2 },
    Shape { name: "lm_130m_2k", batch: 1, len: 2048, d_inner: 1536, d_state: 16, d_conv: 4 },
];

/// Tokens per row that the reference is measured on: it walks token by token, so its rate does not depend on more.
pub const REFERENCE_LEN: usize = 64;

impl Shape {
    pub fn tokens(&self) -> u64 {
        (self.batch * self.len) as u64
    }

    /// The same shape with short rows, for the reference.
    pub fn short(&self) -> Self {
        Self { batch: self.batch.min(4), len: self.len.min(REFERENCE_LEN), ..*self }
    }

    pub fn random(&self, dims: &[usize], seed: u64) -> Result<Tensor> {
        pseudo_random(dims, seed, DType::F32)
    }
}

/// Keeps freed memory instead of handing it back to the system, as the binaries of this workspace do; else the time is
/// that of page faults.
#[allow(unsafe_code)] // a C call
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any other thread exists; both parameters are documented ones.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// The tensors as variables.
pub fn variables(x: &[Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|x| Ok(Var::from_tensor(x)?.as_tensor().clone())).collect()
}
