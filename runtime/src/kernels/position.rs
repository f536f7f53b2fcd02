//! Positions: lane numbers, rotations, and ids as bounded positions.

use cubecl::prelude::*;

/// `start`, `start + 1`, .. as numbers.
#[cube]
pub fn lanes<N: Size>(start: usize) -> Vector<f32, N> {
    let mut v = Vector::<f32, N>::new(f32::cast_from(start));
    let width = comptime!(v.size());
    if comptime!(width > 1) {
        #[unroll]
        for k in 0..width {
            v[k] = f32::cast_from(start + k);
        }
    }
    v
}

/// (position + extent/2) mod extent
#[cube]
pub fn rotate(position: usize, extent: usize) -> usize {
    (position + extent / 2) % extent
}

/// −1 in the first half of an axis, 1 in the second.
#[cube]
pub fn half_sign(position: usize, extent: usize) -> Vector<f32, Const<1>> {
    Vector::new(select(position < extent / 2, -1.0f32, 1.0f32))
}

/// An id as a position below `extent`: the last where it is out of range, so that no read leaves the buffer.
#[cube]
pub fn clamp(id: Vector<i32, Const<1>>, extent: usize) -> usize {
    let id = i32::cast_from(id);
    let last = extent - 1;
    let position = usize::cast_from(id);
    select(id < 0i32, last, select(position > last, last, position))
}

/// Whether an id is a position below `extent`.
#[cube]
pub fn in_range(id: Vector<i32, Const<1>>, extent: usize) -> Vector<bool, Const<1>> {
    let id = i32::cast_from(id);
    let below = usize::cast_from(id) < extent;
    Vector::<bool, Const<1>>::cast_from(select(id < 0i32, false, below))
}

/// The first lane as a scalar.
#[cube]
pub fn first_lane<E: Scalar, N: Size>(v: Vector<E, N>) -> Vector<E, Const<1>> {
    if comptime!(v.size() > 1) { Vector::new(v[0]) } else { Vector::<E, Const<1>>::cast_from(v) }
}
