//! The norms against their reference and against finite differences.

use crate::support::{evaluate, expect_kernel_is_reference, message, values, weighted_sum, with_element};
use candle_core::{D, DType, Device, Result, Tensor};
use mamba_kernels::Norm;
use mamba_kernels::norm::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, gradients, pseudo_random};
use proptest::prelude::*;

/// The inputs of a case, in order; those that it does not use get a zero gradient.
pub(crate) const NAMES: [&str; 5] = ["x", "weight", "bias", "residual", "z"];

/// A normalisation to test.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) dims: Vec<usize>,
    pub(crate) layer: bool,
    pub(crate) bias: bool,
    pub(crate) residual: bool,
    /// Whether there is a gate, and whether it comes after the norm.
    pub(crate) gate: Option<bool>,
    pub(crate) group: Option<usize>,
}

/// Everything that there is.
pub(crate) fn full(dims: &[usize]) -> Case {
    Case { dims: dims.to_vec(), layer: true, bias: true, residual: true, gate: Some(false), group: None }
}

impl Case {
    /// [`NAMES`] in f32.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        let d = *self.dims.last().expect("a tensor of some rank");
        let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
        Ok(vec![
            (random(&self.dims, 1)? * 2.0)?,
            random(&[d], 2)?,
            random(&[d], 3)?,
            (random(&self.dims, 4)? + 0.5)?,
            (random(&self.dims, 5)? * 3.0)?,
        ])
    }

    fn norm<'a>(&self, x: &'a [Tensor]) -> Norm<'a> {
        let new = if self.layer { Norm::layer } else { Norm::rms };
        let mut norm = new(&x[0], &x[1], 1e-3);
        if self.bias {
            norm = norm.bias(&x[2]);
        }
        if self.residual {
            norm = norm.residual(&x[3]);
        }
        if let Some(norm_before_gate) = self.gate {
            norm = norm.gate(&x[4], norm_before_gate);
        }
        if let Some(group) = self.group {
            norm = norm.group_size(group);
        }
        norm
    }

    /// Output and sum by the kernel.
    pub(crate) fn kernel(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let (y, sum) = self.norm(x).run_with_residual()?;
        Ok(vec![y, sum])
    }

    pub(crate) fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let (y, sum) = reference::norm(&self.norm(x))?;
        Ok(vec![y, sum])
    }

    fn expect_reference(&self) -> Result<()> {
        let x = self.inputs()?;
        expect_kernel_is_reference(
            &format!("{self:?}"),
            &NAMES,
            &x,
            |x| self.kernel(x),
            |x| self.reference(x),
        )
    }
}

#[test]
fn odd_sizes_match_the_reference() -> Result<()> {
    for dims in [&[1][..], &[7], &[1, 1], &[3, 2], &[2, 5, 7], &[16], &[2, 2, 3, 17], &[64, 33], &[3, 236]] {
        for layer in [false, true] {
            // A layer norm of one channel is its bias, and its gradient is rounding.
            if layer && dims.last() == Some(&1) {
                continue;
            }
            for gate in [None, Some(false), Some(true)] {
                Case { layer, gate, ..full(dims) }.expect_reference()?;
                Case { layer, gate, bias: false, residual: false, ..full(dims) }.expect_reference()?;
            }
        }
    }
    // More rows than there are tasks of the smallest size.
    full(&[5000, 3]).expect_reference()
}

