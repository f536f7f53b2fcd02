//! The arena: one allocation per device, made once after planning. Offsets come from the plan; this file only adds the base.
#![allow(unsafe_code)]

use crate::explain::bytes as shown;
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

/// The machine does not have the plan's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "K0801: out of memory: the plan needs {}, {}; most of it are {}; use a smaller batch, sequence or model, or `#[checkpoint]`",
    shown(*bytes), available.map_or("the system refuses them".to_owned(), |a| format!("this process can have {}", shown(a))),
    owners.iter().map(|(name, n)| format!("{name} ({})", shown(*n))).collect::<Vec<_>>().join(", ")
)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
    /// Bytes that the process can have, where that is known to be less.
    pub available: Option<usize>,
    /// The five largest owners.
    pub owners: Vec<(String, usize)>,
}

/// Owners that the error names.
const NAMED_OWNERS: usize = 5;

/// The most bytes that this process can ever have, where the system says so: physical memory with swap, and the limit of the control
/// group. A system that promises more memory than it has (Linux does) kills the process later instead of refusing now.
fn limit() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let kib = |text: &str, key: &str| -> Option<usize> {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let physical = read("/proc/meminfo").and_then(|t| Some((kib(&t, "MemTotal:")? + kib(&t, "SwapTotal:")?) * 1024));
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| read(path)?.trim().parse().ok())
        .min();
    physical.into_iter().chain(group).min()
}

impl Arena {
    /// Allocates; pages are touched by first use. `owners` lists who needs the bytes, largest first, for the error.
    ///
    /// # Errors
    /// When the process cannot have so much, or the system refuses.
    pub fn new(bytes: usize, owners: impl FnOnce() -> Vec<(String, usize)>) -> Result<Arena, OutOfMemory> {
        let bytes = bytes.max(ALIGNMENT);
        let refused = |available: Option<usize>, mut owners: Vec<(String, usize)>| {
            owners.truncate(NAMED_OWNERS);
            OutOfMemory { bytes, available, owners }
        };
        let available = limit().filter(|&limit| bytes > limit);
        let layout = match Layout::from_size_align(bytes, ALIGNMENT) {
            Ok(layout) if available.is_none() => layout,
            _ => return Err(refused(available, owners())),
        };
        // SAFETY: the size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() { Err(refused(None, owners())) } else { Ok(Arena { ptr, bytes }) }
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
