//! What the selective scan allocates, counted.
//!
//! Beyond its inputs, outputs and gradients, forward and backward may need memory in proportion to B·L·D, but never to
//! B·L·D·N: the states between tokens are recomputed. What does not grow with the length (buffers of the lines in
//! flight) is bounded by constants times N.
#![allow(unsafe_code)] // a global allocator

use candle_core::{DType, Result, Tensor, Var};
use mamba_kernels::testing::pseudo_random;
use mamba_kernels::{Segments, SelectiveScan};
use rayon::ThreadPoolBuilder;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = CURRENT.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Elements that backward may need for each of B·L·D: half of one for the kept states, and one while candle adds a
/// gradient to the zeros that it starts from.
const MOST: f64 = 2.0;

/// Threads that work at once, each with buffers of its own.
const THREADS: usize = 2;

/// Peak elements beyond inputs and results, the results of backward being the output, the last state, the ones that
/// backward starts from, and the gradients of all inputs (of B and C too, which are B·L·N).
struct Extra {
    forward: f64,
    backward: f64,
}

/// A scan with batch 1; in two sequences if `packed`.
fn extra(len: usize, d: usize, n: usize, packed: bool) -> Result<Extra> {
    let random = |dims: &[usize], seed| pseudo_random(dims, seed, DType::F32);
    let token = |seed| random(&[1, len, d], seed);
    let a = random(&[d, n], 4)?.exp()?.neg()?;
    let x = [token(1)?, token(2)?, a, random(&[1, len, n], 5)?, random(&[1, len, n], 6)?, token(3)?];
    let vars = x.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let segments = match packed {
        true => Segments::packed(&[0, len / 3, len])?,
        false => Segments::whole(1, len),
    };
    let scan = |x: &[&Tensor]| {
        let scan = SelectiveScan::new(x[0], x[1], x[2], x[3], x[4]).gate(x[5]).softplus(true);
        scan.segments(&segments).run_with_state()
    };
    let before = CURRENT.load(Relaxed);
    let peak = || (PEAK.load(Relaxed) - before) as f64 / 4.0;
    let token_size = len * d;
    let state_size = segments.count() * d * n;

    PEAK.store(before, Relaxed);
    drop(scan(&x.each_ref())?);
    let forward = peak() - (token_size + state_size) as f64;

    PEAK.store(before, Relaxed);
    let tracked: Vec<&Tensor> = vars.iter().map(|v| v.as_tensor()).collect();
    let (y, last) = scan(&tracked)?;
    let grads = y.backward()?;
    let gradients: usize = vars.iter().filter_map(|v| grads.get(v)).map(Tensor::elem_count).sum();
    drop((last, grads));
    let backward = peak() - (2 * token_size + state_size + gradients) as f64;
    Ok(Extra { forward, backward })
}

#[test]
fn extra_memory_grows_with_tokens_and_channels_but_not_with_states() -> Result<()> {
    let pool = ThreadPoolBuilder::new().num_threads(THREADS).build().expect("a pool of threads");
    pool.install(|| {
        let (len, d) = (8192, 256);
        let unit = (len * d) as f64; // B·L·D
        extra(512, d, 16, false)?; // what is allocated once
        for packed in [false, true] {
            let mut at_16 = None;
            for n in [16, 128] {
                let (short, long) = (extra(len, d, n, packed)?, extra(2 * len, d, n, packed)?);
                let forward = (long.forward - short.forward) / unit;
                let backward = (long.backward - short.backward) / unit;
                println!(
                    "d_state {n}, packed {packed}: {backward:.2} elements more for each of B·L·D ({forward:.2} in forward), \
                     {:.2} and {:.2} in all",
                    short.backward / unit,
                    long.backward / unit / 2.0,
                );
                assert!(forward < 0.1, "forward needs {forward} elements for each of B·L·D");
                assert!(backward < MOST, "backward needs {backward} elements for each of B·L·D");
                // The rest: sums of dB and dC of the lines in flight, and one chunk of each thread.
                let fixed = short.backward - backward * unit;
                let chunk = 2 * n.max(16);
                let bound = n * (2 * 64 * 512 + THREADS * 2 * chunk * 16);
                assert!(fixed < bound as f64, "{fixed} elements do not grow with the length, bound {bound}");
                assert!(long.backward < 2.05 * short.backward, "twice the length needs more than twice the memory");
                let first = *at_16.get_or_insert(long.backward);
                assert!(long.backward < 2.0 * first, "d_state {n} multiplies the memory of d_state 16");
            }
        }
        Ok(())
    })
}
