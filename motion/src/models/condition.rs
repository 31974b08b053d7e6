//! What a motion is conditioned on: labels, or a text's vector; any part may be left open.

use super::attention::projection;
use candle_core::{Device, Module, Result, Tensor};
use mamba_core::nn::{Embedding, Linear};
use mamba_core::{Init, ParamBuilder};
use serde::{Deserialize, Serialize};

/// What a motion is conditioned on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ConditionConfig {
    /// Labels: of each group (content, style) one of so many values, or any.
    Labels {
        /// Values of each group.
        sizes: Vec<usize>,
    },
    /// The vector of a text, or none.
    Text {
        /// Channels of the vector.
        dim: usize,
    },
}

/// A batch of conditions.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// Of each row, a value or any for each group.
    Labels(Vec<Vec<Option<usize>>>),
    /// Of each row, the vector of a text or none.
    Text(Vec<Option<Vec<f32>>>),
}

impl Condition {
    /// Rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(rows) => rows.len(),
            Self::Text(rows) => rows.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of several conditions of one kind.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { candle_core::bail!("condition: no rows") };
        parts.try_fold(first.clone(), |all, part| match (all, part) {
            (Self::Labels(mut rows), Self::Labels(more)) => {
                rows.extend(more.iter().cloned());
                Ok(Self::Labels(rows))
            }
            (Self::Text(mut rows), Self::Text(more)) => {
                rows.extend(more.iter().cloned());
                Ok(Self::Text(rows))
            }
            _ => candle_core::bail!("condition: labels and text are not interchangeable"),
        })
    }

    /// As many rows that ask for nothing.
    pub fn nothing(&self) -> Self {
        match self {
            Self::Labels(rows) => Self::Labels(rows.iter().map(|row| vec![None; row.len()]).collect()),
            Self::Text(rows) => Self::Text(vec![None; rows.len()]),
        }
    }
}

/// Conditions as vectors.
#[derive(Clone, Debug)]
pub(super) enum ConditionEncoder {
    /// A table for each group, whose first row means any.
    Labels(Vec<Embedding>),
    /// A map of the text's vector, and what stands for no text.
    Text(Linear, Tensor),
}

impl ConditionEncoder {
    pub(super) fn new(cfg: &ConditionConfig, d: usize, pb: &ParamBuilder) -> Result<Self> {
        match cfg {
            ConditionConfig::Labels { sizes } => {
                let table = |(i, &size): (usize, &usize)| {
                    let weight = pb.pp("labels").pp(i).get_no_decay(
                        (size + 1, d),
                        "weight",
                        Init::Normal { std: 1.0 },
                    )?;
                    Ok(Embedding::from_tensor(weight))
                };
                Ok(Self::Labels(sizes.iter().enumerate().map(table).collect::<Result<_>>()?))
            }
            ConditionConfig::Text { dim } => Ok(Self::Text(
                projection(*dim, d, &pb.pp("text"))?,
                pb.get_no_decay(d, "no_text", Init::Normal { std: 1.0 })?,
            )),
        }
    }

    /// `(B, d)`.
    pub(super) fn forward(&self, condition: &Condition, device: &Device) -> Result<Tensor> {
        match (self, condition) {
            (Self::Labels(tables), Condition::Labels(rows)) => {
                if let Some(row) = rows.iter().find(|row| row.len() != tables.len()) {
                    candle_core::bail!("condition: {} labels, expected {}", row.len(), tables.len());
                }
                let group = |(i, table): (usize, &Embedding)| {
                    let size = table.weight().dim(0)?;
                    let ids: Vec<u32> = rows.iter().map(|row| row[i].map_or(0, |id| id as u32 + 1)).collect();
                    match ids.iter().find(|&&id| id as usize >= size) {
                        Some(id) => candle_core::bail!(
                            "condition: label {} of group {i}, which has {}",
                            id - 1,
                            size - 1
                        ),
                        None => table.forward(&Tensor::from_vec(ids, rows.len(), device)?),
                    }
                };
                let groups = tables.iter().enumerate().map(group).collect::<Result<Vec<_>>>()?;
                match groups.split_first() {
                    Some((first, rest)) => rest.iter().try_fold(first.clone(), |sum, group| sum + group),
                    None => candle_core::bail!("condition: no groups of labels"),
                }
            }
            (Self::Text(map, nothing), Condition::Text(rows)) => {
                let dim = map.weight().dim(1)?;
                if let Some(row) = rows.iter().flatten().find(|row| row.len() != dim) {
                    candle_core::bail!("condition: a text of {} channels, expected {dim}", row.len());
                }
                let values = rows.iter().flat_map(|row| row.clone().unwrap_or_else(|| vec![0.0; dim]));
                let values = Tensor::from_iter(values, device)?.reshape((rows.len(), dim))?;
                let given = rows.iter().map(|row| if row.is_some() { 1f32 } else { 0.0 });
                let given = Tensor::from_iter(given, device)?.reshape((rows.len(), 1))?;
                let text = map.forward(&values)?.broadcast_mul(&given)?;
                text + given.affine(-1.0, 1.0)?.broadcast_mul(&nothing.unsqueeze(0)?)?
            }
            _ => candle_core::bail!("condition: labels and text are not interchangeable"),
        }
    }
}
