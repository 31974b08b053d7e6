//! The causal convolution against its reference, against finite differences and against itself.

use crate::support::{
    ARRANGEMENTS, Arrangement, cast, evaluate, expect_kernel_is_reference, expect_same, expect_same_bits,
    expect_zero_padding, fill_padding, message, tokens, values, weighted_sum, with_element,
};
use candle_core::{DType, Device, Result, Tensor};
use mamba_kernels::causal_conv1d::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, gradients, pseudo_random};
use mamba_kernels::{CausalConv1d, Segments, causal_conv1d_update};
use proptest::prelude::*;
use proptest::sample::select;

/// The inputs of a case, in order; those that it does not use get a zero gradient.
pub(crate) const NAMES: [&str; 4] = ["x", "weight", "bias", "initial_state"];
const X: usize = 0;
const STATE: usize = 3;

/// A convolution to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) d: usize,
    pub(crate) width: usize,
    pub(crate) bias: bool,
    pub(crate) silu: bool,
    pub(crate) initial: bool,
    pub(crate) reverse: bool,
    pub(crate) arrangement: Arrangement,
}

/// Everything that there is, in whole rows.
pub(crate) fn full(batch: usize, len: usize, d: usize, width: usize) -> Case {
    let arrangement = Arrangement::Whole;
    Case { batch, len, d, width, bias: true, silu: true, initial: true, reverse: false, arrangement }
}

impl Case {
    fn segments(&self) -> Option<Segments> {
        self.arrangement.segments(self.batch, self.len)
    }

    /// [`NAMES`] in f32.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        let Self { batch, len, d, width, .. } = *self;
        let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
        let count = self.segments().map_or(batch, |s| s.count());
        Ok(vec![
            (random(&[batch, len, d], 1)? * 2.0)?,
            random(&[d, width], 2)?,
            random(&[d], 3)?,
            random(&[count, width - 1, d], 4)?,
        ])
    }

    fn conv<'a>(&self, x: &'a [Tensor], segments: Option<&'a Segments>) -> CausalConv1d<'a> {
        let mut conv = CausalConv1d::new(&x[0], &x[1]);
        if self.bias {
            conv = conv.bias(&x[2]);
        }
        if self.initial {
            conv = conv.initial_state(&x[3]);
        }
        if let Some(segments) = segments {
            conv = conv.segments(segments);
        }
        conv.silu(self.silu).reverse(self.reverse)
    }

    /// Output and last state by the kernel.
    pub(crate) fn kernel(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = self.conv(x, segments.as_ref()).run_with_state()?;
        Ok(vec![y, last])
    }

    pub(crate) fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = reference::causal_conv1d(&self.conv(x, segments.as_ref()))?;
        Ok(vec![y, last])
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
    let sizes = [
        (1, 1, 1, 1),
        (2, 1, 2, 4),
        (2, 7, 7, 3),
        (3, 64, 16, 2),
        (1, 129, 17, 4),
        (2, 64, 33, 4),
        (1, 7, 236, 4),
        (1, 1024, 2, 4),
        (1, 600, 3, 8),
        (2, 5, 3, 8),
        (1, 20, 5, 5),
        (1, 20, 5, 6),
        (1, 20, 5, 7),
    ];
    for (batch, len, d, width) in sizes {
        for reverse in [false, true] {
            let case = Case { reverse, ..full(batch, len, d, width) };
            case.expect_reference()?;
            Case { bias: false, silu: false, initial: false, ..case }.expect_reference()?;
        }
    }
    Ok(())
}

fn any_case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..=3, 1usize..=70, select(vec![1usize, 2, 6, 16, 17, 18, 33]), 1usize..=8);
    (sizes, any::<[bool; 4]>(), select(ARRANGEMENTS.to_vec())).prop_map(|(sizes, flags, arrangement)| {
        let (batch, len, d, width) = sizes;
        let [bias, silu, initial, reverse] = flags;
        Case { batch, len, d, width, bias, silu, initial, reverse, arrangement }
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
    let small = full(2, 6, 3, 4);
    let cases = [
        small,
        Case { reverse: true, ..small },
        Case { silu: false, len: 2, ..small },
        Case { arrangement: Arrangement::Packed, ..small },
        Case { arrangement: Arrangement::LeftPadded, reverse: true, ..small },
    ];
    for case in cases {
        let named: Vec<(&str, Tensor)> = NAMES.into_iter().zip(case.inputs()?).collect();
        expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&case.kernel(x)?))?;
        expect_gradients_match_differences(&named, 1e-8, |x| weighted_sum(&case.kernel(x)?[..1]))?;
        expect_gradients_match_differences(&named, 1e-8, |x| case.kernel(x)?[1].sqr()?.sum_all())?;
    }
    Ok(())
}

