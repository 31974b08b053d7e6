//! Small models away from their initialisation, and how to compare what they give.
#![allow(dead_code, unreachable_pub)] // every test binary takes a part of it

use candle_core::{DType, Device, Result, Tensor, Var};
use mamba_core::{Mixer, MixerConfig, MixerState, Params, Rng};
use mamba_kernels::testing::{gradients, relative_error};

pub const CPU: Device = Device::Cpu;

/// Largest relative error between two ways to compute one thing: f64 shows that they are the same function, f32 that
/// neither way loses precision.
pub const TOLERANCES: [(DType, f64); 2] = [(DType::F64, 1e-12), (DType::F32, 1e-5)];

pub fn random(shape: &[usize], seed: u64, dtype: DType) -> Result<Tensor> {
    Rng::new(seed).normal_tensor(shape, 0.0, 1.0, DType::F64, &CPU)?.to_dtype(dtype)
}

/// Moves every parameter, so that nothing hides behind the zeros and ones of the initialisation.
pub fn perturb(params: &Params, seed: u64) -> Result<()> {
    for param in params.named() {
        let noise = Rng::stream(seed, param.name(), 0).normal_tensor(
            param.tensor().shape(),
            0.0,
            0.2,
            param.tensor().dtype(),
            &CPU,
        )?;
        params.set(param.name(), &(param.tensor().detach() + noise)?)?;
    }
    Ok(())
}

pub fn perturbed_mixer(d_model: usize, cfg: &MixerConfig, dtype: DType) -> Result<(Params, Mixer)> {
    let params = Params::fresh(1, dtype, &CPU);
    let mixer = Mixer::new(d_model, cfg, 1, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, mixer))
}

/// # Panics
/// If the two differ by more than `tolerance`, relative to the largest value wanted.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_error(got, want).unwrap();
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, tolerance {tolerance:.0e}");
}

#[track_caller]
pub fn assert_states_close(what: &str, got: &MixerState, want: &MixerState, tolerance: f64) {
    assert_eq!(got.kind(), want.kind(), "{what}");
    let (got, want) = (got.parts(), want.parts());
    assert!(!want.is_empty(), "{what}: the state is empty");
    for ((name, got), (other, want)) in got.iter().zip(&want) {
        assert_eq!((name, got.dims()), (other, want.dims()), "{what}");
        match *name {
            // Angles just below 2π are close to 0.
            "angle" => {
                assert_close(
                    &format!("{what}, cosines"),
                    &got.cos().unwrap(),
                    &want.cos().unwrap(),
                    tolerance,
                );
                assert_close(&format!("{what}, sines"), &got.sin().unwrap(), &want.sin().unwrap(), tolerance);
            }
            _ if want.elem_count() == 0 => {}
            _ => assert_close(&format!("{what}, state {name}"), got, want, tolerance),
        }
    }
}

/// The state of one of several sequences.
pub fn state_of_sequence(state: &MixerState, i: usize) -> MixerState {
    let parts = state.parts().into_iter().map(|(name, x)| (name.to_string(), x.narrow(0, i, 1).unwrap()));
    MixerState::from_parts(state.kind(), parts.collect()).unwrap()
}

/// The sum of all tensors of a state.
pub fn state_sum(state: &MixerState) -> Result<Tensor> {
    let sums = state.parts().into_iter().map(|(_, x)| x.sum_all());
    Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.sum_all()
}

/// Gradients of `loss` by every parameter, in the order of their names.
pub fn parameter_gradients(params: &Params, loss: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let grads = loss.backward()?;
    let of = |var: &Var| grads.get(var).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()));
    params.named().iter().map(|p| Ok((p.name().to_string(), of(p.var().unwrap())?))).collect()
}

/// # Panics
/// If a parameter has no gradient, or one that is zero everywhere or not finite.
#[track_caller]
pub fn assert_every_parameter_learns(params: &Params, loss: &Tensor) {
    for (name, grad) in parameter_gradients(params, loss).unwrap() {
        let size = grad.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
        let size = size.to_scalar::<f64>().unwrap();
        assert!(size.is_finite() && size > 0.0, "the squared gradient of {name} is {size}");
    }
}

/// The gradient of `Σ f(x)·weights` by `x`.
pub fn input_gradient(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let mut grads = gradients(std::slice::from_ref(x), |x| {
        let y = f(&x[0])?;
        (&y * random(y.dims(), 77, y.dtype())?)?.sum_all()
    })?;
    Ok(grads.swap_remove(0))
}

/// Tokens `from..to` of `(B, L, D)`.
pub fn tokens(x: &Tensor, from: usize, to: usize) -> Tensor {
    x.narrow(1, from, to - from).unwrap()
}
