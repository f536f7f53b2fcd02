//! Reductions over the lanes of a vector and the units of a team, by fixed trees; partial sums over rows; stores.

// CubeCL's integers have no `is_multiple_of`.
#![allow(clippy::manual_is_multiple_of)]

use super::math::maximum;
use super::team::{Team, has_vector};
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

/// Sum over the units of the team, known to each.
#[cube]
pub fn sum_team(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] team: Team,
) -> Vector<f32, Const<1>> {
    combine(value, shared, team, false)
}

/// Maximum over the units of the team, known to each; NaN if one is.
#[cube]
pub fn max_team(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] team: Team,
) -> Vector<f32, Const<1>> {
    combine(value, shared, team, true)
}

#[cube]
fn combine(
    value: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] team: Team,
    #[comptime] is_max: bool,
) -> Vector<f32, Const<1>> {
    if comptime!(team.plane.is_none()) {
        through_memory(value, shared, team.cube_dim, is_max)
    } else {
        let of_plane = across_plane(value, comptime!(team.plane.unwrap_or(1)), is_max);
        if comptime!(Some(team.units) == team.plane) { of_plane } else { across_planes(of_plane, shared, team, is_max) }
    }
}

#[cube]
fn join(a: Vector<f32, Const<1>>, b: Vector<f32, Const<1>>, #[comptime] is_max: bool) -> Vector<f32, Const<1>> {
    if comptime!(is_max) { maximum::<Const<1>>(a, b) } else { a + b }
}

/// Over the units of a plane, by halves: every unit has the same bits, since a + b is b + a.
#[cube]
fn across_plane(
    value: Vector<f32, Const<1>>,
    #[comptime] plane: u32,
    #[comptime] is_max: bool,
) -> Vector<f32, Const<1>> {
    let mut value = value;
    #[unroll]
    for step in 0..comptime!(plane.ilog2()) {
        let mask = comptime!(1u32 << step).runtime();
        let other = plane_shuffle_xor::<f32>(f32::cast_from(value), mask);
        value = join(value, Vector::new(other), is_max);
    }
    value
}

/// Over the planes of a cube, in their order.
#[cube]
fn across_planes(
    of_plane: Vector<f32, Const<1>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] team: Team,
    #[comptime] is_max: bool,
) -> Vector<f32, Const<1>> {
    let plane = comptime!(team.plane.unwrap_or(1) as usize);
    let unit = UNIT_POS as usize;
    // The units may still be reading the result of the combination before.
    sync_cube();
    if unit % plane == 0 {
        shared[unit / plane] = f32::cast_from(of_plane);
    }
    sync_cube();
    let mut total = Vector::<f32, Const<1>>::new(shared[0]);
    #[unroll]
    for p in 1..comptime!(team.cube_dim as usize / plane) {
        total = join(total, Vector::new(shared[p]), is_max);
    }
    total
}

/// Over the units of a cube, by halves.
#[cube]
fn through_memory(
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
            let both = join(Vector::new(shared[unit]), Vector::new(shared[unit + distance]), is_max);
            shared[unit] = f32::cast_from(both);
        }
        sync_cube();
        distance /= 2;
    }
    Vector::new(shared[0])
}

/// Sums that a unit keeps aside, one for each turn of its walk over a row.
#[cube]
pub fn zeros<N: Size>(#[comptime] team: Team) -> Array<Vector<f32, N>> {
    let mut aside = Array::new(comptime!(team.turns.max(1)));
    #[unroll]
    for turn in 0..comptime!(team.turns) {
        aside[turn] = Vector::new(0.0f32);
    }
    aside
}

/// Adds aside where the number of turns is known; else writes the value to memory the first time, and adds it later.
#[cube]
pub fn accumulate<N: Size>(
    buffer: &mut Array<Vector<f32, N>>,
    at: usize,
    value: Vector<f32, N>,
    first: bool,
    aside: &mut Array<Vector<f32, N>>,
    turn: usize,
    #[comptime] team: Team,
) {
    if comptime!(team.turns > 0) {
        aside[turn] = aside[turn] + value;
    } else if first {
        buffer[at] = value;
    } else {
        buffer[at] = buffer[at] + value;
    }
}

/// Writes what was added aside.
#[cube]
pub fn flush<N: Size>(
    buffer: &mut Array<Vector<f32, N>>,
    aside: &Array<Vector<f32, N>>,
    base: usize,
    start: usize,
    end: usize,
    step: usize,
    #[comptime] width: usize,
    #[comptime] team: Team,
) {
    #[unroll]
    for turn in 0..comptime!(team.turns) {
        let at = start + turn * step;
        if has_vector(at, end, team) {
            buffer[(base + at) / width] = aside[turn];
        }
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
