//! Tokens per second of the state space dual scan, forward and forward + backward, beside its reference and beside the
//! selective scan with as many channels and states, which computes the same function one token after the other.

mod shapes;

use candle_core::{Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use mamba_kernels::{SelectiveScan, Ssd, ssd::reference};
use shapes::Shape;

/// Channels of a head, P.
const HEADDIM: usize = 64;

/// Mamba-2 of 130 M parameters over 2048 tokens, alone and in a batch of shorter rows, and a small one.
const SHAPES: [Shape; 3] = [
    Shape { name: "ssd_130m_2k", batch: 1, len: 2048, d_inner: 1536, d_state: 128, d_conv: 4 },
    Shape { name: "ssd_130m_8x256", batch: 8, len: 256, d_inner: 1536, d_state: 128, d_conv: 4 },
    Shape { name: "ssd_256_n16", batch: 4, len: 1024, d_inner: 512, d_state: 16, d_conv: 4 },
];

/// x, dt, A, B, C, D, dt_bias.
fn inputs(shape: &Shape) -> Result<Vec<Tensor>> {
    let Shape { batch, len, d_inner, d_state: n, .. } = *shape;
    let heads = d_inner / HEADDIM;
    Ok(vec![
        shape.random(&[batch, len, heads, HEADDIM], 1)?,
        shape.random(&[batch, len, heads], 2)?,
        ((shape.random(&[heads], 3)? * 7.5)? - 8.5)?,
        shape.random(&[batch, len, 1, n], 4)?,
        shape.random(&[batch, len, 1, n], 5)?,
        shape.random(&[heads], 6)?,
        (shape.random(&[heads], 7)? - 4.0)?,
    ])
}

fn scan(x: &[Tensor]) -> Ssd<'_> {
    Ssd::new(&x[0], &x[1], &x[2], &x[3], &x[4]).skip(&x[5]).dt_bias(&x[6]).softplus(true)
}

/// u, delta, A, B, C, D, delta_bias of the same sizes.
fn selective_inputs(shape: &Shape) -> Result<Vec<Tensor>> {
    let Shape { batch, len, d_inner: d, d_state: n, .. } = *shape;
    Ok(vec![
        shape.random(&[batch, len, d], 1)?,
        shape.random(&[batch, len, d], 2)?,
        ((shape.random(&[d, n], 3)? * 7.5)? - 8.5)?,
        shape.random(&[batch, len, n], 4)?,
        shape.random(&[batch, len, n], 5)?,
        shape.random(&[d], 6)?,
        (shape.random(&[d], 7)? - 4.0)?,
    ])
}

fn bench(c: &mut Criterion) {
    let mut group = shapes::group(c, "ssd");
    for shape in &SHAPES {
        shapes::measure(&mut group, "kernel", shape, inputs, |x| scan(x).run());
        shapes::measure(&mut group, "selective_scan", shape, selective_inputs, |x| {
            SelectiveScan::new(&x[0], &x[1], &x[2], &x[3], &x[4])
                .skip(&x[5])
                .delta_bias(&x[6])
                .softplus(true)
                .run()
        });
        shapes::measure(&mut group, "reference", &shape.short(), inputs, |x| Ok(reference::ssd(&scan(x))?.0));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
