//! Which share of a job's parts one process makes.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Shard `I/N`: the parts whose number leaves `I` when divided by `N`. Both parts and shards count from 0, so the
/// shards of four are `0/4`, `1/4`, `2/4`, `3/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// The only shard of a job that is not fanned out: `0/1`.
    pub const WHOLE: Shard = Shard { index: 0, count: 1 };

    /// Shard `index` of `count`.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        let text = || format!("{index}/{count}");
        if count == 0 {
            return Err(Error::Shard { text: text(), reason: "the count must be at least 1".to_owned() });
        }
        if index >= count {
            let reason = format!("the index counts from 0, so of {count} shards it is at most {}", count - 1);
            return Err(Error::Shard { text: text(), reason });
        }
        Ok(Self { index, count })
    }

    /// Shard of `count` whose index a Kubernetes indexed job gives in `JOB_COMPLETION_INDEX`; `None` where that is not
    /// set. Nothing reads the variable unless this is called.
    pub fn from_job_index(count: usize) -> Result<Option<Self>> {
        match std::env::var("JOB_COMPLETION_INDEX") {
            Err(_) => Ok(None),
            Ok(index) => format!("{index}/{count}").parse().map(Some),
        }
    }

    /// The shard's place among its siblings, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// How many shards there are.
    pub fn count(self) -> usize {
        self.count
    }

    /// Whether the part of this number belongs to the shard.
    pub fn owns(self, part: usize) -> bool {
        part % self.count == self.index
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, count)) => Shard::new(index, count),
            None => {
                let reason = "expected I/N, two whole numbers, for example 0/4".to_owned();
                Err(Error::Shard { text: text.to_owned(), reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_say_what_is_wrong() {
        let message = |text: &str| text.parse::<Shard>().unwrap_err().to_string();
        assert_eq!(message("4/4"), "shard \"4/4\": the index counts from 0, so of 4 shards it is at most 3");
        assert_eq!(message("0/0"), "shard \"0/0\": the count must be at least 1");
        for text in ["", "1", "/", "1/", "/2", "a/2", "-1/2", "1/2/3", "0 /1"] {
            assert!(message(text).contains("expected I/N"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_part_has_one_owner(part: usize, count in 1usize..50) {
            let owners = (0..count).filter(|&i| Shard::new(i, count).unwrap().owns(part)).count();
            prop_assert_eq!(owners, 1);
        }

        #[test]
        fn display_and_parse_agree(index in 0usize..100, more in 1usize..100) {
            let shard = Shard::new(index, index + more).unwrap();
            prop_assert_eq!(shard.to_string().parse::<Shard>().unwrap(), shard);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<Shard>();
        }
    }
}
