//! `sort_index`: positions of ids in stable order of id. One unit owns each id and writes its run, so no two write the same place.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::N1;
use cubecl::prelude::*;

/// order\[starts\[v\]..ends\[v\]\] are the positions of id v; positions of negative ids leave −1 at the end.
#[cube]
fn sort_index(
    ids: &Array<Vector<i32, N1>>,
    order: &mut Array<Vector<i32, N1>>,
    starts: &mut Array<Vector<i32, N1>>,
    ends: &mut Array<Vector<i32, N1>>,
    n: usize,
    bins: usize,
) {
    let id = ABSOLUTE_POS;
    if id < bins {
        let own = i32::cast_from(id);
        let mut before = 0usize;
        let mut counted = 0usize;
        for i in 0..n {
            let other = i32::cast_from(ids[i]);
            before += select(other >= 0i32 && other < own, 1usize, 0usize);
            counted += select(other >= 0i32, 1usize, 0usize);
        }
        let mut next = before;
        for i in 0..n {
            if i32::cast_from(ids[i]) == own {
                order[next] = Vector::new(i32::cast_from(i));
                next += 1;
            }
        }
        starts[id] = Vector::new(i32::cast_from(before));
        ends[id] = Vector::new(i32::cast_from(next));
        if id == 0 {
            for i in counted..n {
                order[i] = Vector::new(-1i32);
            }
        }
    }
}

/// Builds it: buffers ids, order, starts, ends; ids, bins.
pub fn define_sort_index(builder: &mut KernelBuilder, _: &Spec) {
    let ids = arguments::input::<Vector<i32, N1>>(builder);
    let order = arguments::output::<Vector<i32, N1>>(builder);
    let starts = arguments::output::<Vector<i32, N1>>(builder);
    let ends = arguments::output::<Vector<i32, N1>>(builder);
    let n = arguments::position(builder);
    let bins = arguments::position(builder);
    sort_index::expand(&mut builder.scope, ids, order, starts, ends, n, bins);
}
