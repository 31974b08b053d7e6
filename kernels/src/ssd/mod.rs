//! State space duality, the scan of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, sections 5 and 6): for every head `h`,
//! with a state of `P × N` values
//!
//! ```text
//! δ_t     = clamp(softplus(dt_t + dt_bias[h]), lo, hi)          (softplus and limits if asked for)
//! H_t     = exp(δ_t · A[h]) · H_{t-1}  +  δ_t · x_t ⊗ B_t
//! y_t     = H_t C_t  +  D[h] · x_t
//! out_t   = y_t · silu(z_t)                                     (if there is a gate z)
//! ```
//!
//! Inside a chunk of tokens that is a product with a lower triangular matrix,
//! `y = (C Bᵀ ∘ exp(segsum(δA)) ∘ δ) x`, and between chunks only the state is passed on. The segment sums
//! `Σ_{s<u≤t} δ_u A` are differences of sums kept in two words, and nothing above the diagonal is ever exponentiated, so
//! that gradients stay finite however fast the state decays.
//!
//! Memory: one state for each chunk; never the states of all tokens.

use crate::fused::{
    self, Elements, Fused, Output, elements, expect_shape, full_precision, like_inputs, with_element_type,
};
use crate::gpu::Gpu;
use crate::segments::Segments;
use crate::simd::Real;
use candle_core::{Result, Tensor, bail};

mod cpu;
mod cuda;
pub mod reference;

const NAME: &str = "ssd";

/// The arguments of a state space dual scan: H heads of P channels, states of N values, G groups that share B and C.
///
/// | argument        | shape                               |
/// |-----------------|-------------------------------------|
/// | `x`, `z`        | `(B, L, H, P)`                      |
/// | `dt`            | `(B, L, H)`                         |
/// | `a`, `dt_bias`  | `(H)`                               |
/// | `b`, `c`        | `(B, L, G, N)` with G dividing H    |
/// | `d`             | `(H)` or `(H, P)`                   |
/// | `initial_state` | `(segments, H, P, N)`               |
/// | output          | `(B, L, H, P)`                      |
/// | last state      | `(segments, H, P, N)`               |
///
/// Without [`Ssd::segments`] each batch row is one segment.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use mamba_kernels::Ssd;
/// # fn main() -> candle_core::Result<()> {
/// let dev = Device::Cpu;
/// let (batch, len, heads, p, groups, n) = (2, 5, 4, 3, 2, 8);
/// let x = Tensor::ones((batch, len, heads, p), DType::F32, &dev)?;
/// let dt = Tensor::zeros((batch, len, heads), DType::F32, &dev)?;
/// let a = Tensor::full(-1f32, heads, &dev)?;
/// let b = Tensor::full(0.5f32, (batch, len, groups, n), &dev)?;
/// let (y, last) = Ssd::new(&x, &dt, &a, &b, &b).softplus(true).run_with_state()?;
/// assert_eq!(y.dims(), [batch, len, heads, p]);
/// assert_eq!(last.dims(), [batch, heads, p, n]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Ssd<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) dt: &'a Tensor,
    pub(crate) a: &'a Tensor,
    pub(crate) b: &'a Tensor,
    pub(crate) c: &'a Tensor,
    pub(crate) d: Option<&'a Tensor>,
    pub(crate) z: Option<&'a Tensor>,
    pub(crate) dt_bias: Option<&'a Tensor>,
    pub(crate) initial_state: Option<&'a Tensor>,
    pub(crate) weights: Option<(&'a Tensor, &'a Tensor)>,
    pub(crate) segments: Option<&'a Segments>,
    pub(crate) softplus: bool,
    pub(crate) dt_limit: Option<(f64, f64)>,
    pub(crate) reverse: bool,
    pub(crate) chunk_size: Option<usize>,
}

