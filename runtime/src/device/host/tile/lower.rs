//! Region → program of the tile engine: groups of axes, strides, classes and memory of registers.

use super::super::buffer::Buf;
use super::{Part, TileArgs, TileError};
use kiln_compiler::fuse::{Index, Instr, Layout, Region, ScalarArg, Template};
use kiln_compiler::ir::{Attr, Axis, DType, Sizes};
use kiln_compiler::ops::Scalar;
use std::ops::Range;

/// Most axes of a group after merging.
pub const MAX_AXES: usize = 12;
/// Most registers that lie in buffers.
pub const MAX_IN_PLACE: usize = 16;
/// Below this many instruction-elements, waking a thread costs more than it saves.
pub const SERIAL_WORK: usize = 1 << 14;

// All registers of a tile stay in the first-level cache.
const TILE_BYTES: usize = 32 << 10;
// Shorter tiles spend their time between loops; longer ones leave the cache.
const TILE_ELEMENTS: Range<usize> = 256..4096;
// Elements per task: some tens of microseconds.
const TASK_ELEMENTS: usize = 1 << 14;
// Rows per partial column sum, and how many partial sums there are at most; functions of the shape alone.
const CHUNK_ROWS: usize = 32;
const MOST_CHUNKS: usize = 256;
// Registers start on cache lines.
const LINE: usize = 16;

/// What a register's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Float,
    /// i32, kept as bits.
    Int,
    /// 0 or 1.
    Mask,
}

/// Which axes of the tile a register spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub rows: bool,
    pub cols: bool,
}

/// A register: its class and its place in a worker's memory.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    pub class: Class,
    pub at: usize,
    /// Number of the [`InPlace`] that says where its elements lie in a buffer.
    pub in_place: Option<usize>,
}

/// A buffer of f32 whose elements in each tile follow each other as those of a register do, so that they need not be copied: an operand
/// that is read where it lies, or a result that is computed where it belongs.
#[derive(Debug)]
pub struct InPlace {
    pub place: Place,
    pub walk: Walk,
}

/// Number of an operand or of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Input(usize),
    Output(usize),
}

/// How offsets follow from indices: into a buffer, or the numbers of an iota or a stream.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    pub base: isize,
    pub outer: Vec<isize>,
    pub rows: Vec<isize>,
    /// Offset of each run of the innermost column axis.
    pub runs: Vec<isize>,
    /// Stride along a run.
    pub step: isize,
    /// Length of a run.
    pub run_len: usize,
    /// Register of an index, its stride and its limit.
    pub values: Vec<(usize, isize, usize)>,
}

impl Walk {
    /// Runs that follow each other in memory become one.
    fn join_runs(&mut self) {
        let next = self.run_len as isize * self.step;
        if self.runs.len() > 1 && self.runs.windows(2).all(|w| w[1] - w[0] == next) {
            self.run_len *= self.runs.len();
            self.runs.truncate(1);
        }
    }
}

/// A walk that writes: axes that the buffer lacks are written at index 0 only.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub walk: Walk,
    pub lacks_outer: Vec<bool>,
    pub lacks_rows: Vec<bool>,
    /// Whether each run is written.
    pub keeps_run: Vec<bool>,
    /// Whether only the first element of a run is written.
    pub lacks_run: bool,
}

impl Store {
    /// Offset of column `c`, for buffers over columns only.
    pub fn column(&self, c: usize) -> usize {
        let n = self.walk.run_len.max(1);
        (self.walk.base + self.walk.runs[c / n] + (c % n) as isize * self.walk.step) as usize
    }
}

/// One instruction of the engine; registers are numbers in [`Program::registers`].
#[derive(Clone, Debug)]
pub enum Step {
    Load {
        input: usize,
        walk: Walk,
    },
    Const(f32),
    /// The offset itself, as a number.
    Index(Walk),
    Unary(Scalar, usize),
    Binary(Scalar, usize, usize),
    /// Comparison of integers.
    CompareInts(Scalar, usize, usize),
    ToFloat(usize),
    Select(usize, usize, usize),
    Round(DType, usize),
    Uniform {
        stream: usize,
        walk: Walk,
    },
    RowSum(usize),
    RowMax(usize),
    SegmentSum {
        values: usize,
        order: usize,
        starts: usize,
        ends: usize,
    },
}

impl Step {
    fn operands(&self) -> Vec<usize> {
        match self {
            Step::Load { walk, .. } => walk.values.iter().map(|v| v.0).collect(),
            Step::Const(_) | Step::Index(_) | Step::Uniform { .. } | Step::SegmentSum { .. } => Vec::new(),
            Step::Unary(_, a) | Step::ToFloat(a) | Step::Round(_, a) | Step::RowSum(a) | Step::RowMax(a) => vec![*a],
            Step::Binary(_, a, b) | Step::CompareInts(_, a, b) => vec![*a, *b],
            Step::Select(m, a, b) => vec![*m, *a, *b],
        }
    }
}

