//! Language models of Mamba-1: layout, configs, decoding, and training of a real model through the loop.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod models;

use candle_core::{DType, Result, Tensor};
use common::{assert_same_run, records};
use mamba_core::lm::{LmConfig, MambaLm, SsmConfig};
use mamba_core::mamba1::DtRank;
use mamba_core::nn::cross_entropy;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::run_folder::{Metric, Record, RunFolder};
use mamba_core::train::{self, Console, Outcome, StepLoss, Stop, Task, TrainConfig};
use mamba_core::{
    BackboneState, Checkpoint, Mamba1Config, Mamba2Config, Mamba3Config, MixerConfig, Params, Rng,
};
use mamba_kernels::Segments;
use mamba_kernels::testing::{Emulation, expect_close};
use models::*;
use serde_json::{Value, json};
use std::path::Path;

/// Two layers with everything that is optional: feed-forward parts, biases, a head of its own.
fn full() -> LmConfig {
    LmConfig {
        d_model: 16,
        d_intermediate: 20,
        n_layer: 2,
        vocab_size: 11,
        ssm_cfg: Mamba1Config { d_state: 4, bias: true, ..Default::default() }.into(),
        rms_norm: false,
        tie_embeddings: false,
        ..Default::default()
    }
}

/// The same without any of it.
fn plain() -> LmConfig {
    let mixer = Mamba1Config { d_state: 4, conv_bias: false, ..Default::default() };
    LmConfig { d_intermediate: 0, rms_norm: true, tie_embeddings: true, ssm_cfg: mixer.into(), ..full() }
}

fn model(cfg: &LmConfig, dtype: DType) -> Result<(Params, MambaLm)> {
    let params = Params::fresh(1, dtype, &CPU);
    let lm = MambaLm::new(cfg, &params.builder())?;
    perturb(&params, 2)?;
    Ok((params, lm))
}

fn ids(batch: usize, len: usize, seed: u64) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    Tensor::from_vec((0..batch * len).map(|_| rng.below(11) as u32).collect(), (batch, len), &CPU)
}

#[test]
fn parameters_have_upstream_names() -> Result<()> {
    let names = |cfg: &LmConfig| -> Result<Vec<String>> {
        Ok(model(cfg, DType::F32)?.0.named().iter().map(|p| p.name().to_string()).collect())
    };
    let layer = |i: usize, parts: &[&str]| -> Vec<String> {
        parts.iter().map(|part| format!("backbone.layers.{i}.{part}")).collect()
    };
    let mixer = [
        "mixer.A_log",
        "mixer.D",
        "mixer.conv1d.bias",
        "mixer.conv1d.weight",
        "mixer.dt_proj.bias",
        "mixer.dt_proj.weight",
        "mixer.in_proj.bias",
        "mixer.in_proj.weight",
        "mixer.out_proj.bias",
        "mixer.out_proj.weight",
        "mixer.x_proj.weight",
    ];
    let around =
        ["mlp.fc1.weight", "mlp.fc2.weight", "norm.bias", "norm.weight", "norm2.bias", "norm2.weight"];
    let parts = [&mixer[..], &around].concat();
    let ends = |parts: &[&str]| -> Vec<String> { parts.iter().map(|s| s.to_string()).collect() };
    let expected = [
        ends(&["backbone.embedding.weight"]),
        layer(0, &parts),
        layer(1, &parts),
        ends(&["backbone.norm_f.bias", "backbone.norm_f.weight", "lm_head.weight"]),
    ]
    .concat();
    assert_eq!(names(&full())?, expected);

    let bare: Vec<&str> =
        mixer.into_iter().filter(|name| !name.ends_with("bias") || name.contains("dt_")).collect();
    let parts = [&bare[..], &["norm.weight"]].concat();
    let expected = [
        ends(&["backbone.embedding.weight"]),
        layer(0, &parts),
        layer(1, &parts),
        ends(&["backbone.norm_f.weight"]),
    ]
    .concat();
    assert_eq!(names(&plain())?, expected);
    Ok(())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    for cfg in [full(), plain()] {
        let (params, lm) = model(&cfg, DType::F32)?;
        let x = ids(2, 9, 3)?;
        assert_every_parameter_learns(&params, &cross_entropy(&lm.forward(&x)?, &ids(2, 9, 4)?, None)?);
    }
    Ok(())
}

