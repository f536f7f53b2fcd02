//! Products for a vendor's library: the offsets of a `dot_general` read as matrices. An operand whose axes do not lie as a matrix does is
//! copied into one first, a result out of one afterwards.

use super::library::DotTables;
use super::profile::U32;
use super::scratch::Scratch;
use super::{Bound, Buffer, CubeDevice, CubeError, LibraryKernel, Memory, Product};
use crate::plan::arena::align;
use cubecl::ir::Type;
use kiln_compiler::ir::DType;
use std::sync::Arc;

/// c\[batch, i, j\] = Σₖ a\[batch, i, k\]·b\[batch, k, j\] over matrices in memory; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixProduct {
    /// Element type of a and b.
    pub dtype: DType,
    /// Element type of c.
    pub to: DType,
    /// Number of products.
    pub batches: usize,
    /// Rows of a and c.
    pub m: usize,
    /// Columns of b and c.
    pub n: usize,
    /// Columns of a, rows of b.
    pub k: usize,
    /// Where a lies.
    pub a: Matrix,
    /// Where b lies.
    pub b: Matrix,
    /// Where c lies; never transposed.
    pub c: Matrix,
}

/// Where the elements of a matrix lie: (i, j) at `first` + i·`step` + j, or, transposed, at `first` + j·`step` + i.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Elements before the first.
    pub first: usize,
    /// From one row to the next, or from one column to the next.
    pub step: usize,
    /// Whether columns are contiguous.
    pub transposed: bool,
    /// From one batch to the next.
    pub batch_step: usize,
}

/// The distance of neighbours, if it is always the same.
fn distance(offsets: &[u32]) -> Option<usize> {
    let [first, second, ..] = offsets else { return Some(0) };
    let step = second.checked_sub(*first)?;
    let is_even = offsets.windows(2).all(|pair| pair[1].checked_sub(pair[0]) == Some(step));
    is_even.then_some(step as usize)
}

impl Matrix {
    /// The matrix of these offsets, if they are one.
    fn of(batches: &[u32], rows: &[u32], columns: &[u32]) -> Option<Matrix> {
        let [of_batch, of_row, of_column] = [distance(batches)?, distance(rows)?, distance(columns)?];
        let (m, n) = (rows.len(), columns.len());
        let lies = |along: usize, len: usize, across: usize, count: usize| {
            (len == 1 || along == 1) && (count == 1 || across >= len)
        };
        let (transposed, step, len, count) = if lies(of_column, n, of_row, m) {
            (false, of_row, n, m)
        } else if lies(of_row, m, of_column, n) {
            (true, of_column, m, n)
        } else {
            return None;
        };
        let step = if count == 1 { len } else { step };
        let first = batches[0] as usize + rows[0] as usize + columns[0] as usize;
        Some(Matrix { first, step, transposed, batch_step: of_batch })
    }

    fn flipped(self) -> Matrix {
        Matrix { transposed: !self.transposed, ..self }
    }
}

/// Offsets of an operand.
struct Offsets<'a> {
    batches: &'a [u32],
    rows: &'a [u32],
    columns: &'a [u32],
}

/// A copy between a tensor and a matrix \[batches, outer, inner\].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packing {
    /// Offsets in the tensor of batches, then of outer, then of inner, in vectors.
    table: Vec<u32>,
    /// Lanes of a vector.
    width: usize,
    /// Of the matrix, inner in vectors.
    extents: [usize; 3],
    /// Type of the matrix.
    dtype: DType,
}

/// Bytes that a unit moves at once.
const VECTOR_BYTES: usize = 16;

/// Bytes of an element.
fn size(dtype: DType) -> usize {
    match dtype {
        DType::Bf16 | DType::F16 => 2,
        DType::F32 | DType::I32 | DType::Bool | DType::Compute | DType::Sub(_) => 4,
    }
}

