//! Cross-entropy of a linear classifier against its reference and against finite differences.

use crate::support::{expect_kernel_is_reference, message, weighted_sum};
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::cross_entropy::reference;
use mamba_kernels::linear_cross_entropy;
use mamba_kernels::testing::{expect_gradients_match_differences, pseudo_random};

/// The inputs of a case, in order.
pub(crate) const NAMES: [&str; 2] = ["x", "weight"];

/// [`NAMES`] in f32; logits of a size that makes the softmax neither flat nor hard.
pub(crate) fn inputs(rows: usize, d: usize, classes: usize) -> Result<Vec<Tensor>> {
    Ok(vec![(pseudo_random(&[rows, d], 1, DType::F32)? * 3.0)?, pseudo_random(&[classes, d], 2, DType::F32)?])
}

pub(crate) fn targets(rows: usize, classes: usize) -> Result<Tensor> {
    let target = |row: usize| ((row * 7919 + 3) % classes) as u32;
    Tensor::from_iter((0..rows).map(target), &Device::Cpu)
}

#[test]
fn the_kernel_computes_what_the_reference_says() -> Result<()> {
    let cases = [
        (1, 1, 1),
        (1, 5, 33),
        (64, 16, 100),
        (65, 64, 257),
        (1500, 8, 40),  // several groups of several tiles
        (70, 3, 9000),  // more classes than a tile has
        (40, 600, 700), // fewer classes in a tile because rows are wide
    ];
    for (rows, d, classes) in cases {
        let targets = targets(rows, classes)?;
        expect_kernel_is_reference(
            &format!("{rows} rows of {d}, {classes} classes"),
            &NAMES,
            &inputs(rows, d, classes)?,
            |x| Ok(vec![linear_cross_entropy(&x[0], &x[1], &targets)?]),
            |x| Ok(vec![reference::linear_cross_entropy(&x[0], &x[1], &targets)?]),
        )?;
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_finite_differences() -> Result<()> {
    let named: Vec<_> = NAMES.into_iter().zip(inputs(5, 3, 7)?).collect();
    let targets = targets(5, 7)?;
    // weighted_sum also makes the gradient of the loss differ from 1
    expect_gradients_match_differences(&named, 1e-8, |x| {
        weighted_sum(&[linear_cross_entropy(&x[0], &x[1], &targets)?])
    })
}

#[test]
fn the_loss_is_the_same_with_and_without_gradients_and_bounds_hold() -> Result<()> {
    for (rows, d, classes) in [(130, 8, 300), (70, 3, 9000)] {
        let (x, targets) = (inputs(rows, d, classes)?, targets(rows, classes)?);
        let var = candle_core::Var::from_tensor(&x[0])?;
        let tracked = linear_cross_entropy(&var, &x[1], &targets)?.to_scalar::<f32>()?;
        let plain = linear_cross_entropy(&x[0], &x[1], &targets)?.to_scalar::<f32>()?;
        assert!((tracked - plain).abs() < 1e-6 * plain.abs(), "{tracked} and {plain}");
        let flat = linear_cross_entropy(&x[0].zeros_like()?, &x[1], &targets)?.to_scalar::<f32>()?;
        assert!((flat - (classes as f32).ln()).abs() < 1e-5, "{flat}");
    }
    Ok(())
}

#[test]
fn large_logits_do_not_overflow_and_nan_is_not_lost() -> Result<()> {
    let x = Tensor::new(&[[1e4f32, 0.0], [0.0, -1e4]], &Device::Cpu)?;
    let weight = Tensor::new(&[[1f32, 1.0], [-1.0, -1.0], [0.0, 0.0]], &Device::Cpu)?;
    let loss = |targets: [u32; 2], weight: &Tensor| -> Result<f32> {
        linear_cross_entropy(&x, weight, &Tensor::new(&targets, &Device::Cpu)?)?.to_scalar()
    };
    assert_eq!(loss([0, 1], &weight)?, 0.0);
    assert_eq!(loss([1, 0], &weight)?, 2e4);
    let spoilt = Tensor::new(&[[1f32, 1.0], [f32::NAN, -1.0], [0.0, 0.0]], &Device::Cpu)?;
    assert!(loss([0, 0], &spoilt)?.is_nan());
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let x = inputs(4, 3, 5)?;
    let error = |targets: &[u32], weight: &Tensor| {
        let targets = Tensor::new(targets, &Device::Cpu).expect("a row of numbers");
        message(linear_cross_entropy(&x[0], weight, &targets))
    };
    assert_eq!(error(&[0, 1, 5, 0], &x[1]), "linear_cross_entropy: target 2 is 5, expected a class below 5");
    assert_eq!(error(&[0], &x[1]), "linear_cross_entropy: targets has shape [1], expected [4]");
    let narrow = x[1].narrow(1, 0, 2)?;
    assert_eq!(error(&[0; 4], &narrow), "linear_cross_entropy: weight has shape [5, 2], expected [5, 3]");
    Ok(())
}
