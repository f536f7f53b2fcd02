//! A product of few rows with a matrix that is read once, in place: what decoding spends its time on.
//!
//! In: x (rows, K) and a matrix that lies as (K, columns) or as (columns, K). Out: (rows, columns). Workers take ranges of columns, and
//! every sum runs over K in an order that depends on shapes alone, so the bits do not depend on the number of workers.

use super::buffer::{Buf, bf16_to_f32, round_in_place};
use super::cpu::{Fma, multiversion};
use super::gemm::Epilogue;
use super::math::tree;
use kiln_compiler::ir::{Axis, DType, Sizes};
use std::ops::Range;

// More rows than this are better served by packing the matrix.
const MOST_ROWS: usize = 16;
// Columns whose sums wait together: 2 KiB of sums and eight times that of the matrix stay in the first-level cache.
const COLUMNS: usize = 512;
// Rows of the matrix that one pass over the sums takes, so that the sums are loaded and stored once for all of them.
const DEPTH: usize = 8;
// Columns of the matrix that are summed over K together.
const DOTS: usize = 4;
// Partial sums of a dot product.
const LANES: usize = 32;
// Workers' ranges begin at multiples of this many columns: a cache line of results.
const UNIT: usize = 16;

/// Where the columns of the matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// (K, columns).
    ByDepth,
    /// (columns, K).
    ByColumn,
}

/// A planned product.
#[derive(Clone, Debug)]
pub struct RowProduct {
    rows: usize,
    columns: usize,
    depth: usize,
    order: Order,
    /// The matrix is the first operand.
    swapped: bool,
}

/// Element types of a matrix that are read in place.
trait Element: Copy {
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_to_f32(self)
    }
}

impl RowProduct {
    /// Plans `out = Σ a · b`, if one of the operands has few rows and the other is a matrix in one of the two orders.
    pub fn new(a: &[Axis], b: &[Axis], out: &[Axis], sizes: &Sizes) -> Option<RowProduct> {
        let long = |x: &[Axis]| -> Vec<Axis> { x.iter().copied().filter(|&a| sizes.of(a) > 1).collect() };
        let (a, b, out) = (long(a), long(b), long(out));
        let ways = [(&a, &b, false), (&b, &a, true)];
        let plans = ways.into_iter().filter_map(|(x, w, swapped)| RowProduct::ordered(x, w, &out, sizes, swapped));
        plans.min_by_key(|p| p.rows)
    }

    /// Plans `x` as (rows, K), `w` as the matrix, and `out` as (rows, columns), where their axes lie so.
    fn ordered(x: &[Axis], w: &[Axis], out: &[Axis], sizes: &Sizes, swapped: bool) -> Option<RowProduct> {
        let depth: Vec<Axis> = w.iter().copied().filter(|a| x.contains(a)).collect();
        let columns: Vec<Axis> = w.iter().copied().filter(|a| !x.contains(a)).collect();
        let rows: Vec<Axis> = x.iter().copied().filter(|a| !w.contains(a)).collect();
        let order = if w == [depth.as_slice(), &columns].concat() {
            Order::ByDepth
        } else if w == [columns.as_slice(), &depth].concat() {
            Order::ByColumn
        } else {
            return None;
        };
        let lies = x == [rows.as_slice(), &depth].concat() && out == [rows.as_slice(), &columns].concat();
        let n = |axes: &[Axis]| sizes.elements(axes);
        let plan = RowProduct { rows: n(&rows), columns: n(&columns), depth: n(&depth), order, swapped };
        (lies && plan.rows <= MOST_ROWS).then_some(plan)
    }

    /// Whether the matrix is the first operand.
    pub fn swapped(&self) -> bool {
        self.swapped
    }