impl<'a> Ssd<'a> {
    /// A scan of `x` with step sizes `dt`, decay rates `a` and the matrices `b`, `c`.
    pub fn new(x: &'a Tensor, dt: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        Self {
            x,
            dt,
            a,
            b,
            c,
            d: None,
            z: None,
            dt_bias: None,
            initial_state: None,
            weights: None,
            segments: None,
            softplus: false,
            dt_limit: None,
            reverse: false,
            chunk_size: None,
        }
    }

    /// Adds the skip connection `D · x`, with one factor for each head or for each channel.
    pub fn skip(mut self, d: &'a Tensor) -> Self {
        self.d = Some(d);
        self
    }

    /// Multiplies the output by `silu(z)`.
    pub fn gate(mut self, z: &'a Tensor) -> Self {
        self.z = Some(z);
        self
    }

    /// Adds a bias to `dt`, before softplus.
    pub fn dt_bias(mut self, bias: &'a Tensor) -> Self {
        self.dt_bias = Some(bias);
        self
    }

    /// Applies softplus to `dt`.
    pub fn softplus(mut self, softplus: bool) -> Self {
        self.softplus = softplus;
        self
    }

    /// Clamps the step sizes, after softplus. Where a limit holds, `dt` gets no gradient.
    pub fn dt_limit(mut self, lo: f64, hi: f64) -> Self {
        self.dt_limit = Some((lo, hi));
        self
    }

    /// Weighs the inputs by `(B, L, H)` factors of their own instead of by δ, which then only sets the decay:
    ///
    /// ```text
    /// H_t = exp(δ_t · A) · H_{t-1}  +  into_state_t · x_t ⊗ B_t
    /// y_t = exp(δ_t · A) · H_{t-1} C_t  +  into_output_t · x_t · (B_t · C_t)
    /// ```
    ///
    /// Where the two differ, a token reads itself with another weight than later tokens read it, as in the trapezoidal
    /// rule of Mamba-3.
    pub fn weights(mut self, into_state: &'a Tensor, into_output: &'a Tensor) -> Self {
        self.weights = Some((into_state, into_output));
        self
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

    /// Scans from the last token to the first, without flipping any tensor. The initial state then enters after a
    /// segment's last token, and its last state is the one after its first token.
    pub fn reverse(mut self, reverse: bool) -> Self {
        self.reverse = reverse;
        self
    }

    /// Tokens of a chunk; by default from 64 to 128, more for larger N. Changes memory and speed, and results by
    /// rounding only.
    pub fn chunk_size(mut self, tokens: usize) -> Self {
        self.chunk_size = Some(tokens);
        self
    }

    /// The output `(B, L, H, P)`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit, with the offending argument and what was expected.
    pub fn run(self) -> Result<Tensor> {
        Ok(self.apply(false)?.swap_remove(0))
    }

    /// The output `(B, L, H, P)` and the last state `(segments, H, P, N)`, both differentiable.
    ///
    /// # Errors
    /// As [`Ssd::run`].
    pub fn run_with_state(self) -> Result<(Tensor, Tensor)> {
        let mut outputs = self.apply(true)?;
        let last = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), last))
    }

    fn apply(self, with_state: bool) -> Result<Vec<Tensor>> {
        let dims = self.check()?;
        let (batch, len, _, _) = self.x.dims4()?;
        let segments = self.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
        let longest = segments.iter().map(|s| s.len()).max().unwrap_or(0);
        let op = Op {
            dims,
            segments,
            softplus: self.softplus,
            dt_limit: self.dt_limit,
            reverse: self.reverse,
            with_state,
            chunk: self.chunk_size.unwrap_or(dims.n.clamp(64, 128)).min(longest.max(1)),
        };
        let (a, d) = (full_precision(Some(self.a))?, full_precision(self.d)?);
        let (bias, initial) = (full_precision(self.dt_bias)?, full_precision(self.initial_state)?);
        let inputs = [
            Some(self.x),
            Some(self.dt),
            a.as_ref(),
            Some(self.b),
            Some(self.c),
            d.as_ref(),
            self.z,
            bias.as_ref(),
            initial.as_ref(),
            self.weights.map(|w| w.0),
            self.weights.map(|w| w.1),
        ];
        fused::apply(op, &inputs)
    }

    /// Checks every argument and returns the sizes.
    pub(crate) fn check(&self) -> Result<Dims> {
        let inputs = [
            ("x", Some(self.x)),
            ("dt", Some(self.dt)),
            ("A", Some(self.a)),
            ("B", Some(self.b)),
            ("C", Some(self.c)),
            ("D", self.d),
            ("z", self.z),
            ("dt_bias", self.dt_bias),
            ("initial_state", self.initial_state),
            ("into_state", self.weights.map(|w| w.0)),
            ("into_output", self.weights.map(|w| w.1)),
        ];
        fused::same_dtype_and_device_or_gpu(NAME, &inputs, &["A", "D", "dt_bias", "initial_state"])?;
        let &[batch, len, h, p] = self.x.dims() else {
            bail!("{NAME}: x has shape {:?}, expected (batch, len, heads, headdim)", self.x.dims())
        };
        let &[b_batch, b_len, g, n] = self.b.dims() else {
            bail!(
                "{NAME}: B has shape {:?}, expected (batch {batch}, len {len}, groups, d_state)",
                self.b.dims()
            )
        };
        if len == 0 || h == 0 || p == 0 || n == 0 {
            bail!(
                "{NAME}: x has shape {:?} and B {:?}, expected no size to be 0",
                self.x.dims(),
                self.b.dims()
            );
        }
        if (b_batch, b_len) != (batch, len) || g == 0 || !h.is_multiple_of(g) {
            bail!(
                "{NAME}: B has shape {:?}, expected (batch {batch}, len {len}, groups that divide {h}, d_state)",
                self.b.dims()
            );
        }
        expect_shape(NAME, "C", Some(self.c), &[batch, len, g, n])?;
        expect_shape(NAME, "dt", Some(self.dt), &[batch, len, h])?;
        expect_shape(NAME, "A", Some(self.a), &[h])?;
        expect_shape(NAME, "z", self.z, &[batch, len, h, p])?;
        expect_shape(NAME, "dt_bias", self.dt_bias, &[h])?;
        if let Some(d) = self.d
            && d.dims() != [h]
            && d.dims() != [h, p]
        {
            bail!("{NAME}: D has shape {:?}, expected [{h}] or [{h}, {p}]", d.dims());
        }
        if let Some((into_state, into_output)) = self.weights {
            expect_shape(NAME, "into_state", Some(into_state), &[batch, len, h])?;
            expect_shape(NAME, "into_output", Some(into_output), &[batch, len, h])?;
        }
        if let Some(s) = self.segments
            && (s.batch() != batch || s.seq_len() != len)
        {
            bail!(
                "{NAME}: segments are of batch {} × len {}, x of batch {batch} × len {len}",
                s.batch(),
                s.seq_len()
            );
        }
        let count = self.segments.map_or(batch, Segments::count);
        expect_shape(NAME, "initial_state", self.initial_state, &[count, h, p, n])?;
        if self.chunk_size == Some(0) {
            bail!("{NAME}: chunk_size is 0, expected at least 1");
        }
        if let Some((lo, hi)) = self.dt_limit
            && (lo.is_nan() || hi.is_nan() || lo > hi)
        {
            bail!("{NAME}: dt_limit is ({lo}, {hi}), expected the lower limit first");
        }
        let d_per_channel = self.d.is_some_and(|d| d.rank() == 2);
        Ok(Dims { len, h, p, g, n, d_per_channel })
    }
}

