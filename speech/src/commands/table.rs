//! Tables of scores for people, as JSON and as CSV.

use mamba_speech::metrics::Scores;
use serde_json::{Value, json};
use std::fmt::Write;

/// Scores of clips by name, and their mean.
pub(crate) struct ScoreTable {
    pub(crate) rows: Vec<(String, Scores)>,
}

impl ScoreTable {
    pub(crate) fn mean(&self) -> Scores {
        Scores::mean(&self.rows.iter().map(|(_, scores)| *scores).collect::<Vec<_>>())
    }

    pub(crate) fn json(&self) -> Value {
        let clips: Vec<Value> =
            self.rows.iter().map(|(name, scores)| json!({ "clip": name, "scores": scores })).collect();
        json!({ "clips": clips, "mean": self.mean() })
    }

    pub(crate) fn human(&self) -> String {
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
        let mut text = format!("{:width$}", "clip");
        for name in Scores::NAMES {
            let _ = write!(text, " {name:>10}");
        }
        let mean = ("mean".to_string(), self.mean());
        for (name, scores) in self.rows.iter().chain([&mean]) {
            let _ = write!(text, "\n{name:width$}");
            for value in scores.values() {
                match value {
                    Some(value) => write!(text, " {value:>10.3}"),
                    None => write!(text, " {:>10}", "-"),
                }
                .expect("writing to a string");
            }
        }
        text + "\n"
    }

    pub(crate) fn csv(&self) -> String {
        let mut text = format!("clip,{}\n", Scores::NAMES.join(","));
        for (name, scores) in &self.rows {
            let quoted = match name.contains([',', '"', '\n']) {
                true => format!("\"{}\"", name.replace('"', "\"\"")),
                false => name.clone(),
            };
            let values = scores.values().map(|v| v.map_or(String::new(), |v| v.to_string()));
            let _ = writeln!(text, "{quoted},{}", values.join(","));
        }
        text
    }
}
