//! The scan with complex states against its reference, against finite differences, against the scan with real states and
//! against itself.

use crate::support::{
    ARRANGEMENTS, Arrangement, cast, evaluate, expect_kernel_is_reference, expect_same, expect_zero_padding,
    message, tokens, weighted_sum,
};
use candle_core::{DType, Result, Tensor};
use mamba_kernels::complex_scan::reference;
use mamba_kernels::testing::{expect_close, expect_gradients_match_differences, pseudo_random};
use mamba_kernels::{ComplexScan, Segments, SelectiveScan};

pub(crate) const NAMES: [&str; 7] = ["u", "delta", "A_real", "A_imag", "B", "C", "initial_state"];

/// A scan to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) d: usize,
    pub(crate) n: usize,
    /// Whether δ, B and C are constant.
    pub(crate) constant: [bool; 3],
    pub(crate) reverse: bool,
    pub(crate) initial: bool,
    pub(crate) arrangement: Arrangement,
    pub(crate) chunk: Option<usize>,
}

pub(crate) fn full(batch: usize, len: usize, d: usize, n: usize) -> Case {
    Case {
        batch,
        len,
        d,
        n,
        constant: [false; 3],
        reverse: false,
        initial: true,
        arrangement: Arrangement::Whole,
        chunk: None,
    }
}

impl Case {
    fn segments(&self) -> Option<Segments> {
        self.arrangement.segments(self.batch, self.len)
    }

    /// [`NAMES`] in f32. Poles lie left of zero, turns reach half a whole one.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        let Self { batch, len, d, n, constant: [delta, b, c], .. } = *self;
        let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
        let per_token =
            |constant: bool, wide: usize| if constant { vec![d, wide] } else { vec![batch, len, wide] };
        let steps = if delta { random(&[d], 2)? } else { random(&[batch, len, d], 2)? };
        let count = self.segments().map_or(batch, |s| s.count());
        Ok(vec![
            random(&[batch, len, d], 1)?,
            ((steps.abs()? * 0.6)? + 0.02)?,
            random(&[d, n], 3)?.exp()?.neg()?,
            (random(&[d, n], 4)? * 5.0)?,
            random(&per_token(b, 2 * n), 5)?,
            random(&per_token(c, 2 * n), 6)?,
            random(&[count, d, 2 * n], 7)?,
        ])
    }

    fn scan<'a>(&self, x: &'a [Tensor], segments: Option<&'a Segments>) -> ComplexScan<'a> {
        let mut scan = ComplexScan::new(&x[0], &x[1], (&x[2], &x[3]), &x[4], &x[5]).reverse(self.reverse);
        if self.initial {
            scan = scan.initial_state(&x[6]);
        }
        if let Some(segments) = segments {
            scan = scan.segments(segments);
        }
        match self.chunk {
            Some(chunk) => scan.chunk_size(chunk),
            None => scan,
        }
    }

    pub(crate) fn kernel(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = self.scan(x, segments.as_ref()).run_with_state()?;
        Ok(vec![y, last])
    }

    pub(crate) fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let segments = self.segments();
        let (y, last) = reference::complex_scan(&self.scan(x, segments.as_ref()))?;
        Ok(vec![y, last])
    }

    fn expect_reference(&self) -> Result<()> {
        let label = format!("{self:?}");
        expect_kernel_is_reference(&label, &NAMES, &self.inputs()?, |x| self.kernel(x), |x| self.reference(x))
    }
}

#[test]
fn odd_sizes_match_the_reference() -> Result<()> {
    for (batch, len, d, n) in [
        (1, 1, 1, 1),
        (2, 7, 2, 2),
        (3, 64, 7, 3),
        (1, 129, 33, 8),
        (1, 7, 130, 5),
        (1, 300, 2, 9),
        (2, 33, 3, 65),
    ] {
        for reverse in [false, true] {
            Case { reverse, ..full(batch, len, d, n) }.expect_reference()?;
            Case { reverse, constant: [true; 3], initial: false, ..full(batch, len, d, n) }
                .expect_reference()?;
        }
    }
    Ok(())
}

