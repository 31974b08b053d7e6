//! `run.json`: how a run was made.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a run was made. It names no machine and no person: the home folder in the command reads `~`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The program.
    pub program: String,
    /// The program's version.
    pub version: String,
    /// This crate's version.
    pub mamba_core: String,
    /// The commit, where the build was given one in `MAMBA_GIT_SHA`.
    pub git_sha: Option<String>,
    /// The command line.
    pub command: Vec<String>,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Compute threads.
    pub threads: usize,
    /// The seed.
    pub seed: u64,
    /// The resolved settings of the run, as the program gives them.
    pub settings: Value,
    /// Start, UTC.
    pub started: String,
    /// End, UTC.
    pub finished: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// Steps taken.
    pub steps: u64,
}

impl RunInfo {
    /// A run of `program` that starts now; `settings` are its resolved settings.
    pub fn new(
        program: &str,
        version: &str,
        device: &candle_core::Device,
        seed: u64,
        settings: Value,
    ) -> Self {
        let home = std::env::var("HOME").unwrap_or_default();
        let mut command: Vec<String> = std::env::args().map(|arg| without_home(&arg, &home)).collect();
        if let Some(first) = command.first_mut() {
            *first = program.to_string();
        }
        Self {
            program: program.into(),
            version: version.into(),
            mamba_core: env!("CARGO_PKG_VERSION").into(),
            git_sha: option_env!("MAMBA_GIT_SHA").map(str::to_string),
            command,
            device: crate::device::describe(device),
            threads: rayon::current_num_threads(),
            seed,
            settings,
            started: now(),
            finished: None,
            outcome: None,
            steps: 0,
        }
    }

    /// The end of the run.
    pub fn finish(&mut self, outcome: &str, steps: u64) {
        self.finished = Some(now());
        self.outcome = Some(outcome.into());
        self.steps = steps;
    }
}

fn without_home(arg: &str, home: &str) -> String {
    if home.len() < 2 { arg.to_string() } else { arg.replace(home, "~") }
}

fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// Seconds since 1970 as `2026-01-31T12:00:00Z`. The date follows Howard Hinnant's `civil_from_days`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // March is 0
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(utc(1_767_225_599), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn the_home_folder_is_not_recorded() {
        assert_eq!(without_home("--data=/home/ada/x.fa", "/home/ada"), "--data=~/x.fa");
        assert_eq!(without_home("/data", "/"), "/data");
    }
}