fn any_case() -> impl Strategy<Value = Case> {
    let shape = (1usize..=40, 1usize..=4, 2usize..=40);
    (shape, any::<[bool; 3]>(), any::<Option<bool>>()).prop_map(|((rows, groups, group), flags, gate)| {
        let [layer, bias, residual] = flags;
        let group_size = (groups > 1).then_some(group);
        Case { dims: vec![rows, groups * group], layer, bias, residual, gate, group: group_size }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_combination_matches_the_reference(case in any_case()) {
        case.expect_reference().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    for layer in [false, true] {
        for gate in [None, Some(false), Some(true)] {
            for group in [None, Some(3)] {
                let case = Case { layer, gate, group, ..full(&[2, 6]) };
                let named: Vec<(&str, Tensor)> = NAMES.into_iter().zip(case.inputs()?).collect();
                // Through both outputs, and through each alone.
                expect_gradients_match_differences(&named, 1e-7, |x| weighted_sum(&case.kernel(x)?))?;
                expect_gradients_match_differences(&named, 1e-7, |x| weighted_sum(&case.kernel(x)?[..1]))?;
                expect_gradients_match_differences(&named, 1e-7, |x| case.kernel(x)?[1].sqr()?.sum_all())?;
            }
        }
    }
    Ok(())
}

#[test]
fn rows_have_unit_scale() -> Result<()> {
    let x = (pseudo_random(&[9, 50], 1, DType::F64)? * 7.0)?;
    let ones = Tensor::ones(50, DType::F64, &Device::Cpu)?;
    let square = Norm::rms(&x, &ones, 0.0).run()?.sqr()?.mean(D::Minus1)?;
    expect_close("mean square", &square, &square.ones_like()?, 1e-12)?;
    let y = Norm::layer(&x, &ones, 0.0).run()?;
    assert!(values(&y.mean(D::Minus1)?)?.iter().all(|m| m.abs() < 1e-12));
    let square = y.sqr()?.mean(D::Minus1)?;
    expect_close("variance", &square, &square.ones_like()?, 1e-12)
}

#[test]
fn views_get_their_gradients() -> Result<()> {
    let inputs = [pseudo_random(&[6, 9], 1, DType::F64)?, pseudo_random(&[1, 6], 2, DType::F64)?];
    let run = |x: &[Tensor], kernel: bool| {
        let (x, weight) = (x[0].t()?, x[1].squeeze(0)?);
        let norm = Norm::rms(&x, &weight, 1e-5).gate(&x, false);
        let y = if kernel { norm.run()? } else { reference::norm(&norm)?.0 };
        y.sqr()?.sum_all()
    };
    let (got, want) = (gradients(&inputs, |x| run(x, true))?, gradients(&inputs, |x| run(x, false))?);
    for (got, want) in got.iter().zip(&want) {
        expect_close("gradient", got, want, 1e-10)?;
    }
    Ok(())
}

#[test]
fn extreme_inputs_stay_finite_and_nan_shows() -> Result<()> {
    let case = full(&[2, 19]);
    for factor in [1e15, 1e-40] {
        let mut x = case.inputs()?;
        for i in [0, 3] {
            x[i] = (&x[i] * factor)?;
        }
        let got = evaluate(&x, |x| case.kernel(x))?;
        for x in got.outputs.iter().chain(&got.grads) {
            assert!(values(x)?.iter().all(|x| x.is_finite()), "inputs of about {factor:e}");
        }
    }
    for gate in [false, true] {
        let case = Case { gate: Some(gate), ..case.clone() };
        for (i, name) in NAMES.iter().enumerate() {
            let mut x = case.inputs()?;
            x[i] = with_element(&x[i], 1, f64::NAN)?;
            let got = evaluate(&x, |x| case.kernel(x))?;
            assert!(
                values(&got.outputs[0])?.iter().any(|x| x.is_nan()),
                "NaN in {name} is lost in the output"
            );
        }
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let case = full(&[2, 5, 6]);
    let x = case.inputs()?;
    let with = |i: usize, tensor: Tensor| {
        let mut x = x.clone();
        x[i] = tensor;
        message(case.norm(&x).run())
    };
    let cases = [
        (with(1, zeros(&[7])?), "norm: weight has shape [7], expected [6]"),
        (with(2, zeros(&[6, 1])?), "norm: bias has shape [6, 1], expected [6]"),
        (with(3, zeros(&[5, 6])?), "norm: residual has shape [5, 6], expected [2, 5, 6]"),
        (with(4, zeros(&[2, 6, 5])?), "norm: z has shape [2, 6, 5], expected [2, 5, 6]"),
        (with(4, x[4].to_dtype(DType::F64)?), "norm: z has dtype F64, expected F32"),
        (with(0, x[0].to_dtype(DType::U32)?), "norm: dtype U32 is not supported, expected f32 or f64"),
        (
            message(case.norm(&x).group_size(4).run()),
            "norm: group_size is 4, expected a divisor of the 6 channels",
        ),
        (
            message(case.norm(&x).group_size(0).run()),
            "norm: group_size is 0, expected a divisor of the 6 channels",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
    Ok(())
}
