//! Probabilities are probabilities, padding and batches do not matter, every parameter takes part, and training tells vowels
//! of unheard voices apart.

use candle_core::{DType, Device};
use mamba_core::optim::{AdamW, Gradients};
use mamba_core::train::{Task, TrainConfig};
use mamba_core::{Mamba2Config, Params};
use mamba_speech::audio::{Audio, WavFormat, resample, write_wav};
use mamba_speech::sample;
use mamba_speech::tagging::augment::AugmentConfig;
use mamba_speech::tagging::{
    AudioMamba, Embedding, Pooling, Sounds, Tagger, TaggerConfig, Tagging, TaggingConfig, evaluate,
};

fn labels() -> Vec<String> {
    sample::VOWELS.map(String::from).to_vec()
}

fn small(embedding: Embedding, pooling: Pooling) -> TaggerConfig {
    TaggerConfig {
        labels: labels(),
        embedding,
        pooling,
        embed_dim: 16,
        depth: 2,
        d_state: 4,
        ..TaggerConfig::default()
    }
}

fn kinds() -> [TaggerConfig; 3] {
    let convolutions = small(Embedding::Convolutions { channels: vec![4, 8] }, Pooling::Mean);
    let mamba2 = Mamba2Config { d_state: 4, headdim: 8, ..Mamba2Config::default() };
    [
        convolutions.clone(),
        small(Embedding::Patches { size: (8, 10), strides: (6, 10) }, Pooling::ClassToken),
        TaggerConfig { ssm_cfg: Some(mamba2.into()), ..convolutions },
    ]
}

fn tagger(cfg: &TaggerConfig) -> Tagger {
    let params = Params::fresh(5, DType::F32, &Device::Cpu);
    AudioMamba::new(cfg, &params.builder()).unwrap();
    Tagger::new(cfg, params.to_tensors(), DType::F32, &Device::Cpu).unwrap()
}

/// Every vowel by some voices, at 8 kHz.
fn vowels(seeds: std::ops::Range<u64>) -> Sounds {
    let all = seeds.flat_map(|seed| (0..sample::VOWELS.len()).map(move |vowel| (vowel, seed)));
    Sounds::new(all.map(|(vowel, seed)| {
        (resample(&sample::vowel(vowel, seed), sample::SAMPLE_RATE, 8000).unwrap(), vowel as u32)
    }))
}

#[test]
fn probabilities_sum_to_one_and_clips_do_not_see_each_other() {
    for cfg in kinds() {
        let tagger = tagger(&cfg);
        let clips = [
            sample::vowel(0, 1),
            sample::vowel(3, 2)[..900].to_vec(),
            vec![0.0; 10],
            sample::noise(1, 2.3),
            vec![],
        ];
        let together = tagger.tag(&clips.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for (clip, row) in clips.iter().zip(&together) {
            assert!(
                (row.iter().sum::<f32>() - 1.0).abs() < 1e-5 && row.iter().all(|p| (0.0..=1.0).contains(p)),
                "{row:?}"
            );
            let alone = tagger.tag(&[clip]).unwrap();
            assert!(row.iter().zip(&alone[0]).all(|(a, b)| (a - b).abs() < 1e-6));
            let louder: Vec<f32> = clip.iter().map(|x| 20.0 * x).collect();
            let louder = tagger.tag(&[&louder]).unwrap();
            assert!(
                row.iter().zip(&louder[0]).all(|(a, b)| (a - b).abs() < 1e-3),
                "the level does not matter"
            );
        }
    }
}

#[test]
fn a_file_is_tagged_as_its_samples_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    let tagger = tagger(&kinds()[0]);
    for len in [500, 8000, 8001, 100_000] {
        let sound: Vec<f32> = sample::noise(len as u64, 20.0)[..len].to_vec();
        write_wav(&path, &Audio::mono(8000, sound.clone()), WavFormat::FLOAT).unwrap();
        let (got, seconds) = tagger.tag_file(&path).unwrap();
        assert_eq!(seconds, len as f64 / 8000.0);
        let want = &tagger.tag(&[&sound]).unwrap()[0];
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{len}: {got:?} {want:?}");
    }
}