#[test]
fn every_arrangement_and_kind_of_coefficient_matches_the_reference() -> Result<()> {
    for arrangement in ARRANGEMENTS {
        for constant in [[false; 3], [true, false, true], [false, true, false], [true; 3]] {
            for reverse in [false, true] {
                let case = Case { arrangement, constant, reverse, ..full(3, 37, 17, 3) };
                case.expect_reference()?;
                let x = case.inputs()?;
                if let Some(segments) = case.segments() {
                    let got = evaluate(&x, |x| case.kernel(x))?;
                    expect_zero_padding("y", &got.outputs[0], &segments)?;
                    expect_zero_padding("gradient of u", &got.grads[0], &segments)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    for constant in [[false; 3], [true; 3]] {
        let case = Case { constant, chunk: Some(3), ..full(2, 7, 3, 2) };
        let inputs: Vec<(&str, Tensor)> = NAMES.into_iter().zip(case.inputs()?).collect();
        expect_gradients_match_differences(&inputs, 1e-7, |x| weighted_sum(&case.kernel(x)?))?;
    }
    Ok(())
}

#[test]
fn without_imaginary_parts_it_is_twice_the_scan_with_real_states() -> Result<()> {
    let case = full(2, 50, 19, 4);
    let x = cast(&case.inputs()?, DType::F64)?;
    // pairs (x, 0)
    let real = |x: &Tensor| -> Result<Tensor> {
        let dims = [&x.dims()[..x.rank() - 1], &[4, 2]].concat();
        let x = x.reshape(dims)?;
        x.narrow(x.rank() - 1, 0, 1)?.squeeze(x.rank() - 1)?.contiguous()
    };
    let pairs = |x: &Tensor| -> Result<Tensor> {
        let dims = [&x.dims()[..x.rank() - 1], &[8]].concat();
        Tensor::stack(&[x, &x.zeros_like()?], x.rank())?.reshape(dims)
    };
    let (b, c, h) = (real(&x[4])?, real(&x[5])?, real(&x[6])?);
    let (y, last) = SelectiveScan::new(&x[0], &x[1], &x[2], &b, &c).initial_state(&h).run_with_state()?;
    let (b, c, h) = (pairs(&b)?, pairs(&c)?, pairs(&h)?);
    let zero = x[3].zeros_like()?;
    let scan = ComplexScan::new(&x[0], &x[1], (&x[2], &zero), &b, &c).initial_state(&h);
    let (got, state) = scan.run_with_state()?;
    expect_close("y", &got, &(y * 2.0)?, 1e-12)?;
    expect_close("state", &state, &pairs(&last)?, 1e-12)
}

#[test]
fn pieces_chunks_and_packed_sequences_are_the_whole() -> Result<()> {
    for constant in [[false; 3], [false, true, true]] {
        let case = Case { constant, ..full(1, 90, 21, 4) };
        let x = cast(&case.inputs()?, DType::F64)?;
        let whole = evaluate(&x, |x| case.kernel(x))?;
        let cut = |x: &[Tensor], at: (usize, usize), state: &Tensor| -> Result<Vec<Tensor>> {
            let part = |i: usize| if x[i].rank() == 3 { tokens(&x[i], at.0, at.1) } else { Ok(x[i].clone()) };
            let piece = [part(0)?, part(1)?, x[2].clone(), x[3].clone(), part(4)?, part(5)?, state.clone()];
            Case { len: at.1 - at.0, ..case }.kernel(&piece)
        };
        let pieces = evaluate(&x, |x| {
            let (mut state, mut outputs) = (x[6].clone(), Vec::new());
            for at in [(0, 1), (1, 40), (40, 90)] {
                let mut piece = cut(x, at, &state)?;
                state = piece.swap_remove(1);
                outputs.push(piece.swap_remove(0));
            }
            Ok(vec![Tensor::cat(&outputs, 1)?, state])
        })?;
        expect_same("pieces", DType::F64, &NAMES, &pieces, &whole)?;
        for chunk in [1, 7, 200] {
            let chunked = evaluate(&x, |x| Case { chunk: Some(chunk), ..case }.kernel(x))?;
            expect_same("chunks", DType::F64, &NAMES, &chunked, &whole)?;
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let x = full(2, 5, 3, 2).inputs()?;
    let of = |x: &[Tensor]| ComplexScan::new(&x[0], &x[1], (&x[2], &x[3]), &x[4], &x[5]).run();
    let with = |i: usize, dims: &[usize]| -> Result<String> {
        let mut x = x.clone();
        x[i] = pseudo_random(dims, 1, DType::F32)?;
        Ok(message(of(&x)))
    };
    assert!(with(1, &[2, 5])?.contains("delta has shape [2, 5], expected [2, 5, 3] or [3]"));
    assert!(with(3, &[3, 3])?.contains("A_imag has shape [3, 3], expected [3, 2]"));
    assert!(with(4, &[2, 5, 2])?.contains("B has shape [2, 5, 2], expected [2, 5, 4] or [3, 4]"));
    assert!(with(2, &[4, 2])?.contains("A_real has shape [4, 2]"));
    let zero = message(ComplexScan::new(&x[0], &x[1], (&x[2], &x[3]), &x[4], &x[5]).chunk_size(0).run());
    assert!(zero.contains("chunk_size is 0"), "{zero}");
    Ok(())
}
