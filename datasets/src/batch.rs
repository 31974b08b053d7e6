//! Batches of items of like length, within a budget of tokens.
//!
//! Every item carries its place in the input, so that results can go back in order ([`InOrder`]). [`batches`] sorts a
//! list whose lengths are all known; [`stream`] does the same over an iterator within a bounded look-ahead, so its
//! memory does not grow with the input.
//!
//! ```
//! use mamba_datasets::{Layout, Limits, stream};
//!
//! let limits = Limits { max_tokens: 12, max_items: 8, layout: Layout::Padded };
//! let reads = ["ACGTAC", "AC", "ACGTA", "ACG"].map(Ok::<_, mamba_datasets::Error>);
//! for batch in stream(reads.into_iter(), limits, 4, |read| read.len())? {
//!     let batch = batch?;
//!     assert!(batch.items.len() * batch.longest <= 12);
//! }
//! # Ok::<(), mamba_datasets::Error>(())
//! ```

use std::collections::VecDeque;

use crate::{Error, Result};

/// What a batch's tokens are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every item is padded to the longest: items × longest length.
    Padded,
    /// Items lie end to end: the sum of the lengths.
    Packed,
}

/// How large a batch may be. An item longer than `max_tokens` makes a batch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens in a batch.
    pub max_tokens: usize,
    /// Most items in a batch.
    pub max_items: usize,
    /// How tokens are counted.
    pub layout: Layout,
}

impl Limits {
    fn check(self) -> Result<()> {
        match self {
            Limits { max_tokens: 0, .. } => Err(Error::Zero { name: "max_tokens" }),
            Limits { max_items: 0, .. } => Err(Error::Zero { name: "max_items" }),
            _ => Ok(()),
        }
    }

    /// Whether a batch of these measures is within the limits.
    fn allow(self, items: usize, longest: usize, sum: usize) -> bool {
        let tokens = match self.layout {
            Layout::Padded => items.saturating_mul(longest),
            Layout::Packed => sum,
        };
        items <= 1 || (items <= self.max_items && tokens <= self.max_tokens)
    }
}

/// Items of like length, the shortest first; of equal lengths, in input order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// Each item with its place in the input, from 0.
    pub items: Vec<(usize, T)>,
    /// Length of the longest item.
    pub longest: usize,
    /// Sum of the lengths.
    pub tokens: usize,
}

/// Batches over a list of lengths: each item of a batch is its place in the list.
pub fn batches(lengths: &[usize], limits: Limits) -> Result<Vec<Batch<()>>> {
    limits.check()?;
    Ok(cut(lengths.iter().enumerate().map(|(place, &len)| (len, place, ())).collect(), limits))
}

/// Sorts items `(length, place, item)` by length and cuts them into batches.
fn cut<T>(mut items: Vec<(usize, usize, T)>, limits: Limits) -> Vec<Batch<T>> {
    items.sort_by_key(|&(len, place, _)| (len, place));
    let mut batches: Vec<Batch<T>> = Vec::new();
    for (len, place, item) in items {
        match batches.last_mut() {
            Some(b) if limits.allow(b.items.len() + 1, len, b.tokens.saturating_add(len)) => {
                b.items.push((place, item));
                b.longest = len;
                b.tokens = b.tokens.saturating_add(len);
            }
            _ => batches.push(Batch { items: vec![(place, item)], longest: len, tokens: len }),
        }
    }
    batches
}

/// Batches over an iterator, made by [`stream`].
#[derive(Debug)]
pub struct Batches<I, F, T, E> {
    items: I,
    length: F,
    limits: Limits,
    look_ahead: usize,
    place: usize,
    ready: VecDeque<Batch<T>>,
    // An error that waits until the batches before it are out; then nothing follows.
    failed: Option<E>,
    done: bool,
}