/// Sizes of one scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    /// Tokens of a row.
    pub(crate) len: usize,
    /// Heads.
    pub(crate) h: usize,
    /// Channels of a head.
    pub(crate) p: usize,
    /// Groups of B and C.
    pub(crate) g: usize,
    /// Values of a channel's state.
    pub(crate) n: usize,
    /// Whether D has a value for each channel.
    pub(crate) d_per_channel: bool,
}

/// One decoding step: advances `state` `(B, H, P, N)` by one token and returns its output `(B, H, P)` and the new state.
/// `scan` has one token: `x` (and `z`) are `(B, 1, H, P)`. It is the scan itself, so that stepping and scanning cannot
/// drift apart.
///
/// # Errors
/// As [`Ssd::run`]; also if the scan has more than one token.
pub fn ssd_state_update(scan: Ssd<'_>, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, len, _, _) = scan.x.dims4()?;
    if len != 1 {
        bail!("ssd_state_update: x has {len} tokens, expected 1");
    }
    let (y, state) = Ssd { initial_state: Some(state), ..scan }.run_with_state()?;
    Ok((y.squeeze(1)?, state))
}

struct Op {
    dims: Dims,
    segments: Segments,
    softplus: bool,
    dt_limit: Option<(f64, f64)>,
    reverse: bool,
    with_state: bool,
    chunk: usize,
}

