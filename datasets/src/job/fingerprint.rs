//! What a job's output is made from, so that a rerun can tell whether it still is the same job.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::hash::{hex, sha256_file};
use crate::{Error, Result};

/// An input file as it was when the job ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// File name without its folder: a file may be mounted elsewhere and still be the same.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

/// Everything that decides a job's output: input files in order, named hashes (a model's), and the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    inputs: Vec<InputFile>,
    hashes: BTreeMap<String, String>,
    config: Value,
}

impl Fingerprint {
    /// A fingerprint of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input file; its content is read through once, in constant memory. Order matters.
    pub fn add_input(&mut self, path: &Path) -> Result<&mut Self> {
        let (bytes, sha256) = sha256_file(path)?;
        self.inputs.push(InputFile { name: file_name(path), bytes, sha256 });
        Ok(self)
    }

    /// Adds or replaces something known by a hash or another short text: a model, a program version.
    pub fn add_hash(&mut self, name: impl Into<String>, hash: impl Into<String>) -> &mut Self {
        self.hashes.insert(name.into(), hash.into());
        self
    }

    /// Adds or replaces something known by the content of a file, such as a model's weights.
    pub fn add_hash_of(&mut self, name: impl Into<String>, path: &Path) -> Result<&mut Self> {
        let (_, sha256) = sha256_file(path)?;
        Ok(self.add_hash(name, sha256))
    }

    /// Sets the configuration: every setting that changes the output, and none that does not (threads, device).
    pub fn set_config<T: Serialize>(&mut self, config: &T) -> Result<&mut Self> {
        self.config = serde_json::to_value(config).map_err(|source| Error::Config { source })?;
        Ok(self)
    }

    /// SHA-256 over all of it, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        let mut fields = |texts: [&str; 4]| {
            for text in texts {
                // With its length before it, no text can pass for two.
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }
        };
        for input in &self.inputs {
            fields(["input", &input.name, &input.bytes.to_string(), &input.sha256]);
        }
        for (name, hash) in &self.hashes {
            fields(["hash", name, hash, ""]);
        }
        for (name, value) in self.flat_config() {
            fields(["config", &name, &value, ""]);
        }
        hex(&hasher.finalize())
    }

    /// What differs from an earlier fingerprint, one readable line each; empty if they are the same.
    pub fn changes_since(&self, earlier: &Fingerprint) -> Vec<String> {
        let mut changes = Vec::new();
        for i in 0..self.inputs.len().max(earlier.inputs.len()) {
            changes.extend(input_change(earlier.inputs.get(i), self.inputs.get(i)));
        }
        map_changes("", &earlier.hashes, &self.hashes, &mut changes);
        map_changes("config", &earlier.flat_config(), &self.flat_config(), &mut changes);
        changes
    }

    /// The configuration as `.path.to.setting` → JSON.
    fn flat_config(&self) -> BTreeMap<String, String> {
        fn walk(path: String, value: &Value, flat: &mut BTreeMap<String, String>) {
            match value {
                Value::Object(map) if !map.is_empty() => {
                    for (key, value) in map {
                        walk(format!("{path}.{key}"), value, flat);
                    }
                }
                Value::Null if path.is_empty() => {}
                _ => {
                    flat.insert(path, value.to_string());
                }
            }
        }
        let mut flat = BTreeMap::new();
        walk(String::new(), &self.config, &mut flat);
        flat
    }
}

fn input_change(old: Option<&InputFile>, new: Option<&InputFile>) -> Option<String> {
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some(format!("input {} was added", new.name)),
        (Some(old), None) => Some(format!("input {} was removed", old.name)),
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) if old.name != new.name => {
            Some(format!("input {} was {}", new.name, old.name))
        }
        (Some(old), Some(new)) if old.bytes != new.bytes => {
            Some(format!("input {}: {} bytes, was {}", new.name, new.bytes, old.bytes))
        }
        (Some(_), Some(new)) => Some(format!("input {}: other content of the same size", new.name)),
    }
}

fn map_changes(
    prefix: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    changes: &mut Vec<String>,
) {
    for (name, value) in new {
        match old.get(name) {
            Some(old) if old == value => {}
            Some(old) => changes.push(format!("{prefix}{name}: {value}, was {old}")),
            None => changes.push(format!("{prefix}{name}: {value}, was not set")),
        }
    }
    let removed = old.iter().filter(|(name, _)| !new.contains_key(*name));
    changes.extend(removed.map(|(name, value)| format!("{prefix}{name}: not set, was {value}")));
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(dir: &Path, name: &str, content: &str) -> std::path::PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn changes_read_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), "a.fa", ">a\nAC\n");
        let mut old = Fingerprint::new();
        old.add_input(&path).unwrap().add_hash("model", "aa");
        old.set_config(&json!({ "pooling": "mean", "window": { "len": 64 }, "gone": 1 })).unwrap();

        written(dir.path(), "a.fa", ">a\nAG\n");
        let extra = written(dir.path(), "b.fa", ">b\nA\n");
        let mut new = Fingerprint::new();
        new.add_input(&path).unwrap().add_input(&extra).unwrap().add_hash("model", "bb");
        new.set_config(&json!({ "pooling": "max", "window": { "len": 64, "step": 2 } })).unwrap();
        assert_eq!(
            new.changes_since(&old),
            [
                "input a.fa: other content of the same size",
                "input b.fa was added",
                "model: bb, was aa",
                "config.pooling: \"max\", was \"mean\"",
                "config.window.step: 2, was not set",
                "config.gone: not set, was 1",
            ]
        );
        assert_ne!(old.digest(), new.digest());
        assert!(new.changes_since(&new.clone()).is_empty());
    }

    #[test]
    fn the_folder_of_an_input_does_not_matter() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [a, b] = [a.path(), b.path()].map(|dir| {
            let mut print = Fingerprint::new();
            print.add_input(&written(dir, "x.fa", "same")).unwrap();
            print
        });
        assert_eq!(a.digest(), b.digest());
        assert!(a.changes_since(&b).is_empty());
    }

    #[test]
    fn a_folder_is_no_input() {
        let dir = tempfile::tempdir().unwrap();
        let error = Fingerprint::new().add_input(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is not a regular file"), "{error}");
    }
}
