//! The best rows of a table against a full sort.

use crate::support::message;
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::testing::pseudo_random;
use mamba_kernels::top_k;
use mamba_kernels::top_k::reference;

#[test]
fn the_kernel_finds_what_a_full_sort_finds() -> Result<()> {
    for (n, d, rows) in [(1, 1, 1), (3, 5, 40), (33, 16, 300), (70, 3, 9000), (2, 600, 700), (4, 2, 0)] {
        let queries = pseudo_random(&[n, d], 1, DType::F64)?;
        let table = pseudo_random(&[rows, d], 2, DType::F64)?;
        let seen: Vec<Vec<u32>> =
            (0..n).map(|i| (0..rows as u32).filter(|r| (r + i as u32).is_multiple_of(3)).collect()).collect();
        for k in [0, 1, 7, rows + 2] {
            for skip in [&[][..], &seen] {
                let got = top_k(&queries, &table, k, skip)?;
                let want = reference::top_k(&queries, &table, k, skip)?;
                for (got, want) in got.iter().zip(&want) {
                    let places = |hits: &[(u32, f64)]| hits.iter().map(|hit| hit.0).collect::<Vec<_>>();
                    assert_eq!(places(got), places(want), "{n} × {d}, k {k}");
                    assert!(got.iter().zip(want).all(|(a, b)| (a.1 - b.1).abs() < 1e-12));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn ties_go_to_the_lower_row_and_nan_is_never_chosen() -> Result<()> {
    let queries = Tensor::new(&[[1f32]], &Device::Cpu)?;
    let mut values = vec![1f32; 100];
    values[40] = 2.0;
    values[3] = f32::NAN;
    let table = Tensor::from_vec(values, (100, 1), &Device::Cpu)?;
    let rows: Vec<u32> = top_k(&queries, &table, 5, &[])?[0].iter().map(|hit| hit.0).collect();
    assert_eq!(rows, [40, 0, 1, 2, 4]);
    Ok(())
}

#[test]
fn a_query_does_not_see_its_neighbours_nor_the_threads() -> Result<()> {
    let queries = pseudo_random(&[70, 24], 1, DType::F32)?;
    let table = pseudo_random(&[3000, 24], 2, DType::F32)?;
    let all = top_k(&queries, &table, 9, &[])?;
    for i in [0, 31, 32, 69] {
        assert_eq!(top_k(&queries.narrow(0, i, 1)?, &table, 9, &[])?[0], all[i], "query {i}");
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
        assert_eq!(pool.install(|| top_k(&queries, &table, 9, &[]))?, all, "{threads} threads");
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let queries = pseudo_random(&[2, 3], 1, DType::F32)?;
    let table = pseudo_random(&[5, 4], 2, DType::F32)?;
    assert_eq!(message(top_k(&queries, &table, 1, &[])), "top_k: table has shape [5, 4], expected [5, 3]");
    let skip = [vec![]];
    assert_eq!(
        message(top_k(&queries, &queries, 1, &skip)),
        "top_k: 1 lists of rows to skip, expected one for each of 2 queries"
    );
    Ok(())
}
