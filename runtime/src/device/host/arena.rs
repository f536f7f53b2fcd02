//! The host's arena: one allocation, made once after planning, in huge pages where the system has them: a step reads matrices across their
//! rows, each in a page of its own. Offsets come from the plan; this file only adds the base.
#![allow(unsafe_code)]

use super::buffer::Buf;
use super::pool::Pool;
use crate::device::{OutOfMemory, machine_memory};
use crate::plan::arena::ALIGNMENT;
use kiln_compiler::ir::DType;
use std::alloc::{Layout, alloc, dealloc};

/// A huge page of x86 and of most ARM systems.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that a worker zeroes at a time.
const ZEROED: usize = 4 * HUGE_PAGE;

/// Zeroed, aligned bytes.
pub struct Arena {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the arena is plain memory; who may touch which bytes when is the schedule's promise, checked by the planner.
unsafe impl Send for Arena {}
// SAFETY: as above; shared access hands out raw pointers only.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates, and lets the workers write zeros: the system gives a page to a process when it first touches it, which takes longer than
    /// a step does. `owners` lists who needs the bytes, largest first, for the error.
    ///
    /// # Errors
    /// When the process cannot have so much, or the system refuses.
    pub fn new(bytes: usize, pool: &Pool, owners: impl FnOnce() -> Vec<(String, usize)>) -> Result<Arena, OutOfMemory> {
        let bytes = bytes.max(ALIGNMENT);
        let refused = |available, owners| OutOfMemory::new(bytes, available, owners);
        let available = machine_memory().filter(|&limit| bytes > limit);
        let alignment = if bytes < HUGE_PAGE { ALIGNMENT } else { HUGE_PAGE };
        let layout = match Layout::from_size_align(bytes, alignment) {
            Ok(layout) if available.is_none() => layout,
            _ => return Err(refused(available, owners())),
        };
        // SAFETY: the size is not zero.
        let ptr = unsafe { alloc(layout) };
        if ptr.is_null() {
            return Err(refused(None, owners()));
        }
        // SAFETY: the bytes were just allocated, and nobody else has them. What the system does with the advice changes no value.
        unsafe {
            #[cfg(target_os = "linux")]
            if bytes >= HUGE_PAGE {
                libc::madvise(ptr.cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
        let arena = Arena { ptr, layout };
        pool.run(bytes.div_ceil(ZEROED), |part, _| {
            let (first, len) = (part * ZEROED, ZEROED.min(bytes - part * ZEROED));
            // SAFETY: in range, as `at` checks, and each task has its own bytes.
            unsafe { arena.at(first, len).write_bytes(0, len) };
        });
        Ok(arena)
    }

    /// The bytes `offset..offset + len`.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.layout.size(), "bytes {offset}+{len} of an arena of {}", self.layout.size());
        // SAFETY: inside the allocation.
        unsafe { self.ptr.add(offset) }
    }

    /// The bytes `offset..offset + len`, to be read while no step runs.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let ptr = self.at(offset, len);
        // SAFETY: in range and always initialised; callers hold the engine, so no step runs meanwhile.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    /// Sets the bytes `offset..offset + len` while no step runs.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let ptr = self.at(offset, len);
        // SAFETY: in range; callers hold the engine, so no step runs and no slice of the arena is alive.
        unsafe { ptr.write_bytes(byte, len) };
    }

    /// f32 values at `offset`.
    pub fn f32s(&self, offset: usize, len: usize) -> &[f32] {
        let ptr = self.at(offset, len * size_of::<f32>());
        // SAFETY: in range, 256-byte aligned plus a multiple of 4, always initialised; no step runs while the caller reads,
        // because steps need `&mut` of the engine that owns the arena.
        unsafe { std::slice::from_raw_parts(ptr.cast(), len) }
    }

    /// f32 values at `offset`, to be written.
    pub fn f32s_mut(&mut self, offset: usize, len: usize) -> &mut [f32] {
        let ptr = self.at(offset, len * size_of::<f32>());
        // SAFETY: as for `f32s`, and `&mut self` excludes other users.
        unsafe { std::slice::from_raw_parts_mut(ptr.cast(), len) }
    }

    /// i32 values at `offset`, to be written.
    pub fn i32s_mut(&mut self, offset: usize, len: usize) -> &mut [i32] {
        let ptr = self.at(offset, len * size_of::<i32>());
        // SAFETY: as for `f32s_mut`.
        unsafe { std::slice::from_raw_parts_mut(ptr.cast(), len) }
    }

    /// A typed view of the bytes `offset..offset + len`.
    pub fn buf(&self, offset: usize, len: usize, dtype: DType) -> Buf {
        // SAFETY: the range is checked, and the arena lives as long as the device; the planner keeps buffers that are alive together
        // apart, and offsets are multiples of 256.
        unsafe { Buf::new(self.at(offset, len), len, dtype) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr, self.layout) };
    }
}
