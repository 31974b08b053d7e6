//! The networks: shapes, inertness of padding, that every parameter trains, that a batch is learnt.

use candle_core::{DType, Device, Result, Tensor};
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{Mamba1Config, Mamba2Config, MixerConfig, Params, Rng};
use mamba_kernels::testing::emulation;
use mamba_motion::features::N_FEATURES;
use mamba_motion::models::{
    Condition, ConditionConfig, Denoiser, DenoiserConfig, Evaluator, EvaluatorConfig, Join,
    MotionMambaConfig, MotionVae, NetworkConfig, TransformerConfig, VaeConfig,
};
use std::path::Path;

const CPU: Device = Device::Cpu;

fn random(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    Rng::new(seed).normal_tensor(shape, 0.0, 1.0, DType::F32, &CPU).unwrap()
}

fn vae_config() -> VaeConfig {
    VaeConfig {
        latent_dim: 16,
        n_layer: 2,
        n_head: 2,
        d_ff: 24,
        dropout: 0.0,
        max_frames: 32,
        ..VaeConfig::default()
    }
}

fn mamba_config(join: Join) -> NetworkConfig {
    let ssm_cfg = Mamba1Config { d_state: 4, ..Mamba1Config::default() }.into();
    NetworkConfig::MotionMamba(MotionMambaConfig { n_level: 3, n_head: 2, ssm_cfg, join })
}

/// Small heads, which divide the widths of temporal and spatial scans.
fn mamba2() -> MixerConfig {
    Mamba2Config { d_state: 8, headdim: 4, ..Mamba2Config::default() }.into()
}

fn denoiser_config(network: NetworkConfig, condition: ConditionConfig) -> DenoiserConfig {
    DenoiserConfig { latent_tokens: 2, latent_dim: 16, condition, network }
}

fn networks() -> Vec<(&'static str, NetworkConfig)> {
    let transformer = TransformerConfig { n_layer: 2, n_head: 2, d_ff: 24 };
    let of_mamba2 = MotionMambaConfig { n_level: 2, n_head: 2, ssm_cfg: mamba2(), join: Join::Linear };
    vec![
        ("Motion Mamba of Mamba-2", NetworkConfig::MotionMamba(of_mamba2)),
        ("Motion Mamba", mamba_config(Join::Linear)),
        ("Motion Mamba, mean", mamba_config(Join::Mean)),
        ("transformer", NetworkConfig::Transformer(transformer)),
    ]
}

/// Conditions of three rows, one of them open.
fn labels() -> Condition {
    Condition::Labels(vec![vec![Some(0), Some(1)], vec![None, Some(0)], vec![None, None]])
}

fn label_config() -> ConditionConfig {
    ConditionConfig::Labels { sizes: vec![3, 2] }
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

fn expect_all_train(what: &str, params: &Params, loss: &Tensor, but: impl Fn(&str) -> bool) {
    let grads = loss.backward().unwrap();
    for param in params.named().iter().filter(|param| !but(param.name())) {
        let grad = grads
            .get(param.var().unwrap())
            .unwrap_or_else(|| panic!("{what}: {} has no gradient", param.name()));
        let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size.is_finite() && size > 0.0, "{what}: the squared gradient of {} is {size}", param.name());
    }
}

#[test]
fn every_parameter_trains_also_a_and_d_of_every_scan() -> Result<()> {
    for (what, network) in networks() {
        let params = Params::fresh(1, DType::F32, &CPU);
        let denoiser = Denoiser::new(&denoiser_config(network, label_config()), &params.builder())?;
        let output = denoiser.forward(&random((3, 2, 16), 2), &[5, 900, 31], &labels(), &[40, 60, 80])?;
        let loss = (output - random((3, 2, 16), 3))?.sqr()?.mean_all()?;
        expect_all_train(what, &params, &loss, |_| false);
        if what == "Motion Mamba" {
            // Each group of a level's joint scan has its own A and D.
            let grads = loss.backward()?;
            for name in ["network.encoder.0.htm.A_log", "network.encoder.0.htm.D"] {
                let grad = grads.get(params.get(name).unwrap().var().unwrap()).unwrap().flatten_from(0)?;
                let groups = grad.reshape((5, ()))?.sqr()?.sum(1)?.to_vec1::<f32>()?;
                assert!(groups.iter().all(|&g| g > 0.0), "{name}: {groups:?}");
            }
        }
    }
    let params = Params::fresh(1, DType::F32, &CPU);
    let vae = MotionVae::new(&vae_config(), &params.builder())?;
    let loss = vae.loss(&random((2, 9, N_FEATURES), 4), &[9, 6], &random((2, 2, 16), 5), None)?;
    expect_all_train("VAE", &params, &loss.total, |_| false);
    let params = Params::fresh(1, DType::F32, &CPU);
    let evaluator = Evaluator::new(&evaluator_config(), &params.builder())?;
    let loss = evaluator.loss(&random((2, 9, N_FEATURES), 4), &[9, 6], &[0, 2])?;
    expect_all_train("evaluator", &params, &loss, |_| false);
    let params = Params::fresh(1, DType::F32, &CPU);
    let of_mamba2 = EvaluatorConfig { ssm_cfg: mamba2(), ..evaluator_config() };
    let loss = Evaluator::new(&of_mamba2, &params.builder())?.loss(
        &random((2, 9, N_FEATURES), 4),
        &[9, 6],
        &[0, 2],
    )?;
    expect_all_train("evaluator of Mamba-2", &params, &loss, |_| false);
    Ok(())
}

