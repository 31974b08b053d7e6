//! A causal model gives frame by frame what it gives for the whole, and does not see what is to come.

use candle_core::{DType, Device};
use mamba_core::{Mamba2Config, Params};
use mamba_speech::enhance::{ChunkConfig, Chunks};
use mamba_speech::{Config, Enhancer, SeMamba, Stream, sample};

/// A small model with weights of its initialisation.
pub(crate) fn enhancer(preset: &str, seed: u64) -> Enhancer {
    enhancer_of(Config::preset(preset).unwrap(), seed)
}

fn enhancer_of(mut cfg: Config, seed: u64) -> Enhancer {
    (cfg.model_cfg.hid_feature, cfg.model_cfg.num_tfmamba, cfg.model_cfg.dense_depth) = (8, 2, 3);
    let params = Params::fresh(seed, DType::F32, &Device::Cpu);
    let model = SeMamba::new(&cfg, &params.builder()).unwrap();
    let frozen = Params::frozen(params.to_tensors(), DType::F32, &Device::Cpu);
    let model = SeMamba::new(&cfg, &frozen.builder()).map(|frozen| (model, frozen).1).unwrap();
    Enhancer::new(model, cfg, DType::F32, &Device::Cpu)
}

fn expect_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4 * largest, "{what}: error {error:e} where the largest is {largest:e}");
}

#[test]
fn streamed_sound_is_that_of_the_whole_however_it_arrives() {
    let enhancer = enhancer("semamba-stream", 1);
    let noisy = sample::noise(2, 0.9);
    for len in [1, 150, 201, 400, 3_333, 8_000, noisy.len()] {
        let noisy = &noisy[..len];
        let whole = enhancer.enhance(noisy).unwrap();
        for block in [1, 37, 100, 320, 5_000] {
            if block < 10 && len > 1000 {
                continue; // many thousand calls for nothing new
            }
            let mut stream = Stream::new(&enhancer).unwrap();
            let mut out = Vec::new();
            for (i, samples) in noisy.chunks(block).enumerate() {
                out.extend(stream.push(samples).unwrap());
                let heard = ((i + 1) * block).min(len);
                assert!(heard - out.len() <= stream.latency() + 100, "{heard} heard, {} given", out.len());
            }
            out.extend(stream.finish().unwrap());
            expect_same(&out, &whole, &format!("{len} samples by {block}"));
        }
    }
}

#[test]
fn the_stream_of_other_mixers_is_that_of_the_whole() {
    let mamba2 = Mamba2Config { d_state: 4, headdim: 8, ..Mamba2Config::default() };
    let mut cfg = Config::preset("semamba-stream").unwrap();
    cfg.model_cfg.ssm_cfg = Some(mamba2.into());
    let enhancer = enhancer_of(cfg, 1);
    let noisy = sample::noise(2, 0.3);
    let mut stream = Stream::new(&enhancer).unwrap();
    let mut out: Vec<f32> = noisy.chunks(320).flat_map(|samples| stream.push(samples).unwrap()).collect();
    out.extend(stream.finish().unwrap());
    expect_same(&out, &enhancer.enhance(&noisy).unwrap(), "Mamba-2");
}

#[test]
fn a_causal_model_does_not_see_what_is_to_come() {
    let enhancer = enhancer("semamba-stream", 1);
    let mut noisy = sample::noise(3, 0.8);
    let before = enhancer.enhance(&noisy).unwrap();
    let changed = 8_000;
    noisy[changed..].iter_mut().for_each(|x| *x = -0.5 * *x + 0.01);
    let after = enhancer.enhance(&noisy).unwrap();
    let seen = changed - 400; // the frames that hold the first changed sample begin here
    expect_same(&after[..seen], &before[..seen], "what came before");
    assert!(after[changed + 400..].iter().zip(&before[changed + 400..]).any(|(a, b)| (a - b).abs() > 1e-4));
}

#[test]
fn a_model_that_looks_ahead_is_no_stream() {
    let error = Stream::new(&enhancer("semamba-small", 1)).err().unwrap().to_string();
    assert!(error.contains("semamba-stream"), "{error}");
}

#[test]
fn chunks_have_the_length_of_the_whole_and_no_seam() {
    let enhancer = enhancer("semamba-small", 1);
    let noisy = sample::voice(2, 4.0);
    for (len, block) in [(0, 10), (1, 1), (500, 77), (20_000, 4_001), (noisy.len(), 9_999)] {
        let mut chunks = Chunks::new(&enhancer, ChunkConfig { length: 16_000, overlap: 1_600 });
        let mut out = Vec::new();
        for samples in noisy[..len].chunks(block) {
            out.extend(chunks.push(samples).unwrap());
        }
        out.extend(chunks.finish().unwrap());
        assert_eq!(out.len(), len);
        if len > 0 && len < 24_000 {
            assert_eq!(out, enhancer.enhance(&noisy[..len]).unwrap(), "a short signal is one chunk");
        }
    }
}

#[test]
fn silence_stays_silence() {
    assert_eq!(enhancer("semamba-small", 1).enhance(&[0.0; 3000]).unwrap(), [0.0; 3000]);
    let stream = enhancer("semamba-stream", 1);
    assert_eq!(stream.enhance(&[0.0; 3000]).unwrap(), [0.0; 3000]);
}
