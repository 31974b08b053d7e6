//! Tokens per second of RMS normalisation over the channels of a mixer, with the residual add in front of it, forward and
//! forward + backward, beside its reference and the one of candle's that has a backward.

mod shapes;

use candle_core::{Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_kernels::{Norm, norm::reference};
use shapes::{SHAPES, Shape};

const EPS: f64 = 1e-5;

/// x, weight, residual.
fn inputs(shape: &Shape) -> Result<Vec<Tensor>> {
    let Shape { batch, len, d_inner: d, .. } = *shape;
    Ok(vec![shape.random(&[batch, len, d], 1)?, shape.random(&[d], 2)?, shape.random(&[batch, len, d], 3)?])
}

fn norm(x: &[Tensor]) -> Norm<'_> {
    Norm::rms(&x[0], &x[1], EPS).residual(&x[2])
}

fn candle(x: &[Tensor]) -> Result<Tensor> {
    candle_nn::ops::rms_norm_slow(&(&x[0] + &x[2])?, &x[1], EPS as f32)
}

fn bench(c: &mut Criterion) {
    let mut group = shapes::group(c, "norm");
    for shape in &SHAPES {
        shapes::measure(&mut group, "kernel", shape, inputs, |x| Ok(norm(x).run_with_residual()?.0));
        shapes::measure(&mut group, "reference", shape, inputs, |x| Ok(reference::norm(&norm(x))?.0));
        shapes::measure(&mut group, "candle", shape, inputs, candle);
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
