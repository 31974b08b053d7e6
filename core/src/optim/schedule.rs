//! Learning rate as a function of the step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// A straight line to the floor.
    Linear,
    /// Half a cosine to the floor.
    #[default]
    Cosine,
    /// Multiplied by `factor` after every `every` steps, the first `hold` times excepted; the floor does not count.
    Stairs {
        /// Steps between two multiplications: those of an epoch.
        every: u64,
        /// Below 1.
        factor: f64,
        /// Multiplications left out at the start.
        hold: u64,
    },
}

/// Linear warm-up from `peak / warmup`, then a decay that reaches `peak · floor_ratio` at the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Lowest one, as a part of the peak.
    pub floor_ratio: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The shape after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step, counted from 0. After the last step it stays where it is.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        // the last step, `steps - 1`, is where the floor is reached
        let span = self.steps.saturating_sub(self.warmup + 1).max(1) as f64;
        let t = ((step - self.warmup) as f64 / span).min(1.0);
        let part = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Stairs { every, factor, hold } => {
                let times = ((step - self.warmup) / every.max(1)).saturating_sub(hold);
                return self.peak * factor.powf(times as f64);
            }
            Decay::Linear => 1.0 - t,
            Decay::Cosine => 0.5 * (1.0 + (PI * t).cos()),
        };
        self.peak * (self.floor_ratio + (1.0 - self.floor_ratio) * part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 2.0, floor_ratio: 0.1, warmup: 4, steps: 13, decay }
    }

    #[test]
    fn warm_up_is_linear_and_reaches_the_peak() {
        let s = schedule(Decay::Cosine);
        assert_eq!([0, 1, 2, 3, 4].map(|step| s.at(step)), [0.5, 1.0, 1.5, 2.0, 2.0]);
    }

    #[test]
    fn decays_pass_their_middle_and_end_at_the_floor() {
        for (decay, middle) in [(Decay::Linear, 1.1), (Decay::Cosine, 1.1)] {
            let s = schedule(decay);
            assert!((s.at(8) - middle).abs() < 1e-12, "{decay:?}: {}", s.at(8));
            assert!((s.at(12) - 0.2).abs() < 1e-12 && (s.at(99) - 0.2).abs() < 1e-12);
        }
        assert!((schedule(Decay::Linear).at(6) - (0.2 + 1.8 * 0.75)).abs() < 1e-12);
        let quarter = 0.5 * (1.0 + (PI / 4.0).cos());
        assert!((schedule(Decay::Cosine).at(6) - (0.2 + 1.8 * quarter)).abs() < 1e-12);
        assert_eq!(schedule(Decay::Constant).at(12), 2.0);
    }

    #[test]
    fn stairs_hold_and_then_fall() {
        let s = Schedule { warmup: 0, ..schedule(Decay::Stairs { every: 2, factor: 0.5, hold: 1 }) };
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|step| s.at(step)), [2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_is_fine() {
        let s = Schedule { peak: 1.0, floor_ratio: 0.0, warmup: 10, steps: 3, decay: Decay::Cosine };
        assert_eq!([s.at(2), s.at(9), s.at(10)], [0.3, 1.0, 1.0]);
        let none = Schedule { warmup: 0, steps: 1, ..s };
        assert_eq!(none.at(0), 1.0);
    }
}
