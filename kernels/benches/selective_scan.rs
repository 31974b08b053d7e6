//! Tokens per second of the selective scan, forward and forward + backward, beside its reference.

mod shapes;

use candle_core::{Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_kernels::{SelectiveScan, selective_scan::reference};
use shapes::{SHAPES, Shape};

/// u, delta, A, B, C, D, z, delta_bias.
fn inputs(shape: &Shape) -> Result<Vec<Tensor>> {
    let Shape { batch, len, d_inner: d, d_state: n, .. } = *shape;
    let a = (shape.random(&[d, n], 3)? * 4.0)?.exp()?.neg()?;
    Ok(vec![
        shape.random(&[batch, len, d], 1)?,
        shape.random(&[batch, len, d], 2)?,
        a,
        shape.random(&[batch, len, n], 4)?,
        shape.random(&[batch, len, n], 5)?,
        shape.random(&[d], 6)?,
        shape.random(&[batch, len, d], 7)?,
        (shape.random(&[d], 8)? - 4.0)?,
    ])
}

fn scan(x: &[Tensor]) -> SelectiveScan<'_> {
    SelectiveScan::new(&x[0], &x[1], &x[2], &x[3], &x[4])
        .skip(&x[5])
        .gate(&x[6])
        .delta_bias(&x[7])
        .softplus(true)
}

fn bench(c: &mut Criterion) {
    let mut group = shapes::group(c, "selective_scan");
    for shape in &SHAPES {
        shapes::measure(&mut group, "kernel", shape, inputs, |x| scan(x).run());
        shapes::measure(&mut group, "reference", &shape.short(), inputs, |x| {
            Ok(reference::selective_scan(&scan(x))?.0)
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
