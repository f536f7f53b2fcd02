//! Layout of an arena: parameters of a model and buffers of its plans become byte offsets. No tensor crosses a chunk of the device's memory.

use crate::plan::arena::align;
use crate::plan::{Memory, Plan, Segment};
use kiln_compiler::ir::DType;

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
    /// Ranges of trained elements, each within one chunk.
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
    pub fn new(params: &[ParamShape], memory: Memory) -> FlatLayout {
        let mut order: Vec<usize> = (0..params.len()).collect();
        order.sort_by_key(|&i| (params[i].frozen, !params[i].decays, !params[i].split, i));
        let mut offsets = vec![0; params.len()];
        let mut trained: Vec<Range> = Vec::new();
        let mut at = 0;
        for i in order {
            let ParamShape { len, frozen, decays, split } = params[i];
            let end = at;
            let padded = len.next_multiple_of(PARAM_ALIGNMENT);
            at = memory.next(at * size_of::<f32>(), padded * size_of::<f32>()) / size_of::<f32>();
            offsets[i] = at;
            let starts_chunk = memory.starts_chunk(at * size_of::<f32>());
            at += padded;
            match trained.last_mut() {
                _ if frozen => {}
                // A device updates a range with one launch, which cannot reach over chunks.
                Some(r) if (r.decays, r.split, r.end) == (decays, split, end) && !starts_chunk => r.end = at,
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
    /// Lays out an arena that serves all `plans`, whose buffers get absolute offsets.
    pub fn new(
        flat: FlatLayout,
        n_moments: usize,
        plans: &mut [&mut Plan],
        workspace_bytes: usize,
        memory: Memory,
    ) -> ArenaLayout {
        let mut at = 0;
        let mut take = |bytes: usize| {
            let place = memory.next(at, bytes);
            at = place + align(bytes);
            place
        };
        let segment = flat.len * size_of::<f32>();
        let (params, grads) = (take(segment), take(segment));
        let moments: Vec<usize> = (0..n_moments).map(|_| take(segment)).collect();
        let mut shadows: Vec<(usize, DType, usize)> = Vec::new();
        for b in plans.iter().flat_map(|p| &p.buffers) {
            if let Segment::Shadow(p) = b.segment
                && !shadows.iter().any(|s| (s.0, s.1) == (p, b.dtype))
            {
                shadows.push((p, b.dtype, take(b.bytes())));
            }
        }
        let host = take(0);
        for b in plans.iter_mut().flat_map(|p| &mut p.buffers).filter(|b| b.segment == Segment::Host) {
            b.offset = take(b.bytes());
        }
        let temporaries = take(plans.iter().map(|p| p.temporary_bytes).max().unwrap_or(0));
        let workspace = take(workspace_bytes);
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
        let total = workspace + align(workspace_bytes);
        ArenaLayout { flat, params, grads, moments, shadows, host, temporaries, workspace, workspace_bytes, total }
    }
}
