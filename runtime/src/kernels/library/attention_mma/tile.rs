//! Tiles of rows in shared memory, and fragments of tensor cores: 16 rows or 8 columns of a product, spread over the registers of a plane.
//!
//! A product is `mma.sync.m16n8k16` with f32 sums. With g = lane / 4 and c = lane mod 4, a lane holds of
//!
//! - the left operand, 16 × 16: (g, 2c), (g + 8, 2c), (g, 2c + 8), (g + 8, 2c + 8), each with its right neighbour;
//! - the right operand, 16 × 8: (2c, g) and (2c + 8, g), each with its lower neighbour;
//! - the sums, 16 × 8: (g, 2c) and (g + 8, 2c), each with its right neighbour.
//!
//! So two neighbouring fragments of sums, rounded, are a left operand as they lie in registers ([`left_of_sums`]). Source: PTX ISA,
//! "Matrix fragments for mma.m16n8k16 with floating point type", "ldmatrix".

use crate::kernels::placeholders::{F0, F3};
use crate::kernels::rounding::{Rounding, round};
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::FastMath;
use cubecl::prelude::*;

/// Neighbours of a fragment: one register.
pub type N2 = Const<2>;
/// 16 bytes: the widest load, and a row of a matrix that `ldmatrix` takes.
pub type N8 = Const<8>;

/// Units of a plane.
pub const PLANE: usize = 32;
/// Rows of a fragment of the left operand and of sums, and terms of a product.
pub const SIDE: usize = 16;
/// Scores times this are exponents of two.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Lower than every score, and finite, so that differences are.
pub const LOWEST: f32 = -3.402_823_4e38;

/// 16-byte vectors from one row of a tile to the next: one more than a row has. K is a multiple of 16, so the number is odd, and the eight rows
/// that `ldmatrix` reads at once lie in different banks.
pub const fn stride(head: usize) -> usize {
    head / 8 + 1
}

/// Vectors of a tile that each unit moves.
const fn share(head: usize, tile_rows: usize, units: usize) -> usize {
    (tile_rows * (head / 8)).div_ceil(units)
}

/// Rows `first`.. of a tensor's rows `base`..`base + rows`, this unit's share, in registers; rows behind the last repeat it. `rows` > 0.
#[cube]
pub fn fetch(
    from: &Array<Vector<F0, N8>>,
    base: usize,
    first: usize,
    rows: usize,
    #[comptime] head: usize,
    #[comptime] tile_rows: usize,
    #[comptime] units: usize,
) -> Array<Vector<F0, N8>> {
    let mut held = Array::<Vector<F0, N8>>::new(comptime!(share(head, tile_rows, units)));
    let vectors = comptime!(head / 8);
    #[unroll]
    for e in 0..comptime!(share(head, tile_rows, units)) {
        let at = UNIT_POS as usize + e * units;
        let row = min(first + at / vectors, rows - 1);
        held[e] = from.read_unchecked((base + row) * vectors + at % vectors);
    }
    held
}

/// Puts what [`fetch`] has got into a tile that begins at row `at_row` of shared memory.
#[cube]
pub fn put(
    held: &Array<Vector<F0, N8>>,
    tile: &mut SharedMemory<Vector<F0, N8>>,
    #[comptime] at_row: usize,
    #[comptime] head: usize,
    #[comptime] tile_rows: usize,
    #[comptime] units: usize,
) {
    let vectors = comptime!(head / 8);
    #[unroll]
    for e in 0..comptime!(share(head, tile_rows, units)) {
        let at = UNIT_POS as usize + e * units;
        let place = (at_row + at / vectors) * comptime!(stride(head)) + at % vectors;
        // Where the units' last vectors are fewer than units.
        let is_whole = comptime!((e + 1) * units <= tile_rows * vectors);
        if is_whole || at < comptime!(tile_rows * vectors) {
            tile[place] = held[e];
        }
    }
}

/// Where this lane's row begins of a left operand, and of a right operand that lies with its terms down the rows: the four matrices are upper
/// left, lower left, upper right, lower right.
#[cube]
pub fn lane_down(#[comptime] head: usize) -> usize {
    let lane = UNIT_POS as usize % PLANE;
    (lane % 16) * comptime!(stride(head)) + lane / 16
}

/// Where this lane's row begins of a right operand that lies with its columns down the rows: the four matrices are upper left, upper right,
/// lower left, lower right.
#[cube]
pub fn lane_across(#[comptime] head: usize) -> usize {
    let lane = UNIT_POS as usize % PLANE;
    (lane % 8 + lane / 16 * 8) * comptime!(stride(head)) + lane / 8 % 2
}

/// The fragment of a left operand at vector `at` of shared memory, which is [`lane_down`] and the place of its upper left corner.
#[cube]
pub fn left(tile: &SharedMemory<Vector<F0, N8>>, at: usize) -> Array<Vector<F0, N2>> {
    let mma = MmaDefinition::<F0, F0, f32>::new(16usize, 8usize, 16usize);
    mma.load_matrix::<Vector<F0, N8>, N2>(&tile.slice(at, at + 1), MatrixIdent::A, 4usize, false)
}

/// Appends the fragments of 16 rows, all of their terms; `at` as for [`left`].
#[cube]
pub fn lefts(
    all: &mut Sequence<Array<Vector<F0, N2>>>,
    tile: &SharedMemory<Vector<F0, N8>>,
    at: usize,
    #[comptime] head: usize,
) {
    #[unroll]
    for d in 0..comptime!(head / SIDE) {
        all.push(left(tile, at + 2 * d));
    }
}

