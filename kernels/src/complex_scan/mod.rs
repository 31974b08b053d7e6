//! The selective scan with complex states, of which S4D-Lin (Gu et al. 2022, arXiv 2206.11893) and the complex form of Mamba
//! (arXiv 2312.00752, section 3.6) are made: for every channel `d` and complex state `n`
//!
//! ```text
//! h_t[n]  = exp(δ_t · A[d, n]) · h_{t-1}[n]  +  δ_t · u_t · B_t[n]
//! y_t     = 2 Re Σ_n C_t[n] · h_t[n]
//! ```
//!
//! States come in conjugate pairs, of which one is kept: hence the 2. A complex number is a pair of real ones that lie side by
//! side, real part first, so that `B`, `C` and states of N complex numbers have a last dimension of 2·N.
//!
//! Step sizes are taken as they are; skip and gate, which need no scan, are left to the caller. As in
//! [`SelectiveScan`](crate::SelectiveScan) the states of all tokens are never written down: forward keeps one state for each
//! chunk, and backward recomputes those inside it.

use crate::fused::{
    self, Elements, Fused, Output, elements, expect_shape, full_precision, like_inputs, widen,
    with_element_type,
};
use crate::gpu::Gpu;
use crate::segments::Segments;
use crate::simd::Real;
use candle_core::{Result, Tensor, bail};

mod cpu;
pub mod reference;

/// The arguments of a scan with complex states.
///
/// | argument        | shape                                                  |
/// |-----------------|--------------------------------------------------------|
/// | `u`             | `(B, L, D)`                                            |
/// | `delta`         | `(B, L, D)`, or constant `(D)`                         |
/// | `a_real`, `a_imag` | `(D, N)`                                            |
/// | `b`, `c`        | pairs `(B, L, 2·N)`, or constant `(D, 2·N)`            |
/// | `initial_state` | pairs `(segments, D, 2·N)`                             |
/// | output          | `(B, L, D)`                                            |
/// | last state      | pairs `(segments, D, 2·N)`                             |
///
/// Without [`ComplexScan::segments`] each batch row is one segment. On a GPU it is composed from tensor ops.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::ComplexScan;
/// # fn main() -> candle_core::Result<()> {
/// let dev = Device::Cpu;
/// // one state that turns by a quarter with every token, and is read by its real part
/// let u = Tensor::new(&[[[1f64], [0.], [0.]]], &dev)?;
/// let one = Tensor::new(&[1f64], &dev)?;
/// let (real, imag) = (Tensor::new(&[[0f64]], &dev)?, Tensor::new(&[[std::f64::consts::FRAC_PI_2]], &dev)?);
/// let pair = Tensor::new(&[[1f64, 0.]], &dev)?;
/// let y = ComplexScan::new(&u, &one, (&real, &imag), &pair, &pair).run()?.flatten_all()?.to_vec1::<f64>()?;
/// assert!((y[0] - 2.0).abs() < 1e-12 && y[1].abs() < 1e-12 && (y[2] + 2.0).abs() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ComplexScan<'a> {
    u: &'a Tensor,
    delta: &'a Tensor,
    a_real: &'a Tensor,
    a_imag: &'a Tensor,
    b: &'a Tensor,
    c: &'a Tensor,
    initial_state: Option<&'a Tensor>,
    segments: Option<&'a Segments>,
    reverse: bool,
    chunk_size: Option<usize>,
}

impl<'a> ComplexScan<'a> {
    /// A scan of `u` with step sizes `delta`, the real and imaginary part of `A`, and the pairs `b` and `c`.
    pub fn new(
        u: &'a Tensor,
        delta: &'a Tensor,
        a: (&'a Tensor, &'a Tensor),
        b: &'a Tensor,
        c: &'a Tensor,
    ) -> Self {
        Self {
            u,
            delta,
            a_real: a.0,
            a_imag: a.1,
            b,
            c,
            initial_state: None,
            segments: None,
            reverse: false,
            chunk_size: None,
        }
    }

