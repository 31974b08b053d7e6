//! Tokens per second of the causal convolution with SiLU, forward and forward + backward, beside its reference and
//! candle's own grouped convolution.

mod shapes;

use candle_core::{Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_kernels::{CausalConv1d, causal_conv1d::reference};
use shapes::{SHAPES, Shape};

/// x, weight, bias.
fn inputs(shape: &Shape) -> Result<Vec<Tensor>> {
    let Shape { batch, len, d_inner: d, d_conv, .. } = *shape;
    Ok(vec![shape.random(&[batch, len, d], 1)?, shape.random(&[d, d_conv], 2)?, shape.random(&[d], 3)?])
}

fn conv(x: &[Tensor]) -> CausalConv1d<'_> {
    CausalConv1d::new(&x[0], &x[1]).bias(&x[2]).silu(true)
}

/// The same in candle's ops, from and to `(B, L, D)`.
fn candle(x: &[Tensor]) -> Result<Tensor> {
    let (_, len, d) = x[0].dims3()?;
    let weight = x[1].unsqueeze(1)?; // (D, 1, K)
    let y = x[0].transpose(1, 2)?.contiguous()?.conv1d(&weight, weight.dim(2)? - 1, 1, 1, d)?;
    y.narrow(2, 0, len)?.transpose(1, 2)?.contiguous()?.broadcast_add(&x[2])?.silu()
}

fn bench(c: &mut Criterion) {
    let mut group = shapes::group(c, "causal_conv1d");
    for shape in &SHAPES {
        shapes::measure(&mut group, "kernel", shape, inputs, |x| conv(x).run());
        shapes::measure(&mut group, "reference", &shape.short(), inputs, |x| {
            Ok(reference::causal_conv1d(&conv(x))?.0)
        });
        shapes::measure(&mut group, "candle", &shape.short(), inputs, candle);
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