#[test]
fn steps_chunks_and_packed_rows_equal_the_whole() -> Result<()> {
    const LEN: usize = 9;
    for (cfg, (dtype, tolerance)) in
        [full(), plain()].into_iter().flat_map(|c| TOLERANCES.map(|t| (c.clone(), t)))
    {
        let (_, lm) = model(&cfg, dtype)?;
        let x = ids(2, LEN, 5)?;
        let whole = lm.forward(&x)?;
        assert_eq!(whole.dims(), [2, LEN, 16], "the vocabulary of 11 is padded to 16");
        for prefill in 0..LEN {
            let mut state = BackboneState::new();
            let mut parts = Vec::new();
            if prefill > 0 {
                parts.push(lm.forward_with(&x.narrow(1, 0, prefill)?, None, Some(&mut state))?);
            }
            for t in prefill..LEN {
                parts.push(lm.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?.unsqueeze(1)?);
            }
            assert_close(&format!("prefill {prefill}"), &Tensor::cat(&parts, 1)?, &whole, tolerance);
        }
        let packed = x.reshape((1, 2 * LEN))?;
        let packed = lm.forward_with(&packed, Some(&Segments::packed(&[0, LEN, 2 * LEN])?), None)?;
        assert_close("packed", &packed.reshape(whole.shape())?, &whole, tolerance);
    }
    Ok(())
}

#[test]
fn greedy_tokens_are_those_of_a_whole_pass_over_what_came_before() -> Result<()> {
    let (_, lm) = model(&full(), DType::F64)?;
    let mut sequence = ids(2, 4, 6)?;
    let (new, logits) = lm.generate_greedy(&sequence, 5)?;
    for t in 0..5 {
        let whole = lm.forward(&sequence)?;
        let last = whole.narrow(1, sequence.dim(1)? - 1, 1)?;
        assert_close(&format!("token {t}"), &logits.narrow(1, t, 1)?, &last, 1e-12);
        let next = last.argmax(2)?;
        assert_eq!(new.narrow(1, t, 1)?.to_vec2::<u32>()?, next.to_vec2::<u32>()?);
        sequence = Tensor::cat(&[sequence, next], 1)?;
    }
    Ok(())
}

#[test]
fn a_written_model_is_read_back_and_a_tied_head_is_stored_once() -> Result<()> {
    for cfg in [full(), plain()] {
        let (params, lm) = model(&cfg, DType::F32)?;
        let folder = tempfile::tempdir()?;
        mamba_core::checkpoint::save_dir(folder.path(), &cfg, &params.to_tensors()).unwrap();
        let checkpoint: Checkpoint = mamba_core::checkpoint::load_dir(folder.path()).unwrap();
        assert_eq!(checkpoint.tensors.contains_key("lm_head.weight"), !cfg.tie_embeddings);
        let again = MambaLm::load(checkpoint.clone(), DType::F32, &CPU).unwrap();
        let x = ids(1, 6, 7)?;
        assert_close("read back", &again.forward(&x)?, &lm.forward(&x)?, 0.0);

        let mut other = checkpoint;
        let lost = other.tensors.remove("backbone.layers.1.mixer.D").unwrap();
        other.tensors.insert("backbone.layers.1.mixer.E".into(), lost);
        let error = MambaLm::load(other, DType::F32, &CPU).unwrap_err().to_string();
        assert!(error.contains("1 missing tensor: backbone.layers.1.mixer.D"), "{error}");
        assert!(error.contains("1 unexpected tensor: backbone.layers.1.mixer.E"), "{error}");
    }
    Ok(())
}

#[test]
fn an_unknown_key_is_an_error_wherever_it_stands() {
    for (json, key) in [
        (json!({"d_modell": 8}), "d_modell"),
        (json!({"ssm_cfg": {"d_stat": 8}}), "d_stat"),
        (json!({"ssm_cfg": {"layer": "Mamba1", "headdim": 64}}), "headdim"),
    ] {
        let error = LmConfig::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(&format!("unknown field `{key}`")), "{error}");
    }
}