/// Batches of the items of an iterator of results.
///
/// Items are read until they would fill about `look_ahead` batches, sorted, and cut into batches: what is held in
/// memory is bounded by that, whatever the input's length, and all batches of one reading come before the next. An
/// error of the iterator comes after the batches of the items before it, and ends the stream.
pub fn stream<I, F, T, E>(
    items: I,
    limits: Limits,
    look_ahead: usize,
    length: F,
) -> Result<Batches<I, F, T, E>>
where
    I: Iterator<Item = std::result::Result<T, E>>,
    F: Fn(&T) -> usize,
{
    limits.check()?;
    if look_ahead == 0 {
        return Err(Error::Zero { name: "look_ahead" });
    }
    let ready = VecDeque::new();
    Ok(Batches { items, length, limits, look_ahead, place: 0, ready, failed: None, done: false })
}

impl<I, F, T, E> Batches<I, F, T, E>
where
    I: Iterator<Item = std::result::Result<T, E>>,
    F: Fn(&T) -> usize,
{
    fn read_ahead(&mut self) {
        let most_items = self.limits.max_items.saturating_mul(self.look_ahead);
        let most_tokens = self.limits.max_tokens.saturating_mul(self.look_ahead);
        let (mut window, mut tokens) = (Vec::new(), 0usize);
        while window.len() < most_items && tokens < most_tokens {
            match self.items.next() {
                Some(Ok(item)) => {
                    let len = (self.length)(&item);
                    tokens = tokens.saturating_add(len);
                    window.push((len, self.place, item));
                    self.place += 1;
                }
                Some(Err(error)) => {
                    self.failed = Some(error);
                    self.done = true;
                    break;
                }
                None => {
                    self.done = true;
                    break;
                }
            }
        }
        self.ready = cut(window, self.limits).into();
    }
}

impl<I, F, T, E> Iterator for Batches<I, F, T, E>
where
    I: Iterator<Item = std::result::Result<T, E>>,
    F: Fn(&T) -> usize,
{
    type Item = std::result::Result<Batch<T>, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() && !self.done {
            self.read_ahead();
        }
        match self.ready.pop_front() {
            Some(batch) => Some(Ok(batch)),
            None => self.failed.take().map(Err),
        }
    }
}

/// Puts results back into input order: `push` them as they come, `pop` them in order.
///
/// It holds what has come too early; behind [`stream`] that is at most one look-ahead.
#[derive(Debug, Default)]
pub struct InOrder<T> {
    next: usize,
    waiting: VecDeque<Option<T>>,
}

impl<T> InOrder<T> {
    /// Nothing waiting; the first to come out is place 0.
    pub fn new() -> Self {
        Self { next: 0, waiting: VecDeque::new() }
    }

    /// Takes the result for a place in the input.
    ///
    /// # Panics
    ///
    /// If the place was pushed before.
    pub fn push(&mut self, place: usize, result: T) {
        assert!(place >= self.next, "place {place} was pushed before");
        let at = place - self.next;
        if at >= self.waiting.len() {
            self.waiting.resize_with(at + 1, || None);
        }
        let slot = &mut self.waiting[at];
        assert!(slot.is_none(), "place {place} was pushed before");
        *slot = Some(result);
    }

