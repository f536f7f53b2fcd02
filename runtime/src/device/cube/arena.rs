//! The arena of a CubeCL device: a list of chunks, each one allocation, made once after planning. Offsets come from the plan.

use super::memory::Memory as Piece;
use super::{Buffer, CubeDevice, CubeError};
use crate::device::{DeviceError, OutOfMemory};
use crate::exec::{Placed, Slot};
use crate::plan::{Memory, Segment};

/// Chunks of one session.
pub struct Arena {
    chunks: Vec<Piece>,
    chunk: usize,
}

impl Arena {
    /// Allocates every chunk and proves it: a word written at the end of each is read back, since the server only logs that it has no memory.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for a tensor beyond a chunk, [`DeviceError::Memory`] with the largest owners if the device has too little.
    pub fn new(device: &CubeDevice, placed: &Placed, memory: Memory) -> Result<Arena, DeviceError> {
        check_sizes(placed, memory)?;
        let total = placed.layout.total.max(memory.chunk.min(super::ALIGNMENT));
        let refused = |available| OutOfMemory::new(total, available, placed.owners());
        if let Some(available) = device.capacity.filter(|&capacity| total > capacity) {
            return Err(refused(Some(available)).into());
        }
        let bytes = |i: usize| memory.chunk.min(total - i * memory.chunk);
        let chunks = (0..total.div_ceil(memory.chunk)).map(|i| device.server.allocate(bytes(i)));
        let Ok(chunks) = chunks.collect() else { return Err(refused(None).into()) };
        let arena = Arena { chunks, chunk: memory.chunk };
        for i in 0..arena.chunks.len() {
            let last = i * memory.chunk + bytes(i) - super::ALIGNMENT;
            match device.holds(&arena.at(last, size_of::<u32>())) {
                Ok(true) => {}
                Ok(false) | Err(CubeError::Failed(_) | CubeError::Poisoned(_)) => return Err(refused(None).into()),
                Err(other) => return Err(DeviceError::launch(other)),
            }
        }
        Ok(arena)
    }

    /// The bytes `offset..offset + bytes`, which the layout has put into one chunk.
    pub fn at(&self, offset: usize, bytes: usize) -> Piece {
        self.chunks[offset / self.chunk].slice(offset % self.chunk, bytes)
    }

    /// A tensor.
    pub fn buffer(&self, device: &CubeDevice, slot: Slot) -> Buffer {
        let Slot { offset, elements, dtype } = slot;
        // An empty tensor at the very end has no byte of its own.
        let offset = if elements == 0 { 0 } else { offset };
        let memory = self.at(offset, elements * device.storage(dtype).size());
        Buffer { memory, dtype, len: elements }
    }
}

impl CubeDevice {
    /// Whether memory holds what is written to it.
    fn holds(&self, word: &Piece) -> Result<bool, CubeError> {
        const MARK: u32 = 0x6b69_6c6e;
        self.copy_words(&self.send(&MARK.to_le_bytes())?, word, 1)?;
        Ok(self.receive(word, size_of::<u32>())? == MARK.to_le_bytes())
    }
}

fn check_sizes(placed: &Placed, memory: Memory) -> Result<(), DeviceError> {
    let allowed = memory.chunk;
    let refused = |name: String, bytes: usize| Err(DeviceError::TooLarge { name, bytes, allowed });
    for plan in placed.train.iter().chain([&placed.evaluate]) {
        if let Some(b) = plan.buffers.iter().find(|b| b.bytes() > allowed) {
            let name = match b.segment {
                Segment::Param(_) | Segment::Shadow(_) => format!("parameter {}", b.name),
                Segment::Grad(_) | Segment::Host | Segment::Temporary => b.name.clone(),
            };
            return refused(name, b.bytes());
        }
    }
    match placed.layout.workspace_bytes > allowed {
        true => refused("workspace of kernels".to_owned(), placed.layout.workspace_bytes),
        false => Ok(()),
    }
}
