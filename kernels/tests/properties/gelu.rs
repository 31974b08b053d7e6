//! GELU against its reference, against finite differences, and far out on both sides.

use crate::support::expect_kernel_is_reference;
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::gelu;
use mamba_kernels::gelu::reference;
use mamba_kernels::testing::{expect_gradients_match_differences, pseudo_random};

#[test]
fn the_kernel_computes_what_the_reference_says() -> Result<()> {
    for dims in [&[1][..], &[3, 17], &[2, 5, 33], &[40_000]] {
        let x = (pseudo_random(dims, 1, DType::F32)? * 6.0)?;
        let label = format!("{dims:?}");
        expect_kernel_is_reference(
            &label,
            &["x"],
            &[x],
            |x| Ok(vec![gelu(&x[0])?]),
            |x| Ok(vec![reference::gelu(&x[0])?]),
        )?;
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_finite_differences() -> Result<()> {
    let x = (pseudo_random(&[40], 2, DType::F32)? * 4.0)?;
    expect_gradients_match_differences(&[("x", x)], 1e-8, |x| gelu(&x[0])?.sum_all())
}

#[test]
fn extremes_are_defined() -> Result<()> {
    let x = [0.0f32, -0.0, 1e30, -1e30, 40.0, -40.0, f32::NAN];
    let y = gelu(&Tensor::new(&x, &Device::Cpu)?)?.to_vec1::<f32>()?;
    assert_eq!(y[..5], [0.0, 0.0, 1e30, 0.0, 40.0]);
    assert!(y[5].abs() < 1e-5 && y[6].is_nan(), "{y:?}");
    Ok(())
}
