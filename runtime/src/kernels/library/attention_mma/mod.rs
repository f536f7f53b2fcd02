//! `attention` and its derivative on tensor cores (Dao 2023, "FlashAttention-2"), for bf16 and f16 operands: what a cube computes together is in
//! tiles, products are of the operands' type with f32 sums.
//!
//! Each kernel takes the arguments of its scalar form (`attention.rs`) and gives the same but for the order of sums, and one more rounding:
//! probabilities, and cotangents of scores, become operands of a product, so they are rounded to the operands' type, as in FlashAttention.
//! Sums have one owner and a fixed order: the bits depend on sizes alone.

mod forward;
mod tile;

pub use forward::define_attention_mma;

/// Rows, columns and terms of the product that a device must have.
pub const MMA: [u32; 3] = [16, 8, 16];
/// Lanes of the vectors in which operands are read.
pub const READ: usize = 8;
/// Lanes of the vectors in which results are written.
pub const WRITTEN: usize = 2;

/// Keys of a tile: the scores of 16 queries against them are 32 registers of a unit.
const KEYS: usize = 64;

/// Units of a cube: four planes, which share tiles; two such cubes fill a multiprocessor's registers.
pub const UNITS: u32 = 128;

/// Times 16 queries that a plane has forward. With two, each operand that is read from shared memory serves twice; beyond 64 dimensions their
/// sums would not fit into registers.
const fn query_blocks(head: usize) -> usize {
    if head <= 64 { 2 } else { 1 }
}

/// Queries that a cube has forward.
pub const fn queries(head: usize) -> usize {
    UNITS as usize / tile::PLANE * query_blocks(head) * tile::SIDE
}

/// Bytes of shared memory that a cube takes forward: rows of 16-byte vectors.
pub const fn shared_bytes(head: usize) -> usize {
    forward_rows(head) * tile::stride(head) * 16
}

/// Rows that shared memory holds forward: a tile of keys and one of values, or before them the queries.
const fn forward_rows(head: usize) -> usize {
    if queries(head) > 2 * KEYS { queries(head) } else { 2 * KEYS }
}

/// Whether heads of this size have the form: rows of whole fragments, few enough for the registers.
pub const fn fits(head: usize) -> bool {
    head > 0 && head.is_multiple_of(tile::SIDE) && head <= 128
}