    /// The next result in input order, if it has come.
    pub fn pop(&mut self) -> Option<T> {
        let result = self.waiting.front_mut()?.take()?;
        self.waiting.pop_front();
        self.next += 1;
        Some(result)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    fn places<T>(batches: &[Batch<T>]) -> Vec<Vec<usize>> {
        batches.iter().map(|b| b.items.iter().map(|i| i.0).collect()).collect()
    }

    #[test]
    fn padded_and_packed_budgets_differ() {
        let mut limits = Limits { max_tokens: 10, max_items: 9, layout: Layout::Padded };
        assert_eq!(
            places(&batches(&[5, 1, 4, 1, 20], limits).unwrap()),
            vec![vec![1, 3], vec![2, 0], vec![4]]
        );
        limits.layout = Layout::Packed;
        assert_eq!(
            places(&batches(&[5, 1, 4, 1, 20], limits).unwrap()),
            vec![vec![1, 3, 2], vec![0], vec![4]]
        );
    }

    #[test]
    fn limits_of_zero_are_refused() {
        for (max_tokens, max_items) in [(0, 1), (1, 0)] {
            let limits = Limits { max_tokens, max_items, layout: Layout::Packed };
            assert!(batches(&[1], limits).is_err());
        }
        let limits = Limits { max_tokens: 1, max_items: 1, layout: Layout::Packed };
        assert!(stream(std::iter::empty::<Result<usize>>(), limits, 0, |n| *n).is_err());
    }

    #[test]
    fn an_error_comes_after_the_items_before_it_and_ends_the_stream() {
        let limits = Limits { max_tokens: 100, max_items: 2, layout: Layout::Padded };
        let items = [Ok(3), Ok(1), Ok(2), Err("record 4"), Ok(5)].into_iter();
        let out: Vec<_> = stream(items, limits, 10, |n| *n).unwrap().collect();
        assert_eq!(out.len(), 3);
        assert_eq!(out[2], Err("record 4"));
        assert_eq!(out[0].as_ref().unwrap().items, [(1, 1), (2, 2)]);
        assert_eq!(out[1].as_ref().unwrap().items, [(0, 3)]);
    }

    #[test]
    #[should_panic(expected = "place 1 was pushed before")]
    fn a_place_cannot_come_twice() {
        let mut order = InOrder::new();
        order.push(1, 'a');
        order.push(1, 'b');
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (1usize..300, 1usize..9, any::<bool>()).prop_map(|(max_tokens, max_items, padded)| {
            let layout = if padded { Layout::Padded } else { Layout::Packed };
            Limits { max_tokens, max_items, layout }
        })
    }

    fn check<T>(batch: &Batch<T>, limits: Limits, length: impl Fn(&(usize, T)) -> usize) {
        let lengths: Vec<_> = batch.items.iter().map(length).collect();
        assert!(lengths.is_sorted());
        assert_eq!(batch.longest, *lengths.last().unwrap());
        assert_eq!(batch.tokens, lengths.iter().sum::<usize>());
        let cost = match limits.layout {
            Layout::Padded => batch.longest * lengths.len(),
            Layout::Packed => batch.tokens,
        };
        assert!(lengths.len() == 1 || cost <= limits.max_tokens);
        assert!(lengths.len() <= limits.max_items);
    }

    proptest! {
        #[test]
        fn batches_keep_the_limits_and_hold_every_item_once(
            lengths in prop::collection::vec(0usize..100, 0..80), limits in limits(),
        ) {
            let batches = batches(&lengths, limits).unwrap();
            for batch in &batches {
                check(batch, limits, |item| lengths[item.0]);
            }
            let mut all = places(&batches).concat();
            all.sort();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn a_stream_keeps_the_limits_holds_little_and_can_be_put_in_order(
            lengths in prop::collection::vec(0usize..100, 0..200), limits in limits(), look_ahead in 1usize..6,
        ) {
            let read = Cell::new(0);
            let items = lengths.iter().map(|&len| { read.set(read.get() + 1); Ok::<_, ()>(len) });
            let (mut order, mut out) = (InOrder::new(), Vec::new());
            let mut given = 0;
            for batch in stream(items, limits, look_ahead, |len| *len).unwrap() {
                let batch = batch.unwrap();
                check(&batch, limits, |item| item.1);
                prop_assert!(read.get() - given <= limits.max_items * look_ahead);
                let held: usize = lengths[..read.get()].iter().sum::<usize>() - out.iter().sum::<usize>();
                prop_assert!(held <= limits.max_tokens * look_ahead + 99);
                given += batch.items.len();
                for (place, len) in batch.items {
                    order.push(place, len);
                }
                while let Some(len) = order.pop() {
                    out.push(len);
                }
            }
            prop_assert!(order.is_empty());
            prop_assert_eq!(out, lengths);
        }
    }
}