#[test]
fn configs_of_both_layouts_round_trip() {
    let published = json!({
        "d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8,
    });
    let hub = json!({
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 768, "num_hidden_layers": 24,
        "vocab_size": 50280, "state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 1536,
        "time_step_rank": 48, "use_bias": true, "use_conv_bias": false, "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": false, "hidden_act": "silu",
    });
    let read = |json: &Value| LmConfig::from_json(json).unwrap();
    let published = read(&published);
    assert_eq!(
        (published.d_model, published.padded_vocab_size(), published.tie_embeddings),
        (768, 50280, true)
    );
    let from_hub = read(&hub);
    let mamba1 = |cfg: &LmConfig| match &cfg.ssm_cfg.mixer {
        MixerConfig::Mamba1(cfg) => cfg.clone(),
        other => panic!("{other:?} is not Mamba-1"),
    };
    assert_eq!(mamba1(&from_hub).dt_rank, DtRank::Rank(48));
    assert!(mamba1(&from_hub).bias && !mamba1(&from_hub).conv_bias && !from_hub.tie_embeddings);
    assert_eq!((from_hub.norm_epsilon, from_hub.padded_vocab_size()), (1e-6, 50280));
    for cfg in [published, from_hub, full(), plain()] {
        assert!(cfg.validate().is_ok());
        assert_eq!(read(&serde_json::to_value(&cfg).unwrap()), cfg);
    }
    let mut auto = hub.clone();
    auto["time_step_rank"] = json!("auto");
    assert_eq!(mamba1(&read(&auto)).dt_rank, DtRank::Auto);
    for (key, value, message) in [
        ("model_type", json!("mamba3"), "model_type is \"mamba3\", expected \"mamba\" or \"mamba2\""),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("state_size", json!("many"), "expected usize"),
    ] {
        let mut other = hub.clone();
        other[key] = value;
        let error = LmConfig::from_json(&other).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn settings_that_make_no_model_are_refused_with_their_values() {
    let huge = 1usize << 62;
    let mixer = |mixer: Mamba1Config| SsmConfig::from(mixer);
    for (cfg, message) in [
        (LmConfig { d_model: 0, ..full() }, "d_model"),
        (LmConfig { n_layer: 0, ..full() }, "n_layer"),
        (LmConfig { vocab_size: 0, ..full() }, "vocab_size"),
        (LmConfig { pad_vocab_size_multiple: 0, ..full() }, "pad_vocab_size_multiple"),
        (LmConfig { d_model: huge, ..full() }, "d_model 4611686018427387904"),
        (LmConfig { n_layer: huge, ..full() }, "n_layer 4611686018427387904"),
        (LmConfig { vocab_size: usize::MAX, ..full() }, "vocab_size 18446744073709551615"),
        (LmConfig { pad_vocab_size_multiple: huge, ..full() }, "would have"),
        (LmConfig { d_intermediate: usize::MAX, ..full() }, "d_intermediate 18446744073709551615"),
        (
            LmConfig { ssm_cfg: mixer(Mamba1Config { d_state: huge, ..Default::default() }), ..full() },
            "d_state 46116",
        ),
        (
            LmConfig { ssm_cfg: mixer(Mamba1Config { d_conv: 9, ..Default::default() }), ..full() },
            "d_conv is 9",
        ),
        (LmConfig { attn_layer_idx: vec![1], ..full() }, "attn_layer_idx"),
        (
            LmConfig { ssm_cfg: Mamba2Config { headdim: 3, ..Default::default() }.into(), ..full() },
            "headdim 3 does not divide the 32 channels",
        ),
    ] {
        let error = cfg.validate().unwrap_err().to_string();
        assert!(error.contains(message), "{error}, expected {message}");
        let params = Params::fresh(0, DType::F32, &CPU);
        assert!(MambaLm::new(&cfg, &params.builder()).is_err(), "{message}");
    }
}

/// Next-token prediction over sequences that repeat with a random period: it needs the state to learn it.
struct Repeats {
    params: Params,
    lm: MambaLm,
    cfg: LmConfig,
    config: TrainConfig,
    stop_at: Option<(u64, Stop)>,
}

impl Repeats {
    fn new(config: &TrainConfig) -> Self {
        let params = Params::fresh(config.seed, DType::F32, &CPU);
        let lm = MambaLm::new(&full(), &params.builder()).unwrap();
        Self { params, lm, cfg: full(), config: config.clone(), stop_at: None }
    }

    fn loss(&self, rng: &mut Rng) -> Result<Tensor> {
        const LEN: usize = 24;
        let rows = (0..self.config.batch_size).flat_map(|_| {
            let period: Vec<u32> = (0..3 + rng.below(3)).map(|_| rng.below(11) as u32).collect();
            (0..LEN + 1).map(move |t| period[t % period.len()])
        });
        let x = Tensor::from_vec(rows.collect::<Vec<_>>(), (self.config.batch_size, LEN + 1), &CPU)?;
        let logits = self.lm.forward(&x.narrow(1, 0, LEN)?)?;
        cross_entropy(&logits, &x.narrow(1, 1, LEN)?, None)
    }
}

impl Task for Repeats {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg).unwrap()
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        if let Some((at, stop)) = &self.stop_at
            && *at == step
        {
            stop.request();
        }
        let mut rng = Rng::stream(self.config.seed, "batch", 2 * step + micro as u64);
        Ok(StepLoss { loss: self.loss(&mut rng)?, items: self.config.batch_size })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        Ok(vec![Metric::down("loss", f64::from(self.loss(&mut Rng::new(99))?.to_scalar::<f32>()?))])
    }
}

