//! Variants, proteins and records without windows: properties, published checkpoints, and the commands on real data.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

#[path = "variants/cli.rs"]
mod cli;
#[path = "variants/long.rs"]
mod long;
#[path = "variants/protein.rs"]
mod protein;
#[path = "variants/scores.rs"]
mod scores;
#[path = "variants/vcf.rs"]
mod vcf;
