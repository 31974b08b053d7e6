//! The real shapes that every op is measured on, and how.
#![allow(dead_code)] // each bench compiles this module for itself, and none needs all of it

use candle_core::{DType, Result, Tensor, Var};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use mamba_kernels::testing::{device, pseudo_random};
use std::time::Duration;

/// A shape that a model of the catalogue runs.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) batch: usize,
    pub(crate) len: usize,
    /// Channels inside the mixer.
    pub(crate) d_inner: usize,
    pub(crate) d_state: usize,
    pub(crate) d_conv: usize,
}

/// Caduceus over 131 k bases and over Genomic Benchmarks, Mamba4Rec on ML-1M, S-Mamba on ETTh1 (seven variates), and a
/// 130 M language model.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape { name: "caduceus_131k", batch: 1, len: 131_072, d_inner: 512, d_state: 16, d_conv: 4 },
    Shape { name: "caduceus_gb_1k", batch: 8, len: 1024, d_inner: 236, d_state: 16, d_conv: 4 },
    Shape { name: "ml1m_200", batch: 64, len: 200, d_inner: 128, d_state: 32, d_conv: 4 },
    Shape { name: "etth1_7", batch: 32, len: 7, d_inner: 256, d_state: 2, d_conv: 2 },
    Shape { name: "lm_130m_2k", batch: 1, len: 2048, d_inner: 1536, d_state: 16, d_conv: 4 },
];

/// Tokens per row that a slow peer is measured on, and rows of them. The references walk token by token, so that more
/// would take long and, for their backward, be still slower.
const SHORT_LEN: usize = 64;
const SHORT_BATCH: usize = 4;

impl Shape {
    pub(crate) fn tokens(&self) -> u64 {
        (self.batch * self.len) as u64
    }

    /// The same shape with few, short rows, for peers that are too slow for all of it.
    pub(crate) fn short(&self) -> Self {
        Self { batch: self.batch.min(SHORT_BATCH), len: self.len.min(SHORT_LEN), ..*self }
    }

    pub(crate) fn random(&self, dims: &[usize], seed: u64) -> Result<Tensor> {
        pseudo_random(dims, seed, DType::F32)
    }
}

/// A group of benches of one op: few samples, since the slow ones take seconds.
pub(crate) fn group<'a>(c: &'a mut Criterion, op: &str) -> BenchmarkGroup<'a, WallTime> {
    keep_freed_memory();
    let mut group = c.benchmark_group(op);
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group
}

/// Measures `run` on `inputs` of `shape` as `fwd/PEER/SHAPE` and, with its backward, as `fwd_bwd/PEER/SHAPE`.
///
/// With `$MAMBA_TEST_DEVICE` on a GPU, whose work ends inside the measurement, as `fwd/cuda_DTYPE/SHAPE` and so on, for the
/// peers that are kernels alone.
///
/// Backward starts at the output itself, which candle seeds with ones: a sum in front of it would add the time that
/// candle takes to broadcast its gradient.
pub(crate) fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    peer: &str,
    shape: &Shape,
    inputs: impl Fn(&Shape) -> Result<Vec<Tensor>>,
    run: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let device = device();
    if device.is_cpu() {
        return measure_in(group, peer, shape, &inputs(shape).expect("inputs"), run);
    }
    if peer != "kernel" {
        return;
    }
    for dtype in [DType::F32, DType::BF16] {
        let moved = |x: Tensor| x.to_dtype(dtype)?.to_device(&device);
        let x = inputs(shape).and_then(|x| x.into_iter().map(moved).collect::<Result<Vec<_>>>());
        let name = format!("cuda_{}", dtype.as_str());
        measure_in(group, &name, shape, &x.expect("inputs on the GPU"), &run);
    }
}

fn measure_in(
    group: &mut BenchmarkGroup<'_, WallTime>,
    peer: &str,
    shape: &Shape,
    x: &[Tensor],
    run: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let device = device();
    let x_tracked = variables(x).expect("variables");
    group.throughput(Throughput::Elements(shape.tokens()));
    group.bench_function(format!("fwd/{peer}/{}", shape.name), |b| {
        b.iter(|| run(x).and_then(|y| device.synchronize().map(|()| y)).expect("forward"));
    });
    group.bench_function(format!("fwd_bwd/{peer}/{}", shape.name), |b| {
        b.iter(|| {
            let grads = run(&x_tracked).and_then(|y| y.backward());
            grads.and_then(|g| device.synchronize().map(|()| g)).expect("forward and backward")
        });
    });
}

/// Keeps freed memory instead of handing it back to the system, as the binaries of this workspace do; else the time is
/// that of page faults.
#[allow(unsafe_code)] // a C call
pub(crate) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any other thread exists; both parameters are documented ones.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// The tensors as variables.
fn variables(x: &[Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|x| Ok(Var::from_tensor(x)?.as_tensor().clone())).collect()
}
