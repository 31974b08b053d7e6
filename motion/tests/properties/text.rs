//! The frozen text encoder against the outputs of the published model.

use candle_core::Device;
use mamba_motion::text::TextEncoder;
use std::path::{Path, PathBuf};

#[test]
fn sentences_become_the_vectors_of_the_published_encoder() {
    let Some(dir) = std::env::var_os("MAMBA_CHECKPOINTS").map(|dir| PathBuf::from(dir).join("minilm_l6_v2"))
    else {
        eprintln!("MAMBA_CHECKPOINTS is not set: the text encoder is not compared with the published model");
        return;
    };
    if !dir.join("model.safetensors").exists() {
        eprintln!("{} has no model.safetensors: the text encoder is not compared", dir.display());
        return;
    }
    let reference = mamba_core::checkpoint::load_safetensors(dir.join("reference.safetensors")).unwrap().0;
    let sentences = [
        "a person walks forward",
        "someone is walking ahead",
        "a man jumps up and down",
        "the stock market fell today",
    ];
    let encoder = TextEncoder::open(&dir, &Device::Cpu).unwrap();
    let vectors = encoder.encode(&sentences).unwrap();
    let want = reference["embedding"].to_vec2::<f32>().unwrap();
    for (got, want) in vectors.iter().zip(&want) {
        let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5, "{error}");
    }
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(cosine(&vectors[0], &vectors[1]) > 0.8 && cosine(&vectors[0], &vectors[3]) < 0.1);
    let one = encoder.encode(&sentences[2..3]).unwrap();
    assert!(cosine(&one[0], &vectors[2]) > 0.9999, "padding is inert");
    assert_eq!(encoder.encode(&["a", " "]).unwrap_err().to_string(), "sentence 2 is empty");
}

#[test]
fn a_folder_that_is_no_encoder_is_named() {
    let error = TextEncoder::open(Path::new("nowhere"), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("nowhere"), "{error}");
}
