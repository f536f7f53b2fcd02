//! Units that share a row: all of a cube, or a plane of it – then a cube has several rows at once, and none of its units waits for another.

// CubeCL's integers have no `div_ceil`.
#![allow(clippy::manual_div_ceil)]

use cubecl::prelude::*;

/// How the units of a cube share rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Team {
    /// Units of a cube.
    pub cube_dim: u32,
    /// Units that share a row: a plane, or the cube.
    pub units: u32,
    /// Units of a plane, where they can read each other's values.
    pub plane: Option<u32>,
    /// Vectors of a row that each unit takes at most, if the code is to be made for their number; 0 if for any.
    pub turns: usize,
    /// Whether every unit has a vector in every turn.
    pub is_full: bool,
}

impl Team {
    /// Teams of a cube.
    pub fn per_cube(self) -> usize {
        (self.cube_dim / self.units.max(1)) as usize
    }
}

/// Position of a unit in its team.
#[cube]
pub fn unit_of_team(#[comptime] team: Team) -> usize {
    if comptime!(team.per_cube() == 1) { UNIT_POS as usize } else { UNIT_POS as usize % comptime!(team.units as usize) }
}

/// Position of a team among all.
#[cube]
pub fn team_pos(#[comptime] team: Team) -> usize {
    if comptime!(team.per_cube() == 1) {
        CUBE_POS
    } else {
        CUBE_POS * comptime!(team.per_cube()) + UNIT_POS as usize / comptime!(team.units as usize)
    }
}

/// Number of teams.
#[cube]
pub fn team_count(#[comptime] team: Team) -> usize {
    CUBE_COUNT * comptime!(team.per_cube())
}

/// Turns that a unit takes over `len` elements of which its own are `step` apart.
#[cube]
pub fn turns(len: usize, step: usize, #[comptime] team: Team) -> usize {
    if comptime!(team.turns > 0) { comptime!(team.turns).runtime() } else { (len + step - 1) / step }
}

/// Whether a unit has a vector at a position.
#[cube]
pub fn has_vector(at: usize, len: usize, #[comptime] team: Team) -> bool {
    if comptime!(team.is_full) { true.runtime() } else { at < len }
}

/// Units of a team.
#[cube]
pub fn team_units(#[comptime] team: Team) -> usize {
    comptime!(team.units as usize).runtime()
}