fn evaluator_config() -> EvaluatorConfig {
    let combinations = vec![vec![0, 0], vec![1, 0], vec![2, 1]];
    let ssm_cfg = MixerConfig::default();
    EvaluatorConfig { d_model: 12, n_layer: 2, dim: 6, window: 9, ssm_cfg, sizes: vec![3, 2], combinations }
}

#[test]
fn levels_have_2k_minus_1_scans_mirrored() -> Result<()> {
    let config = MotionMambaConfig::default();
    assert_eq!(config.scans(), [21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1]);
    let params = Params::fresh(1, DType::F32, &CPU);
    let cfg = denoiser_config(mamba_config(Join::Linear), label_config());
    let denoiser = Denoiser::new(&cfg, &params.builder())?;
    assert_eq!(denoiser.motion_mamba().unwrap().scans(), [5, 3, 1, 1, 3, 5]);
    for (level, scans) in [("encoder.0", 5), ("encoder.2", 1), ("decoder.0", 1), ("decoder.2", 5)] {
        let shape =
            |name: &str| params.get(&format!("network.{level}.htm.{name}")).unwrap().tensor().dims().to_vec();
        assert_eq!(shape("A_log"), [scans * 32, 4], "{level}");
        assert_eq!(shape("dt_proj.weight"), [scans, 32, 1], "{level}");
        assert_eq!(shape("join.weight"), [32, scans * 32], "{level}");
    }
    Ok(())
}

#[test]
fn rows_do_not_see_each_other_and_conditions_matter() -> Result<()> {
    for (what, network) in networks() {
        let params = Params::fresh(1, DType::F32, &CPU);
        let denoiser = Denoiser::new(&denoiser_config(network, label_config()), &params.builder())?;
        let z = random((3, 2, 16), 2);
        let all = denoiser.forward(&z, &[5, 900, 31], &labels(), &[40, 60, 80])?;
        assert_eq!(all.dims(), [3, 2, 16]);
        let one = Condition::Labels(vec![vec![None, Some(0)]]);
        let alone = denoiser.forward(&z.narrow(0, 1, 1)?, &[900], &one, &[60])?;
        assert!(difference(&alone, &all.narrow(0, 1, 1)?) < 1e-5, "{what}");
        for (changed, steps, condition, lengths) in [
            ("step", [901], one.clone(), [60]),
            ("label", [900], Condition::Labels(vec![vec![Some(2), Some(0)]]), [60]),
            ("length", [900], one.clone(), [90]),
        ] {
            let other = denoiser.forward(&z.narrow(0, 1, 1)?, &steps, &condition, &lengths)?;
            assert!(difference(&other, &alone) > 1e-6, "{what} does not see its {changed}");
        }
        let guided = |scale: f64| denoiser.guided(&z, &[5, 900, 31], &labels(), &[40, 60, 80], scale);
        let nothing = denoiser.forward(&z, &[5, 900, 31], &labels().nothing(), &[40, 60, 80])?;
        assert!(difference(&guided(0.0)?, &nothing) < 1e-6 && difference(&guided(1.0)?, &all) == 0.0);
        let want = (&nothing + ((&all - &nothing)? * 2.5)?)?;
        assert!(difference(&guided(2.5)?, &want) < 1e-5);
    }
    Ok(())
}

