//! Weights of two bytes and one: close logits, checkpoints that come back, no training.

use super::*;
use candle_core::Device;
use mamba_core::{Checkpoint, WeightFormat, checkpoint};
use mamba_kernels::testing::relative_error;
use models::assert_close;

/// Bounds of the logits' error relative to the largest logit; these two models reach 1.9e-2, 1.1e-3 and 3.6e-2.
const ERRORS: [(WeightFormat, f64); 3] =
    [(WeightFormat::Bf16, 2e-2), (WeightFormat::F16, 3e-3), (WeightFormat::Int8, 4e-2)];

fn compact(params: &Params, cfg: &LmConfig, format: WeightFormat) -> Result<(Params, MambaLm)> {
    let frozen = Params::frozen(params.to_tensors(), DType::F32, &CPU).with_weight_format(format);
    let lm = MambaLm::new(cfg, &frozen.builder())?;
    frozen.check()?;
    Ok((frozen, lm))
}

#[test]
fn logits_stay_close_and_steps_follow_whole_passes() -> Result<()> {
    for cfg in [config(true), config(false)] {
        let (params, lm) = model(&cfg, DType::F32)?;
        let x = ids(2, 12, 3)?;
        let want = lm.forward(&x)?;
        for (format, tolerance) in ERRORS {
            let (_, small) = compact(&params, &cfg, format)?;
            let got = small.forward(&x)?;
            let error = relative_error(&got, &want)?;
            println!("{format}: {error:.1e}");
            assert!(error > 1e-6 && error < tolerance, "{format}: relative error {error:.2e}");
            let mut state = mamba_core::BackboneState::new();
            let steps =
                (0..12).map(|t| small.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?.unsqueeze(1));
            let steps = Tensor::cat(&steps.collect::<Result<Vec<_>>>()?, 1)?;
            assert_close(&format!("{format}, steps"), &steps, &got, 1e-5);
        }
    }
    Ok(())
}

#[test]
fn a_compact_checkpoint_is_small_and_comes_back_in_any_format() -> Result<()> {
    let cfg = config(false);
    let (params, _) = model(&cfg, DType::F32)?;
    let (frozen, small) = compact(&params, &cfg, WeightFormat::Int8)?;
    let folder = tempfile::tempdir()?;
    checkpoint::save_dir(folder.path(), &cfg, &frozen.to_tensors()).unwrap();
    let stored: Checkpoint = checkpoint::load_dir(folder.path()).unwrap();
    let name = "backbone.layers.0.mixer.in_proj.weight";
    assert_eq!(stored.tensors[name].dtype(), DType::U8);
    let x = ids(1, 9, 3)?;
    let want = small.forward(&x)?;
    for (format, tolerance) in
        [(WeightFormat::Int8, 0.0), (WeightFormat::Full, 1e-5), (WeightFormat::Bf16, 3e-2)]
    {
        let again = MambaLm::load_as(stored.clone(), format, DType::F32, &Device::Cpu).unwrap();
        assert_close(&format!("read as {format}"), &again.forward(&x)?, &want, tolerance);
    }
    Ok(())
}

#[test]
fn compact_weights_are_not_trained_and_must_fit() -> Result<()> {
    let cfg = config(true);
    let (params, _) = model(&cfg, DType::F32)?;
    let trainable =
        Params::trainable(params.to_tensors(), 0, DType::F32, &CPU).with_weight_format(WeightFormat::Int8);
    let error = MambaLm::new(&cfg, &trainable.builder()).unwrap_err().to_string();
    assert!(error.contains("a weight in format int8 cannot be trained"), "{error}");

    for (value, format, message) in [
        (f32::NAN, WeightFormat::Int8, "row 0 of the weight is not finite"),
        (1e5, WeightFormat::F16, "does not fit f16"),
    ] {
        let mut tensors = params.to_tensors();
        let name = "backbone.layers.1.mixer.x_proj.weight";
        tensors.insert(name.into(), tensors[name].affine(0.0, f64::from(value))?);
        let stored = Params::frozen(tensors, DType::F32, &CPU).with_weight_format(format);
        let error = MambaLm::new(&cfg, &stored.builder()).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(name), "{error}");
    }
    assert!("int4".parse::<WeightFormat>().unwrap_err().to_string().contains("\"int4\" is none of full"));
    Ok(())
}
