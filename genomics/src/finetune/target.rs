//! What is predicted: one of some classes, or a value.

use crate::error::{Error, Result};
use crate::labelled::{LabelledSet, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Classes or values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each label is the name of a class
    #[default]
    Classification,
    /// Each label is a number
    Regression,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classification => "classification",
            Self::Regression => "regression",
        })
    }
}

/// What a trained model predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One of these classes.
    Classes {
        /// Their names, by number.
        names: Vec<String>,
    },
    /// A value; the model's output times `deviation` plus `mean`.
    Value {
        /// Mean of the training values.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
    },
}

impl Target {
    /// The classes of the training sequences, in numerical order where all are whole numbers, or mean and deviation of
    /// their values.
    ///
    /// # Errors
    /// Fewer than two classes; a label that is not a number; values that are all the same.
    pub fn of(train: &LabelledSet, kind: Kind) -> Result<Self> {
        let one = |what: &str| Error::Table {
            place: "the training sequences".into(),
            reason: format!("all have {what}, there is nothing to learn"),
        };
        match kind {
            Kind::Classification => {
                let names: BTreeSet<&str> =
                    train.rows.iter().filter_map(|row| row.label.as_deref()).collect();
                let mut names: Vec<String> = names.into_iter().map(str::to_string).collect();
                if names.len() < 2 {
                    return Err(one(&format!("the label {:?}", names.first().cloned().unwrap_or_default())));
                }
                if names.iter().all(|name| name.parse::<i64>().is_ok()) {
                    names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
                }
                Ok(Self::Classes { names })
            }
            Kind::Regression => {
                let values = train.rows.iter().map(number).collect::<Result<Vec<f64>>>()?;
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
                let deviation = variance.sqrt();
                match deviation > 0.0 && deviation.is_finite() {
                    true => Ok(Self::Value { mean, deviation }),
                    false => Err(one("the same value")),
                }
            }
        }
    }

    /// Outputs of the model.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Classes { names } => names.len(),
            Self::Value { .. } => 1,
        }
    }

    /// A row's label as a number: a class, or a value in units of the deviation.
    pub(super) fn encode(&self, row: &Row) -> Result<f64> {
        match self {
            Self::Classes { names } => {
                let label = row.label.as_deref().unwrap_or_default();
                let class = names.iter().position(|name| name == label);
                class.map(|class| class as f64).ok_or_else(|| Error::Table {
                    place: row.place.clone(),
                    reason: format!(
                        "label {label:?} is none of the training sequences': {}",
                        names.join(", ")
                    ),
                })
            }
            Self::Value { mean, deviation } => Ok((number(row)? - mean) / deviation),
        }
    }
}

/// A label that must be a number.
fn number(row: &Row) -> Result<f64> {
    let label = row.label.as_deref().unwrap_or_default();
    label.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| Error::Table {
        place: row.place.clone(),
        reason: format!("label {label:?} is not a finite number"),
    })
}
