//! Settings from preset, file and flags.

use crate::checkpoint::read_json;
use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// The preset, overlaid with a JSON file, overlaid with `key=value` flags. Keys may be nested (`train.steps=500`);
/// a value is JSON, or else taken as a string. An object that names another `type` or `layer` takes the place of what was
/// there, with that type's own defaults. Unknown keys and wrong types are errors that name file or flag.
pub fn resolve<T: Serialize + DeserializeOwned>(
    preset: &T,
    file: Option<&Path>,
    sets: &[String],
) -> Result<T> {
    let mut settings = serde_json::to_value(preset).map_err(Error::other)?;
    if let Some(path) = file {
        let overlay = read_json(path).map_err(|e| match e {
            Error::Checkpoint { .. } => Error::Config(e.to_string()),
            other => other,
        })?;
        if !overlay.is_object() {
            return Err(Error::Config(format!("{}: expected a JSON object", path.display())));
        }
        apply::<T>(&mut settings, overlay, &path.display().to_string())?;
    }
    for set in sets {
        let source = format!("--set {set}");
        let Some((key, text)) = set.split_once('=') else {
            return Err(Error::Config(format!("{source}: expected KEY=VALUE")));
        };
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()));
        let nested = |value, key: &str| Value::Object(Map::from_iter([(key.to_string(), value)]));
        apply::<T>(&mut settings, key.rsplit('.').fold(value, nested), &source)?;
    }
    serde_json::from_value(settings).map_err(|e| Error::Config(e.to_string()))
}

/// Overlays and checks, so that an error is known to come from `source`.
fn apply<T: Serialize + DeserializeOwned>(settings: &mut Value, overlay: Value, source: &str) -> Result<()> {
    let blame = |message: String| Error::Config(format!("{source}: {message}"));
    merge(settings, overlay.clone());
    let parsed: T = serde_json::from_value(settings.clone()).map_err(|e| blame(e.to_string()))?;
    // a type that ignores unknown fields drops them here, which shows them
    let understood = serde_json::to_value(&parsed).map_err(Error::other)?;
    match first_unknown("", &overlay, &understood) {
        Some(key) => Err(blame(format!("unknown key {key:?}"))),
        None => Ok(()),
    }
}

fn merge(base: &mut Value, overlay: Value) {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            let other = |key| overlay.get(key).is_some_and(|kind| base.get(key) != Some(kind));
            if other("type") || other("layer") {
                base.clear();
            }
            for (key, value) in overlay {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, overlay) => *base = overlay,
    }
}

fn first_unknown(path: &str, overlay: &Value, understood: &Value) -> Option<String> {
    let (Value::Object(overlay), Value::Object(understood)) = (overlay, understood) else { return None };
    overlay.iter().find_map(|(key, value)| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match understood.get(key) {
            None if value.is_null() => None,
            None => Some(path),
            Some(understood) => first_unknown(&path, value, understood),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        name: String,
        clip: Option<f64>,
        train: Train,
    }

    /// Does not deny unknown fields.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Train {
        steps: u64,
        rate: f64,
    }

    fn preset() -> Settings {
        Settings { name: "tiny".into(), clip: Some(1.0), train: Train { steps: 10, rate: 0.5 } }
    }

    fn set(flags: &[&str]) -> Result<Settings> {
        resolve(&preset(), None, &flags.iter().map(|f| f.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_beat_file_beats_preset() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.json");
        std::fs::write(&file, r#"{"name": "mid", "train": {"steps": 20}}"#).unwrap();
        let flags = ["train.steps=30".to_string(), "clip=null".to_string()];
        let settings = resolve(&preset(), Some(&file), &flags).unwrap();
        let expected = Settings { name: "mid".into(), clip: None, train: Train { steps: 30, rate: 0.5 } };
        assert_eq!(settings, expected);
        std::fs::write(&file, "{").unwrap();
        let error = resolve(&preset(), Some(&file), &[]).unwrap_err();
        assert!(matches!(&error, Error::Config(m) if m.contains("c.json: not valid JSON")), "{error}");
    }

    #[test]
    fn another_type_brings_its_own_defaults() {
        let preset = crate::MixerConfig::Mamba1(crate::Mamba1Config { d_state: 7, ..Default::default() });
        let flags =
            |flags: &[&str]| resolve(&preset, None, &flags.iter().map(|f| f.to_string()).collect::<Vec<_>>());
        let wide = crate::Mamba2Config { headdim: 32, ..Default::default() };
        assert_eq!(flags(&["type=mamba2", "headdim=32"]).unwrap(), wide.into());
        let error = flags(&["type=mamba2", "dt_rank=3"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--set dt_rank=3: settings of a mamba2 mixer: unknown field `dt_rank`"),
            "{error}"
        );
    }

    #[cfg(feature = "lm")]
    #[test]
    fn another_layer_does_too() {
        let preset = crate::lm::LmConfig { d_model: 64, ..Default::default() };
        let flags = ["ssm_cfg.layer=S4D", "ssm_cfg.d_state=6"].map(String::from);
        let got = resolve(&preset, None, &flags).unwrap();
        let mixer = crate::S4dConfig { d_state: 6, ..Default::default() };
        assert_eq!(got, crate::lm::LmConfig { ssm_cfg: mixer.into(), ..preset });
    }

    #[test]
    fn strings_need_no_quotes() {
        assert_eq!(set(&["name=a=b"]).unwrap().name, "a=b");
        assert_eq!(set(&["name=\"7\""]).unwrap().name, "7");
    }

    #[test]
    fn mistakes_name_their_flag() {
        for (flag, message) in [
            ("train.stepz=3", "--set train.stepz=3: unknown key \"train.stepz\""),
            ("nam=3", "--set nam=3: unknown field `nam`"),
            ("train.steps=many", "--set train.steps=many: invalid type: string \"many\", expected u64"),
            ("train", "--set train: expected KEY=VALUE"),
        ] {
            let error = set(&[flag]).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
