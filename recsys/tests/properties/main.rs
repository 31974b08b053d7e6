//! What the crate promises, on generated logs: readers, filters, splits, batches, models, ranking, scoring.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod batches;
mod logs;
mod networks;
mod scoring;
mod support;
