//! The folder of a CLIP text encoder of a few channels, with random weights.

use candle_core::{DType, Device, Tensor};
use mamba_core::{Rng, checkpoint};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Channels inside, and of a sentence's vector.
pub(crate) const WIDTH: usize = 8;
/// Channels of a sentence's vector.
pub(crate) const DIM: usize = 6;

const WORDS: &str = "<s> </s> <unk> a person walks walk runs run kick jump moving : , then style";

/// The folder's `config.json`.
pub(crate) fn config() -> Value {
    let text = json!({
        "vocab_size": WORDS.split(' ').count(), "hidden_size": WIDTH, "intermediate_size": 12,
        "max_position_embeddings": 10, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu",
    });
    json!({ "model_type": "clip", "text_config": text })
}

/// The folder's weights.
pub(crate) fn weights() -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    let mut put = |name: String, shape: Vec<usize>| {
        let mut rng = Rng::stream(5, &name, 0);
        let tensor = rng.normal_tensor(shape, 0.0, 0.5, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(name, tensor);
    };
    let model = "text_model";
    put(format!("{model}.embeddings.token_embedding.weight"), vec![WORDS.split(' ').count(), WIDTH]);
    put(format!("{model}.embeddings.position_embedding.weight"), vec![10, WIDTH]);
    for layer in 0..2 {
        let layer = format!("{model}.encoder.layers.{layer}");
        let maps = ["q_proj", "k_proj", "v_proj", "out_proj"]
            .map(|name| (format!("self_attn.{name}"), WIDTH, WIDTH));
        let mlp = [("mlp.fc1".to_string(), 12, WIDTH), ("mlp.fc2".to_string(), WIDTH, 12)];
        for (name, out, from) in maps.into_iter().chain(mlp) {
            put(format!("{layer}.{name}.weight"), vec![out, from]);
            put(format!("{layer}.{name}.bias"), vec![out]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            put(format!("{layer}.{norm}.weight"), vec![WIDTH]);
            put(format!("{layer}.{norm}.bias"), vec![WIDTH]);
        }
    }
    put(format!("{model}.final_layer_norm.weight"), vec![WIDTH]);
    put(format!("{model}.final_layer_norm.bias"), vec![WIDTH]);
    put("text_projection.weight".into(), vec![DIM, WIDTH]);
    tensors
}

/// Writes the folder.
pub(crate) fn write(dir: &Path, config: &Value, weights: &BTreeMap<String, Tensor>) {
    checkpoint::save_dir(dir, config, weights).unwrap();
    let vocab: serde_json::Map<String, Value> =
        WORDS.split(' ').enumerate().map(|(i, word)| (word.to_string(), i.into())).collect();
    let special = |token: &str, id: usize| json!({ "id": token, "ids": [id], "tokens": [token] });
    let token = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let around = json!([token("<s>"), sequence, token("</s>")]);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Lowercase" }, "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "single": around, "pair": around,
            "special_tokens": { "<s>": special("<s>", 0), "</s>": special("</s>", 1) },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
