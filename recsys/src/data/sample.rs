//! A generated log with known structure, for a first run without any data.
//!
//! Every user follows two of the genres, and each genre is a ring of items. An event picks one of the user's genres by a
//! coin, and is the item after the last one that the user took from that genre; now and then it is any item at all. What
//! comes next therefore depends on the last item of *each* genre, while the last item alone says only half of it: a model
//! that remembers names the next item within its first two guesses as often as there is no noise, one that sees
//! only the item before no more than about half as often.

use super::Log;
use crate::Ids;
use mamba_core::Rng;
use serde::{Deserialize, Serialize};

/// Sizes of the generated log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Users.
    pub users: usize,
    /// Events of each user.
    pub events: usize,
    /// Genres.
    pub genres: usize,
    /// Items of each genre.
    pub items_per_genre: usize,
    /// Share of events with any item at all.
    pub noise: f64,
    /// Seed.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { users: 1000, events: 40, genres: 12, items_per_genre: 15, noise: 0.1, seed: 0 }
    }
}

impl SampleConfig {
    /// The log, ordered by time; users `u0000` …, items `g00-i00` ….
    pub fn log(&self) -> Log {
        let (mut user, mut item, mut time) = (Vec::new(), Vec::new(), Vec::new());
        let name = |genre: usize, place: usize| format!("g{genre:02}-i{place:02}");
        for u in 0..self.users {
            let mut rng = Rng::stream(self.seed, "sample", u as u64);
            let first = rng.below(self.genres);
            let second = (first + 1 + rng.below(self.genres.max(2) - 1)) % self.genres;
            let mut threads = [first, second].map(|genre| (genre, rng.below(self.items_per_genre)));
            for event in 0..self.events {
                user.push(format!("u{u:04}"));
                time.push((event * self.users + u) as f64);
                if rng.uniform() < self.noise {
                    item.push(name(rng.below(self.genres), rng.below(self.items_per_genre)));
                    continue;
                }
                let (genre, place) = &mut threads[rng.below(2)];
                item.push(name(*genre, *place));
                *place = (*place + 1) % self.items_per_genre;
            }
        }
        Log { user: Ids::Text(user), item: Ids::Text(item), time: Some(time), idle: Ids::default() }
    }
}