#[test]
fn text_conditions_and_the_lack_of_one() -> Result<()> {
    for (what, network) in networks() {
        let params = Params::fresh(1, DType::F32, &CPU);
        let cfg = denoiser_config(network, ConditionConfig::Text { dim: 5 });
        let denoiser = Denoiser::new(&cfg, &params.builder())?;
        let z = random((2, 2, 16), 2);
        let texts = Condition::Text(vec![Some(vec![0.1, 0.2, -0.3, 0.4, 1.0]), None]);
        let output = denoiser.forward(&z, &[5, 5], &texts, &[40, 40])?;
        let loss = (output - random((2, 2, 16), 3))?.sqr()?.mean_all()?;
        expect_all_train(what, &params, &loss, |_| false);
        let wrong = denoiser.forward(&z, &[5, 5], &Condition::Text(vec![Some(vec![1.0]), None]), &[40, 40]);
        assert!(wrong.unwrap_err().to_string().contains("a text of 1 channels, expected 5"));
        assert!(denoiser.forward(&z, &[5, 5], &Condition::Labels(vec![vec![]; 2]), &[40, 40]).is_err());
    }
    Ok(())
}

#[test]
fn padding_is_inert_in_vae_and_evaluator() -> Result<()> {
    let params = Params::fresh(1, DType::F32, &CPU);
    let vae = MotionVae::new(&vae_config(), &params.builder())?;
    let motion = random((1, 7, N_FEATURES), 2);
    let latent = vae.encode(&motion, &[7], None)?;
    let padded = Tensor::cat(&[&motion, &random((1, 5, N_FEATURES), 3)], 1)?;
    let both = Tensor::cat(&[&padded, &random((1, 12, N_FEATURES), 4)], 0)?;
    let with = vae.encode(&both, &[7, 12], None)?;
    assert!(difference(&with.mean.narrow(0, 0, 1)?, &latent.mean) < 1e-5);
    assert!(difference(&with.log_var.narrow(0, 0, 1)?, &latent.log_var) < 1e-5);
    let z = random((1, 2, 16), 5);
    let alone = vae.decode(&z, &[7], None)?;
    let beside = vae.decode(&z.repeat((2, 1, 1))?, &[7, 12], None)?;
    assert_eq!((alone.dims(), beside.dims()), (&[1, 7, N_FEATURES][..], &[2, 12, N_FEATURES][..]));
    assert!(difference(&beside.narrow(0, 0, 1)?.narrow(1, 0, 7)?, &alone) < 1e-5);
    let noise = random((1, 2, 16), 6);
    let loss = |motion: &Tensor| -> Result<f32> { vae.loss(motion, &[7], &noise, None)?.total.to_scalar() };
    assert!((loss(&motion)? - loss(&motion)?).abs() < 1e-7);
    let of = |motion: &Tensor, noise: &Tensor, lengths: &[usize]| -> Result<f32> {
        vae.loss(motion, lengths, noise, None)?.total.to_scalar()
    };
    let two = noise.repeat((2, 1, 1))?;
    let [a, b] = [random((1, 5, N_FEATURES), 7), random((1, 5, N_FEATURES), 8)].map(|rest| {
        let first = Tensor::cat(&[&motion, &rest], 1).unwrap();
        of(&Tensor::cat(&[&first, &padded], 0).unwrap(), &two, &[7, 12]).unwrap()
    });
    assert!((a - b).abs() < 1e-5, "what lies beyond a motion's length counts: {a}, {b}");

    let params = Params::fresh(1, DType::F32, &CPU);
    let evaluator = Evaluator::new(&evaluator_config(), &params.builder())?;
    let point = evaluator.embed_motions(&motion, &[7])?;
    assert_eq!(point.dims(), [1, 6]);
    assert!(difference(&evaluator.embed_motions(&both, &[7, 12])?.narrow(0, 0, 1)?, &point) < 1e-5);
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_with_their_numbers() -> Result<()> {
    let params = Params::fresh(1, DType::F32, &CPU);
    let vae = MotionVae::new(&vae_config(), &params.builder())?;
    let message = vae.encode(&random((1, 40, N_FEATURES), 1), &[40], None).unwrap_err().to_string();
    assert!(message.contains("[40]") && message.contains("1 to 32"), "{message}");
    let denoiser = Denoiser::new(
        &denoiser_config(mamba_config(Join::Linear), label_config()),
        &params.builder().pp("d"),
    )?;
    let message = denoiser.forward(&random((1, 3, 16), 1), &[1], &labels(), &[4]).unwrap_err().to_string();
    assert!(message.contains("1 latents of 3 tokens, 1 steps, 3 conditions"), "{message}");
    let unknown = Condition::Labels(vec![vec![Some(3), None]]);
    let message = denoiser.forward(&random((1, 2, 16), 1), &[1], &unknown, &[4]).unwrap_err().to_string();
    assert!(message.contains("label 3 of group 0, which has 3"), "{message}");
    Ok(())
}

/// Losses at the beginning and at the end of training on one batch.
fn fit(params: &Params, steps: usize, mut loss: impl FnMut() -> Result<Tensor>) -> (f32, f32) {
    let config = AdamWConfig { betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(params, config).unwrap();
    let mut value = |train: bool| -> f32 {
        let loss = loss().unwrap();
        if train {
            let mut grads = Gradients::of(&loss, params).unwrap();
            grads.clip_grad_norm(1.0, 1).unwrap();
            optimizer.step(&grads, 3e-3).unwrap();
        }
        loss.to_scalar().unwrap()
    };
    let first = value(false);
    (0..steps).for_each(|_| {
        value(true);
    });
    (first, value(false))
}

#[test]
fn denoisers_vae_and_evaluator_learn_a_batch() -> Result<()> {
    for (what, network) in networks() {
        let params = Params::fresh(1, DType::F32, &CPU);
        let denoiser = Denoiser::new(&denoiser_config(network, label_config()), &params.builder())?;
        let (z, target) = (random((3, 2, 16), 2), random((3, 2, 16), 3));
        let (first, last) = fit(&params, 120, || {
            (denoiser.forward(&z, &[5, 900, 31], &labels(), &[40, 60, 80])? - &target)?.sqr()?.mean_all()
        });
        assert!(last < 0.1 * first, "{what}: {first} to {last}");
    }
    let params = Params::fresh(1, DType::F32, &CPU);
    let vae = MotionVae::new(&VaeConfig { kl_weight: 1e-5, ..vae_config() }, &params.builder())?;
    let motion = random((2, 4, N_FEATURES), 4);
    let noise = random((2, 2, 16), 5);
    let (first, last) = fit(&params, 200, || Ok(vae.loss(&motion, &[4, 3], &noise, None)?.reconstruction));
    assert!(last < 0.2 * first, "VAE: {first} to {last}");
    let params = Params::fresh(1, DType::F32, &CPU);
    let evaluator = Evaluator::new(&evaluator_config(), &params.builder())?;
    let (first, last) = fit(&params, 60, || evaluator.loss(&motion, &[4, 3], &[0, 2]));
    assert!(last < 0.1 * first, "evaluator: {first} to {last}");
    Ok(())
}

/// What a GPU computes in bf16, here in f16, which the CPU multiplies.
#[test]
fn networks_train_in_half_precision() -> Result<()> {
    let Some(emulation) = emulation(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return Ok(()) };
    let half = |x: Tensor| x.to_dtype(DType::F16);
    let trains = |what: &str, params: &Params, loss: Result<Tensor>| -> Result<()> {
        let grads = Gradients::of(&loss?, params)?;
        assert!(grads.norm()? > 0.0, "{what}");
        Ok(())
    };
    emulation.run(|| {
        for (what, network) in networks() {
            let params = Params::fresh(1, DType::F16, &CPU);
            let denoiser = Denoiser::new(&denoiser_config(network, label_config()), &params.builder())?;
            let z = half(random((3, 2, 16), 2))?;
            let y = denoiser.forward(&z, &[5, 900, 31], &labels(), &[40, 60, 80]);
            trains(what, &params, y.and_then(|y| y.to_dtype(DType::F32)?.sqr()?.mean_all()))?;
        }
        let (motion, noise) = (half(random((2, 4, N_FEATURES), 4))?, half(random((2, 2, 16), 5))?);
        let params = Params::fresh(1, DType::F16, &CPU);
        let vae = MotionVae::new(&vae_config(), &params.builder())?;
        trains("VAE", &params, vae.loss(&motion, &[4, 3], &noise, None).map(|loss| loss.total))?;
        let params = Params::fresh(1, DType::F16, &CPU);
        let evaluator = Evaluator::new(&evaluator_config(), &params.builder())?;
        trains("evaluator", &params, evaluator.loss(&motion, &[4, 3], &[0, 2]))
    })
}

#[test]
fn the_peer_has_as_many_parameters() -> Result<()> {
    for preset in ["tiny", "small"] {
        let cfg = mamba_motion::config::MotionConfig::preset(preset).unwrap();
        cfg.validate().unwrap();
        let mamba = DenoiserConfig {
            latent_tokens: cfg.vae.latent_tokens,
            latent_dim: cfg.vae.latent_dim,
            condition: label_config(),
            network: cfg.denoiser.clone(),
        };
        let peer = mamba.transformer_peer(cfg.peer_layers)?;
        let ratio = peer.count()? as f64 / mamba.count()? as f64;
        assert!((0.99..1.01).contains(&ratio), "{preset}: {ratio}");
    }
    Ok(())
}
