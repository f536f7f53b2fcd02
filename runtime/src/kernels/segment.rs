//! Sums of rows that share an id: the rows' numbers come sorted by id, so each segment is added in order by one unit.

use cubecl::prelude::*;

/// Σ over j in starts\[segment\]..ends\[segment\] of values\[order\[j\]·interior + at\], positions in elements.
#[cube]
pub fn segment_sum<E: Scalar, N: Size, O: Scalar, S: Scalar, T: Scalar>(
    values: &Array<Vector<E, N>>,
    order: &Array<Vector<O, Const<1>>>,
    starts: &Array<Vector<S, Const<1>>>,
    ends: &Array<Vector<T, Const<1>>>,
    segment: usize,
    at: usize,
    interior: usize,
) -> Vector<f32, N> {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let width = comptime!(sum.size());
    let start = usize::cast_from(starts[segment]);
    let end = usize::cast_from(ends[segment]);
    for j in start..end {
        let row = usize::cast_from(order[j]);
        sum += Vector::<f32, N>::cast_from(values[(row * interior + at) / width]);
    }
    sum
}
