//! The arena: one allocation per device, made once after planning. Offsets come from the plan; this file only adds the base.
#![allow(unsafe_code)]

use crate::plan::arena::{ALIGNMENT, align};
use crate::plan::{Plan, Segment};
use kiln_compiler::ir::DType;
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Parameters start at multiples of this many elements, so that vector loops never straddle two of them.
const PARAM_ALIGNMENT: usize = 64;

/// Where each parameter lies in the flat f32 segments (masters, gradients, moments), in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    /// Offset of each parameter.
    pub offsets: Vec<usize>,
    /// Length of each parameter.
    pub lens: Vec<usize>,
    /// Elements of a segment, padding included.
    pub len: usize,
    /// Ranges of trained elements, without gaps.
    pub trained: Vec<Range>,
}

/// A parameter as the layout sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamShape {
    /// Elements on this rank.
    pub len: usize,
    /// No gradient.
    pub frozen: bool,
    /// Weight decay applies.
    pub decays: bool,
    /// Split over ranks, rather than the same on all.
    pub split: bool,
}

/// Neighbouring parameters that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First element.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Weight decay applies.
    pub decays: bool,
    /// Split over ranks.
    pub split: bool,
}

impl FlatLayout {
    /// Lays out parameters: decayed ones first, then the others, then frozen ones; within each, those that are split first.
    pub fn new(params: &[ParamShape]) -> FlatLayout {
        let mut order: Vec<usize> = (0..params.len()).collect();
        order.sort_by_key(|&i| (params[i].frozen, !params[i].decays, !params[i].split, i));
        let mut offsets = vec![0; params.len()];
        let mut trained: Vec<Range> = Vec::new();
        let mut at = 0;
        for i in order {
            let ParamShape { len, frozen, decays, split } = params[i];
            offsets[i] = at;
            at += len.next_multiple_of(PARAM_ALIGNMENT);
            match trained.last_mut() {
                _ if frozen => {}
                Some(r) if (r.decays, r.split) == (decays, split) => r.end = at,
                _ => trained.push(Range { start: offsets[i], end: at, decays, split }),
            }
        }
        FlatLayout { offsets, lens: params.iter().map(|p| p.len).collect(), len: at, trained }
    }
}

/// Byte offsets of the parts of an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    /// Flat f32 segments.
    pub flat: FlatLayout,
    /// Masters.
    pub params: usize,
    /// Gradients.
    pub grads: usize,
    /// One or two moments per trained element.
    pub moments: Vec<usize>,
    /// Shadows: (parameter, type) → offset.
    pub shadows: Vec<(usize, DType, usize)>,
    /// Buffers that the host writes, in the order of their plans.
    pub host: usize,
    /// Temporaries, shared by all plans.
    pub temporaries: usize,
    /// Scratch of library kernels.
    pub workspace: usize,
    /// Bytes of the scratch.
    pub workspace_bytes: usize,
    /// Everything.
    pub total: usize,
}

impl ArenaLayout {
    /// Lays out an arena that serves all `plans`; returns it with each plan's buffers at absolute offsets.
    pub fn new(flat: FlatLayout, n_moments: usize, plans: &mut [&mut Plan], workspace_bytes: usize) -> ArenaLayout {
        let segment = align(flat.len * size_of::<f32>());
        let params = 0;
        let grads = segment;
        let moments: Vec<usize> = (0..n_moments).map(|i| segment * (2 + i)).collect();
        let mut at = segment * (2 + n_moments);
        let mut shadows: Vec<(usize, DType, usize)> = Vec::new();
        for b in plans.iter().flat_map(|p| &p.buffers) {
            if let Segment::Shadow(p) = b.segment
                && !shadows.iter().any(|s| (s.0, s.1) == (p, b.dtype))
            {
                shadows.push((p, b.dtype, at));
                at += align(b.bytes());
            }
        }
        let host = at;
        for b in plans.iter_mut().flat_map(|p| &mut p.buffers).filter(|b| b.segment == Segment::Host) {
            b.offset = at;
            at += align(b.bytes());
        }
        let temporaries = at;
        at += plans.iter().map(|p| p.temporary_bytes).max().unwrap_or(0);
        for b in plans.iter_mut().flat_map(|p| &mut p.buffers) {
            b.offset = match b.segment {
                Segment::Param(p) => params + flat.offsets[p] * size_of::<f32>(),
                Segment::Grad(p) => grads + flat.offsets[p] * size_of::<f32>(),
                Segment::Shadow(p) => {
                    let found = shadows.iter().find(|s| (s.0, s.1) == (p, b.dtype));
                    found.map(|s| s.2).expect("every shadow was laid out above")
                }
                Segment::Host => b.offset,
                Segment::Temporary => temporaries + b.offset,
            };
        }
        let (workspace, total) = (at, at + align(workspace_bytes));
        ArenaLayout { flat, params, grads, moments, shadows, host, temporaries, workspace, workspace_bytes, total }
    }
}

/// Zeroed, aligned bytes.
pub struct Arena {
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: the arena is plain memory; who may touch which bytes when is the schedule's promise, checked by the planner.
unsafe impl Send for Arena {}
// SAFETY: as above; shared access hands out raw pointers only.
unsafe impl Sync for Arena {}

/// The system refuses the plan's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "K0801: out of memory: the plan needs {bytes} bytes; use a smaller batch, sequence or model, or `#[checkpoint]`"
)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

impl Arena {
    /// Allocates; pages are touched by first use.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(bytes: usize) -> Result<Arena, OutOfMemory> {
        let bytes = bytes.max(ALIGNMENT);
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| OutOfMemory { bytes })?;
        // SAFETY: the size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() { Err(OutOfMemory { bytes }) } else { Ok(Arena { ptr, bytes }) }
    }

    /// The bytes `offset..offset + len`.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.bytes, "bytes {offset}+{len} of an arena of {}", self.bytes);
        // SAFETY: inside the allocation.
        unsafe { self.ptr.add(offset) }
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
}

impl Drop for Arena {
    fn drop(&mut self) {
        // The layout was valid in `new`.
        if let Ok(layout) = Layout::from_size_align(self.bytes, ALIGNMENT) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.ptr, layout) };
        }
    }
}