/// Gradients of weight and bias are summed from the other end, block by block.
#[test]
fn reverse_is_flip_convolve_flip() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let case = full(2, 600, 19, 4);
        let x = cast(&case.inputs()?, dtype)?;
        let flipped = evaluate(&x, |x| {
            let mut x = x.to_vec();
            x[X] = x[X].flip(&[1])?;
            let outputs = case.kernel(&x)?;
            Ok(vec![outputs[0].flip(&[1])?, outputs[1].clone()])
        })?;
        let reverse = Case { reverse: true, ..case };
        let reversed = evaluate(&x, |x| reverse.kernel(x))?;
        for i in 0..2 {
            expect_same_bits(&format!("output {i}"), &reversed.outputs[i], &flipped.outputs[i])?;
        }
        for (i, name) in NAMES.iter().enumerate() {
            expect_same_bits(&format!("gradient of {name}"), &reversed.grads[i], &flipped.grads[i])?;
        }
    }
    Ok(())
}

/// Bit for bit, but for the sums over sequences, which are grouped differently.
#[test]
fn packed_sequences_are_each_alone() -> Result<()> {
    for reverse in [false, true] {
        let case = Case { arrangement: Arrangement::Packed, reverse, ..full(1, 700, 18, 4) };
        let segments = case.segments().unwrap();
        let alone = |x: &[Tensor]| {
            let (mut y, mut last) = (Vec::new(), Vec::new());
            for (i, s) in segments.iter().enumerate() {
                let mut one = x.to_vec();
                one[STATE] = x[STATE].narrow(0, i, 1)?;
                if s.is_empty() {
                    last.push(one[STATE].clone());
                    continue;
                }
                one[X] = tokens(&x[X], s.start, s.end)?;
                let (part, state) = case.conv(&one, None).run_with_state()?;
                y.push(part);
                last.push(state);
            }
            Ok(vec![Tensor::cat(&y, 1)?, Tensor::cat(&last, 0)?])
        };
        for dtype in [DType::F32, DType::F64] {
            let x = cast(&case.inputs()?, dtype)?;
            let (got, want) = (evaluate(&x, |x| case.kernel(x))?, evaluate(&x, alone)?);
            expect_same_bits("y", &got.outputs[0], &want.outputs[0])?;
            expect_same_bits("last state", &got.outputs[1], &want.outputs[1])?;
            expect_same_bits("gradient of x", &got.grads[X], &want.grads[X])?;
            expect_same_bits("gradient of the state", &got.grads[STATE], &want.grads[STATE])?;
            expect_same("packed", dtype, &NAMES, &got, &want)?;
        }
    }
    Ok(())
}

#[test]
fn padding_is_never_read_and_its_output_and_gradient_are_zero() -> Result<()> {
    for arrangement in
        [Arrangement::RightPadded, Arrangement::LeftPadded, Arrangement::SeqIdx, Arrangement::Nothing]
    {
        for reverse in [false, true] {
            let case = Case { arrangement, reverse, ..full(3, 50, 18, 4) };
            let segments = case.segments().unwrap();
            let clean = evaluate(&case.inputs()?, |x| case.kernel(x))?;
            let mut x = case.inputs()?;
            x[X] = fill_padding(&x[X], &segments, f64::NAN)?;
            let poisoned = evaluate(&x, |x| {
                // The gradient of y at padding is NaN, too.
                let y = case.kernel(x)?;
                let ones = fill_padding(&y[0].ones_like()?.detach(), &segments, f64::NAN)?;
                Ok(vec![(&y[0] * ones)?, y[1].clone()])
            })?;
            let y = case.kernel(&x)?.swap_remove(0);
            expect_zero_padding("y", &y, &segments)?;
            expect_same_bits("y", &y, &clean.outputs[0])?;
            expect_same_bits("last state", &poisoned.outputs[1], &clean.outputs[1])?;
            for (i, name) in NAMES.iter().enumerate() {
                expect_same_bits(&format!("gradient of {name}"), &poisoned.grads[i], &clean.grads[i])?;
            }
            expect_zero_padding("gradient of x", &poisoned.grads[X], &segments)?;
        }
    }
    Ok(())
}

/// Pieces may be shorter than the window.
#[test]
fn pieces_are_the_whole() -> Result<()> {
    for reverse in [false, true] {
        for (len, piece) in [(600, 300), (9, 2), (2, 1)] {
            let case = Case { reverse, ..full(2, len, 18, 4) };
            let in_pieces = |x: &[Tensor]| {
                let mut starts: Vec<usize> = (0..len).step_by(piece).collect();
                if reverse {
                    starts.reverse();
                }
                let (mut y, mut state) = (Vec::new(), x[STATE].clone());
                for start in starts {
                    let mut part = x.to_vec();
                    part[X] = tokens(&x[X], start, (start + piece).min(len))?;
                    part[STATE] = state;
                    let (out, next) = case.conv(&part, None).run_with_state()?;
                    y.push(out);
                    state = next;
                }
                if reverse {
                    y.reverse();
                }
                Ok(vec![Tensor::cat(&y, 1)?, state])
            };
            for dtype in [DType::F32, DType::F64] {
                let x = cast(&case.inputs()?, dtype)?;
                let (whole, pieces) = (evaluate(&x, |x| case.kernel(x))?, evaluate(&x, in_pieces)?);
                expect_same_bits("y", &pieces.outputs[0], &whole.outputs[0])?;
                expect_same_bits("last state", &pieces.outputs[1], &whole.outputs[1])?;
                expect_same("pieces", dtype, &NAMES, &pieces, &whole)?;
            }
        }
    }
    Ok(())
}

