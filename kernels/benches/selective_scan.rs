//! Tokens per second of the selective scan, forward and forward + backward, beside its reference.

mod shapes;

use candle_core::{Result, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mamba_kernels::{SelectiveScan, selective_scan::reference};
use shapes::{SHAPES, Shape, keep_freed_memory, variables};

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
    SelectiveScan::new(&x[0], &x[1], &x[2], &x[3], &x[4]).skip(&x[5]).gate(&x[6]).delta_bias(&x[7]).softplus(true)
}

fn bench(c: &mut Criterion) {
    keep_freed_memory();
    let mut group = c.benchmark_group("selective_scan");
    group.sample_size(10);
    for shape in &SHAPES {
        let x = inputs(shape).expect("inputs");
        let short = inputs(&shape.short()).expect("inputs");
        group.throughput(Throughput::Elements(shape.tokens()));
        group.bench_function(format!("fwd/kernel/{}", shape.name), |b| b.iter(|| scan(&x).run().expect("scan")));
        group.bench_function(format!("fwd_bwd/kernel/{}", shape.name), |b| {
            let x = variables(&x).expect("variables");
            b.iter(|| scan(&x).run().and_then(|y| y.sum_all()?.backward()).expect("scan"));
        });
        group.throughput(Throughput::Elements(shape.short().tokens()));
        group.bench_function(format!("fwd/reference/{}", shape.name), |b| {
            b.iter(|| reference::selective_scan(&scan(&short)).expect("scan"));
        });
        group.bench_function(format!("fwd_bwd/reference/{}", shape.name), |b| {
            let x = variables(&short).expect("variables");
            b.iter(|| {
                reference::selective_scan(&scan(&x)).and_then(|(y, _)| y.sum_all()?.backward()).expect("scan")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