    /// Starts each segment from a given state instead of zero.
    pub fn initial_state(mut self, state: &'a Tensor) -> Self {
        self.initial_state = Some(state);
        self
    }

    /// Scans each segment as a sequence of its own.
    pub fn segments(mut self, segments: &'a Segments) -> Self {
        self.segments = Some(segments);
        self
    }

    /// Scans from the last token to the first, without flipping any tensor.
    pub fn reverse(mut self, reverse: bool) -> Self {
        self.reverse = reverse;
        self
    }

    /// Tokens between two kept states; by default max(32, 2·N). Changes memory and speed, and results by rounding only.
    pub fn chunk_size(mut self, tokens: usize) -> Self {
        self.chunk_size = Some(tokens);
        self
    }

    /// The output `(B, L, D)`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
    pub fn run(self) -> Result<Tensor> {
        Ok(self.apply(false)?.swap_remove(0))
    }

    /// The output `(B, L, D)` and the last state `(segments, D, 2·N)`, both differentiable.
    ///
    /// # Errors
    /// As [`ComplexScan::run`].
    pub fn run_with_state(self) -> Result<(Tensor, Tensor)> {
        let mut outputs = self.apply(true)?;
        let last = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), last))
    }

    fn apply(self, with_state: bool) -> Result<Vec<Tensor>> {
        let dims = self.check()?;
        if Gpu::of(Some(self.u)).is_some() {
            return self.compose(with_state);
        }
        let (batch, len, _) = self.u.dims3()?;
        let segments = self.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
        let chunk = self.chunk_size.unwrap_or_else(|| (2 * dims.n).max(32));
        let op = Op { dims, segments, reverse: self.reverse, with_state, chunk };
        let inputs = [
            Some(self.u),
            Some(self.delta),
            Some(self.a_real),
            Some(self.a_imag),
            Some(self.b),
            Some(self.c),
            self.initial_state,
        ];
        fused::apply(op, &inputs)
    }

    /// By tensor ops, with half precision widened.
    fn compose(&self, with_state: bool) -> Result<Vec<Tensor>> {
        let [u, delta, a_real, a_imag, b, c] =
            [self.u, self.delta, self.a_real, self.a_imag, self.b, self.c].map(widen);
        let (u, delta, a_real, a_imag, b, c) = (u?, delta?, a_real?, a_imag?, b?, c?);
        let initial = full_precision(self.initial_state)?;
        let scan = ComplexScan {
            u: &u,
            delta: &delta,
            a_real: &a_real,
            a_imag: &a_imag,
            b: &b,
            c: &c,
            initial_state: initial.as_ref(),
            ..self.clone()
        };
        let (y, last) = reference::complex_scan(&scan)?;
        let y = y.to_dtype(self.u.dtype())?;
        Ok(if with_state { vec![y, last] } else { vec![y] })
    }

    fn check(&self) -> Result<Dims> {
        const NAME: &str = "complex_scan";
        let inputs = [
            ("u", Some(self.u)),
            ("delta", Some(self.delta)),
            ("A_real", Some(self.a_real)),
            ("A_imag", Some(self.a_imag)),
            ("B", Some(self.b)),
            ("C", Some(self.c)),
            ("initial_state", self.initial_state),
        ];
        let parameters = ["delta", "A_real", "A_imag", "B", "C", "initial_state"];
        fused::same_dtype_and_device_or_gpu(NAME, &inputs, &parameters)?;
        let &[batch, len, d] = self.u.dims() else {
            bail!("{NAME}: u has shape {:?}, expected (batch, len, d_inner)", self.u.dims())
        };
        let &[a_d, n] = self.a_real.dims() else {
            bail!("{NAME}: A_real has shape {:?}, expected (d_inner {d}, states)", self.a_real.dims())
        };
        if a_d != d || n == 0 || d == 0 || len == 0 {
            bail!(
                "{NAME}: A_real has shape [{a_d}, {n}] and u [{batch}, {len}, {d}], expected A (d_inner {d}, states ≥ 1) and len ≥ 1"
            );
        }
        expect_shape(NAME, "A_imag", Some(self.a_imag), &[d, n])?;
        let constant = |label: &str, x: &Tensor, constant: &[usize], per_token: &[usize]| match x.dims() {
            dims if dims == constant => Ok(true),
            dims if dims == per_token => Ok(false),
            dims => bail!("{NAME}: {label} has shape {dims:?}, expected {per_token:?} or {constant:?}"),
        };
        let dims = Dims {
            len,
            d,
            n,
            delta_constant: constant("delta", self.delta, &[d], &[batch, len, d])?,
            b_constant: constant("B", self.b, &[d, 2 * n], &[batch, len, 2 * n])?,
            c_constant: constant("C", self.c, &[d, 2 * n], &[batch, len, 2 * n])?,
        };
        if let Some(s) = self.segments
            && (s.batch() != batch || s.seq_len() != len)
        {
            bail!(
                "{NAME}: segments are of batch {} × len {}, u of batch {batch} × len {len}",
                s.batch(),
                s.seq_len()
            );
        }
        let count = self.segments.map_or(batch, Segments::count);
        expect_shape(NAME, "initial_state", self.initial_state, &[count, d, 2 * n])?;
        if self.chunk_size == Some(0) {
            bail!("{NAME}: chunk_size is 0, expected at least 1");
        }
        Ok(dims)
    }
}