#[test]
fn stepping_is_convolving() -> Result<()> {
    let case = full(3, 9, 18, 4);
    let x = case.inputs()?;
    let whole = case.kernel(&x)?;
    let mut state = x[STATE].clone();
    for t in 0..case.len {
        let mut one = x.clone();
        one[X] = tokens(&x[X], t, t + 1)?;
        let (y, next) = causal_conv1d_update(Case { initial: false, ..case }.conv(&one, None), &state)?;
        expect_same_bits("y", &y, &whole[0].narrow(1, t, 1)?.squeeze(1)?)?;
        state = next;
    }
    expect_same_bits("last state", &state, &whole[1])
}

#[test]
fn views_get_their_gradients() -> Result<()> {
    let wide = pseudo_random(&[2, 9, 11], 1, DType::F64)?;
    let weight = pseudo_random(&[4, 5], 2, DType::F64)?;
    let run = |x: &[Tensor], kernel: bool| {
        let (x, weight) = (x[0].narrow(2, 3, 5)?, x[1].t()?);
        let conv = CausalConv1d::new(&x, &weight).silu(true);
        let y = if kernel { conv.run()? } else { reference::causal_conv1d(&conv)?.0 };
        y.sqr()?.sum_all()
    };
    let inputs = [wide, weight];
    let (got, want) = (gradients(&inputs, |x| run(x, true))?, gradients(&inputs, |x| run(x, false))?);
    for (got, want) in got.iter().zip(&want) {
        expect_close("gradient", got, want, 1e-10)?;
    }
    Ok(())
}

#[test]
fn extreme_inputs_stay_finite_and_nan_shows() -> Result<()> {
    let case = full(1, 9, 18, 4);
    for factor in [1e4, 1e30, 1e-40] {
        let mut x = case.inputs()?;
        x[X] = (&x[X] * factor)?;
        let got = evaluate(&x, |x| case.kernel(x))?;
        for x in [&got.outputs[0], &got.grads[X]] {
            assert!(values(x)?.iter().all(|x| x.is_finite()), "inputs of about {factor:e}");
        }
    }
    for (i, name) in NAMES.iter().enumerate() {
        let mut x = case.inputs()?;
        x[i] = with_element(&x[i], 1, f64::NAN)?;
        let got = evaluate(&x, |x| case.kernel(x))?;
        assert!(values(&got.outputs[0])?.iter().any(|x| x.is_nan()), "NaN in {name} is lost in the output");
        assert!(values(&got.grads[X])?.iter().any(|x| x.is_nan()), "NaN in {name} is lost in the gradient");
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let case = full(2, 5, 6, 4);
    let x = case.inputs()?;
    let with = |i: usize, tensor: Tensor| {
        let mut x = x.clone();
        x[i] = tensor;
        message(case.conv(&x, None).run())
    };
    let cases = [
        (with(0, zeros(&[5, 6])?), "causal_conv1d: x has shape [5, 6], expected (batch, len, channels)"),
        (
            with(0, zeros(&[2, 0, 6])?),
            "causal_conv1d: x has shape [2, 0, 6], expected at least one token and one channel",
        ),
        (
            with(1, zeros(&[6, 9])?),
            "causal_conv1d: weight has shape [6, 9], expected (channels 6, width 1..=8)",
        ),
        (with(2, zeros(&[5])?), "causal_conv1d: bias has shape [5], expected [6]"),
        (with(3, zeros(&[2, 4, 6])?), "causal_conv1d: initial_state has shape [2, 4, 6], expected [2, 3, 6]"),
        (with(2, x[2].to_dtype(DType::F64)?), "causal_conv1d: bias has dtype F64, expected F32"),
        (
            with(0, x[0].to_dtype(DType::BF16)?),
            "causal_conv1d: dtype BF16 is not supported, expected f32 or f64",
        ),
        (
            message(case.conv(&x, Some(&Segments::whole(3, 5))).run()),
            "causal_conv1d: segments are of batch 3 × len 5, x of batch 2 × len 5",
        ),
        (
            message(causal_conv1d_update(case.conv(&x, None), &x[STATE])),
            "causal_conv1d_update: x has 5 tokens, expected 1",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
    Ok(())
}