/// The fragments of two neighbouring right operands, 16 columns together: with terms `across` the rows at [`lane_across`], or down them at
/// [`lane_down`].
#[cube]
pub fn right(
    tile: &SharedMemory<Vector<F0, N8>>,
    at: usize,
    #[comptime] down: bool,
) -> Sequence<Array<Vector<F0, N2>>> {
    let mma = MmaDefinition::<F0, F0, f32>::new(16usize, 8usize, 16usize);
    let four = mma.load_matrix::<Vector<F0, N8>, N2>(&tile.slice(at, at + 1), MatrixIdent::B, 4usize, down);
    let mut pair = Sequence::new();
    #[unroll]
    for i in 0..2usize {
        let mut one = Array::<Vector<F0, N2>>::new(2usize);
        one[0] = four[comptime!(2 * i)];
        one[1] = four[comptime!(2 * i + 1)];
        pair.push(one);
    }
    pair
}

/// Sums, all zero: 16 rows and `columns` columns.
#[cube]
pub fn zeros(#[comptime] columns: usize) -> Sequence<Array<Vector<f32, N2>>> {
    let mut all = Sequence::new();
    #[unroll]
    for _ in 0..comptime!(columns / 8) {
        let mut one = Array::<Vector<f32, N2>>::new(2usize);
        one[0] = Vector::new(0.0f32);
        one[1] = Vector::new(0.0f32);
        all.push(one);
    }
    all
}

/// Fragments `at` and `at` + 1 of sums, rounded to the type of the operands: a left operand.
#[cube]
pub fn left_of_sums(sums: &Sequence<Array<Vector<f32, N2>>>, #[comptime] at: usize) -> Array<Vector<F0, N2>> {
    let mut operand = Array::<Vector<F0, N2>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        let value = sums.index(comptime!(at + i / 2))[comptime!(i % 2)];
        operand[i] = Vector::<F0, N2>::cast_from(value);
    }
    operand
}

/// sums += left·right.
#[cube]
pub fn multiply(left: &Array<Vector<F0, N2>>, right: &Array<Vector<F0, N2>>, sums: &mut Array<Vector<f32, N2>>) {
    let mma = MmaDefinition::<F0, F0, f32>::new(16usize, 8usize, 16usize);
    mma.execute_inplace::<N2, N2, N2>(left, right, sums);
}

/// sums += row·tileᵀ over 16 of the head's dimensions: a column for each of `columns` rows of the tile; `at` is [`lane_across`] and the place of
/// its upper left corner.
#[cube]
pub fn multiply_across(
    row: &Array<Vector<F0, N2>>,
    tile: &SharedMemory<Vector<F0, N8>>,
    at: usize,
    sums: &mut Sequence<Array<Vector<f32, N2>>>,
    #[comptime] head: usize,
    #[comptime] columns: usize,
) {
    #[unroll]
    for n in 0..comptime!(columns / SIDE) {
        let pair = right(tile, at + comptime!(n * SIDE * stride(head)), false);
        #[unroll]
        for i in 0..2usize {
            multiply(row, pair.index(i), sums.index_mut(comptime!(2 * n + i)));
        }
    }
}

/// sums += weights·tile over `terms` rows of the tile: a column for each of the head's dimensions; `at` is [`lane_down`] and the place of its
/// upper left corner. The weights are rounded to the type of the operands.
#[cube]
pub fn multiply_down(
    weights: &Sequence<Array<Vector<f32, N2>>>,
    tile: &SharedMemory<Vector<F0, N8>>,
    at: usize,
    sums: &mut Sequence<Array<Vector<f32, N2>>>,
    #[comptime] head: usize,
    #[comptime] terms: usize,
) {
    #[unroll]
    for n in 0..comptime!(terms / SIDE) {
        let operand = left_of_sums(weights, comptime!(2 * n));
        #[unroll]
        for d in 0..comptime!(head / SIDE) {
            let pair = right(tile, at + comptime!(n * SIDE * stride(head) + 2 * d), true);
            #[unroll]
            for i in 0..2usize {
                multiply(&operand, pair.index(i), sums.index_mut(comptime!(2 * d + i)));
            }
        }
    }
}

/// Stores one row of sums times `factor`, this lane's part: row `at` of a tensor over rows of a head's size.
#[cube]
pub fn store_row(
    sums: &Sequence<Array<Vector<f32, N2>>>,
    #[comptime] half: usize,
    factor: f32,
    to: &mut Array<Vector<F3, N2>>,
    at: usize,
    #[comptime] head: usize,
    #[comptime] rounding: Rounding,
) {
    #[unroll]
    for d in 0..comptime!(head / 8) {
        let value = sums.index(d)[half] * Vector::new(factor);
        let place = at * comptime!(head / 2) + d * 4 + UNIT_POS as usize % 4;
        to[place] = Vector::<F3, N2>::cast_from(round::<N2>(value, rounding));
    }
}

/// Sum over the four lanes that share a row.
#[cube]
pub fn sum_of_row(x: f32) -> f32 {
    let pair = x + plane_shuffle_xor(x, 1);
    pair + plane_shuffle_xor(pair, 2)
}

/// Maximum over the four lanes that share a row.
#[cube]
pub fn max_of_row(x: f32) -> f32 {
    let pair = max(x, plane_shuffle_xor(x, 1));
    max(pair, plane_shuffle_xor(pair, 2))
}

/// 2ˣ to 22 bits, one instruction of a card. x is finite or −∞, or the result is not used.
#[cube(fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub fn exp2(x: f32) -> f32 {
    f32::powf(2.0f32, x)
}