/// A sum over rows.
#[derive(Clone, Debug)]
pub struct ColumnSum {
    pub source: usize,
    pub rounds: Vec<DType>,
    pub output: usize,
    pub store: Store,
}

/// A planned region.
#[derive(Debug, Default)]
pub struct Program {
    /// Sizes of the outer and of the row axes.
    pub outer: Vec<usize>,
    pub rows: Vec<usize>,
    /// Number of rows and of columns.
    pub n_rows: usize,
    pub cols: usize,
    /// Rows and columns of a tile.
    pub tile_rows: usize,
    pub tile_cols: usize,
    /// Rows of a unit of work.
    pub unit_rows: usize,
    units: usize,
    units_per_task: usize,
    /// Instruction-elements.
    pub work: usize,
    pub registers: Vec<Register>,
    pub in_place: Vec<InPlace>,
    /// Steps that no row changes, with the register that they write.
    pub once: Vec<(usize, Step)>,
    /// Steps of every tile.
    pub steps: Vec<(usize, Step)>,
    /// Register, output.
    pub stores: Vec<(usize, usize, Store)>,
    pub column_sums: Vec<ColumnSum>,
    pub streams: usize,
    /// Memory of one worker; the last three rows of a tile in it are scratch.
    pub worker_len: usize,
    pub scratch_at: usize,
    /// Elements and type of each buffer.
    inputs: Vec<(usize, DType)>,
    outputs: Vec<(usize, DType)>,
}

/// What one unit of work covers.
pub struct Unit {
    pub outer: usize,
    pub col: usize,
    pub cols: usize,
    pub rows: Range<usize>,
    /// Number of the chunk of rows.
    pub chunk: usize,
}

impl Program {
    pub fn chunks(&self) -> usize {
        self.n_rows.div_ceil(self.unit_rows)
    }

    pub fn partial_len(&self) -> usize {
        self.column_sums.len() * self.chunks() * self.cols
    }

    pub fn tasks(&self) -> usize {
        self.units.div_ceil(self.units_per_task)
    }

    /// Whether the elements of each tile follow each other in the buffer that `walk` crosses.
    fn follows(&self, walk: &Walk) -> bool {
        walk.runs.len() == 1
            && walk.step == 1
            && (self.tile_rows == 1
                || match walk.rows.as_slice() {
                    [] => true,
                    [s] => *s == walk.run_len as isize && self.tile_cols == walk.run_len,
                    _ => false,
                })
    }

    /// Bits of the registers in buffers that may be used with these arguments: an operand must not be written meanwhile, and a result
    /// must not be read from before.
    pub fn in_place(&self, args: &TileArgs<'_>) -> u32 {
        let overlap = |a: &Buf, b: &Buf| {
            let [(a, a_end), (b, b_end)] = [a, b].map(|x| (x.as_ptr() as usize, x.as_ptr() as usize + x.bytes()));
            a < b_end && b < a_end
        };
        let usable = |place: Place| match place {
            Place::Input(i) => !args.outputs.iter().any(|o| overlap(o, &args.inputs[i])),
            Place::Output(o) => {
                let adds = args.accumulate.get(o) == Some(&true);
                !adds && !args.inputs.iter().any(|i| overlap(i, &args.outputs[o]))
            }
        };
        self.in_place.iter().enumerate().filter(|(_, p)| usable(p.place)).fold(0, |bits, (i, _)| bits | 1 << i)
    }

    pub fn units_of(&self, task: usize) -> impl Iterator<Item = Unit> + '_ {
        let first = task * self.units_per_task;
        (first..self.units.min(first + self.units_per_task)).map(|u| {
            let chunk = u % self.chunks();
            let tiles = self.cols.div_ceil(self.tile_cols).max(1);
            let col = u / self.chunks() % tiles * self.tile_cols;
            Unit {
                outer: u / self.chunks() / tiles,
                col,
                cols: self.tile_cols.min(self.cols - col),
                rows: chunk * self.unit_rows..self.n_rows.min((chunk + 1) * self.unit_rows),
                chunk,
            }
        })
    }

    pub fn check_buffers(&self, args: &TileArgs<'_>) {
        assert_eq!(
            (args.inputs.len(), args.outputs.len()),
            (self.inputs.len(), self.outputs.len()),
            "operands, outputs"
        );
        let planned = self.inputs.iter().chain(&self.outputs);
        for (i, (buf, &(len, dtype))) in args.inputs.iter().chain(args.outputs).zip(planned).enumerate() {
            assert_eq!(buf.dtype(), dtype, "buffer {i}");
            assert!(buf.len() >= len, "buffer {i} has {} of {len} elements", buf.len());
        }
    }
}

