//! A fused region: a scalar program over a named iteration domain. One region is one launch.
//!
//! The host's tile engine interprets it; on a GPU it becomes a kernel ([`super::kernel`]) whose arguments come in the order of
//! [`Region::abi`].
//!
//! A region iterates over `domain`. Its first `rows` axes number the rows, the others are the *interior* of a row. A map has no
//! row reduction and `rows == domain.len()` by convention. Instructions are in SSA form; each refers to earlier ones only.

use crate::ir::{Attr, Axis, DType, Sizes, Span};
use crate::ops::Scalar;
use std::fmt;
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
    /// Σ over j in `starts[v]..ends[v]` of `values[order[j], interior]`; `v` is the index along the only row axis.
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
    /// Axes of buffers that are indexed by values rather than by the domain: one for each [`Index::Value`], in order over `inputs`.
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

/// A buffer argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferArg {
    /// Operand `i`.
    Input(usize),
    /// Output `i`.
    Output(usize),
    /// In place of output `i`, a sum over rows: one f32 partial sum per cube and interior element, `[cubes, interior]`. A second
    /// launch sums them into the output in the order of the cubes.
    Partial(usize),
    /// u32 words that change from step to step without changing the plan: the step (low, high), then for each stream its key
    /// (low, high) and the index of its first local element in the logical tensor (low, high).
    Random,
}

/// An integer argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexArg {
    /// Local size of a domain axis.
    Extent(usize),
    /// Size of an extra axis, which bounds an index that is a value.
    Extra(usize),
    /// Stride, in elements, of one axis of a buffer: `buffer` counts [`Region::layouts`], `axis` its axes. The fastest axis has
    /// stride 1 and no argument; nor have the buffers of [`Region::is_plain`].
    Stride {
        /// Which layout.
        buffer: usize,
        /// Which of its axes.
        axis: usize,
    },
    /// Global index of the first local element along a domain axis: axes that an [`Instr::Iota`] reads.
    Offset(usize),
    /// Stride, in elements of the logical tensor, of one axis of a stream; the fastest has stride 1 and no argument.
    StreamStride {
        /// Which stream.
        stream: usize,
        /// Which of its axes.
        axis: usize,
    },
}

/// The order of a kernel's arguments; the only definition, read by emitter and launcher: buffers, then indices, then
/// [`Region::scalars`] as f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abi {
    /// Buffers in order: inputs, outputs, random words.
    pub buffers: Vec<BufferArg>,
    /// Integers in order.
    pub indices: Vec<IndexArg>,
}

impl Region {
    /// The arguments of its kernel.
    pub fn abi(&self) -> Abi {
        let inputs = (0..self.inputs.len()).map(BufferArg::Input);
        let outputs = self.outputs.iter().enumerate().map(|(i, (reg, _))| match self.code[*reg] {
            Instr::ColumnSum(_) => BufferArg::Partial(i),
            _ => BufferArg::Output(i),
        });
        let random = (!self.streams.is_empty()).then_some(BufferArg::Random);
        let mut indices: Vec<IndexArg> = (0..self.domain.len()).map(IndexArg::Extent).collect();
        indices.extend((0..self.extra_axes.len()).map(IndexArg::Extra));
        for (buffer, layout) in self.layouts().enumerate() {
            let strided = if self.is_plain(buffer) { 0 } else { layout.axes.len().saturating_sub(1) };
            indices.extend((0..strided).map(|axis| IndexArg::Stride { buffer, axis }));
        }
        for axis in 0..self.domain.len() {
            if self.code.contains(&Instr::Iota(axis)) {
                indices.push(IndexArg::Offset(axis));
            }
        }
        for (stream, s) in self.streams.iter().enumerate() {
            indices.extend((0..s.axes.len().saturating_sub(1)).map(|axis| IndexArg::StreamStride { stream, axis }));
        }
        Abi { buffers: inputs.chain(outputs).chain(random).collect(), indices }
    }

    /// Instructions that an instruction reads.
    pub fn operands(&self, instr: &Instr) -> Vec<Reg> {
        match *instr {
            Instr::Load(i) => {
                let by_value = |index: &Index| match *index {
                    Index::Value(r) => Some(r),
                    Index::Domain(_) | Index::Rotated(_) => None,
                };
                self.inputs[i].axes.iter().filter_map(by_value).collect()
            }
            Instr::Scalar(_) | Instr::Iota(_) | Instr::HalfSign(_) | Instr::Uniform(_) | Instr::SegmentSum { .. } => {
                Vec::new()
            }
            Instr::Unary(_, a) | Instr::Round(_, a) | Instr::ColumnSum(a) | Instr::RowSum(a) | Instr::RowMax(a) => {
                vec![a]
            }
            Instr::Binary(_, a, b) => vec![a, b],
            Instr::Select(m, a, b) => vec![m, a, b],
        }
    }

