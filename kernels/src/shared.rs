//! One output written by many tasks at once.
#![allow(unsafe_code)] // tasks of one op write disjoint, strided parts of a slice that rayon cannot split

use std::marker::PhantomData;

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
