//! Checkpoints in and out: round trips, shards, torch files, and every way a file can be broken.
#![allow(clippy::unwrap_used, missing_docs)]

use candle_core::{DType, Device, Tensor};
use mamba_core::checkpoint::{load, load_dir, load_safetensors, save_dir, save_safetensors};
use mamba_core::{Error, Init, Params};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn tensors() -> BTreeMap<String, Tensor> {
    let x = Tensor::new(&[[0.1f32, -2.0, f32::MIN_POSITIVE], [3e38, -0.0, 7.0]], &Device::Cpu).unwrap();
    let name = |name: &str| name.to_string();
    BTreeMap::from([
        (
            name("b.f16"),
            x.narrow(1, 0, 2)
                .unwrap()
                .narrow(0, 1, 1)
                .unwrap()
                .zeros_like()
                .unwrap()
                .to_dtype(DType::F16)
                .unwrap(),
        ),
        (name("a.f32"), x.clone()),
        (name("a.transposed"), x.t().unwrap()),
        (name("c.bf16"), x.to_dtype(DType::BF16).unwrap()),
        (name("d.f64"), x.to_dtype(DType::F64).unwrap()),
        (name("e.ids"), Tensor::new(&[1u8, 2, 3], &Device::Cpu).unwrap()),
        (name("f.scalar"), Tensor::new(5i64, &Device::Cpu).unwrap()),
    ])
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |t: &Tensor| safetensors::View::data(t).into_owned();
    a.dtype() == b.dtype() && a.dims() == b.dims() && bytes(a) == bytes(b)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn a_folder_round_trips_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder");
    save_dir(&path, &json!({"d_model": 4}), &tensors()).unwrap();
    let back = load_dir(&path).unwrap();
    assert_eq!(back.config["d_model"], 4);
    assert_eq!(back.tensors.len(), 7);
    for (name, tensor) in tensors() {
        assert!(same(&tensor, &back.tensors[&name]), "{name}");
    }
    // the other implementation reads it too, metadata included
    let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    assert!(same(
        &candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap()["a.f32"],
        &tensors()["a.f32"]
    ));
    save_dir(&path, &json!({}), &tensors()).unwrap();
    assert_eq!(
        std::fs::read(path.join("model.safetensors")).unwrap(),
        bytes,
        "equal input gives equal bytes"
    );
    let single = load(path.join("model.safetensors"), None).unwrap();
    assert_eq!(
        (single.config, single.tensors.len()),
        (json!({}), 7),
        "a config beside a single file is found"
    );
}

#[test]
fn shards_are_joined_and_checked_against_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let all = tensors();
    let part =
        |names: &[&str]| names.iter().map(|n| (n.to_string(), all[*n].clone())).collect::<BTreeMap<_, _>>();
    save_safetensors(dir.join("one.safetensors"), &part(&["a.f32", "b.f16"]), &BTreeMap::new()).unwrap();
    save_safetensors(dir.join("two.safetensors"), &part(&["c.bf16"]), &BTreeMap::new()).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    let index = |map| {
        std::fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string())
            .unwrap()
    };
    index(json!({"a.f32": "one.safetensors", "b.f16": "one.safetensors", "c.bf16": "two.safetensors"}));
    let back = load_dir(dir).unwrap();
    assert_eq!((back.tensors.len(), back.files.len()), (3, 2));
    assert!(same(&back.tensors["c.bf16"], &all["c.bf16"]));

    index(json!({"a.f32": "two.safetensors"}));
    assert!(message(load_dir(dir)).contains("two.safetensors: lacks a.f32"));
    index(json!({"a.f32": "../one.safetensors"}));
    assert!(message(load_dir(dir)).contains("a.f32: the shard is not a plain file name"));
    index(json!({"a.f32": "gone.safetensors"}));
    assert!(message(load_dir(dir)).contains("gone.safetensors"));
}

#[test]
fn torch_files_are_read_at_the_top_and_under_a_key() {
    for (name, key) in [("flat.pt", None), ("nested.pth", None), ("nested.pth", Some("state_dict"))] {
        let tensors = load(fixture(name), key).unwrap().tensors;
        assert_eq!(tensors.len(), 5, "{name}");
        assert_eq!(tensors["a.weight"].to_vec2::<f32>().unwrap(), [[0.0, 1.5], [-2.0, 3.25]]);
        assert_eq!(tensors["a.tail"].to_vec1::<f32>().unwrap(), [4.0, 5.0], "an offset into shared storage");
        assert_eq!(tensors["a.transposed"].to_vec2::<f32>().unwrap(), [[0.0, 3.25], [1.5, 4.0], [-2.0, 5.0]]);
        assert_eq!(tensors["half"].dtype(), DType::F16);
        assert_eq!(tensors["steps"].to_scalar::<i64>().unwrap(), 7);
    }
    assert_eq!(load(fixture("nested.pth"), Some("ema")).unwrap().tensors.len(), 1);
    assert!(
        message(load(fixture("nested.pth"), Some("model"))).ends_with("holds no tensors under \"model\"")
    );
}

#[test]
fn a_torch_file_feeds_a_model() {
    let tensors = load(fixture("flat.pt"), None).unwrap().tensors;
    let params = Params::frozen(tensors, DType::F32, &Device::Cpu);
    let half = params.builder().get(2, "half", Init::Zeros).unwrap();
    assert_eq!(half.to_vec1::<f32>().unwrap(), [0.5, -1.0]);
    assert!(params.check().unwrap_err().to_string().contains("4 unexpected tensors: a.tail, a.transposed"));
}

#[test]
fn broken_files_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("model.safetensors");
    save_safetensors(&path, &tensors(), &BTreeMap::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    // cut everywhere: in the length, the header, and the data
    for keep in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let message = message(load_safetensors(&path));
        assert!(message.contains("model.safetensors: truncated"), "{keep}: {message}");
    }
    std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(message(load_safetensors(&path)).contains("bytes left over"));
    std::fs::write(&path, b"<html>not found</html>").unwrap();
    assert!(message(load_safetensors(&path)).contains("not a safetensors file"));

    let torch = std::fs::read(fixture("flat.pt")).unwrap();
    let cut = dir.join("cut.pt");
    for keep in [0, 10, torch.len() / 2, torch.len() - 1] {
        std::fs::write(&cut, &torch[..keep]).unwrap();
        assert!(message(load(&cut, None)).contains("cut.pt: not a readable torch archive"), "{keep}");
    }
    std::fs::write(dir.join("notes.txt"), "").unwrap();
    assert!(message(load(dir.join("notes.txt"), None)).contains("is neither a folder nor"));
    std::fs::write(dir.join("config.json"), "{\"d_model\": ").unwrap();
    assert!(message(load_dir(dir)).contains("config.json: not valid JSON"));
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(message(load_dir(dir)).contains("has none of model.safetensors"));
    assert!(matches!(load(dir.join("gone.safetensors"), None), Err(Error::Io { .. })));
}

fn message<T: std::fmt::Debug>(result: mamba_core::Result<T>) -> String {
    result.unwrap_err().to_string()
}
