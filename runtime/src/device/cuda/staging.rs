//! Pinned memory through which bytes reach a card: a copy from other memory would make the host wait for the card.

use super::card::failed;
use crate::device::cube::CubeError;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// Copies that may be on their way at once.
const SLOTS: usize = 8;

/// Slots taken in turn; a slot is written again when its last copy has ended.
pub struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    at: *mut c_void,
    bytes: usize,
    /// Its last copy.
    copied: sys::CUevent,
}

// SAFETY: pinned memory and events belong to the context, not to a thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Empty slots.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new() -> Result<Staging, CubeError> {
        let slot = |_| {
            let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed)?;
            Ok(Slot { at: std::ptr::null_mut(), bytes: 0, copied })
        };
        Ok(Staging { slots: (0..SLOTS).map(slot).collect::<Result<_, CubeError>>()?, next: 0 })
    }

    /// Enqueues a copy of `bytes` to `to`, which holds as many.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy(&mut self, bytes: &[u8], to: sys::CUdeviceptr, stream: sys::CUstream) -> Result<(), CubeError> {
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
        // SAFETY: the event was created once; one that was never recorded has happened.
        unsafe { result::event::synchronize(slot.copied) }.map_err(failed)?;
        if slot.bytes < bytes.len() {
            slot.free();
            let wanted = bytes.len().next_power_of_two();
            // SAFETY: the memory is given back by `free`.
            slot.at = unsafe { result::malloc_host(wanted, 0) }.map_err(failed)?;
            slot.bytes = wanted;
        }
        // SAFETY: the slot holds at least as many bytes, and no copy reads it any more.
        let staged = unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.at.cast::<u8>(), bytes.len());
            std::slice::from_raw_parts(slot.at.cast::<u8>(), bytes.len())
        };
        // SAFETY: the caller's memory holds as many bytes; the slot is not written before the event.
        unsafe {
            result::memcpy_htod_async(to, staged, stream).map_err(failed)?;
            result::event::record(slot.copied, stream).map_err(failed)
        }
    }
}

impl Slot {
    fn free(&mut self) {
        if !self.at.is_null() {
            // SAFETY: it was allocated by `copy`, and its last copy has ended.
            let _ = unsafe { result::free_host(self.at) };
            (self.at, self.bytes) = (std::ptr::null_mut(), 0);
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            // SAFETY: the event was created once, and is destroyed once.
            unsafe {
                let _ = result::event::synchronize(slot.copied);
                let _ = result::event::destroy(slot.copied);
            }
            slot.free();
        }
    }
}
