//! A fused region: a scalar program over a named iteration domain. One region is one launch.
//!
//! The host's tile engine interprets it, the emitter prints it as a `#[cube]` function; both read [`Region::abi`] for the order
//! of arguments.
//!
//! A region iterates over `domain`. Its first `rows` axes number the rows, the others are the *interior* of a row. A map has no
//! row reduction and `rows == domain.len()` by convention. Instructions are in SSA form; each refers to earlier ones only.

use crate::ir::{Attr, Axis, DType, Sizes, Span};
use crate::ops::Scalar;
use xxhash_rust::xxh3::Xxh3Default;

/// Index of an instruction in [`Region::code`].
pub type Reg = usize;

/// Which kernel template executes a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// T1: every operand covers the whole domain in the same order: one flat loop.
    FlatMap,
    /// T2: operands with their own strides (broadcasts, permutations, rotations, indexed loads).
    StridedMap,
    /// T3: row reductions over the interior, then maps over the same rows.
    Row,
    /// T4: as T3, with outputs summed over the rows.
    RowColumn,
    /// T5: sums of rows that share an id.
    SegmentSum,
}

/// How an operand or an output lies in memory: contiguous, row-major over `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// For each axis of the buffer, slowest first, where its index comes from.
    pub axes: Vec<Index>,
    /// Element type in memory; a slot number into [`Region::dtypes`].
    pub dtype: usize,
}

/// Where the index along one axis of a buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// Position of an axis in the domain.
    Domain(usize),
    /// The same, plus half of the axis' size modulo its size: the partner element of a rotation.
    Rotated(usize),
    /// The value of an integer instruction; the size of this axis is bound apart from the domain (see [`Region::extra_axes`]).
    Value(Reg),
}

/// One instruction. All arithmetic is f32; comparisons give masks; ids are i32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instr {
    /// Element of operand `i` at the current index, widened to f32 (i32 operands stay integers).
    Load(usize),
    /// Scalar `i` of [`Region::scalars`].
    Scalar(usize),
    /// Index along a domain axis as f32 (global index where the axis is split over ranks).
    Iota(usize),
    /// `-1` in the first half of a domain axis, `+1` in the second: the sign of a rotation.
    HalfSign(usize),
    /// One-operand map.
    Unary(Scalar, Reg),
    /// Two-operand map.
    Binary(Scalar, Reg, Reg),
    /// Mask ? a : b.
    Select(Reg, Reg, Reg),
    /// Rounded to the element type of a dtype slot, and widened again.
    Round(usize, Reg),
    /// Uniform random number in [0, 1) of stream `i` of [`Region::streams`].
    Uniform(usize),
    /// Sum over the interior; the same for all elements of a row.
    RowSum(Reg),
    /// Maximum over the interior.
    RowMax(Reg),
    /// Sum over the rows: may only be an output, over the interior axes.
    ColumnSum(Reg),
    /// Σ over j in starts[v]..ends[v] of values[order[j], interior]; `v` is the index along the only row axis.
    /// Fields are operand numbers: `values` lies as (flat row, interior), `order` as (flat row), `starts` and `ends` as (v).
    SegmentSum {
        /// The rows to sum.
        values: usize,
        /// Row numbers sorted by id, stable.
        order: usize,
        /// First position in `order` of each id.
        starts: usize,
        /// One past the last position in `order` of each id.
        ends: usize,
    },
}

/// A number that a launch passes as f32.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarArg {
    /// A literal, or a `#[config]` value until linking replaces it.
    Literal(Attr),
    /// Product of the sizes of these axes (global sizes), or its reciprocal.
    Size {
        /// The axes.
        axes: Vec<Axis>,
        /// 1/product.
        recip: bool,
    },
}

/// A random stream: its values are indexed by the row-major position in the logical whole-batch tensor over `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Ordinal of the random operation in the layer's source order.
    pub site: i64,
    /// Axes of the logical tensor, as domain positions, slowest first.
    pub axes: Vec<usize>,
}