#[test]
fn every_parameter_has_a_gradient() {
    let sounds = vowels(0..1);
    for model in kinds() {
        let cfg = TaggingConfig {
            model,
            train: TrainConfig::default(),
            augment: AugmentConfig::default(),
            label_smoothing: 0.1,
        };
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        let task = Tagging::new(&cfg, &sounds, &sounds, params.clone()).unwrap();
        let loss = task.loss(&[0, 1, 2, 3], 0, 0).unwrap();
        assert_eq!(
            loss.to_scalar::<f32>().unwrap(),
            task.loss(&[0, 1, 2, 3], 0, 0).unwrap().to_scalar::<f32>().unwrap()
        );
        let store = loss.backward().unwrap();
        for param in params.named() {
            let grad =
                store.get(param.tensor()).unwrap_or_else(|| panic!("{} has no gradient", param.name()));
            let largest = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest.is_finite() && largest > 0.0, "{}: {largest}", param.name());
        }
    }
}

#[test]
fn vowels_of_unheard_voices_are_learnt() {
    let (train, test) = (vowels(0..24), vowels(100..108));
    let cfg = TaggingConfig {
        model: TaggerConfig {
            embed_dim: 24,
            frames: 70,
            dropout: 0.0,
            depth: 2,
            ..small(Embedding::Convolutions { channels: vec![8, 16] }, Pooling::Mean)
        },
        train: TrainConfig { batch_size: 10, betas: (0.9, 0.99), ..TrainConfig::default() },
        augment: AugmentConfig {
            noise: 0.0,
            speed: 0.0,
            warp: 0.0,
            time_masks: 0,
            freq_masks: 0,
            ..AugmentConfig::default()
        },
        label_smoothing: 0.0,
    };
    let params = Params::fresh(0, DType::F32, &Device::Cpu);
    let mut task = Tagging::new(&cfg, &train, &test, params.clone()).unwrap();
    let mut optimizer = AdamW::new(&params, cfg.train.adamw()).unwrap();
    for step in 0..400 {
        let loss = task.train_step(step, 0).unwrap().loss;
        let mut grads = Gradients::new(&params);
        grads.accumulate(loss.backward().unwrap()).unwrap();
        grads.clip_grad_norm(1.0, step + 1).unwrap();
        optimizer.step(&grads, 6e-3).unwrap();
    }
    let tagger = Tagger::new(&cfg.model, params.to_tensors(), DType::F32, &Device::Cpu).unwrap();
    let (confusion, _) = evaluate(&tagger, &test).unwrap();
    assert!(confusion.accuracy() >= 0.7, "a guess is right in one of five: {confusion:?}");
    let metrics = task.evaluate().unwrap();
    assert_eq!((metrics[0].name.as_str(), metrics[0].value), ("accuracy", confusion.accuracy()));
}

#[test]
fn the_class_token_alone_is_read() {
    // Other tokens reach it through the mixers only, whose output is silenced here: then every clip has the same score.
    let cfg = kinds()[1].clone();
    let params = Params::fresh(5, DType::F32, &Device::Cpu);
    AudioMamba::new(&cfg, &params.builder()).unwrap();
    let weights = params.to_tensors().into_iter().map(|(name, value)| match name.contains("out_proj") {
        true => (name, value.zeros_like().unwrap()),
        false => (name, value),
    });
    let tagger = Tagger::new(&cfg, weights, DType::F32, &Device::Cpu).unwrap();
    let rows = tagger.tag(&[&sample::vowel(0, 1), &sample::noise(2, 0.5)]).unwrap();
    assert_eq!(rows[0], rows[1]);
}

#[test]
fn impossible_models_are_refused() {
    let error = |cfg: TaggerConfig| cfg.validate().unwrap_err().to_string();
    let patches = |size, strides| small(Embedding::Patches { size, strides }, Pooling::Mean);
    assert!(error(patches((41, 4), (4, 4))).contains("do not fit into 40 bands and 100 frames"));
    assert!(error(patches((4, 4), (0, 4))).contains("do not fit"));
    assert!(
        error(small(Embedding::Convolutions { channels: vec![] }, Pooling::Mean))
            .contains("channels of the convolutions")
    );
    assert!(error(TaggerConfig { dropout: 1.0, ..kinds()[0].clone() }).contains("dropout is 1"));
    for name in TaggerConfig::PRESETS {
        TaggerConfig::preset(name).unwrap().validate().unwrap();
    }
}
