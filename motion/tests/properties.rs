//! Properties of the field: what must hold whatever the motion.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

#[path = "properties/formats.rs"]
mod formats;
#[path = "properties/long.rs"]
mod long;
#[path = "properties/motion.rs"]
mod motion;
#[path = "properties/networks.rs"]
mod networks;
#[path = "properties/text.rs"]
mod text;
mod tiny_clip;