pub fn run(
    region: &Region,
    sizes: &Sizes,
    dtype: &dyn Fn(DType) -> DType,
    part: &dyn Fn(Axis) -> Option<Part>,
) -> Result<Program, TileError> {
    let cx = Context { region, sizes, dtype, part, needed: needed(region) };
    let mut axes = cx.split_axes()?;
    let mut offsets = cx.all_offsets(&axes);
    merge(&mut axes, &mut offsets);
    if axes.len() > MAX_AXES {
        return Err(TileError::TooManyAxes(axes.len()));
    }
    let depends = cx.dependencies(&axes, &offsets);
    let groups = cx.groups(&axes, &offsets, &depends);
    let mut w = Writer {
        cx: &cx,
        axes: &axes,
        offsets: &offsets,
        groups,
        depends,
        program: Program::default(),
        known: Vec::new(),
    };
    w.write()?;
    Ok(w.program)
}

/// A part of a domain axis: the whole of it, or a half that is rotated as one.
#[derive(Clone, Debug)]
struct Sub {
    size: usize,
    row: bool,
    /// Position in the domain, and by how much one step advances the index along that axis.
    domain: usize,
    weight: usize,
    /// The half that a rotation exchanges.
    high: bool,
}

/// Offset of an index tuple, before axes are grouped.
#[derive(Clone, Debug)]
struct Offset {
    owner: Owner,
    base: isize,
    /// Per sub-axis.
    strides: Vec<isize>,
    /// Per sub-axis: whether an output lacks it.
    lacks: Vec<bool>,
    /// Instruction, stride, limit.
    values: Vec<(usize, isize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Input(usize),
    Output(usize),
    Instr(usize),
}

struct Context<'a> {
    region: &'a Region,
    sizes: &'a Sizes,
    dtype: &'a dyn Fn(DType) -> DType,
    part: &'a dyn Fn(Axis) -> Option<Part>,
    /// Instructions that an output depends on.
    needed: Vec<bool>,
}

