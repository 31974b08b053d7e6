//! The frozen text encoders: the published BERT against its outputs, a CLIP by its properties.

use crate::tiny_clip;
use candle_core::Device;
use mamba_motion::conditions::TextSource;
use mamba_motion::text::TextEncoder;
use std::path::{Path, PathBuf};

/// The folder that a variable names.
fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

#[test]
fn sentences_become_the_vectors_of_the_published_encoder() {
    let Some(reference) = folder("MAMBA_CHECKPOINTS").map(|dir| dir.join("minilm_l6_v2")) else {
        eprintln!("skipped: MAMBA_CHECKPOINTS is not set");
        return;
    };
    // The weights need not lie beside the reference.
    let dir = folder("MAMBA_TEXT_ENCODER").unwrap_or_else(|| reference.clone());
    if !dir.join("model.safetensors").exists() {
        eprintln!("skipped: {} has no model.safetensors; MAMBA_TEXT_ENCODER names its folder", dir.display());
        return;
    }
    let reference =
        mamba_core::checkpoint::load_safetensors(reference.join("reference.safetensors")).unwrap().0;
    let sentences = [
        "a person walks forward",
        "someone is walking ahead",
        "a man jumps up and down",
        "the stock market fell today",
    ];
    let encoder = TextEncoder::open(&dir, &Device::Cpu).unwrap();
    let vectors = encoder.encode(&sentences).unwrap();
    let want = reference["embedding"].to_vec2::<f32>().unwrap();
    assert_eq!((vectors.len(), encoder.dim()), (want.len(), want[0].len()));
    for (got, want) in vectors.iter().zip(&want) {
        let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5, "{error}");
    }
    assert!(cosine(&vectors[0], &vectors[1]) > 0.8 && cosine(&vectors[0], &vectors[3]) < 0.1);
    let one = encoder.encode(&sentences[2..3]).unwrap();
    assert!(cosine(&one[0], &vectors[2]) > 0.9999, "padding is inert");
    assert_eq!(encoder.encode(&["a", " "]).unwrap_err().to_string(), "sentence 2 is empty");
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn a_clip_gives_the_projection_of_its_last_token() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut weights) = (tiny_clip::config(), tiny_clip::weights());
    tiny_clip::write(dir.path(), &config, &weights);
    let encoder = TextEncoder::open(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(encoder.dim(), tiny_clip::DIM);
    let sentences = ["a person walks", "walks a person", "a person walks then runs"];
    let vectors = encoder.encode(&sentences).unwrap();
    for (sentence, vector) in sentences.iter().zip(&vectors) {
        assert_eq!(vector.len(), tiny_clip::DIM);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
        assert_eq!(&encoder.encode(&[sentence]).unwrap()[0], vector, "its neighbours do not matter");
    }
    assert!(cosine(&vectors[0], &vectors[1]) < 0.9999, "the order of words matters");
    let long = "a person walks then runs then walks then runs then walks";
    assert!(encoder.encode(&[long]).is_ok(), "what is too long is cut");
    // The projection is linear, and without it there is the text model's own width.
    let negative = weights["text_projection.weight"].neg().unwrap();
    weights.insert("text_projection.weight".into(), negative);
    let other = tempfile::tempdir().unwrap();
    tiny_clip::write(other.path(), &config, &weights);
    let opposite = TextEncoder::open(other.path(), &Device::Cpu).unwrap();
    assert!(cosine(&opposite.encode(&sentences[..1]).unwrap()[0], &vectors[0]) < -0.9999);
    let source = TextSource::of(dir.path(), &encoder).unwrap();
    assert!(source.open(None, &Device::Cpu).is_ok());
    let message = source.open(Some(other.path()), &Device::Cpu).err().unwrap().to_string();
    assert!(message.ends_with("not the text encoder of the training"), "{message}");
    weights.remove("text_projection.weight");
    tiny_clip::write(other.path(), &config["text_config"].clone(), &weights);
    let message = TextEncoder::open(other.path(), &Device::Cpu).err().unwrap().to_string();
    assert!(message.contains("model_type is \"\", expected \"bert\", \"clip\""), "{message}");
    let mut alone = config["text_config"].clone();
    alone["model_type"] = "clip_text_model".into();
    tiny_clip::write(other.path(), &alone, &weights);
    assert_eq!(TextEncoder::open(other.path(), &Device::Cpu).unwrap().dim(), tiny_clip::WIDTH);
    alone["hidden_act"] = "gelu".into();
    tiny_clip::write(other.path(), &alone, &weights);
    let message = TextEncoder::open(other.path(), &Device::Cpu).err().unwrap().to_string();
    assert!(message.contains("hidden_act is \"gelu\", expected \"quick_gelu\""), "{message}");
}

#[test]
fn a_folder_that_is_no_encoder_is_named() {
    let error = TextEncoder::open(Path::new("nowhere"), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("nowhere"), "{error}");
}