    /// Whether the matrix is read in place in this type.
    pub fn takes(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::Bf16)
    }

    /// Multiply-adds.
    pub fn work(&self) -> usize {
        self.rows * self.columns * self.depth
    }

    /// Scratch of one worker in f32 elements.
    pub fn worker_len(&self) -> usize {
        self.rows * (self.depth + COLUMNS)
    }

    /// Computes the columns of `worker` of `workers` from the operands of the operation.
    ///
    /// # Panics
    /// If a buffer or the scratch is shorter than planned, or the matrix is of a type that is not [`RowProduct::takes`].
    pub fn run(
        &self,
        (worker, workers): (usize, usize),
        [a, b, out]: [Buf; 3],
        epilogue: Epilogue,
        scratch: &mut [f32],
    ) {
        let (x, w) = if self.swapped { (b, a) } else { (a, b) };
        let RowProduct { rows, columns, depth, .. } = *self;
        assert!(x.len() >= rows * depth && w.len() >= depth * columns && out.len() >= rows * columns);
        let units = columns.div_ceil(UNIT);
        let at = |i: usize| (units * i / workers * UNIT).min(columns);
        let range = at(worker)..at(worker + 1);
        if range.is_empty() {
            return;
        }
        let (wide, sums) = scratch[..self.worker_len()].split_at_mut(rows * depth);
        x.load(0, wide);
        for first in range.clone().step_by(COLUMNS) {
            let some = first..range.end.min(first + COLUMNS);
            let n = some.len();
            let sums = &mut sums[..rows * n];
            match w.dtype() {
                DType::F32 => multiply(self, wide, w.f32s(0, depth * columns), some, sums),
                DType::Bf16 => multiply_bf16(self, wide, w.bf16_bits(0, depth * columns), some, sums),
                other => panic!("a matrix of {other} is not read in place"),
            }
            if let Some(dtype) = epilogue.round {
                round_in_place(dtype, sums);
            }
            for (r, sums) in sums.chunks_exact(n).enumerate() {
                out.store(r * columns + first, sums);
            }
        }
    }
}

multiversion! {
    fn multiply(p: &RowProduct, x: &[f32], w: &[f32], columns: Range<usize>, sums: &mut [f32]) = multiply_body
}
multiversion! {
    fn multiply_bf16(p: &RowProduct, x: &[f32], w: &[u16], columns: Range<usize>, sums: &mut [f32]) = multiply_bf16_body
}

#[inline(always)]
fn multiply_body<F: Fma>(p: &RowProduct, x: &[f32], w: &[f32], columns: Range<usize>, sums: &mut [f32]) {
    body::<F, f32>(p, x, w, columns, sums);
}

#[inline(always)]
fn multiply_bf16_body<F: Fma>(p: &RowProduct, x: &[f32], w: &[u16], columns: Range<usize>, sums: &mut [f32]) {
    body::<F, u16>(p, x, w, columns, sums);
}

#[inline(always)]
fn body<F: Fma, E: Element>(p: &RowProduct, x: &[f32], w: &[E], columns: Range<usize>, sums: &mut [f32]) {
    match p.order {
        Order::ByDepth => by_depth::<F, E>(p, x, w, columns, sums),
        Order::ByColumn => by_column::<F, E>(p, x, w, columns, sums),
    }
}

/// Adds up multiples of the rows of the matrix.
#[inline(always)]
fn by_depth<F: Fma, E: Element>(p: &RowProduct, x: &[f32], w: &[E], columns: Range<usize>, sums: &mut [f32]) {
    let n = columns.len();
    sums.fill(0.0);
    let line = |k: usize| &w[k * p.columns + columns.start..][..n];
    let whole = p.depth / DEPTH * DEPTH;
    for k in (0..whole).step_by(DEPTH) {
        let lines: [&[E]; DEPTH] = std::array::from_fn(|i| line(k + i));
        for (x, sums) in x.chunks_exact(p.depth).zip(sums.chunks_exact_mut(n)) {
            let x: [f32; DEPTH] = std::array::from_fn(|i| x[k + i]);
            for (j, sum) in sums.iter_mut().enumerate() {
                let mut s = *sum;
                for i in 0..DEPTH {
                    s = F::fma(x[i], lines[i][j].widen(), s);
                }
                *sum = s;
            }
        }
    }
    for k in whole..p.depth {
        let line = line(k);
        for (x, sums) in x.chunks_exact(p.depth).zip(sums.chunks_exact_mut(n)) {
            for (sum, &w) in sums.iter_mut().zip(line) {
                *sum = F::fma(x[k], w.widen(), *sum);
            }
        }
    }
}

/// One dot product for each column.
#[inline(always)]
fn by_column<F: Fma, E: Element>(p: &RowProduct, x: &[f32], w: &[E], columns: Range<usize>, sums: &mut [f32]) {
    let n = columns.len();
    let column = |j: usize| &w[(columns.start + j) * p.depth..][..p.depth];
    let whole = n / DOTS * DOTS;
    for j in (0..whole).step_by(DOTS) {
        let w: [&[E]; DOTS] = std::array::from_fn(|i| column(j + i));
        for (r, x) in x.chunks_exact(p.depth).enumerate() {
            sums[r * n + j..][..DOTS].copy_from_slice(&dots::<F, E, DOTS>(x, w));
        }
    }
    for j in whole..n {
        for (r, x) in x.chunks_exact(p.depth).enumerate() {
            sums[r * n + j] = dots::<F, E, 1>(x, [column(j)])[0];
        }
    }
}

