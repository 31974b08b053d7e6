//! The selective scan of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, equations 2 and 3, discretised as in its section
//! 3.2): for every channel `d` and state `n`
//!
//! ```text
//! δ_t     = softplus(delta_t + delta_bias)                      (softplus if asked for)
//! h_t[n]  = exp(δ_t · A[d, n]) · h_{t-1}[n]  +  δ_t · u_t · B_t[n]
//! y_t     = Σ_n C_t[n] · h_t[n]  +  D[d] · u_t
//! out_t   = y_t · silu(z_t)                                     (if there is a gate z)
//! ```
//!
//! The state, `(B, L, D, N)` over all steps, is never written down. Forward keeps it at the first step of each chunk,
//! and backward recomputes it inside the chunk; the chunk grows with `d_state`, so that this stays O(B·L·D).

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

/// The arguments of a selective scan. `B` and `C` may vary with the token or be constant.
///
/// | argument        | shape                                             |
/// |-----------------|---------------------------------------------------|
/// | `u`, `delta`, `z` | `(B, L, D)`                                     |
/// | `a`             | `(D, N)`                                          |
/// | `b`, `c`        | `(B, L, N)`, `(B, L, G, N)` with G dividing D, or constant `(D, N)` |
/// | `d`, `delta_bias` | `(D)`                                           |
/// | `initial_state` | `(segments, D, N)`                                |
/// | output          | `(B, L, D)`                                       |
/// | last state      | `(segments, D, N)`                                |
///
/// Without [`SelectiveScan::segments`] each batch row is one segment.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mamba_kernels::SelectiveScan;
/// # fn main() -> candle_core::Result<()> {
/// let dev = Device::Cpu;
/// let (u, delta) = (Tensor::ones((2, 5, 3), candle_core::DType::F32, &dev)?, Tensor::zeros((2, 5, 3), candle_core::DType::F32, &dev)?);
/// let a = Tensor::full(-1f32, (3, 4), &dev)?;
/// let (b, c) = (Tensor::full(0.5f32, (2, 5, 4), &dev)?, Tensor::full(0.5f32, (2, 5, 4), &dev)?);
/// let (y, last) = SelectiveScan::new(&u, &delta, &a, &b, &c).softplus(true).run_with_state()?;
/// assert_eq!(y.dims(), [2, 5, 3]);
/// assert_eq!(last.dims(), [2, 3, 4]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SelectiveScan<'a> {
    pub(crate) u: &'a Tensor,
    pub(crate) delta: &'a Tensor,
    pub(crate) a: &'a Tensor,
    pub(crate) b: &'a Tensor,
    pub(crate) c: &'a Tensor,
    pub(crate) d: Option<&'a Tensor>,
    pub(crate) z: Option<&'a Tensor>,
    pub(crate) delta_bias: Option<&'a Tensor>,
    pub(crate) initial_state: Option<&'a Tensor>,
    pub(crate) segments: Option<&'a Segments>,
    pub(crate) softplus: bool,
    pub(crate) reverse: bool,
    pub(crate) chunk_size: Option<usize>,
}

impl<'a> SelectiveScan<'a> {
    /// A scan of `u` with step sizes `delta` and the matrices `a`, `b`, `c`.
    pub fn new(u: &'a Tensor, delta: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        Self {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            segments: None,
            softplus: false,
            reverse: false,
            chunk_size: None,
        }
    }

    /// Adds the skip connection `D · u`.
    pub fn skip(mut self, d: &'a Tensor) -> Self {
        self.d = Some(d);
        self
    }

    /// Multiplies the output by `silu(z)`.
    pub fn gate(mut self, z: &'a Tensor) -> Self {
        self.z = Some(z);
        self
    }

    /// Adds a bias to `delta`, before softplus.
    pub fn delta_bias(mut self, bias: &'a Tensor) -> Self {
        self.delta_bias = Some(bias);
        self
    }

    /// Applies softplus to `delta`.
    pub fn softplus(mut self, softplus: bool) -> Self {
        self.softplus = softplus;
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

    /// The output `(B, L, D)` and the last state `(segments, D, N)`, both differentiable.
    ///
    /// # Errors
    /// As [`SelectiveScan::run`].
    pub fn run_with_state(self) -> Result<(Tensor, Tensor)> {
        let mut outputs = self.apply(true)?;
        let last = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), last))
    }

    fn apply(self, with_state: bool) -> Result<Vec<Tensor>> {
        let dims = self.check()?;
        let (batch, len, _) = self.u.dims3()?;
        let segments = self.segments.cloned().unwrap_or_else(|| Segments::whole(batch, len));
        let op = Op {
            dims,
            segments,
            softplus: self.softplus,
            reverse: self.reverse,
            with_state,
            chunk: self.chunk_size.unwrap_or(2 * dims.n).max(if self.chunk_size.is_some() { 1 } else { 32 }),
        };
        let a = full_precision(Some(self.a))?;
        let b = if dims.b_groups == 0 { full_precision(Some(self.b))? } else { Some(self.b.clone()) };
        let c = if dims.c_groups == 0 { full_precision(Some(self.c))? } else { Some(self.c.clone()) };
        let (d, bias) = (full_precision(self.d)?, full_precision(self.delta_bias)?);
        let initial = full_precision(self.initial_state)?;
        let inputs = [
            Some(self.u),
            Some(self.delta),
            a.as_ref(),
            b.as_ref(),
            c.as_ref(),
            d.as_ref(),
            self.z,
            bias.as_ref(),
            initial.as_ref(),
        ];
        fused::apply(op, &inputs)
    }

    /// Checks every argument and returns the sizes.
    pub(crate) fn check(&self) -> Result<Dims> {
        const NAME: &str = "selective_scan";
        let inputs = [
            ("u", Some(self.u)),
            ("delta", Some(self.delta)),
            ("A", Some(self.a)),
            ("B", Some(self.b)),
            ("C", Some(self.c)),
            ("D", self.d),
            ("z", self.z),
            ("delta_bias", self.delta_bias),
            ("initial_state", self.initial_state),
        ];
        // B and C are parameters where they are constant.
        let constant = |x: &Tensor, label| if x.rank() == 2 { label } else { "A" };
        let parameters =
            ["A", "D", "delta_bias", "initial_state", constant(self.b, "B"), constant(self.c, "C")];
        fused::same_dtype_and_device_or_gpu(NAME, &inputs, &parameters)?;
        let &[batch, len, d] = self.u.dims() else {
            bail!("{NAME}: u has shape {:?}, expected (batch, len, d_inner)", self.u.dims())
        };
        let &[a_d, n] = self.a.dims() else {
            bail!("{NAME}: A has shape {:?}, expected (d_inner {d}, d_state)", self.a.dims())
        };
        if a_d != d || n == 0 || d == 0 || len == 0 {
            bail!(
                "{NAME}: A has shape [{a_d}, {n}] and u [{batch}, {len}, {d}], expected A (d_inner {d}, d_state ≥ 1) and len ≥ 1"
            );
        }
        expect_shape(NAME, "delta", Some(self.delta), &[batch, len, d])?;
        expect_shape(NAME, "z", self.z, &[batch, len, d])?;
        expect_shape(NAME, "D", self.d, &[d])?;
        expect_shape(NAME, "delta_bias", self.delta_bias, &[d])?;
        let b_groups = coefficient_groups("B", self.b, batch, len, d, n)?;
        let c_groups = coefficient_groups("C", self.c, batch, len, d, n)?;
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
        expect_shape(NAME, "initial_state", self.initial_state, &[count, d, n])?;
        if self.chunk_size == Some(0) {
            bail!("{NAME}: chunk_size is 0, expected at least 1");
        }
        Ok(Dims { len, d, n, b_groups, c_groups })
    }
}

