//! What spectra, files, scores and models promise for any input.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

mod properties {
    pub(crate) mod audio;
    pub(crate) mod learns;
    pub(crate) mod separates;
    pub(crate) mod spectra;
    pub(crate) mod streams;
    pub(crate) mod tags;
}