/// Dot products of `x` with `N` columns: lanes first, then what is left, in an order that the length alone decides.
#[inline(always)]
fn dots<F: Fma, E: Element, const N: usize>(x: &[f32], w: [&[E]; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let whole = x.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        let x = &x[k..k + LANES];
        for (lanes, w) in lanes.iter_mut().zip(w) {
            let w = &w[k..k + LANES];
            for ((lane, &x), &w) in lanes.iter_mut().zip(x).zip(w) {
                *lane = F::fma(x, w.widen(), *lane);
            }
        }
    }
    std::array::from_fn(|i| {
        let sum = tree(lanes[i], |a, b| a + b);
        let rest = x[whole..].iter().zip(&w[i][whole..]);
        rest.fold(sum, |sum, (&x, &w)| F::fma(x, w.widen(), sum))
    })
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::*;

    fn sizes(list: &[(&'static str, usize)]) -> Sizes {
        list.iter().map(|&(a, n)| (Axis::of(a), n)).collect()
    }

    fn axes(names: &'static str) -> Vec<Axis> {
        names.split_whitespace().map(Axis::of).collect()
    }

    /// Σ in f64 over (rows, depth) and the matrix.
    fn wanted(p: &RowProduct, x: &[f32], w: &[f32]) -> Vec<f64> {
        let at = |k: usize, j: usize| match p.order {
            Order::ByDepth => w[k * p.columns + j],
            Order::ByColumn => w[j * p.depth + k],
        };
        let cell = |i: usize| {
            let (r, j) = (i / p.columns, i % p.columns);
            (0..p.depth).map(|k| f64::from(x[r * p.depth + k]) * f64::from(at(k, j))).sum()
        };
        (0..p.rows * p.columns).map(cell).collect()
    }

    #[test]
    fn products_are_those_of_f64_for_any_number_of_workers() {
        let sizes = sizes(&[("B", 3), ("S", 1), ("D", 77), ("V", 1043), ("G", 2), ("K", 9)]);
        let cases = [
            ("B S D", "D V", "B S V"),
            ("B S D", "V D", "B S V"),
            ("V D", "B S D", "B S V"),
            ("B S D", "D G K", "B G S K"),
            ("B G S K", "G K D", "B S D"),
        ];
        for (a, b, out) in cases {
            for dtype in [DType::F32, DType::Bf16] {
                let (a, b, out) = (axes(a), axes(b), axes(out));
                let p = RowProduct::new(&a, &b, &out, &sizes).expect("few rows, and a matrix in one piece");
                let mut x = Owned::of(dtype, &noise(1, p.rows * p.depth));
                let mut w = Owned::of(dtype, &noise(2, p.columns * p.depth));
                let wanted = wanted(&p, &x.values(), &w.values());
                let operands = if p.swapped { [w.buf(), x.buf()] } else { [x.buf(), w.buf()] };
                let mut bits = Vec::new();
                for workers in [1, 2, 3, 7, 100] {
                    let mut y = Owned::poisoned(DType::F32, p.rows * p.columns);
                    let mut scratch = vec![f32::NAN; p.worker_len()];
                    for worker in 0..workers {
                        p.run((worker, workers), [operands[0], operands[1], y.buf()], Epilogue::STORE, &mut scratch);
                    }
                    for (found, wanted) in y.values().iter().zip(&wanted) {
                        // A sum of K products of numbers below 1 is off by at most K roundings of a number below K.
                        let bound = (p.depth * p.depth) as f64 * f64::from(f32::EPSILON);
                        assert!((f64::from(*found) - wanted).abs() <= bound, "{found} is not {wanted}");
                    }
                    bits.push(y.bits());
                }
                assert!(bits.windows(2).all(|b| b[0] == b[1]), "bits depend on the number of workers");
            }
        }
    }

    #[test]
    fn many_rows_and_other_layouts_are_left_to_packing() {
        let sizes = sizes(&[("B", 17), ("S", 1), ("D", 5), ("V", 6), ("G", 2)]);
        assert!(RowProduct::new(&axes("B S D"), &axes("D V"), &axes("B S V"), &sizes).is_none());
        assert!(RowProduct::new(&axes("S D"), &axes("G D V"), &axes("G S V"), &sizes).is_none());
        assert!(RowProduct::new(&axes("S D G"), &axes("G D V"), &axes("S V"), &sizes).is_none());
    }
}
