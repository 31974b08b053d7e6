//! Reading ahead on a background thread.
//!
//! ```
//! let squares = mamba_datasets::prefetch((0..4).map(|n| n * n), 2)?;
//! assert_eq!(squares.collect::<Vec<_>>(), [0, 1, 4, 9]);
//! # Ok::<(), mamba_datasets::Error>(())
//! ```

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// The items of an iterator that runs on its own thread; made by [`prefetch`].
#[derive(Debug)]
pub struct Prefetch<T> {
    // Both are `None` after the end, so that the iterator is fused.
    running: Option<(Receiver<T>, JoinHandle<()>)>,
}

/// Runs `iter` on a background thread, which keeps at most `depth` finished items waiting, and one in its hand.
///
/// Order is kept. Errors travel as items (`Iterator<Item = Result<…>>`); a panic of the iterator is raised again in
/// the consumer, after the items before it. When the consumer is dropped, the thread ends at its next item; it is
/// not waited for, because the iterator may be blocked on a pipe.
pub fn prefetch<I>(iter: I, depth: usize) -> Result<Prefetch<I::Item>>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    let (sender, receiver) = sync_channel(depth);
    let work = move || {
        for item in iter {
            if sender.send(item).is_err() {
                break; // the consumer is gone
            }
        }
    };
    let thread = std::thread::Builder::new().name("prefetch".to_owned()).spawn(work);
    let thread = thread.map_err(|source| Error::Thread { source })?;
    Ok(Prefetch { running: Some((receiver, thread)) })
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let (receiver, _) = self.running.as_ref()?;
        if let Ok(item) = receiver.recv() {
            return Some(item);
        }
        let (_, thread) = self.running.take()?;
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl<T> std::iter::FusedIterator for Prefetch<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// Counts the items made and, on drop, tells that the thread has let go of it.
    struct Counter {
        made: Arc<AtomicUsize>,
        _alive: Arc<()>,
    }

    impl Iterator for Counter {
        type Item = usize;
        fn next(&mut self) -> Option<usize> {
            Some(self.made.fetch_add(1, Ordering::SeqCst))
        }
    }

    fn wait_until(condition: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !condition() {
            if start.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    #[test]
    fn order_is_kept_at_any_depth() {
        for depth in [0, 1, 7, 100] {
            let items: Vec<_> = prefetch(0..50, depth).unwrap().collect();
            assert_eq!(items, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn at_most_depth_items_wait_and_one_is_in_hand() {
        let (made, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let mut items = prefetch(Counter { made: made.clone(), _alive: alive }, 3).unwrap();
        assert!(wait_until(|| made.load(Ordering::SeqCst) == 4));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(Ordering::SeqCst), 4);
        assert_eq!(items.next(), Some(0));
        assert!(wait_until(|| made.load(Ordering::SeqCst) == 5));
    }

    #[test]
    fn dropping_the_consumer_ends_the_thread() {
        let (made, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let mut items = prefetch(Counter { made, _alive: alive.clone() }, 2).unwrap();
        assert_eq!(items.next(), Some(0));
        drop(items);
        assert!(wait_until(|| Arc::strong_count(&alive) == 1));
    }

    #[test]
    fn a_panic_reaches_the_consumer_after_the_items_before_it() {
        let source = (0..5).map(|n| if n == 3 { panic!("item {n} is bad") } else { n });
        let mut items = prefetch(source, 8).unwrap();
        assert_eq!(items.by_ref().take(3).collect::<Vec<_>>(), [0, 1, 2]);
        let panic = catch_unwind(AssertUnwindSafe(|| items.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "item 3 is bad");
        assert_eq!(items.next(), None);
    }

    #[test]
    fn errors_travel_as_items() {
        let source = [Ok(1), Err("line 2"), Ok(3)].into_iter();
        let items: Vec<_> = prefetch(source, 1).unwrap().collect();
        assert_eq!(items, [Ok(1), Err("line 2"), Ok(3)]);
    }
}
