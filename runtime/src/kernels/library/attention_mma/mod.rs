//! `attention` and its derivative on tensor cores (Dao 2023, "FlashAttention-2"), for bf16 and f16 operands: what a cube computes together is in
//! tiles, products are of the operands' type with f32 sums.
//!
//! Each kernel takes the arguments of its scalar form (`attention.rs`) and gives the same but for the order of sums, and one more rounding:
//! probabilities, and cotangents of scores, become operands of a product, so they are rounded to the operands' type, as in FlashAttention.
//! Sums have one owner and a fixed order: the bits depend on sizes alone.

mod forward;
mod keys;
mod queries;
mod tile;

pub use forward::define_attention_mma;
pub use keys::define_attention_keys_mma;
pub use queries::define_attention_queries_mma;

use crate::device::cube::Spec;
use crate::kernels::rounding::Rounding;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use tile::{PLANE, SIDE, stride};

/// Rows, columns and terms of the product that a device must have.
pub const MMA: [u32; 3] = [16, 8, 16];
/// Lanes of the vectors in which operands are read.
pub const READ: usize = 8;
/// Lanes of the vectors in which results are written.
pub const WRITTEN: usize = 2;
/// Units of a cube: four planes, which share tiles; two such cubes fill a multiprocessor's registers.
pub const UNITS: u32 = 128;

/// 16 queries or keys for each plane of a cube.
const PLANES_ROWS: usize = UNITS as usize / PLANE * SIDE;
/// Keys of a tile forward: the scores of 16 queries against them are 32 registers of a unit.
const KEYS: usize = 64;
/// Columns of scores and of their cotangents that a plane holds at once in the first walk: 32 registers.
const PART: usize = 32;

/// Whether heads of this size have the form: rows of whole fragments, few enough for the registers.
pub const fn fits(head: usize) -> bool {
    head > 0 && head.is_multiple_of(SIDE) && head <= 128
}

/// Whether sums and operands of 16 rows together leave registers for tiles that are on their way.
const fn is_small(head: usize) -> bool {
    head <= 64
}

/// Times 16 queries that a plane has forward. With two, each operand that is read from shared memory serves twice.
const fn query_blocks(head: usize) -> usize {
    if is_small(head) { 2 } else { 1 }
}

/// Queries that a cube has forward.
pub const fn forward_queries(head: usize) -> usize {
    PLANES_ROWS * query_blocks(head)
}

/// Rows that shared memory holds forward: a tile of keys and one of values, or before them the queries.
const fn forward_rows(head: usize) -> usize {
    most(forward_queries(head), 2 * KEYS)
}

/// Queries that a cube has in the first walk, and keys in the second.
pub const fn walk_rows() -> usize {
    PLANES_ROWS
}

/// Keys of a tile in the first walk.
const fn walk_keys(head: usize) -> usize {
    if is_small(head) { 64 } else { 32 }
}

/// Rows that shared memory holds in the first walk.
const fn queries_rows(head: usize) -> usize {
    most(walk_rows(), 2 * walk_keys(head))
}

/// Whether a plane's keys and values stay in its registers in the second walk, or in shared memory.
const fn keeps_keys(head: usize) -> bool {
    is_small(head)
}

/// Queries of a tile in the second walk: beside keys and values that stay, 48 KiB have room for few.
const fn walk_queries(head: usize) -> usize {
    if is_small(head) { 64 } else { 16 }
}

/// Columns of scores that a plane holds at once in the second walk.
const fn keys_part(head: usize) -> usize {
    if is_small(head) { 32 } else { 16 }
}

/// Rows that shared memory holds in the second walk.
const fn keys_rows(head: usize) -> usize {
    let tiles = 2 * walk_queries(head);
    if keeps_keys(head) { most(walk_rows(), tiles) } else { 2 * walk_rows() + tiles }
}

/// Bytes of shared memory that a cube takes forward.
pub const fn forward_bytes(head: usize) -> usize {
    forward_rows(head) * row_bytes(head)
}

/// Bytes of shared memory that a cube takes in the first walk.
pub const fn queries_bytes(head: usize) -> usize {
    queries_rows(head) * row_bytes(head)
}

/// Bytes of shared memory that a cube takes in the second walk: beside the tiles two f32 of each query.
pub const fn keys_bytes(head: usize) -> usize {
    keys_rows(head) * row_bytes(head) + 2 * walk_queries(head) * size_of::<f32>()
}

/// What a result of slot 3 is rounded to by `slot` before it is stored: nothing, where storing it rounds to the same.
fn to_store(spec: &Spec, slot: usize) -> Rounding {
    let is_stored = match (spec.types[3], spec.rounding(slot)) {
        (StorageType::Scalar(ElemType::Float(FloatKind::BF16)), to) => matches!(to, Rounding::Bf16 | Rounding::ByBf16),
        (StorageType::Scalar(ElemType::Float(FloatKind::F16)), to) => matches!(to, Rounding::F16 | Rounding::ByF16),
        (_, to) => to == Rounding::None,
    };
    if is_stored { Rounding::None } else { spec.rounding(slot) }
}

const fn row_bytes(head: usize) -> usize {
    stride(head) * 16
}

const fn most(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}
