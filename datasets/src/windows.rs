//! Windows of one length inside intervals of a genome.

use crate::{Error, Interval, Result};

/// Every window of one length inside a list of intervals, numbered, so that a random number picks one uniformly.
#[derive(Debug, Clone)]
pub struct Windows {
    // The intervals that hold a window, each with the number of windows up to and including it.
    intervals: Vec<(u64, Interval)>,
    window: u64,
}

impl Windows {
    /// The windows of `window` bases that lie wholly inside one of the intervals; none at all is an error.
    pub fn new(intervals: &[Interval], window: u64) -> Result<Self> {
        if window == 0 {
            return Err(Error::Zero { name: "the window length" });
        }
        let longest = intervals.iter().map(Interval::len).max().unwrap_or(0);
        let mut count = 0;
        let fitting = intervals.iter().filter(|i| i.len() >= window);
        let intervals: Vec<_> = fitting
            .map(|&i| {
                count += i.len() - window + 1;
                (count, i)
            })
            .collect();
        if intervals.is_empty() {
            return Err(Error::NoWindow { window, longest });
        }
        Ok(Self { intervals, window })
    }

    /// How many windows there are: at least one.
    pub fn count(&self) -> u64 {
        self.intervals.last().map_or(0, |&(count, _)| count)
    }

    /// The window of this number.
    ///
    /// # Panics
    ///
    /// If `number` is not less than [`count`](Windows::count).
    pub fn get(&self, number: u64) -> Interval {
        let at = self.intervals.partition_point(|&(count, _)| count <= number);
        let (count, interval) = self.intervals[at];
        let end = interval.end - (count - 1 - number);
        Interval { record: interval.record, start: end - self.window, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_that_fits_nowhere_is_an_error() {
        let short = [Interval { record: 0, start: 5, end: 9 }];
        assert!(Windows::new(&short, 4).is_ok());
        let message = Windows::new(&short, 5).unwrap_err().to_string();
        assert_eq!(message, "no stretch has 5 bases for a window; the longest has 4");
        assert!(Windows::new(&short, 0).is_err());
    }

    proptest! {
        #[test]
        fn windows_are_all_different_and_inside_an_interval(
            lengths in prop::collection::vec(1u64..60, 1..5), window in 1u64..30,
        ) {
            let mut start = 0;
            let intervals: Vec<_> = lengths.iter().enumerate().map(|(i, len)| {
                start += 7;
                Interval { record: i / 2, start, end: start + len }
            }).collect();
            let expected: Vec<_> = intervals.iter().flat_map(|i| {
                (i.start..i.end).map(|start| Interval { record: i.record, start, end: start + window })
                    .filter(|w| w.end <= i.end)
            }).collect();
            match Windows::new(&intervals, window) {
                Err(_) => prop_assert!(expected.is_empty()),
                Ok(windows) => {
                    let found: Vec<_> = (0..windows.count()).map(|n| windows.get(n)).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
