//! What a run that goes on must share with the saved one.

use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Characters of a value that a message shows.
const SHOWN: usize = 40;

/// Refuses settings that are not those of the run saved in `dir`. Keys named in `free` may differ, wherever they stand.
///
/// # Errors
/// [`Error::RunFolder`] with the place and both values of every difference.
pub fn refuse_other_settings(dir: &Path, saved: &Value, now: &Value, free: &[&str]) -> Result<()> {
    let mut differences = Vec::new();
    compare("", saved, now, free, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("cannot resume with other settings: {}", differences.join("; "));
    Err(Error::run_folder(dir, message))
}

/// Lists the places where two JSON values differ.
fn compare(path: &str, saved: &Value, now: &Value, free: &[&str], differences: &mut Vec<String>) {
    match (saved, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys.into_iter().filter(|key| !free.contains(&key.as_str())) {
                let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                compare(&path, &saved[key], &now[key], free, differences);
            }
        }
        (saved, now) if saved != now => {
            differences.push(format!("{path} is {} in the saved run, {} now", short(saved), short(now)));
        }
        _ => (),
    }
}

/// A value, of which a long text is cut.
fn short(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(SHOWN).collect();
    if cut == text { text } else { format!("{cut}…") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named_and_free_keys_are_not() {
        let saved = json!({ "model": { "width": 4, "map": null }, "train": { "steps": 3, "seed": 1 } });
        let mut now = saved.clone();
        now["train"]["steps"] = json!(9);
        let dir = Path::new("run");
        assert!(refuse_other_settings(dir, &saved, &now, &["steps"]).is_ok());
        now["model"] = json!({ "width": 8, "map": "x".repeat(100) });
        let message = refuse_other_settings(dir, &saved, &now, &["steps"]).unwrap_err().to_string();
        assert!(
            message.starts_with("run: cannot resume with other settings: model.map is null"),
            "{message}"
        );
        assert!(message.ends_with("model.width is 4 in the saved run, 8 now"), "{message}");
        assert!(message.len() < 200, "{message}");
    }
}
