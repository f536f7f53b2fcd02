//! Reductions over the lanes of a vector and the units of a cube, by fixed trees; partial sums over rows; stores.

use super::math::maximum;
use cubecl::prelude::*;

/// Sum of the lanes.
#[cube]
pub fn sum_lanes<N: Size>(v: Vector<f32, N>) -> Vector<f32, Const<1>> {
    let width = comptime!(v.size());
    if comptime!(width > 1) {
        let mut sum = v[0];
        #[unroll]
        for k in 1..width {
            sum += v[k];
        }
        Vector::new(sum)
    } else {
        Vector::<f32, Const<1>>::cast_from(v)
    }
}

/// Maximum of the lanes; NaN if one is.
#[cube]
pub fn max_lanes<N: Size>(v: Vector<f32, N>) -> Vector<f32, Const<1>> {
    let width = comptime!(v.size());
    if comptime!(width > 1) {
        let mut max = Vector::<f32, Const<1>>::new(v[0]);
        #[unroll]
        for k in 1..width {
            max = maximum::<Const<1>>(max, Vector::new(v[k]));
        }
        max
    } else {
        Vector::<f32, Const<1>>::cast_from(v)
    }
}

/// Sum over the units of the cube, known to each.
#[cube]
pub fn sum_cube(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] cube_dim: u32,
) -> Vector<f32, Const<1>> {
    combine(value, shared, cube_dim, false)
}

/// Maximum over the units of the cube, known to each; NaN if one is.
#[cube]
pub fn max_cube(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] cube_dim: u32,
) -> Vector<f32, Const<1>> {
    combine(value, shared, cube_dim, true)
}

#[cube]
fn combine(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] cube_dim: u32,
    #[comptime] is_max: bool,
) -> Vector<f32, Const<1>> {
    let unit = UNIT_POS as usize;
    // The units may still be reading the result of the combination before.
    sync_cube();
    shared[unit] = f32::cast_from(value);
    sync_cube();
    let mut distance = comptime!(cube_dim as usize / 2).runtime();
    while distance > 0 {
        if unit < distance {
            let a = shared[unit];
            let b = shared[unit + distance];
            if comptime!(is_max) {
                shared[unit] = f32::cast_from(maximum::<Const<1>>(Vector::new(a), Vector::new(b)));
            } else {
                shared[unit] = a + b;
            }
        }
        sync_cube();
        distance /= 2;
    }
    Vector::new(shared[0])
}

/// Writes the value the first time, adds it later.
#[cube]
pub fn accumulate<N: Size>(buffer: &mut Array<Vector<f32, N>>, at: usize, value: Vector<f32, N>, first: bool) {
    if first {
        buffer[at] = value;
    } else {
        buffer[at] = buffer[at] + value;
    }
}

/// Writes a value, or adds it to the one in memory: the later contributions to a gradient.
#[cube]
pub fn store<E: Scalar, V: Scalar, N: Size>(
    buffer: &mut Array<Vector<E, N>>,
    at: usize,
    value: Vector<V, N>,
    #[comptime] accumulate: bool,
) {
    if comptime!(accumulate) {
        let sum = Vector::<f32, N>::cast_from(buffer[at]) + Vector::<f32, N>::cast_from(value);
        buffer[at] = Vector::<E, N>::cast_from(sum);
    } else {
        buffer[at] = Vector::<E, N>::cast_from(value);
    }
}