impl Packing {
    /// How an operand is copied, and the matrix that it then is.
    fn of(side: &Offsets<'_>, dtype: DType) -> (Packing, Matrix) {
        let is_contiguous = |offsets: &[u32]| offsets.len() > 1 && offsets[1] == offsets[0] + 1;
        // Neighbours in memory stay neighbours.
        let transposed = is_contiguous(side.rows) && !is_contiguous(side.columns);
        let (outer, inner) = if transposed { (side.columns, side.rows) } else { (side.rows, side.columns) };
        let fits = |w: &usize| {
            let even = |offsets: &[u32]| offsets.iter().all(|o| o.is_multiple_of(*w as u32));
            let run = |run: &[u32]| run[0].is_multiple_of(*w as u32) && run.windows(2).all(|p| p[1] == p[0] + 1);
            inner.len().is_multiple_of(*w) && inner.chunks_exact(*w).all(run) && even(outer) && even(side.batches)
        };
        let widest = VECTOR_BYTES / size(dtype);
        let width = (0..=widest.ilog2()).rev().map(|bits| 1 << bits).find(fits).unwrap_or(1);
        let vectors = |offsets: &[u32]| offsets.iter().map(|o| o / width as u32).collect::<Vec<_>>();
        let starts: Vec<u32> = inner.iter().copied().step_by(width).collect();
        let table = [vectors(side.batches), vectors(outer), vectors(&starts)].concat();
        let extents = [side.batches.len(), outer.len(), starts.len()];
        let batch_step = outer.len() * inner.len();
        (Packing { table, width, extents, dtype }, Matrix { first: 0, step: inner.len(), transposed, batch_step })
    }

    fn len(&self) -> usize {
        self.extents.iter().product::<usize>() * self.width
    }
}

/// A `dot_general` as a product of matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Matrices {
    product: MatrixProduct,
    /// The product is the transpose, of the operands in the other order.
    is_swapped: bool,
    /// Copies of a, b and c.
    packings: [Option<Packing>; 3],
}

impl Matrices {
    /// None where a library cannot store what is asked for.
    fn of(tables: &DotTables, [a, b, c]: [DType; 3], round: Option<DType>) -> Option<Matrices> {
        // It rounds to what it stores and to nothing else.
        let is_storable = c == a || c == DType::F32;
        if a != b || !is_storable || round.is_some_and(|r| r != c) || tables.is_empty() {
            return None;
        }
        let DotTables { batch, row, k, col } = tables;
        let sides = [
            Offsets { batches: &batch[0], rows: &row[0], columns: &k[0] },
            Offsets { batches: &batch[1], rows: &k[1], columns: &col[0] },
            Offsets { batches: &batch[2], rows: &row[1], columns: &col[1] },
        ];
        let mut packings = [None, None, None];
        let mut matrices = [Matrix { first: 0, step: 0, transposed: false, batch_step: 0 }; 3];
        for (i, (side, dtype)) in sides.iter().zip([a, b, c]).enumerate() {
            let as_it_lies = Matrix::of(side.batches, side.rows, side.columns);
            // Batches of a result lie apart.
            let lies = as_it_lies.filter(|m| i < 2 || side.batches.len() == 1 || m.batch_step > 0);
            matrices[i] = lies.unwrap_or_else(|| {
                let (packing, matrix) = Packing::of(side, dtype);
                packings[i] = Some(packing);
                matrix
            });
        }
        let [of_a, of_b, of_c] = matrices;
        let [batches, m, n] = [batch[0].len(), row[0].len(), col[0].len()];
        let is_swapped = of_c.transposed;
        let (m, n, left, right) = if is_swapped { (n, m, of_b.flipped(), of_a.flipped()) } else { (m, n, of_a, of_b) };
        let of_c = Matrix { transposed: false, ..of_c };
        let product = MatrixProduct { dtype: a, to: c, batches, m, n, k: k[0].len(), a: left, b: right, c: of_c };
        Some(Matrices { product, is_swapped, packings })
    }
}

/// A copy whose table is on the device.
#[derive(Clone, Debug)]
struct Placed {
    packing: Packing,
    table: Memory,
}

/// A `dot_general` by the vendor's library.
#[derive(Clone, Debug)]
pub struct VendorDot {
    product: Arc<dyn Product>,
    is_swapped: bool,
    packings: [Option<Placed>; 3],
}

impl VendorDot {
    /// Scratch that a run takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        self.packings.iter().flatten().map(|p| align(p.packing.len() * size(p.packing.dtype))).sum()
    }
}

impl CubeDevice {
    /// The vendor's way of a product; none without one.
    pub(super) fn vendor_dot(
        &self,
        tables: &DotTables,
        types: [DType; 3],
        round: Option<DType>,
    ) -> Result<Option<VendorDot>, CubeError> {
        let Some(Matrices { product, is_swapped, packings }) = Matrices::of(tables, types, round) else {
            return Ok(None);
        };
        let Some(product) = self.server.product(&product)? else { return Ok(None) };
        let mut placed = [None, None, None];
        for (to, packing) in placed.iter_mut().zip(packings) {
            if let Some(packing) = packing {
                let words: Vec<u8> = packing.table.iter().flat_map(|x| x.to_le_bytes()).collect();
                *to = Some(Placed { table: self.table(&words)?, packing });
            }
        }
        Ok(Some(VendorDot { product, is_swapped, packings: placed }))
    }

