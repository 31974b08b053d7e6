//! What a tagging model reached, for people and as JSON.

use mamba_speech::tagging::Confusion;
use serde_json::{Value, json};
use std::fmt::Write;

/// Accuracy, mean recall, and the table of what was taken for what.
pub(super) fn human(confusion: &Confusion) -> String {
    let width = confusion.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{} clips, accuracy {:.3}, mean recall {:.3}\n\nrows are true classes, columns predicted ones\n{:width$}",
        confusion.clips(),
        confusion.accuracy(),
        confusion.mean_recall(),
        ""
    );
    for label in &confusion.labels {
        let _ = write!(text, " {label:>width$}");
    }
    for (label, row) in confusion.labels.iter().zip(&confusion.counts) {
        let _ = write!(text, "\n{label:width$}");
        for count in row {
            let _ = write!(text, " {count:>width$}");
        }
    }
    text + "\n"
}

/// The same as one object.
pub(super) fn json(confusion: &Confusion) -> Value {
    json!({
        "clips": confusion.clips(), "accuracy": confusion.accuracy(), "mean_recall": confusion.mean_recall(),
        "labels": confusion.labels, "confusion": confusion.counts,
    })
}
