//! What the crate promises, on generated logs: readers, filters, splits, batches, models, ranking, scoring, knowledge
//! tracing.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod batches;
mod knowledge;
mod logs;
mod networks;
mod scoring;
mod support;