impl Op {
    fn view<'a, T: Real>(&'a self, x: &'a [Option<Elements<'a>>]) -> Result<cpu::Scan<'a, T>> {
        let optional = |i: usize| x[i].as_ref().map(|e| e.slice::<T>()).transpose();
        let required = |i: usize| optional(i).map(|s| s.unwrap_or_default());
        Ok(cpu::Scan {
            x: required(0)?,
            dt: required(1)?,
            a: required(2)?,
            b: required(3)?,
            c: required(4)?,
            d: optional(5)?,
            z: optional(6)?,
            dt_bias: optional(7)?,
            initial_state: optional(8)?,
            weights: optional(9)?.zip(optional(10)?),
            segments: self.segments.as_slice(),
            dims: self.dims,
            softplus: self.softplus,
            dt_limit: self.dt_limit.map(|(lo, hi)| (T::from_f64(lo), T::from_f64(hi))),
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
        let out = cpu::forward(&self.view::<T>(&x)?, self.with_state);
        let Dims { h, p, n, .. } = self.dims;
        let (batch, len) = (self.segments.batch(), self.segments.seq_len());
        let mut outputs = vec![Output::cpu(out.y, (batch, len, h, p))];
        if self.with_state {
            outputs.push(Output::cpu(out.last_state, (self.segments.count(), h, p, n)));
        }
        let values = out.chunk_states.len();
        let saved = track.then(|| Output::cpu(out.chunk_states, values).into_tensor());
        Ok((outputs, saved))
    }

    fn backward_cpu<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        saved: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let x = elements(inputs);
        let g = elements(grads);
        let chunk_states = Elements::new(saved);
        let dy = g[0].as_ref().map(|e| e.slice::<T>()).transpose()?;
        let dlast = g.get(1).and_then(|e| e.as_ref()).map(|e| e.slice::<T>()).transpose()?;
        let out = cpu::backward(&self.view::<T>(&x)?, chunk_states.slice::<T>()?, dy, dlast);
        let grads = [
            Some(out.x),
            Some(out.dt),
            Some(out.a),
            Some(out.b),
            Some(out.c),
            out.d,
            out.z,
            out.dt_bias,
            out.initial_state,
            out.into_state,
            out.into_output,
        ];
        Ok(like_inputs(grads, inputs))
    }
}

impl Fused for Op {
    type Saved = Option<Tensor>;
    const NAME: &'static str = NAME;

    fn forward(&self, inputs: &[Option<Tensor>], track: bool) -> Result<(Vec<Output>, Self::Saved)> {
        if let Some(gpu) = Gpu::of(inputs[0].as_ref()) {
            return cuda::forward(&gpu, self, inputs, track);
        }
        with_element_type!(inputs, T => self.forward_cpu::<T>(inputs, track))
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        saved: &Self::Saved,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(saved) = saved else { bail!("{NAME}: backward without saved states") };
        if let Some(gpu) = Gpu::of(inputs[0].as_ref()) {
            return cuda::backward(&gpu, self, inputs, saved, grads);
        }
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, saved, grads))
    }
}
