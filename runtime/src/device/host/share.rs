//! A pointer that tasks of one parallel loop share, each writing its own part.
#![allow(unsafe_code)]

/// Base of a scratch area or an output; tasks derive disjoint slices from it.
#[derive(Clone, Copy)]
pub(super) struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: the pointer is only dereferenced through `slice`, whose contract demands disjoint ranges among concurrent users.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(all: &mut [T]) -> Self {
        Shared { ptr: all.as_mut_ptr(), len: all.len() }
    }

    /// Elements `at..at + n`.
    ///
    /// # Safety
    /// While the slice lives, nothing else reads or writes that range, and the slice that `self` came from is still borrowed.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, at: usize, n: usize) -> &'a mut [T] {
        assert!(at + n <= self.len, "scratch of {} elements has no range {at}..{}", self.len, at + n);
        // SAFETY: the range was just checked; exclusivity is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), n) }
    }

    /// Elements `at..at + n`, for reading.
    ///
    /// # Safety
    /// While the slice lives, nothing writes that range.
    pub unsafe fn read<'a>(&self, at: usize, n: usize) -> &'a [T] {
        assert!(at + n <= self.len, "scratch of {} elements has no range {at}..{}", self.len, at + n);
        // SAFETY: the range was just checked; that nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(at), n) }
    }
}