/// One fused region.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// The template that executes it.
    pub template: Template,
    /// Iteration domain.
    pub domain: Vec<Axis>,
    /// How many leading axes of the domain number rows.
    pub rows: usize,
    /// Element types in memory and of roundings; launches bind them.
    pub dtypes: Vec<DType>,
    /// Operands.
    pub inputs: Vec<Layout>,
    /// Axes of buffers that are indexed by values rather than by the domain, in order of first use over `inputs`.
    pub extra_axes: Vec<Axis>,
    /// Scalar arguments.
    pub scalars: Vec<ScalarArg>,
    /// Random streams.
    pub streams: Vec<Stream>,
    /// The program.
    pub code: Vec<Instr>,
    /// Results: which instruction, and how it is stored. An output that lacks domain axes is stored once, at index 0 of each
    /// missing axis (a map's output over fewer axes does not depend on them; a row reduction lacks the interior).
    pub outputs: Vec<(Reg, Layout)>,
    /// For people: the user's operation behind each instruction.
    pub spans: Vec<Span>,
    /// For people: the user's name of each operand, then of each output; empty where there is none.
    pub names: Vec<String>,
}

/// The order of a kernel's arguments; the only definition, read by emitter, launcher and tile engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abi {
    /// Buffers: inputs, then outputs.
    pub buffers: usize,
    /// u32 scalars: the domain's extents; then for each buffer one stride per domain axis (0 where it lacks the axis; elements);
    /// then for each buffer one stride per `Index::Value` axis; then per stream one global stride per domain axis, a global
    /// offset, and its 64-bit key as two words (low, high); then for each domain axis its global offset and the local size.
    pub u32s: usize,
    /// f32 scalars: [`Region::scalars`].
    pub f32s: usize,
}

impl Region {
    /// The arguments of its kernel.
    pub fn abi(&self) -> Abi {
        let buffers = self.inputs.len() + self.outputs.len();
        let d = self.domain.len();
        let by_value: usize =
            self.layouts().map(|l| l.axes.iter().filter(|i| matches!(i, Index::Value(_))).count()).sum();
        Abi {
            buffers,
            u32s: d + buffers * d + by_value + self.streams.len() * (d + 3) + 2 * d,
            f32s: self.scalars.len(),
        }
    }

    /// Layouts of all buffers in argument order.
    pub fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.inputs.iter().chain(self.outputs.iter().map(|(_, l)| l))
    }

    /// Structural hash: free of names, element types, sizes, widths, constants and sites, so that one emitted kernel serves all.
    pub fn hash(&self) -> u64 {
        let mut text = format!("{:?}|{}|{}|{:?}|", self.template, self.domain.len(), self.rows, self.inputs);
        text.push_str(&format!("{}|{}|{:?}|", self.extra_axes.len(), self.scalars.len(), self.code));
        for s in &self.streams {
            text.push_str(&format!("{:?};", s.axes));
        }
        text.push_str(&format!("{:?}", self.outputs));
        let mut h = Xxh3Default::new();
        h.update(text.as_bytes());
        h.digest()
    }

    /// Axes of the interior.
    pub fn interior(&self) -> &[Axis] {
        &self.domain[self.rows..]
    }

    /// Sizes of the domain.
    pub fn extents(&self, sizes: &Sizes) -> Vec<usize> {
        sizes.shape(&self.domain)
    }

    /// Whether it only copies its operand: after linking such a region aliases the buffer.
    pub fn is_copy(&self, dtype: impl Fn(DType) -> DType) -> bool {
        let [(out, out_layout)] = self.outputs.as_slice() else { return false };
        let [input] = self.inputs.as_slice() else { return false };
        let stored = dtype(self.dtypes[input.dtype]);
        if input.axes != out_layout.axes || dtype(self.dtypes[out_layout.dtype]) != stored {
            return false;
        }
        let mut reg = *out;
        loop {
            match self.code[reg] {
                Instr::Load(_) => return true,
                Instr::Round(slot, a)
                    if dtype(self.dtypes[slot]) == stored || dtype(self.dtypes[slot]) == DType::F32 =>
                {
                    reg = a
                }
                _ => return false,
            }
        }
    }
}
