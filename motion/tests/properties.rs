//! Properties of the field: what must hold whatever the motion.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

#[path = "properties/formats.rs"]
mod formats;
#[path = "properties/motion.rs"]
mod motion;
#[path = "properties/networks.rs"]
mod networks;
#[path = "properties/text.rs"]
mod text;
