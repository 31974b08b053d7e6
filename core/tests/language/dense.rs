//! Layers that read the hidden states of shallower ones.

use super::*;
use mamba_core::{BackboneState, Mamba2Config};
use mamba_kernels::Segments;
use models::assert_close;

fn dense(layers: usize) -> LmConfig {
    LmConfig { n_layer: 4, dense_layers: layers, ..config(true) }
}

#[test]
fn a_fresh_dense_model_is_the_plain_one_and_a_trained_one_is_not() -> Result<()> {
    let x = ids(2, 9, 3)?;
    let (fresh, perturbed) = (Params::fresh(1, DType::F64, &CPU), Params::fresh(1, DType::F64, &CPU));
    let plain = MambaLm::new(&dense(0), &fresh.builder())?;
    let connected = MambaLm::new(&dense(2), &perturbed.builder())?;
    assert_close("fresh", &connected.forward(&x)?, &plain.forward(&x)?, 1e-12);
    let added = |params: &Params| params.named().iter().filter(|p| p.name().contains(".dense.")).count();
    // layer 0 reads none, layer 1 one, layers 2 and 3 two: each with a gate, its bias and a projection
    assert_eq!((added(&fresh), added(&perturbed)), (0, 3 * 5));
    perturb(&perturbed, 2)?;
    perturb(&fresh, 2)?;
    let difference = (connected.forward(&x)? - plain.forward(&x)?)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(difference > 1e-3, "{difference}");
    let grads = connected.forward(&x)?.sqr()?.sum_all()?.backward()?;
    for param in perturbed.named().iter().filter(|p| p.name().contains(".dense.")) {
        let size = grads.get(param.tensor()).unwrap().sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!(size > 0.0 && size.is_finite(), "{}", param.name());
    }
    Ok(())
}

#[test]
fn chunks_steps_and_packed_sequences_of_a_dense_model_give_what_the_whole_gives() -> Result<()> {
    let (_, lm) = model(&dense(3), DType::F64)?;
    let x = ids(2, 9, 3)?;
    let whole = lm.forward(&x)?;
    let mut state = BackboneState::new();
    let first = lm.forward_with(&x.narrow(1, 0, 4)?.contiguous()?, None, Some(&mut state))?;
    assert_close("first chunk", &first, &whole.narrow(1, 0, 4)?, 1e-12);
    for t in 4..9 {
        let got = lm.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?;
        assert_close("step", &got, &whole.narrow(1, t, 1)?.squeeze(1)?, 1e-12);
    }
    let packed = lm.forward_with(&x.reshape((1, 18))?, Some(&Segments::packed(&[0, 9, 18])?), None)?;
    assert_close("packed", &packed.reshape(whole.dims())?, &whole, 1e-12);
    Ok(())
}

#[test]
fn dense_layers_are_a_setting_of_mamba_1_models() {
    let cfg = LmConfig { ssm_cfg: Mamba2Config { headdim: 8, ..Default::default() }.into(), ..dense(1) };
    let error = cfg.validate().unwrap_err().to_string();
    assert!(error.contains("dense_layers is 1, which needs Mamba-1 layers"), "{error}");
    assert!(serde_json::to_value(dense(0)).unwrap().get("dense_layers").is_none());
    let json = serde_json::to_value(dense(2)).unwrap();
    assert_eq!(LmConfig::from_json(&json).unwrap(), dense(2));
}