/// Sizes of one scan.
#[derive(Clone, Copy, Debug)]
struct Dims {
    /// Tokens of a row.
    len: usize,
    /// Channels.
    d: usize,
    /// Complex states of a channel.
    n: usize,
    delta_constant: bool,
    b_constant: bool,
    c_constant: bool,
}

struct Op {
    dims: Dims,
    segments: Segments,
    reverse: bool,
    with_state: bool,
    chunk: usize,
}

impl Op {
    fn view<'a, T: Real>(&'a self, x: &'a [Option<Elements<'a>>]) -> Result<cpu::Scan<'a, T>> {
        let optional = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let required = |i: usize| optional(i).map(|s| s.unwrap_or_default());
        Ok(cpu::Scan {
            u: required(0)?,
            delta: required(1)?,
            a_real: required(2)?,
            a_imag: required(3)?,
            b: required(4)?,
            c: required(5)?,
            initial_state: optional(6)?,
            segments: self.segments.as_slice(),
            dims: self.dims,
            reverse: self.reverse,
            chunk: self.chunk,
        })
    }

    fn forward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        track: bool,
    ) -> Result<(Vec<Output>, Option<Tensor>)> {
        let x = elements(inputs);
        let out = cpu::forward(&self.view::<T>(&x)?, track);
        let Dims { d, n, .. } = self.dims;
        let (batch, len) = (self.segments.batch(), self.segments.seq_len());
        let mut outputs = vec![Output::cpu(out.y, (batch, len, d))];
        if self.with_state {
            outputs.push(Output::cpu(out.last_state, (self.segments.count(), d, 2 * n)));
        }
        let kept = out.chunk_states.len();
        Ok((outputs, track.then(|| Output::cpu(out.chunk_states, kept).into_tensor())))
    }

    fn backward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        saved: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (x, g) = (elements(inputs), elements(grads));
        let chunk_states = Elements::new(saved);
        let dy = g[0].as_ref().map(|e| e.slice::<T>()).transpose()?;
        let dlast = g.get(1).and_then(|e| e.as_ref()).map(|e| e.slice::<T>()).transpose()?;
        let out = cpu::backward(&self.view::<T>(&x)?, chunk_states.slice::<T>()?, dy, dlast);
        Ok(like_inputs(out, inputs))
    }
}

impl Fused for Op {
    type Saved = Option<Tensor>;
    const NAME: &'static str = "complex_scan";

    fn forward(&self, inputs: &[Option<Tensor>], track: bool) -> Result<(Vec<Output>, Self::Saved)> {
        with_element_type!(inputs, T => self.forward_cpu::<T>(inputs, track))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        saved: &Self::Saved,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(saved) = saved else { bail!("complex_scan: backward without saved states") };
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, saved, grads))
    }
}
