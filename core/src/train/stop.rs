//! Asking a run to stop: Ctrl-C, SIGTERM, or a call.

use crate::{Error, Result};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that a run looks at between two steps. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that only [`request`](Self::request) raises.
    pub fn new() -> Self {
        Self::default()
    }

    /// The flag that Ctrl-C and SIGTERM raise, one for the process. The second signal ends the process at once with
    /// exit code 130; what was saved before stays whole.
    pub fn on_signals() -> Result<Self> {
        static FLAG: OnceLock<Stop> = OnceLock::new();
        if let Some(stop) = FLAG.get() {
            return Ok(stop.clone());
        }
        let stop = FLAG.get_or_init(Self::new).clone();
        let raised = stop.clone();
        ctrlc::set_handler(move || {
            if raised.0.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("stopping after this step; once more to stop at once");
        })
        .map_err(Error::other)?;
        Ok(stop)
    }

    /// Asks the run to save and end after its current step.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the run was asked to end.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