impl Context<'_> {
    fn is_map(&self) -> bool {
        matches!(self.region.template, Template::FlatMap | Template::StridedMap)
    }

    fn split_axes(&self) -> Result<Vec<Sub>, TileError> {
        let r = self.region;
        let mut axes = Vec::new();
        for (p, &axis) in r.domain.iter().enumerate() {
            let size = self.sizes.of(axis);
            let row = self.is_map() || p < r.rows;
            let halves =
                r.layouts().any(|l| l.axes.contains(&Index::Rotated(p))) || r.code.contains(&Instr::HalfSign(p));
            if !halves {
                axes.push(Sub { size, row, domain: p, weight: 1, high: false });
            } else if size % 2 == 1 {
                return Err(TileError::OddRotation(axis, size));
            } else {
                axes.push(Sub { size: 2, row, domain: p, weight: size / 2, high: true });
                axes.push(Sub { size: size / 2, row, domain: p, weight: 1, high: false });
            }
        }
        Ok(axes)
    }

    fn all_offsets(&self, axes: &[Sub]) -> Vec<Offset> {
        let r = self.region;
        let mut extra = r.extra_axes.iter();
        let mut out = Vec::new();
        for (i, l) in r.inputs.iter().enumerate() {
            out.push(self.layout(Owner::Input(i), l, axes, &mut extra));
        }
        for (i, (_, l)) in r.outputs.iter().enumerate() {
            out.push(self.layout(Owner::Output(i), l, axes, &mut extra));
        }
        for (i, instr) in r.code.iter().enumerate() {
            out.extend(self.numbers(i, *instr, axes));
        }
        out
    }

    fn layout<'a>(&self, owner: Owner, l: &Layout, axes: &[Sub], extra: &mut impl Iterator<Item = &'a Axis>) -> Offset {
        let mut o =
            Offset { owner, base: 0, strides: vec![0; axes.len()], lacks: vec![true; axes.len()], values: Vec::new() };
        let dims: Vec<usize> = l
            .axes
            .iter()
            .map(|i| match i {
                Index::Domain(p) | Index::Rotated(p) => self.sizes.of(self.region.domain[*p]),
                Index::Value(_) => self.sizes.of(*extra.next().expect("one extra axis per index by value")),
            })
            .collect();
        for (d, index) in l.axes.iter().enumerate() {
            let stride = dims[d + 1..].iter().product::<usize>() as isize;
            match *index {
                Index::Value(reg) => o.values.push((reg, stride, dims[d])),
                Index::Domain(p) | Index::Rotated(p) => {
                    for (s, sub) in axes.iter().enumerate().filter(|(_, sub)| sub.domain == p) {
                        let step = stride * sub.weight as isize;
                        // The partner of an element lies half an axis later in the first half, earlier in the second.
                        if sub.high && matches!(index, Index::Rotated(_)) {
                            o.base += step;
                            o.strides[s] -= step;
                        } else {
                            o.strides[s] += step;
                        }
                        o.lacks[s] = false;
                    }
                }
            }
        }
        o
    }

    /// Iotas, signs of rotations and random streams are walks whose offsets are the numbers themselves.
    fn numbers(&self, i: usize, instr: Instr, axes: &[Sub]) -> Option<Offset> {
        let r = self.region;
        let mut o = Offset {
            owner: Owner::Instr(i),
            base: 0,
            strides: vec![0; axes.len()],
            lacks: vec![false; axes.len()],
            values: Vec::new(),
        };
        let whole = |p: usize| {
            let size = self.sizes.of(r.domain[p]);
            (self.part)(r.domain[p]).unwrap_or(Part { offset: 0, whole: size })
        };
        match instr {
            Instr::Iota(p) => {
                o.base = whole(p).offset as isize;
                for (s, sub) in axes.iter().enumerate().filter(|(_, sub)| sub.domain == p) {
                    o.strides[s] = sub.weight as isize;
                }
            }
            Instr::HalfSign(p) => {
                o.base = -1;
                let high = axes.iter().position(|sub| sub.domain == p && sub.high).expect("its axis is split");
                o.strides[high] = 2;
            }
            Instr::Uniform(k) => {
                let mut stride = 1;
                for &p in r.streams[k].axes.iter().rev() {
                    o.base += (whole(p).offset * stride) as isize;
                    for (s, sub) in axes.iter().enumerate().filter(|(_, sub)| sub.domain == p) {
                        o.strides[s] = (sub.weight * stride) as isize;
                    }
                    stride *= whole(p).whole;
                }
            }
            _ => return None,
        }
        Some(o)
    }

    /// Bits of the axes that each instruction depends on.
    fn dependencies(&self, axes: &[Sub], offsets: &[Offset]) -> Vec<u32> {
        let mask = |row: bool| axes.iter().enumerate().filter(|(_, a)| a.row == row).fold(0, |m, (s, _)| m | 1 << s);
        let (rows, interior): (u32, u32) = (mask(true), mask(false));
        let mut out: Vec<u32> = Vec::new();
        for (i, instr) in self.region.code.iter().enumerate() {
            let of = |owner: Owner, known: &[u32]| {
                let o = offsets.iter().find(|o| o.owner == owner).expect("every operand has offsets");
                let strides = o.strides.iter().enumerate().filter(|(_, s)| **s != 0).fold(0, |m, (s, _)| m | 1 << s);
                o.values.iter().fold(strides, |m, v| m | known[v.0])
            };
            let d = match *instr {
                Instr::Load(k) => of(Owner::Input(k), &out),
                Instr::Scalar(_) => 0,
                Instr::Iota(_) | Instr::HalfSign(_) | Instr::Uniform(_) => of(Owner::Instr(i), &out),
                Instr::Unary(_, a) | Instr::Round(_, a) => out[a],
                Instr::Binary(_, a, b) => out[a] | out[b],
                Instr::Select(m, a, b) => out[m] | out[a] | out[b],
                Instr::RowSum(a) | Instr::RowMax(a) => out[a] & rows,
                Instr::ColumnSum(a) => out[a] & interior,
                Instr::SegmentSum { .. } => rows | interior,
            };
            out.push(d);
        }
        out
    }

    /// Where the columns of a map begin: behind the last axis that an operand lacks, so that such an operand spans columns only and is
    /// loaded once for many rows; at the last axis if none does.
    fn first_column(&self, axes: &[Sub], offsets: &[Offset]) -> usize {
        let used = &self.needed;
        let lacks = |s: usize| {
            offsets.iter().any(|o| match o.owner {
                Owner::Output(_) => false,
                Owner::Input(k) => {
                    let is_used = |(i, instr): (usize, &Instr)| used[i] && *instr == Instr::Load(k);
                    o.strides[s] == 0
                        && o.strides.iter().any(|x| *x != 0)
                        && self.region.code.iter().enumerate().any(is_used)
                }
                Owner::Instr(i) => used[i] && o.strides[s] == 0,
            })
        };
        let last = axes.len().saturating_sub(1);
        (0..last).rev().find(|&s| lacks(s)).map_or(last, |s| s + 1)
    }

    fn groups(&self, axes: &[Sub], offsets: &[Offset], depends: &[u32]) -> Groups {
        let all = (0..axes.len()).collect::<Vec<_>>();
        let (mut rows, cols): (Vec<usize>, Vec<usize>) = if self.is_map() {
            let (front, columns) = all.split_at(self.first_column(axes, offsets));
            (front.to_vec(), columns.to_vec())
        } else {
            all.into_iter().partition(|&s| axes[s].row)
        };
        let bits = |group: &[usize]| group.iter().fold(0u32, |m, s| m | 1 << s);
        let (row_bits, col_bits) = (bits(&rows), bits(&cols));
        let mut outer_bits = 0;
        if !matches!(self.region.template, Template::RowColumn | Template::SegmentSum) {
            // What is dear and does not depend on all rows is worth computing once per index of the rows that it depends on.
            for ((instr, &d), _) in self.region.code.iter().zip(depends).zip(&self.needed).filter(|(_, used)| **used) {
                if is_dear_instr(*instr) && d & col_bits != 0 && d & row_bits != row_bits {
                    outer_bits |= d & row_bits;
                }
            }
            if outer_bits == row_bits {
                outer_bits = 0;
            }
        }
        let outer: Vec<usize> = rows.iter().copied().filter(|s| outer_bits >> s & 1 == 1).collect();
        rows.retain(|s| outer_bits >> s & 1 == 0);
        Groups { outer, rows, cols }
    }
}

