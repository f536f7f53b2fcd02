//! Memory that lives only while one operation runs: from the scratch of a plan, or, outside of plans, from the device's own pool.

use super::{Buffer, CubeDevice, CubeError, Memory};
use crate::plan::arena::align;
use kiln_compiler::ir::DType;

/// Where launches put intermediate values.
pub enum Scratch {
    /// Fresh buffers, for single launches in tests and tools.
    Pool,
    /// One after the other in a piece of the arena.
    Arena {
        /// The piece.
        memory: Memory,
        /// Bytes taken.
        used: usize,
    },
}

impl Scratch {
    /// All of a piece of the arena.
    pub fn within(memory: Memory) -> Scratch {
        Scratch::Arena { memory, used: 0 }
    }

    /// A buffer of `len` elements, not initialised.
    ///
    /// # Errors
    /// [`CubeError`] if the device cannot hold it.
    pub fn take(&mut self, device: &CubeDevice, dtype: DType, len: usize) -> Result<Buffer, CubeError> {
        match self {
            Scratch::Pool => device.empty(dtype, len),
            Scratch::Arena { memory, used } => {
                let bytes = len * device.storage(dtype).size();
                let memory = memory.slice(*used, bytes);
                *used += align(bytes);
                Ok(Buffer { memory, dtype, len })
            }
        }
    }
}
