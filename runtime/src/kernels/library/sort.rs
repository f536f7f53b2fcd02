//! `sort_index`: positions of ids in stable order of id, by counting in chunks. Four launches: ranks within chunks, offsets of chunks, starts
//! of ids, places. Every number is written by one unit, so nothing depends on timing.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use cubecl::prelude::*;

/// Ids of a chunk: a unit reads all of its chunk, and each chunk has a count for each id.
pub const SORT_CHUNK: usize = 1024;

/// One unit per id: how many before it in its chunk are equal, and, for the last of them, how many there are. −1 where no position will be.
#[cube]
fn sort_ranks(
    ids: &Array<i32>,
    rank: &mut Array<i32>,
    counts: &mut Array<i32>,
    order: &mut Array<i32>,
    n: usize,
    bins: usize,
    #[comptime] chunk: usize,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let own = ids[at];
        let first = at / chunk * chunk;
        let end = select(first + chunk < n, first + chunk, n);
        let mut before = 0i32;
        let mut after = 0i32;
        for i in first..at {
            before += select(ids[i] == own, 1i32, 0i32);
        }
        for i in at + 1..end {
            after += select(ids[i] == own, 1i32, 0i32);
        }
        rank[at] = before;
        order[at] = -1i32;
        if own >= 0i32 && after == 0i32 {
            counts[at / chunk * bins + usize::cast_from(own)] = before + 1i32;
        }
    }
}

/// Builds it: buffers ids, ranks, counts, order; ids, bins.
pub fn define_sort_ranks(builder: &mut KernelBuilder, _: &Spec) {
    let ids = arguments::input::<i32>(builder);
    let rank = arguments::output::<i32>(builder);
    let counts = arguments::output::<i32>(builder);
    let order = arguments::output::<i32>(builder);
    let [n, bins] = std::array::from_fn(|_| arguments::position(builder));
    sort_ranks::expand(&mut builder.scope, ids, rank, counts, order, n, bins, SORT_CHUNK);
}

/// One unit per id: counts of chunks to how many are in the chunks before; how many there are in all.
#[cube]
fn sort_offsets(counts: &mut Array<i32>, totals: &mut Array<i32>, bins: usize, chunks: usize) {
    let id = ABSOLUTE_POS;
    if id < bins {
        let mut before = 0i32;
        for chunk in 0..chunks {
            let count = counts[chunk * bins + id];
            counts[chunk * bins + id] = before;
            before += count;
        }
        totals[id] = before;
    }
}

/// Builds it: buffers counts, totals; bins, chunks.
pub fn define_sort_offsets(builder: &mut KernelBuilder, _: &Spec) {
    let counts = arguments::output::<i32>(builder);
    let totals = arguments::output::<i32>(builder);
    let [bins, chunks] = std::array::from_fn(|_| arguments::position(builder));
    sort_offsets::expand(&mut builder.scope, counts, totals, bins, chunks);
}

/// One cube: where the run of each id begins and ends. A unit adds a stretch of ids, then knows what is before it.
#[cube]
fn sort_starts(
    totals: &Array<i32>,
    starts: &mut Array<i32>,
    ends: &mut Array<i32>,
    bins: usize,
    #[comptime] cube_dim: u32,
) {
    let units = comptime!(cube_dim as usize);
    let mut shared = SharedMemory::<i32>::new(units);
    let unit = UNIT_POS as usize;
    let each = (bins + units - 1) / units;
    let first = unit * each;
    let end = select(first + each < bins, first + each, bins);
    let mut sum = 0i32;
    for id in first..end {
        sum += totals[id];
    }
    shared[unit] = sum;
    sync_cube();
    let mut at = 0i32;
    for other in 0..unit {
        at += shared[other];
    }
    for id in first..end {
        starts[id] = at;
        at += totals[id];
        ends[id] = at;
    }
}

/// Builds it: buffers totals, starts, ends; bins.
pub fn define_sort_starts(builder: &mut KernelBuilder, spec: &Spec) {
    let totals = arguments::input::<i32>(builder);
    let starts = arguments::output::<i32>(builder);
    let ends = arguments::output::<i32>(builder);
    let bins = arguments::position(builder);
    sort_starts::expand(&mut builder.scope, totals, starts, ends, bins, spec.cube_dim);
}

/// One unit per id: its position goes to its place. order\[starts\[v\]..ends\[v\]\] are the positions of id v.
#[cube]
fn sort_places(
    ids: &Array<i32>,
    rank: &Array<i32>,
    offsets: &Array<i32>,
    starts: &Array<i32>,
    order: &mut Array<i32>,
    n: usize,
    bins: usize,
    #[comptime] chunk: usize,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let own = ids[at];
        if own >= 0i32 {
            let id = usize::cast_from(own);
            let place = starts[id] + offsets[at / chunk * bins + id] + rank[at];
            order[usize::cast_from(place)] = i32::cast_from(at);
        }
    }
}

/// Builds it: buffers ids, ranks, offsets, starts, order; ids, bins.
pub fn define_sort_places(builder: &mut KernelBuilder, _: &Spec) {
    let ids = arguments::input::<i32>(builder);
    let rank = arguments::input::<i32>(builder);
    let offsets = arguments::input::<i32>(builder);
    let starts = arguments::input::<i32>(builder);
    let order = arguments::output::<i32>(builder);
    let [n, bins] = std::array::from_fn(|_| arguments::position(builder));
    sort_places::expand(&mut builder.scope, ids, rank, offsets, starts, order, n, bins, SORT_CHUNK);
}
