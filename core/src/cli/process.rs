//! The process: memory allocator, compute threads, peak memory.
//!
//! The one place of this crate with `unsafe`: both calls change the state of the process, and Rust cannot see that
//! they happen before other threads exist.
#![allow(unsafe_code)]

use crate::{Error, Result};

/// Keeps large buffers in the process instead of returning each to the system. Every tensor op allocates its result,
/// and with glibc's defaults buffers from 128 KiB up are mapped, faulted in and unmapped each time, which costs 3 to
/// 10 times the op itself. Does nothing where the allocator is not glibc's.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers, locks the allocator's own state and touches no memory of ours.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Leaves the cores to one thread pool. candle's additions and products of large tensors otherwise run on threads of its
/// own, which wait by spinning while rayon's threads wait for the same cores: half of a training step on two cores.
/// Call it at the start of `main`, before any tensor op; `$CANDLE_NUM_THREADS` takes precedence.
pub fn tune_candle() {
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: called at the start of main, before this program starts any thread that could read the environment.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// The most memory that this process has had resident, in bytes, where the system says.
pub fn peak_memory() -> Option<u64> {
    crate::device::peak_memory(&candle_core::Device::Cpu)
}

/// Sizes rayon's pool, and with it that of candle, which reads the same variable. `None` follows the environment, or
/// takes the physical cores within the limits (affinity, control group) of this process.
pub(super) fn set_threads(threads: Option<usize>) -> Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let from_environment = std::env::var(VARIABLE).ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    let allowed = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads =
        threads.or(from_environment).unwrap_or_else(|| num_cpus::get_physical().clamp(1, allowed()));
    // SAFETY: called at the start of main, before this program starts any thread that could read the environment.
    unsafe { std::env::set_var(VARIABLE, threads.to_string()) };
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        // A command that runs another one has set the threads already.
        Err(_) if rayon::current_num_threads() == threads => Ok(()),
        result => result.map_err(|e| Error::Config(format!("{threads} threads: {e}"))),
    }
}
