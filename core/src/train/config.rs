//! Settings of a training run.

use crate::optim::{AdamWConfig, Decay, Schedule};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of a training run. Unknown keys are an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Examples in one micro-batch.
    pub batch_size: usize,
    /// Micro-batches in one step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// The last learning rate, as a part of the highest.
    pub min_lr_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Shape of the learning rate after the warm-up.
    pub schedule: Decay,
    /// AdamW's decay rates.
    pub betas: (f64, f64),
    /// AdamW's ε.
    pub eps: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm; null does not clip.
    pub clip: Option<f64>,
    /// Decay of the moving average that is evaluated and kept in place of the weights; null for none.
    pub ema: Option<f64>,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between saves; every evaluation saves too.
    pub save_every: u64,
    /// Steps between log lines.
    pub log_every: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Evaluations without a new best after which the run ends; null for never.
    pub patience: Option<u32>,
    /// Minutes after which the run evaluates, saves and ends. The learning rate does not know about it, so the run
    /// can be resumed.
    pub max_minutes: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 8,
            accumulate: 1,
            learning_rate: 1e-3,
            min_lr_ratio: 0.1,
            warmup: 50,
            schedule: Decay::Cosine,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            clip: Some(1.0),
            ema: None,
            eval_every: 200,
            save_every: 200,
            log_every: 10,
            seed: 0,
            patience: None,
            max_minutes: None,
        }
    }
}

impl TrainConfig {
    /// The learning rate over the steps.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            peak: self.learning_rate,
            floor_ratio: self.min_lr_ratio,
            warmup: self.warmup,
            steps: self.steps,
            decay: self.schedule,
        }
    }

    /// The optimizer's part.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay }
    }

    /// An error that names the first impossible value.
    pub fn validate(&self) -> Result<()> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let rules: [(&str, bool, &str); 15] = [
            ("steps", self.steps > 0, "at least 1"),
            ("batch_size", self.batch_size > 0, "at least 1"),
            ("accumulate", self.accumulate > 0, "at least 1"),
            ("learning_rate", positive(self.learning_rate), "above 0"),
            ("min_lr_ratio", (0.0..=1.0).contains(&self.min_lr_ratio), "within 0 and 1"),
            ("betas", unit(self.betas.0) && unit(self.betas.1), "each at least 0 and below 1"),
            ("eps", positive(self.eps), "above 0"),
            ("weight_decay", self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "at least 0"),
            ("clip", self.clip.is_none_or(positive), "above 0, or null"),
            ("ema", self.ema.is_none_or(unit), "at least 0 and below 1, or null"),
            ("patience", self.patience != Some(0), "at least 1, or null"),
            ("eval_every", self.eval_every > 0, "at least 1"),
            ("save_every", self.save_every > 0, "at least 1"),
            ("log_every", self.log_every > 0, "at least 1"),
            ("max_minutes", self.max_minutes.is_none_or(|m| m >= 0.0), "at least 0, or null"),
        ];
        match rules.iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((key, _, rule)) => {
                let value = serde_json::to_value(self).map_err(Error::other)?[*key].clone();
                // null breaks no rule, but JSON has no other word for what is no number
                let value = if value.is_null() { "not a finite number".into() } else { value.to_string() };
                Err(Error::Config(format!("{key} is {value}, must be {rule}")))
            }
        }
    }

    /// Settings that only say when to look, save and end, so that a resumed run may change them.
    pub const FREE: [&str; 6] = ["steps", "eval_every", "save_every", "log_every", "patience", "max_minutes"];

    /// The settings that a resumed run must share with the saved one: all but [`FREE`](Self::FREE).
    pub(super) fn fixed_part(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self).map_err(Error::other)?;
        if let Some(map) = value.as_object_mut() {
            for free in Self::FREE {
                map.remove(free);
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_impossible_values_are_named() {
        let error = serde_json::from_str::<TrainConfig>(r#"{"stepz": 3}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `stepz`"), "{error}");
        let config = TrainConfig { betas: (0.9, 1.0), ..Default::default() };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "betas is [0.9,1.0], must be each at least 0 and below 1"
        );
        for (config, message) in [
            (
                TrainConfig { learning_rate: f64::NAN, ..Default::default() },
                "learning_rate is not a finite number, must be above 0",
            ),
            (
                TrainConfig { patience: Some(0), ..Default::default() },
                "patience is 0, must be at least 1, or null",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
        assert!(TrainConfig::default().validate().is_ok());
    }
}