/// Number of groups of a per-token coefficient, 0 for a constant one.
fn coefficient_groups(
    label: &str,
    x: &Tensor,
    batch: usize,
    len: usize,
    d: usize,
    n: usize,
) -> Result<usize> {
    match *x.dims() {
        [xd, xn] if (xd, xn) == (d, n) => Ok(0),
        [xb, xl, xn] if (xb, xl, xn) == (batch, len, n) => Ok(1),
        [xb, xl, g, xn] if (xb, xl, xn) == (batch, len, n) && g > 0 && d.is_multiple_of(g) => Ok(g),
        _ => bail!(
            "selective_scan: {label} has shape {:?}, expected (batch {batch}, len {len}, d_state {n}), (batch, len, groups, d_state) with groups dividing {d}, or (d_inner {d}, d_state {n})",
            x.dims()
        ),
    }
}

/// Sizes of one scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    /// Tokens of a row.
    pub(crate) len: usize,
    /// Channels, `d_inner`.
    pub(crate) d: usize,
    /// States of a channel, `d_state`.
    pub(crate) n: usize,
    /// Groups of B; 0 if B is constant.
    pub(crate) b_groups: usize,
    /// Groups of C; 0 if C is constant.
    pub(crate) c_groups: usize,
}

/// One Mamba-1 decoding step: advances `state` `(B, D, N)` by one token and returns its output `(B, D)` and the new
/// state. `scan` receives `u`, `delta` (and `z`) as `(B, 1, D)` and `B`, `C` as `(B, 1, N)`; it is the scan itself over
/// one token, so that stepping and scanning cannot drift apart.
///
/// # Errors
/// As [`SelectiveScan::run`]; also if the scan has more than one token.
pub fn selective_state_update(scan: SelectiveScan<'_>, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, len, _) = scan.u.dims3()?;
    if len != 1 {
        bail!("selective_state_update: u has {len} tokens, expected 1");
    }
    let (y, state) = SelectiveScan { initial_state: Some(state), ..scan }.run_with_state()?;
    Ok((y.squeeze(1)?, state))
}

struct Op {
    dims: Dims,
    segments: Segments,
    softplus: bool,
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
            a: required(2)?,
            b: required(3)?,
            c: required(4)?,
            d: optional(5)?,
            z: optional(6)?,
            delta_bias: optional(7)?,
            initial_state: optional(8)?,
            segments: self.segments.as_slice(),
            dims: self.dims,
            softplus: self.softplus,
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
            outputs.push(Output::cpu(out.last_state, (self.segments.count(), d, n)));
        }
        let chunks = out.chunk_states.len();
        let saved = track.then(|| Output::cpu(out.chunk_states, chunks).into_tensor());
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
            Some(out.u),
            Some(out.delta),
            Some(out.a),
            Some(out.b),
            Some(out.c),
            out.d,
            out.z,
            out.delta_bias,
            out.initial_state,
        ];
        Ok(like_inputs(grads, inputs))
    }
}

impl Fused for Op {
    type Saved = Option<Tensor>;
    const NAME: &'static str = "selective_scan";

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
        let Some(saved) = saved else { bail!("selective_scan: backward without saved states") };
        if let Some(gpu) = Gpu::of(inputs[0].as_ref()) {
            return cuda::backward(&gpu, self, inputs, saved, grads);
        }
        with_element_type!(inputs, T => self.backward_cpu::<T>(inputs, saved, grads))
    }
}
