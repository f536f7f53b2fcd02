//! `attention` and its derivative through shared memory, for devices with fast barriers: tiles of 64 queries against tiles of 64 keys (Dao 2023,
//! "FlashAttention-2"), with multiply-adds of f32 that round operands of no type.
//!
//! Each kernel takes the arguments of its scalar form (`attention.rs`) and gives the same but for the order of sums. A unit keeps a block of
//! 4 × 4 scores, and of 4 rows of a result every 16th vector. Slices of both operands of the scores go through shared memory, a vector of each
//! for every unit; so do the rows that weights are multiplied with, and the weights. Sums have one owner and a fixed order: the bits depend on
//! sizes alone.

mod forward;
mod keys;
mod queries;
mod tile;

pub use forward::define_attention_tiled;
pub use keys::define_attention_keys_tiled;
pub use queries::define_attention_queries_tiled;

use crate::device::cube::Spec;
use cubecl::prelude::*;

/// Lanes, as a type.
type N4 = Const<4>;

/// Lanes of the vectors in which operands are read and results written.
pub const WIDTH: usize = 4;
/// Units along a side of a cube.
const SIDE: usize = 16;
/// Units of a cube.
pub const UNITS: u32 = (SIDE * SIDE) as u32;
/// Rows of a tile.
pub const ROWS: usize = SIDE * WIDTH;
/// Vectors of a slice's row: so many of 64 rows are one for each unit.
const SLICE: usize = 4;
/// Vectors from one row of a slice to the next: odd, so that the rows that neighbouring units read lie in different banks.
const SLICE_STRIDE: usize = SLICE + 1;
/// Vectors from one row of the weights to the next.
const WEIGHTS_STRIDE: usize = SIDE + 1;
/// Vectors of a slice, and of the weights.
const SLICE_LEN: usize = ROWS * SLICE_STRIDE;
const WEIGHTS_LEN: usize = ROWS * WEIGHTS_STRIDE;

/// Bytes of shared memory that a cube takes: two slices and the weights, whatever the size of a head.
pub const BYTES: usize = (2 * SLICE_LEN + WEIGHTS_LEN) * WIDTH * size_of::<f32>();

/// Whether heads of this size have the form: rows of whole vectors, few enough for the registers.
pub const fn fits(head: usize) -> bool {
    head > 0 && head.is_multiple_of(WIDTH) && head <= 128
}

/// Vectors that a unit has of a row of a result.
const fn share(head: usize) -> usize {
    head.div_ceil(ROWS)
}

/// Whether the units that share rows are of one plane.
fn has_plane(spec: &Spec) -> bool {
    spec.plane.is_some_and(|units| (units as usize).is_multiple_of(SIDE))
}
