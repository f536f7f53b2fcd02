//! Pieces of a device's memory, whoever allocated them.

#[cfg(feature = "cuda")]
use crate::device::cuda;
use cubecl::server::Handle;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Bytes of an allocation. Clones share it; the last one gives it back.
#[derive(Clone, Debug)]
pub struct Memory {
    allocation: Allocation,
    offset: usize,
    bytes: usize,
}

/// What a server has allocated.
#[derive(Clone, Debug)]
pub(in crate::device) enum Allocation {
    /// A handle of CubeCL's server.
    Cubecl(Handle),
    /// Memory of a card.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Allocation>),
}

impl Memory {
    /// All of an allocation.
    pub(in crate::device) fn whole(allocation: Allocation, bytes: usize) -> Memory {
        Memory { allocation, offset: 0, bytes }
    }

    /// Where it lies.
    pub(in crate::device) fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    /// First byte within its allocation.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes `offset..offset + bytes` of it. Bindings hold whole words.
    ///
    /// # Panics
    /// If they are not inside: the plan says how large a piece is.
    pub fn slice(&self, offset: usize, bytes: usize) -> Memory {
        let bytes = bytes.next_multiple_of(size_of::<u32>()).max(size_of::<u32>());
        let end = offset + bytes;
        assert!(end <= self.bytes, "bytes {offset}..{end} of a piece of {}", self.bytes);
        Memory { allocation: self.allocation.clone(), offset: self.offset + offset, bytes }
    }
}
