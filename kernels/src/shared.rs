//! Outputs: written by many tasks at once, and not cleared before.
#![allow(unsafe_code)] // tasks of one op write disjoint, strided parts of a slice that rayon cannot split

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A mutable slice that tasks share because each writes elements that no other touches.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `range` is the only access, and its contract rules out overlapping use.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// While the returned slice lives, no other task may hold a range that overlaps it.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "range outside the shared slice");
        // SAFETY: in bounds by the assertion; the caller keeps ranges apart.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Room for an output all of whose elements will be written: clearing it first, on one core, takes as long as a cheap op.
pub(crate) fn unwritten<T: Copy>(len: usize) -> Vec<MaybeUninit<T>> {
    let mut out = Vec::with_capacity(len);
    // SAFETY: elements that may be uninitialised need no initialisation.
    unsafe { out.set_len(len) };
    out
}

/// [`unwritten`] if `all` elements will be written, else zeros, of which some may stay.
pub(crate) fn unwritten_if<T: Copy + Default>(all: bool, len: usize) -> Vec<MaybeUninit<T>> {
    match all {
        true => unwritten(len),
        false => vec![MaybeUninit::new(T::default()); len],
    }
}

/// What [`unwritten`] made room for.
///
/// # Safety
/// Every element must have been written.
pub(crate) unsafe fn written<T: Copy>(out: Vec<MaybeUninit<T>>) -> Vec<T> {
    let mut out = std::mem::ManuallyDrop::new(out);
    // SAFETY: the same allocation, of elements of the same layout, all of them initialised.
    unsafe { Vec::from_raw_parts(out.as_mut_ptr().cast(), out.len(), out.capacity()) }
}