/// Whether a value costs much more than to load it.
pub fn is_dear_instr(instr: Instr) -> bool {
    match instr {
        Instr::Unary(s, _) => is_dear(s),
        Instr::Uniform(_) => true,
        _ => false,
    }
}

/// As [`is_dear_instr`], of a function.
pub fn is_dear(s: Scalar) -> bool {
    use Scalar::*;
    matches!(s, Exp | Log | Sin | Cos | Tanh | Erf | Logistic)
}

/// Joins neighbouring axes that every walk crosses as one, and drops axes of size 1.
fn merge(axes: &mut Vec<Sub>, offsets: &mut [Offset]) {
    let mut remove = |axes: &mut Vec<Sub>, s: usize| {
        axes.remove(s);
        for o in offsets.iter_mut() {
            o.strides.remove(s);
            o.lacks.remove(s);
        }
    };
    for s in (0..axes.len()).rev() {
        if axes[s].size == 1 {
            remove(axes, s);
        }
    }
    for s in (1..axes.len()).rev() {
        let size = axes[s].size;
        let joined = axes[s - 1].row == axes[s].row
            && offsets.iter().all(|o| o.strides[s - 1] == o.strides[s] * size as isize && o.lacks[s - 1] == o.lacks[s]);
        if joined {
            // The pair continues as its inner member: strides are those of the inner axis.
            axes[s].size *= axes[s - 1].size;
            axes.remove(s - 1);
            for o in offsets.iter_mut() {
                o.strides.remove(s - 1);
                o.lacks.remove(s - 1);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Groups {
    outer: Vec<usize>,
    rows: Vec<usize>,
    cols: Vec<usize>,
}

/// Instructions that an output depends on; a column sum itself is no step.
fn needed(r: &Region) -> Vec<bool> {
    let mut needed = vec![false; r.code.len()];
    for (reg, _) in &r.outputs {
        needed[summed(r, *reg).map_or(*reg, |(source, _)| source)] = true;
    }
    for i in (0..r.code.len()).rev().filter(|i| !matches!(r.code[*i], Instr::ColumnSum(_))) {
        if needed[i] {
            r.operands(&r.code[i]).into_iter().for_each(|o| needed[o] = true);
        }
    }
    needed
}

/// If `reg` is a column sum, or roundings of one: its source and the slots of the roundings.
fn summed(region: &Region, mut reg: usize) -> Option<(usize, Vec<usize>)> {
    let mut rounds = Vec::new();
    loop {
        match region.code[reg] {
            Instr::ColumnSum(source) => {
                rounds.reverse();
                return Some((source, rounds));
            }
            Instr::Round(slot, a) => {
                rounds.push(slot);
                reg = a;
            }
            _ => return None,
        }
    }
}

struct Writer<'a> {
    cx: &'a Context<'a>,
    axes: &'a [Sub],
    offsets: &'a [Offset],
    groups: Groups,
    depends: Vec<u32>,
    program: Program,
    /// Register and kind of each instruction.
    known: Vec<Option<(usize, Kind)>>,
}

impl Writer<'_> {
    fn write(&mut self) -> Result<(), TileError> {
        let r = self.cx.region;
        let sizes = |g: &[usize]| g.iter().map(|&s| self.axes[s].size).collect::<Vec<_>>();
        self.program.outer = sizes(&self.groups.outer);
        self.program.rows = sizes(&self.groups.rows);
        self.program.n_rows = self.program.rows.iter().product();
        self.program.cols = sizes(&self.groups.cols).iter().product();
        self.program.streams = r.streams.len();
        for (i, needed) in self.cx.needed.iter().enumerate() {
            let known = if *needed { Some(self.instr(i)?) } else { None };
            self.known.push(known);
        }
        for (i, &(reg, ref layout)) in r.outputs.iter().enumerate() {
            self.output(i, reg, (self.cx.dtype)(r.dtypes[layout.dtype]))?;
        }
        self.buffers();
        self.memory();
        self.find_in_place();
        self.split();
        Ok(())
    }

    /// If `reg` is a column sum, or roundings of one: its source and the roundings.
    fn column_sum(&self, reg: usize) -> Option<(usize, Vec<DType>)> {
        let (source, slots) = summed(self.cx.region, reg)?;
        Some((source, slots.into_iter().map(|s| (self.cx.dtype)(self.cx.region.dtypes[s])).collect()))
    }

    fn class(&self, depends: u32) -> Class {
        let any = |g: &[usize]| g.iter().any(|&s| depends >> s & 1 == 1);
        let cols = any(&self.groups.cols);
        // Without rows a tile has one, and what spans the columns is a whole tile.
        Class { rows: any(&self.groups.rows) || cols && self.groups.rows.is_empty(), cols }
    }

    fn push(&mut self, class: Class, step: Step) -> usize {
        let reg = self.program.registers.len();
        self.program.registers.push(Register { class, at: 0, in_place: None });
        let list = if class.rows { &mut self.program.steps } else { &mut self.program.once };
        list.push((reg, step));
        reg
    }

    fn operand(&self, instr: usize) -> (usize, Kind) {
        self.known[instr].expect("operands come before their users")
    }

    /// The operand as a float.
    fn float(&mut self, instr: usize) -> usize {
        match self.operand(instr) {
            (r, Kind::Float | Kind::Mask) => r,
            (r, Kind::Int) => self.push(self.program.registers[r].class, Step::ToFloat(r)),
        }
    }

    fn instr(&mut self, i: usize) -> Result<(usize, Kind), TileError> {
        let r = self.cx.region;
        let class = self.class(self.depends[i]);
        let (step, kind) = match r.code[i] {
            Instr::Load(k) => {
                let kind = match (self.cx.dtype)(r.dtypes[r.inputs[k].dtype]) {
                    DType::I32 => Kind::Int,
                    DType::Bool => Kind::Mask,
                    _ => Kind::Float,
                };
                (Step::Load { input: k, walk: self.joined(Owner::Input(k), i)? }, kind)
            }
            Instr::Scalar(k) => (Step::Const(self.scalar(&r.scalars[k])?), Kind::Float),
            Instr::Iota(_) | Instr::HalfSign(_) => (Step::Index(self.joined(Owner::Instr(i), i)?), Kind::Float),
            Instr::Uniform(stream) => (Step::Uniform { stream, walk: self.joined(Owner::Instr(i), i)? }, Kind::Float),
            Instr::Unary(s, a) => (Step::Unary(s, self.float(a)), Kind::Float),
            Instr::Binary(s, a, b) => {
                use Scalar::*;
                let compares = matches!(s, Lt | Le | Gt | Ge | Eq | Ne);
                let kind = if compares { Kind::Mask } else { Kind::Float };
                match (self.operand(a), self.operand(b)) {
                    ((a, Kind::Int), (b, Kind::Int)) if compares => (Step::CompareInts(s, a, b), kind),
                    _ => (Step::Binary(s, self.float(a), self.float(b)), kind),
                }
            }
            Instr::Select(m, a, b) => {
                let ((m, mask), (x, kind), (y, other)) = (self.operand(m), self.operand(a), self.operand(b));
                if mask != Kind::Mask {
                    return Err(TileError::OperandType(i));
                }
                match (kind, other) {
                    (Kind::Int, Kind::Int) => (Step::Select(m, x, y), Kind::Int),
                    (Kind::Mask, Kind::Mask) => (Step::Select(m, x, y), Kind::Mask),
                    _ => (Step::Select(m, self.float(a), self.float(b)), Kind::Float),
                }
            }
            Instr::Round(slot, a) => match ((self.cx.dtype)(r.dtypes[slot]), self.operand(a)) {
                (DType::I32, (a, Kind::Int)) => return Ok((a, Kind::Int)),
                (DType::Bool, (a, Kind::Mask)) => return Ok((a, Kind::Mask)),
                (DType::I32 | DType::Bool, _) => return Err(TileError::OperandType(i)),
                (DType::F32, _) => return Ok((self.float(a), Kind::Float)),
                (dtype, _) => (Step::Round(dtype, self.float(a)), Kind::Float),
            },
            Instr::RowSum(a) => (Step::RowSum(self.float(a)), Kind::Float),
            Instr::RowMax(a) => (Step::RowMax(self.float(a)), Kind::Float),
            Instr::ColumnSum(_) => return Err(TileError::OperandType(i)),
            Instr::SegmentSum { values, order, starts, ends } => {
                // It fills whole tiles, whatever the sizes are.
                let step = Step::SegmentSum { values, order, starts, ends };
                return Ok((self.push(Class { rows: true, cols: true }, step), Kind::Float));
            }
        };
        // A register depends on what its operands depend on, seen through the engine's classes: a segment sum is always a tile.
        let class = step.operands().iter().map(|&o| self.program.registers[o].class).fold(class, |c, o| match step {
            Step::RowSum(_) | Step::RowMax(_) => Class { rows: c.rows || o.rows, cols: false },
            _ => Class { rows: c.rows || o.rows, cols: c.cols || o.cols },
        });
        Ok((self.push(class, step), kind))
    }

    fn scalar(&self, s: &ScalarArg) -> Result<f32, TileError> {
        match s {
            ScalarArg::Literal(Attr::Float(x)) => Ok(*x as f32),
            ScalarArg::Literal(Attr::Int(x)) => Ok(*x as f32),
            ScalarArg::Literal(Attr::Config(name)) => Err(TileError::UnboundConfig(name.clone())),
            ScalarArg::Literal(_) => Err(TileError::ScalarType),
            ScalarArg::Size { axes, recip } => {
                let whole = |a: &Axis| (self.cx.part)(*a).map_or(self.cx.sizes.of(*a), |p| p.whole) as f64;
                let n: f64 = axes.iter().map(whole).product();
                Ok(if *recip { 1.0 / n } else { n } as f32)
            }
        }
    }

    fn offset(&self, owner: Owner) -> &Offset {
        self.offsets.iter().find(|o| o.owner == owner).expect("every operand has offsets")
    }

    fn walk(&self, owner: Owner, instr: usize) -> Result<Walk, TileError> {
        let o = self.offset(owner);
        let of = |g: &[usize]| g.iter().map(|&s| o.strides[s]).collect::<Vec<_>>();
        let (last, front) = self.groups.cols.split_last().map_or((None, [].as_slice()), |(l, f)| (Some(*l), f));
        let mut runs = vec![o.base];
        for &s in front {
            runs =
                runs.iter().flat_map(|&b| (0..self.axes[s].size).map(move |i| b + i as isize * o.strides[s])).collect();
        }
        let values = o
            .values
            .iter()
            .map(|&(reg, stride, limit)| match self.known[reg] {
                Some((r, Kind::Int)) => Ok((r, stride, limit)),
                _ => Err(TileError::OperandType(instr)),
            })
            .collect::<Result<_, _>>()?;
        let (step, run_len) = (last.map_or(1, |s| o.strides[s]), last.map_or(1, |s| self.axes[s].size));
        Ok(Walk { base: 0, outer: of(&self.groups.outer), rows: of(&self.groups.rows), runs, step, run_len, values })
    }

    /// A walk that reads.
    fn joined(&self, owner: Owner, instr: usize) -> Result<Walk, TileError> {
        let mut walk = self.walk(owner, instr)?;
        walk.join_runs();
        Ok(walk)
    }

    fn store(&self, output: usize) -> Result<Store, TileError> {
        let mut walk = self.walk(Owner::Output(output), 0)?;
        let lacks = &self.offset(Owner::Output(output)).lacks;
        let of = |g: &[usize]| g.iter().map(|&s| lacks[s]).collect::<Vec<_>>();
        let (last, front) = self.groups.cols.split_last().map_or((None, [].as_slice()), |(l, f)| (Some(*l), f));
        let mut keeps_run = vec![true];
        for &s in front {
            let first_only = lacks[s];
            keeps_run = keeps_run
                .iter()
                .flat_map(|&k| (0..self.axes[s].size).map(move |i| k && (i == 0 || !first_only)))
                .collect();
        }
        let lacks_run = last.is_some_and(|s| lacks[s]);
        if !lacks_run && keeps_run.iter().all(|&k| k) {
            walk.join_runs();
            keeps_run.truncate(walk.runs.len());
        }
        Ok(Store { walk, lacks_outer: of(&self.groups.outer), lacks_rows: of(&self.groups.rows), keeps_run, lacks_run })
    }

    fn output(&mut self, i: usize, instr: usize, dtype: DType) -> Result<(), TileError> {
        let store = self.store(i)?;
        if let Some((source, rounds)) = self.column_sum(instr) {
            if dtype == DType::I32 || dtype == DType::Bool {
                return Err(TileError::OutputType(i, dtype));
            }
            let source = self.float(source);
            self.program.column_sums.push(ColumnSum { source, rounds, output: i, store });
            return Ok(());
        }
        let reg = match (self.operand(instr), dtype) {
            ((r, Kind::Int), DType::I32) | ((r, Kind::Mask), DType::Bool) => r,
            (_, DType::I32 | DType::Bool) => return Err(TileError::OutputType(i, dtype)),
            _ => self.float(instr),
        };
        self.program.stores.push((reg, i, store));
        Ok(())
    }

    fn buffers(&mut self) {
        let r = self.cx.region;
        let mut extra = r.extra_axes.iter();
        let gathered = |i: usize| {
            r.code.iter().any(|instr| match *instr {
                Instr::SegmentSum { values, order, starts, ends } => [values, order, starts, ends].contains(&i),
                _ => false,
            })
        };
        let mut all: Vec<(usize, DType)> = r
            .layouts()
            .enumerate()
            .map(|(i, l)| {
                let n = l.axes.iter().map(|index| match index {
                    Index::Domain(p) | Index::Rotated(p) => self.cx.sizes.of(r.domain[*p]),
                    Index::Value(_) => self.cx.sizes.of(*extra.next().expect("one extra axis per index by value")),
                });
                // The operands of a segment sum have no layout: their lengths are checked where they are read.
                let n = if gathered(i) { 0 } else { n.product() };
                (n, (self.cx.dtype)(r.dtypes[l.dtype]))
            })
            .collect();
        self.program.outputs = all.split_off(r.inputs.len());
        self.program.inputs = all;
    }

    /// Chooses the tile and gives every register its place; places of whole tiles are reused after their last use.
    fn memory(&mut self) {
        let p = &mut self.program;
        let full = |p: &Program, r: usize| p.registers[r].class == Class { rows: true, cols: true };
        let mut last_use = vec![0; p.registers.len()];
        for (i, (reg, step)) in p.steps.iter().enumerate() {
            last_use[*reg] = last_use[*reg].max(i);
            for o in step.operands() {
                last_use[o] = i;
            }
        }
        let kept = p.stores.iter().map(|s| s.0).chain(p.column_sums.iter().map(|c| c.source));
        for r in kept.collect::<Vec<_>>() {
            last_use[r] = usize::MAX;
        }
        // Slots of whole tiles, numbered; a result never takes the slot of an operand of the same step.
        let (mut free, mut slots) = (Vec::new(), 0);
        let mut slot_of = vec![None; p.registers.len()];
        for (i, (reg, step)) in p.steps.iter().enumerate() {
            if full(p, *reg) {
                slot_of[*reg] = Some(free.pop().unwrap_or_else(|| {
                    slots += 1;
                    slots - 1
                }));
            }
            let mut ended: Vec<usize> = step.operands();
            ended.push(*reg);
            ended.sort_unstable();
            ended.dedup();
            free.extend(ended.into_iter().filter(|&o| last_use[o] == i).filter_map(|o| slot_of[o]));
        }

        let target = (TILE_BYTES / 4 / slots.max(2)).clamp(TILE_ELEMENTS.start, TILE_ELEMENTS.end);
        p.tile_cols = if self.cx.is_map() {
            p.cols.div_ceil(p.cols.div_ceil(target).max(1)).next_multiple_of(LINE).min(p.cols).max(1)
        } else {
            p.cols.max(1)
        };
        p.tile_rows = (target / p.tile_cols).clamp(1, p.n_rows.max(1));

        let tile = (p.tile_rows * p.tile_cols).next_multiple_of(LINE);
        let mut at = slots * tile;
        for (r, register) in p.registers.iter_mut().enumerate() {
            let len = match register.class {
                Class { rows: true, cols: true } => {
                    register.at = slot_of[r].map_or(0, |s| s * tile);
                    continue;
                }
                Class { rows: true, cols: false } => p.tile_rows,
                Class { rows: false, cols: true } => p.tile_cols,
                Class { rows: false, cols: false } => 1,
            };
            register.at = at;
            at += len.next_multiple_of(LINE);
        }
        p.scratch_at = at;
        p.worker_len = at + 3 * p.tile_cols.next_multiple_of(LINE);
    }

    /// Finds the registers that can lie in buffers.
    fn find_in_place(&mut self) {
        let p = &mut self.program;
        let whole = |p: &Program, reg: usize| p.registers[reg].class == Class { rows: true, cols: true };
        let mut found: Vec<(usize, InPlace)> = Vec::new();
        let mut loaded = vec![false; p.registers.len()];
        for (reg, step) in &p.steps {
            let Step::Load { input, walk } = step else { continue };
            loaded[*reg] = true;
            if whole(p, *reg) && p.inputs[*input].1 == DType::F32 && walk.values.is_empty() && p.follows(walk) {
                found.push((*reg, InPlace { place: Place::Input(*input), walk: walk.clone() }));
            }
        }
        for (reg, output, store) in &p.stores {
            let first = found.iter().all(|(r, _)| r != reg) && !loaded[*reg];
            let lacks = store.lacks_run || store.lacks_outer.iter().chain(&store.lacks_rows).any(|&l| l);
            let fits = p.outputs[*output].1 == DType::F32 && !lacks && p.follows(&store.walk);
            if first && whole(p, *reg) && fits {
                found.push((*reg, InPlace { place: Place::Output(*output), walk: store.walk.clone() }));
            }
        }
        found.truncate(MAX_IN_PLACE);
        for (reg, in_place) in found {
            p.registers[reg].in_place = Some(p.in_place.len());
            p.in_place.push(in_place);
        }
    }

    /// Divides the work into units and tasks.
    fn split(&mut self) {
        let p = &mut self.program;
        let wanted = (TASK_ELEMENTS / p.tile_cols).max(1);
        p.unit_rows = if p.column_sums.is_empty() {
            (wanted / p.tile_rows * p.tile_rows).clamp(p.tile_rows, p.n_rows.max(p.tile_rows))
        } else {
            CHUNK_ROWS.max(p.n_rows.div_ceil(MOST_CHUNKS))
        };
        let outer: usize = p.outer.iter().product();
        let tiles = if p.cols == 0 && self.cx.is_map() { 0 } else { p.cols.div_ceil(p.tile_cols).max(1) };
        p.units = outer * tiles * p.chunks();
        p.units_per_task = TASK_ELEMENTS.div_ceil((p.unit_rows.min(p.n_rows) * p.tile_cols).max(1));
        p.work = outer * p.n_rows * p.cols * p.steps.len().max(1);
    }
}