fn config(steps: u64) -> TrainConfig {
    TrainConfig { learning_rate: 5e-3, seed: 3, ..common::config(steps) }
}

fn train(task: &mut Repeats, dir: &Path) -> train::Report {
    let stop = task.stop_at.as_ref().map_or_else(Stop::new, |(_, stop)| stop.clone());
    let config = task.config.clone();
    train::run(task, &config, &RunFolder::resume(dir).unwrap(), &mut Console::silent(), &stop).unwrap()
}

fn train_losses(dir: &Path) -> Vec<f64> {
    let loss = |record: Record| match record {
        Record::Train { loss, .. } => Some(loss),
        Record::Valid { .. } => None,
    };
    records(dir).into_iter().filter_map(loss).collect()
}

#[test]
fn the_same_seed_trains_to_the_same_bits_and_another_does_not() {
    let dirs = [3, 3, 4].map(|seed| {
        let dir = tempfile::tempdir().unwrap();
        let config = TrainConfig { seed, ..config(60) };
        assert_eq!(train(&mut Repeats::new(&config), dir.path()).outcome, Outcome::Completed);
        dir
    });
    assert_same_run(dirs[0].path(), dirs[1].path());
    assert_ne!(train_losses(dirs[0].path()), train_losses(dirs[2].path()));
    let losses = train_losses(dirs[0].path());
    assert!(losses[losses.len() - 1] < 0.85 * losses[0], "it learns: {losses:?}");
}

#[test]
fn a_stopped_model_resumes_to_the_bits_of_an_uninterrupted_run() {
    let whole = tempfile::tempdir().unwrap();
    train(&mut Repeats::new(&config(24)), whole.path());
    for at in [0, 9, 13, 22] {
        let dir = tempfile::tempdir().unwrap();
        let mut task = Repeats::new(&config(24));
        task.stop_at = Some((at, Stop::new()));
        assert_eq!(train(&mut task, dir.path()).outcome, Outcome::Interrupted);
        assert_eq!(train(&mut Repeats::new(&config(24)), dir.path()).outcome, Outcome::Completed);
        assert_same_run(whole.path(), dir.path());
    }
}

#[test]
fn threads_do_not_change_a_training_run() {
    let dirs = [1, 3].map(|threads| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(&mut Repeats::new(&config(8)), dir.path()));
        dir
    });
    assert_same_run(dirs[0].path(), dirs[1].path());
}

/// The kernels of a GPU, compiled for the host: weights, activations, states and losses of half precision fit together,
/// give what f32 gives, and training makes progress.
#[test]
fn half_precision_trains_on_the_kernels_of_a_gpu() -> Result<()> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda");
    let Some(emulation) = Emulation::build(&kernels, Path::new(env!("CARGO_TARGET_TMPDIR")))? else {
        eprintln!("no C++ compiler ($CXX, c++): half precision is not tested");
        return Ok(());
    };
    let mixers: [MixerConfig; 3] = [
        Mamba1Config { d_state: 4, ..Default::default() }.into(),
        Mamba2Config { d_state: 4, headdim: 8, ..Default::default() }.into(),
        Mamba3Config { d_state: 4, headdim: 8, ..Default::default() }.into(),
    ];
    let ids = ids(2, 9, 3)?;
    let loss = |lm: &MambaLm| -> Result<Tensor> {
        cross_entropy(&lm.forward(&ids)?.narrow(1, 0, 8)?, &ids.narrow(1, 1, 8)?.contiguous()?, None)
    };
    for (mixer, rms_norm) in mixers.into_iter().zip([true, false, true]) {
        let cfg = LmConfig { ssm_cfg: SsmConfig::from(mixer), rms_norm, ..full() };
        let (params, lm) = model(&cfg, DType::F16)?;
        let full_precision = Params::trainable(params.to_tensors(), 0, DType::F32, &CPU);
        let want = loss(&MambaLm::new(&cfg, &full_precision.builder())?)?;
        emulation.run(|| -> Result<()> {
            let first = loss(&lm)?;
            expect_close(&format!("{:?}", cfg.ssm_cfg), &first, &want, 5e-3)?;
            let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
            for _ in 0..12 {
                let grads = Gradients::of(&loss(&lm)?, &params)?;
                assert_eq!(grads.missing(), [""; 0]);
                optimizer.step(&grads, 1e-2)?;
            }
            let (first, last) = (first.to_scalar::<f32>()?, loss(&lm)?.to_scalar::<f32>()?);
            assert!(last < 0.8 * first, "{:?}: {first} to {last}", cfg.ssm_cfg);
            Ok(())
        })?;
    }
    Ok(())
}