    /// c = a·b, or c += a·b.
    pub(super) fn run_vendor_dot(
        &self,
        dot: &VendorDot,
        [a, b, c]: [&Buffer; 3],
        accumulate: bool,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let [of_a, of_b, of_c] = &dot.packings;
        let a = self.packed(of_a.as_ref(), a, scratch)?;
        let b = self.packed(of_b.as_ref(), b, scratch)?;
        let (left, right) = if dot.is_swapped { (&b, &a) } else { (&a, &b) };
        let Some(placed) = of_c else {
            return self.launched(dot.product.launch(left, right, &c.memory, accumulate));
        };
        let Packing { dtype, width, .. } = placed.packing;
        let matrix = scratch.take(self, dtype, placed.packing.len())?;
        self.launched(dot.product.launch(left, right, &matrix.memory, false))?;
        let kernel = LibraryKernel::Unpack { types: [dtype, c.dtype], accumulate, width };
        self.launch_packing(kernel, placed, [&matrix, c])
    }

    /// An operand as a matrix.
    fn packed(&self, placed: Option<&Placed>, x: &Buffer, scratch: &mut Scratch) -> Result<Memory, CubeError> {
        let Some(placed) = placed else { return Ok(x.memory.clone()) };
        let Packing { dtype, width, .. } = placed.packing;
        let matrix = scratch.take(self, dtype, placed.packing.len())?;
        self.launch_packing(LibraryKernel::Pack { dtype, width }, placed, [x, &matrix])?;
        Ok(matrix.memory)
    }