    /// Whether buffer `i` needs no strides: it lies in the order of the domain, of its rows or of their interior.
    pub fn is_plain(&self, i: usize) -> bool {
        let d = self.domain.len();
        let lies_over = |axes: &[Index], from: usize, to: usize| {
            axes.len() == to - from && axes.iter().zip(from..to).all(|(index, a)| *index == Index::Domain(a))
        };
        let layout = self.layouts().nth(i).map(|l| l.axes.as_slice()).unwrap_or_default();
        self.is_segment_operand(i)
            || lies_over(layout, 0, d)
            || self.has_rows() && (lies_over(layout, 0, self.rows) || lies_over(layout, self.rows, d))
    }

    /// Whether its template deals rows to cubes.
    pub fn has_rows(&self) -> bool {
        match self.template {
            Template::Row | Template::RowColumn => true,
            Template::FlatMap | Template::StridedMap | Template::SegmentSum => false,
        }
    }

    /// Whether operand `i` is read by a [`Instr::SegmentSum`] rather than at the domain's index.
    pub fn is_segment_operand(&self, i: usize) -> bool {
        self.code.iter().any(|instr| match *instr {
            Instr::SegmentSum { values, order, starts, ends } => [values, order, starts, ends].contains(&i),
            _ => false,
        })
    }

    /// Whether buffer `i` of [`Region::layouts`] is an output that is summed over the rows.
    pub fn is_column_output(&self, i: usize) -> bool {
        let output = i.checked_sub(self.inputs.len()).and_then(|o| self.outputs.get(o));
        output.is_some_and(|(reg, _)| matches!(self.code[*reg], Instr::ColumnSum(_)))
    }

    /// Layouts of all buffers in argument order.
    pub fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.inputs.iter().chain(self.outputs.iter().map(|(_, l)| l))
    }

    /// Structural hash: free of names, float types, sizes, widths, constants and sites, so that one emitted kernel serves all.
    pub fn hash(&self) -> u64 {
        let mut text = format!("{:?}|{}|{}|{:?}|", self.template, self.domain.len(), self.rows, self.inputs);
        text.push_str(&format!("{}|{}|{:?}|", self.extra_axes.len(), self.scalars.len(), self.code));
        for s in &self.streams {
            text.push_str(&format!("{:?};", s.axes));
        }
        text.push_str(&format!("{:?}|", self.outputs));
        for d in &self.dtypes {
            text.push_str(match d {
                DType::I32 => "i",
                DType::Bool => "b",
                DType::F32 | DType::Bf16 | DType::F16 | DType::Compute | DType::Sub(_) => "f",
            });
        }
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

/// One line for the domain, then for each operand, instruction and result.
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes = |axes: &[Axis]| axes.iter().map(Axis::to_string).collect::<Vec<_>>().join(", ");
        let rows =
            if self.rows > 0 { format!(", rows over {}", axes(&self.domain[..self.rows])) } else { String::new() };
        writeln!(f, "{:?} over [{}]{rows}", self.template, axes(&self.domain))?;
        let name = |k: usize| self.names.get(k).filter(|n| !n.is_empty()).map(|n| format!(" {n}")).unwrap_or_default();
        let place = |layout: &Layout| {
            let index = |i: &Index| match *i {
                Index::Domain(a) => self.domain[a].to_string(),
                Index::Rotated(a) => format!("rotated {}", self.domain[a]),
                Index::Value(reg) => format!("%{reg}"),
            };
            let indices: Vec<String> = layout.axes.iter().map(index).collect();
            format!("{}[{}]", self.dtypes[layout.dtype], indices.join(", "))
        };
        for (k, layout) in self.inputs.iter().enumerate() {
            writeln!(f, "  in {k}{}: {}", name(k), place(layout))?;
        }
        for (k, scalar) in self.scalars.iter().enumerate() {
            writeln!(f, "  scalar {k}: {scalar:?}")?;
        }
        for (k, stream) in self.streams.iter().enumerate() {
            writeln!(f, "  stream {k}: site {}", stream.site)?;
        }
        for (k, instr) in self.code.iter().enumerate() {
            let line = self.spans.get(k).map(|s| format!("  @{}:{}", s.line, s.column)).unwrap_or_default();
            writeln!(f, "  %{k} = {instr:?}{line}")?;
        }
        for (k, (reg, layout)) in self.outputs.iter().enumerate() {
            writeln!(f, "  out {k}{}: %{reg} to {}", name(self.inputs.len() + k), place(layout))?;
        }
        Ok(())
    }
}
