//! Memory that lives only while one operation runs: from the scratch of a plan, or, outside of plans, from the device's own pool.

use super::{Buffer, CubeDevice, CubeError};
use crate::plan::arena::align;
use cubecl::prelude::Runtime;
use cubecl::server::Handle;
use kiln_compiler::ir::DType;

/// Where launches put intermediate values.
pub enum Scratch {
    /// Fresh buffers, for single launches in tests and tools.
    Pool,
    /// One after the other in a piece of the arena.
    Arena {
        /// The piece.
        handle: Handle,
        /// Bytes taken.
        used: usize,
    },
}

impl Scratch {
    /// All of a piece of the arena.
    pub fn within(handle: Handle) -> Scratch {
        Scratch::Arena { handle, used: 0 }
    }

    /// A buffer of `len` elements, not initialised.
    ///
    /// # Errors
    /// [`CubeError`] if the device cannot hold it.
    pub fn take<R: Runtime>(&mut self, device: &CubeDevice<R>, dtype: DType, len: usize) -> Result<Buffer, CubeError> {
        match self {
            Scratch::Pool => device.empty(dtype, len),
            Scratch::Arena { handle, used } => {
                let bytes = len * device.storage(dtype).size();
                let slice = slice(handle, *used, bytes);
                *used += align(bytes);
                Ok(Buffer { handle: slice, dtype, len })
            }
        }
    }
}

/// Bytes `offset..offset + bytes` of a piece of memory. Bindings hold whole words.
///
/// # Panics
/// If they are not inside: the plan says how large the piece is.
pub fn slice(handle: &Handle, offset: usize, bytes: usize) -> Handle {
    let (all, end) = (handle.size_in_used() as usize, offset + bytes.next_multiple_of(4).max(4));
    assert!(end <= all, "bytes {offset}..{end} of a piece of {all}");
    handle.clone().offset_start(offset as u64).offset_end((all - end) as u64)
}
