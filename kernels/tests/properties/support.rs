//! Evaluating an op with its gradients, comparing evaluations, and arranging segments.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use mamba_kernels::testing::{expect_close, pseudo_random, relative_error};
use mamba_kernels::{Segment, Segments};

/// Tolerances of outputs and of gradients, relative to the largest value of the tensor; that of a gradient, at least 1,
/// because a sum over tokens may be far smaller than its terms.
pub(crate) fn tolerances(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (1e-10, 1e-10),
        DType::F16 => (3e-3, 5e-3),
        DType::BF16 => (3e-2, 5e-2),
        _ => (5e-6, 2e-5),
    }
}

/// Outputs of an op, and the gradients of Σ output · cotangent over all its outputs.
pub(crate) struct Evaluated {
    pub(crate) outputs: Vec<Tensor>,
    pub(crate) grads: Vec<Tensor>,
}

/// Evaluates `f` and its gradients at `x`; the cotangents depend on the outputs' shapes and positions only.
pub(crate) fn evaluate(x: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Evaluated> {
    let vars = x.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let x: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let outputs = f(&x)?;
    let grads = weighted_sum(&outputs)?.backward()?;
    let grad = |v: &Var| grads.get(v).map_or_else(|| v.zeros_like(), |g| Ok(g.clone()));
    Ok(Evaluated { grads: vars.iter().map(grad).collect::<Result<_>>()?, outputs })
}

/// Σ output · cotangent.
pub(crate) fn weighted_sum(outputs: &[Tensor]) -> Result<Tensor> {
    // Half precision is summed in f32.
    let dtype = if outputs[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut sum = Tensor::zeros((), dtype, outputs[0].device())?;
    for (i, y) in outputs.iter().enumerate().filter(|(_, y)| y.elem_count() > 0) {
        let cotangent = pseudo_random(y.dims(), 1000 + i as u64, DType::F32)?.to_dtype(dtype)?;
        let cotangent = cotangent.to_device(y.device())?;
        sum = (sum + (y.to_dtype(dtype)? * cotangent)?.sum_all()?)?;
    }
    Ok(sum)
}

/// Fails unless `got` is `want` within [`tolerances`] of `dtype`.
pub(crate) fn expect_same(
    label: &str,
    dtype: DType,
    names: &[&str],
    got: &Evaluated,
    want: &Evaluated,
) -> Result<()> {
    let (forward, gradient) = tolerances(dtype);
    for (i, (got, want)) in got.outputs.iter().zip(&want.outputs).enumerate() {
        expect_close(&format!("{label} {dtype:?}: output {i}"), got, want, forward)?;
    }
    for (name, (got, want)) in names.iter().zip(got.grads.iter().zip(&want.grads)) {
        let largest = values(want)?.into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let error = relative_error(got, want)? * largest.max(1e-30) / largest.max(1.0);
        if error > gradient {
            bail!("{label} {dtype:?}: gradient of {name}: error {error:.2e}, tolerance {gradient:.0e}");
        }
    }
    Ok(())
}

/// Fails unless the kernel, in f64 and in f32, is the reference in f64. `x` is in f32.
pub(crate) fn expect_kernel_is_reference(
    label: &str,
    names: &[&str],
    x: &[Tensor],
    kernel: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    reference: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<()> {
    let want = evaluate(&cast(x, DType::F64)?, reference)?;
    for dtype in [DType::F64, DType::F32] {
        let got = evaluate(&cast(x, dtype)?, &kernel)?;
        expect_same(label, dtype, names, &got, &want)?;
    }
    Ok(())
}

pub(crate) fn cast(x: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    x.iter().map(|x| x.to_dtype(dtype)).collect()
}

/// The bit pattern of every element, widened to f64.
pub(crate) fn bits(x: &Tensor) -> Result<Vec<u64>> {
    Ok(values(x)?.into_iter().map(f64::to_bits).collect())
}

pub(crate) fn values(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Fails unless two tensors have one shape and the same bits.
pub(crate) fn expect_same_bits(label: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    if got.dims() != want.dims() {
        bail!("{label}: shape {:?}, expected {:?}", got.dims(), want.dims());
    }
    let (got, want) = (bits(got)?, bits(want)?);
    match got.iter().zip(&want).position(|(g, w)| g != w) {
        Some(i) => {
            bail!("{label}: element {i} is {}, expected {}", f64::from_bits(got[i]), f64::from_bits(want[i]))
        }
        None => Ok(()),
    }
}

/// `x` with element `i` set to `value`.
pub(crate) fn with_element(x: &Tensor, i: usize, value: f64) -> Result<Tensor> {
    let mut all = values(x)?;
    all[i] = value;
    Tensor::from_vec(all, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())
}

/// `(batch, len)`, true where a token belongs to a segment.
pub(crate) fn covered(segments: &Segments) -> Vec<bool> {
    let mut mask = vec![false; segments.batch() * segments.seq_len()];
    for s in segments.iter() {
        let first = s.row * segments.seq_len();
        mask[first + s.start..first + s.end].fill(true);
    }
    mask
}

/// `(batch, len, …)` with every token of padding filled with `value`.
pub(crate) fn fill_padding(x: &Tensor, segments: &Segments, value: f64) -> Result<Tensor> {
    let mut all = values(x)?;
    let mask = covered(segments);
    let width = all.len() / mask.len();
    for (row, _) in all.chunks_mut(width).zip(mask).filter(|(_, covered)| !covered) {
        row.fill(value);
    }
    Tensor::from_vec(all, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())
}

/// Fails unless every padding token of `x` is exactly zero.
pub(crate) fn expect_zero_padding(label: &str, x: &Tensor, segments: &Segments) -> Result<()> {
    let all = values(x)?;
    let mask = covered(segments);
    let width = all.len() / mask.len();
    for (token, (row, _)) in all.chunks(width).zip(&mask).enumerate().filter(|(_, (_, covered))| !**covered) {
        if row.iter().any(|&x| x != 0.0) {
            bail!("{label}: padding token {token} is {row:?}, expected zeros");
        }
    }
    Ok(())
}

/// How the tokens of a batch form sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrangement {
    /// Each row is one sequence.
    Whole,
    /// Rows of several sequences back to back, one of them empty.
    Packed,
    RightPadded,
    LeftPadded,
    /// Runs of equal indices with padding between them.
    SeqIdx,
    /// No sequence at all.
    Nothing,
}

pub(crate) const ARRANGEMENTS: [Arrangement; 6] = [
    Arrangement::Whole,
    Arrangement::Packed,
    Arrangement::RightPadded,
    Arrangement::LeftPadded,
    Arrangement::SeqIdx,
    Arrangement::Nothing,
];

impl Arrangement {
    /// The segments, or none where each row is one sequence.
    pub(crate) fn segments(self, batch: usize, len: usize) -> Option<Segments> {
        let lengths: Vec<usize> = (0..batch).map(|row| (len * (row + 1)).div_ceil(batch + 1)).collect();
        let segments = match self {
            Self::Whole => return None,
            Self::Packed if batch == 1 => Segments::packed(&[0, len / 3, len / 3, len.div_ceil(2), len]),
            Self::Packed => {
                let rows = (0..batch).flat_map(|row| {
                    let cut = (len * (row + 1)) / (batch + 1);
                    [(0, cut), (cut, cut), (cut, len)].map(|(start, end)| Segment { row, start, end })
                });
                Segments::new(batch, len, rows.collect())
            }
            Self::RightPadded => Segments::right_padded(len, &lengths),
            Self::LeftPadded => Segments::left_padded(len, &lengths),
            Self::SeqIdx => {
                let run = (len / 5).max(1);
                let id = |token: usize| [0, -1, 1, 2, -1][(token / run) % 5] + (token / run / 5) as i32 * 4;
                let ids: Vec<i32> = (0..batch * len).map(|i| id(i % len).max(-1)).collect();
                Segments::from_seq_idx(&ids, batch, len)
            }
            Self::Nothing => Segments::new(batch, len, Vec::new()),
        };
        Some(segments.expect("the arrangement is in order"))
    }
}

/// Tokens `start .. end` of `(B, L, …)`.
pub(crate) fn tokens(x: &Tensor, start: usize, end: usize) -> Result<Tensor> {
    x.narrow(1, start, end - start)
}

/// `text` of the error that `result` must be.
pub(crate) fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "no error".to_string(),
        // A backtrace may follow.
        Err(error) => error.to_string().lines().next().unwrap_or_default().to_string(),
    }
}
