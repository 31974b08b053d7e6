//! What a run that goes on must share with the saved one.

use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Characters of a value that a message shows.
const SHOWN: usize = 40;

/// Refuses settings that are not those of the run saved in `dir`. Those at places that are `free`, such as `train.steps`,
/// may differ.
///
/// # Errors
/// [`Error::RunFolder`] with the place and both values of every difference.
pub fn refuse_other_settings(
    dir: &Path,
    saved: &Value,
    now: &Value,
    free: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut differences = Vec::new();
    compare("", saved, now, &free, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("cannot resume with other settings: {}", differences.join("; "));
    Err(Error::run_folder(dir, message))
}

/// Lists the places where two JSON values differ.
fn compare(
    path: &str,
    saved: &Value,
    now: &Value,
    free: &dyn Fn(&str) -> bool,
    differences: &mut Vec<String>,
) {
    match (saved, now) {
        _ if free(path) => (),
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                compare(&path, &saved[key], &now[key], free, differences);
            }
        }
        (saved, now) if saved != now => {
            let (saved, now) = (saved.to_string(), now.to_string());
            let same = saved.chars().zip(now.chars()).take_while(|(a, b)| a == b).count();
            let from = same.saturating_sub(SHOWN / 2);
            differences.push(format!(
                "{path} is {} in the saved run, {} now",
                excerpt(&saved, from),
                excerpt(&now, from)
            ));
        }
        _ => (),
    }
}

/// A text, of which a long one is cut to what begins at character `from`.
fn excerpt(text: &str, from: usize) -> String {
    let length = text.chars().count();
    if length <= SHOWN {
        return text.into();
    }
    let cut: String = text.chars().skip(from).take(SHOWN).collect();
    let before = if from > 0 { "…" } else { "" };
    let behind = if from + SHOWN < length { "…" } else { "" };
    format!("{before}{cut}{behind}")
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
        let steps = |path: &str| path == "train.steps";
        assert!(refuse_other_settings(dir, &saved, &now, steps).is_ok());
        now["model"] = json!({ "width": 8, "map": "x".repeat(100) });
        let message = refuse_other_settings(dir, &saved, &now, steps).unwrap_err().to_string();
        assert!(
            message.starts_with("run: cannot resume with other settings: model.map is null"),
            "{message}"
        );
        assert!(message.ends_with("model.width is 4 in the saved run, 8 now"), "{message}");
        assert!(message.len() < 200, "{message}");

        let (saved, now) = ("x".repeat(90) + "a" + &"y".repeat(90), "x".repeat(90) + "b" + &"y".repeat(90));
        let message = refuse_other_settings(dir, &json!({ "map": saved }), &json!({ "map": now }), |_| false);
        let message = message.unwrap_err().to_string();
        assert!(message.contains("xay") && message.contains("xby") && message.len() < 200, "{message}");
    }
}
