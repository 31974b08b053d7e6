//! What is trained on, and what is asked for.

use super::Dataset;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How events are held out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SplitConfig {
    /// Each user's last event is for the test, the one before for validation. Users with fewer than three events are
    /// only trained on.
    #[default]
    LeaveOneOut,
    /// The last events of the whole log, by time: nothing is trained on that lies after what is asked for. Each user's
    /// first event of a period is asked for.
    Time {
        /// Share of events in the validation period.
        valid: f64,
        /// Share of events in the test period, which follows.
        test: f64,
    },
}

/// One question: what comes after a user's first `history` events?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Place of the user.
    pub user: usize,
    /// Events that are known; the next one is the answer.
    pub history: usize,
}

/// What is trained on, and what is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// For each user the number of events, from the first on, that are trained on.
    pub train: Vec<usize>,
    /// Asked for while training.
    pub valid: Vec<Query>,
    /// Asked for in the end.
    pub test: Vec<Query>,
}

impl Split {
    /// Splits a data set.
    ///
    /// # Errors
    /// Shares that are none, a split by time without times, or nothing left on one side.
    pub fn new(data: &Dataset, config: &SplitConfig) -> Result<Self> {
        let lengths = data.sequences.iter().map(Vec::len);
        let split = match config {
            SplitConfig::LeaveOneOut => {
                let held_out = |back: usize| {
                    let users = lengths.clone().enumerate().filter(|&(_, len)| len >= 3);
                    users.map(|(user, len)| Query { user, history: len - back }).collect()
                };
                let train = lengths.clone().map(|len| if len >= 3 { len - 2 } else { len }).collect();
                Self { train, valid: held_out(2), test: held_out(1) }
            }
            &SplitConfig::Time { valid, test } => {
                let Some(times) = &data.times else {
                    return Err(Error::Empty("a split by time needs times, and the log has none".into()));
                };
                if !(valid > 0.0 && test > 0.0 && valid + test < 1.0) {
                    return Err(Error::Empty(format!(
                        "shares of events for validation {valid} and test {test} must be above 0 and together below 1"
                    )));
                }
                let mut all: Vec<f64> = times.iter().flatten().copied().collect();
                all.sort_unstable_by(f64::total_cmp);
                let at = |share: f64| all[((all.len() as f64 * share) as usize).min(all.len() - 1)];
                let [first_valid, first_test] = [at(1.0 - valid - test), at(1.0 - test)];
                let before =
                    |limit: f64| times.iter().map(move |times| times.partition_point(|&t| t < limit));
                let train: Vec<usize> = before(first_valid).collect();
                let until_test: Vec<usize> = before(first_test).collect();
                let ask = |known: &[usize], end: &dyn Fn(usize) -> usize| -> Vec<Query> {
                    let users = known.iter().enumerate();
                    let asked = users.filter(|&(user, &history)| history > 0 && history < end(user));
                    asked.map(|(user, &history)| Query { user, history }).collect()
                };
                let valid = ask(&train, &|user| until_test[user]);
                let test = ask(&until_test, &|user| times[user].len());
                Self { train, valid, test }
            }
        };
        for (queries, what) in [(&split.valid, "validation"), (&split.test, "the test")] {
            if queries.is_empty() {
                return Err(Error::Empty(format!(
                    "nothing to ask for in {what}: {} users with {} events",
                    data.sequences.len(),
                    data.events()
                )));
            }
        }
        if split.train.iter().all(|&len| len < 2) {
            return Err(Error::Empty("no user has two events to train on".into()));
        }
        Ok(split)
    }

    /// All events that are trained on.
    pub fn train_events<'a>(&'a self, data: &'a Dataset) -> impl Iterator<Item = u32> + 'a {
        data.sequences.iter().zip(&self.train).flat_map(|(items, &len)| items[..len].iter().copied())
    }
}