    fn launch_packing(&self, kernel: LibraryKernel, placed: &Placed, xy: [&Buffer; 2]) -> Result<(), CubeError> {
        let Packing { table, width, extents, .. } = &placed.packing;
        let [x, y] = xy.map(|b| self.bound(b)).map(|b| Bound { ty: b.ty.with_vector_size(*width), ..b });
        let table = Bound { memory: &placed.table, len: table.len(), ty: Type::new(U32) };
        self.launch_units(kernel, extents.iter().product(), &[x, table, y], extents, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_compiler::ir::{Axis, Sizes};

    #[test]
    fn matrices_are_read_from_offsets() {
        let of = |b: &[u32], r: &[u32], c: &[u32]| Matrix::of(b, r, c).map(|m| (m.first, m.step, m.transposed));
        assert_eq!(of(&[0], &[0, 4, 8], &[0, 1, 2]), Some((0, 4, false)));
        assert_eq!(of(&[7], &[0, 1, 2], &[0, 5]), Some((7, 5, true)));
        assert_eq!(of(&[0], &[0], &[0, 1, 2]), Some((0, 3, false)));
        assert_eq!(of(&[0], &[0], &[0, 2, 4]), Some((0, 2, true)));
        // Rows that lie in one another, and two axes that lie apart, are none.
        assert_eq!(of(&[0], &[0, 2], &[0, 1, 2]), None);
        assert_eq!(of(&[0], &[0, 8, 16], &[0, 1, 4, 5]), None);
        assert_eq!(Matrix::of(&[0, 12, 24], &[0, 4, 8], &[0, 1, 2, 3]).map(|m| m.batch_step), Some(12));
    }

    /// Element (i, j) of a matrix.
    fn at(m: Matrix, batch: usize, i: usize, j: usize) -> usize {
        let within = if m.transposed { j * m.step + i } else { i * m.step + j };
        m.first + batch * m.batch_step + within
    }

    /// Tensor positions of a packing's matrix, element by element.
    fn places(p: &Packing) -> Vec<usize> {
        let [batches, outer, inner] = p.extents;
        let mut all = Vec::new();
        for at in 0..batches * outer * inner {
            let [b, o, i] = [at / inner / outer, batches + at / inner % outer, batches + outer + at % inner];
            let vector = (p.table[b] + p.table[o] + p.table[i]) as usize;
            all.extend((0..p.width).map(|lane| vector * p.width + lane));
        }
        all
    }

    /// The product as a library that follows the description computes it, on integers that f64 holds.
    fn by_matrices(matrices: &Matrices, [a, b]: [&[f64]; 2], c_len: usize) -> Vec<f64> {
        let packed = |p: &Option<Packing>, x: &[f64]| match p {
            Some(p) => places(p).iter().map(|&i| x[i]).collect(),
            None => x.to_vec(),
        };
        let [of_a, of_b, of_c] = &matrices.packings;
        let (a, b) = (packed(of_a, a), packed(of_b, b));
        let (left, right) = if matrices.is_swapped { (b, a) } else { (a, b) };
        let p = matrices.product;
        let mut c = vec![f64::NAN; of_c.as_ref().map_or(c_len, Packing::len)];
        for batch in 0..p.batches {
            for i in 0..p.m {
                for j in 0..p.n {
                    let term = |k| left[at(p.a, batch, i, k)] * right[at(p.b, batch, k, j)];
                    c[at(p.c, batch, i, j)] = (0..p.k).map(term).sum();
                }
            }
        }
        let Some(of_c) = of_c else { return c };
        let mut out = vec![f64::NAN; c_len];
        places(of_c).iter().zip(&c).for_each(|(&to, &x)| out[to] = x);
        out
    }

    #[test]
    fn products_of_matrices_are_the_einsums() {
        let sizes: Sizes = [("B", 2), ("S", 6), ("D", 8), ("H", 3), ("K", 4), ("T", 5), ("U", 1)]
            .into_iter()
            .map(|(name, n)| (Axis::new(name), n))
            .collect();
        for einsum in [
            "BSD,DT->BST",
            "BSD,TD->BST",
            "BST,DT->BSD",
            "BSD,BST->DT",
            "BSD,BST->TD",
            // To and from heads.
            "BSD,DHK->BHSK",
            "BHSK,DHK->BSD",
            "BSD,BHSK->DHK",
            "BHSK,HKD->BSD",
            "BSD,HKD->BHSK",
            "BHSK,BSD->HKD",
            // Batched, with and without transposes; vectors; one axis of size 1.
            "BSD,BTD->BST",
            "BHSK,BHTK->BHST",
            "BHST,BTK->BHSK",
            "BSD,D->BS",
            "S,T->ST",
            "S,T->TS",
            "BUD,DT->BUT",
        ] {
            let (operands, c) = einsum.split_once("->").unwrap();
            let (a, b) = operands.split_once(',').unwrap();
            let [a, b, c] = [a, b, c].map(|s| s.chars().map(|x| Axis::new(&x.to_string())).collect::<Vec<_>>());
            let tables = DotTables::new(&a, &b, &c, &sizes).unwrap();
            let values = |axes: &[Axis], seed: usize| -> Vec<f64> {
                (0..sizes.elements(axes)).map(|i| ((i * 37 + seed) % 19) as f64 - 9.0).collect()
            };
            let (x, y) = (values(&a, 1), values(&b, 5));
            let matrices = Matrices::of(&tables, [DType::Bf16; 3], Some(DType::Bf16)).unwrap();
            let got = by_matrices(&matrices, [&x, &y], sizes.elements(&c));
            let mut wanted = vec![f64::NAN; sizes.elements(&c)];
            let DotTables { batch, row, k, col } = &tables;
            for s in 0..batch[0].len() {
                for (i, &ra) in row[0].iter().enumerate() {
                    for (j, &cb) in col[0].iter().enumerate() {
                        let terms = k[0].iter().zip(&k[1]).map(|(&ka, &kb)| {
                            x[(batch[0][s] + ra + ka) as usize] * y[(batch[1][s] + kb + cb) as usize]
                        });
                        wanted[(batch[2][s] + row[1][i] + col[1][j]) as usize] = terms.sum();
                    }
                }
            }
            assert_eq!(got, wanted, "{einsum}: {matrices:?}");
        }
        // What a library does not store so.
        let tables = DotTables::new(&[Axis::new("S")], &[Axis::new("T")], &[Axis::new("S"), Axis::new("T")], &sizes);
        let tables = tables.unwrap();
        let [f, h] = [DType::F32, DType::Bf16];
        for (types, round) in [([f, h, h], None), ([f, f, h], None), ([h, h, f], Some(h))] {
            assert_eq!(Matrices::of(&tables, types, round), None);
        }
        assert!(Matrices::of(&tables, [h, h, f], None).is_some());
    }
}
