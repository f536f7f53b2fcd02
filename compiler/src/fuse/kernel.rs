//! Region → kernel: a structured program with explicit indices, loops and stores. It is printed as a `#[cube]` function when it is
//! emitted ahead of time, and walked with CubeCL's expansion functions otherwise; it knows no device.
//!
//! Maps give one vector to each unit. Rows are dealt to cubes in turn, the interior of a row to the units of its cube. Every
//! unit adds in a fixed order and partial sums are combined by a fixed tree, so results do not depend on timing.

use super::{BufferArg, Index, IndexArg, Instr, Reg, Region};
use crate::ir::DType;
use crate::ops::Scalar;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// Index of a local in [`Kernel::locals`].
pub type Var = usize;

/// How many element-type slots a region may have: the number of placeholders that the launcher registers.
pub const MAX_DTYPES: usize = 12;

/// Why a region has no kernel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// See [`MAX_DTYPES`].
    #[error("a region stores {0} element types, kernels have placeholders for {MAX_DTYPES}")]
    DTypes(usize),
    /// A sum over rows must be stored over the interior, in its order.
    #[error("output {0}, a sum over rows, is not stored over the axes of the rows' interior in their order")]
    ColumnLayout(usize),
    /// An output depends on an axis that its buffer lacks.
    #[error("output {0} depends on an axis that its buffer lacks")]
    Varying(usize),
    /// A row reduction, a sum over rows or a segmented sum outside its template.
    #[error("instruction {reg} does not fit template {template}")]
    Template {
        /// Which instruction.
        reg: Reg,
        /// The region's template.
        template: String,
    },
}

/// Kind of a local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// A position or a size.
    Index,
    /// A number.
    F32,
    /// An id.
    I32,
    /// The result of a comparison.
    Mask,
}

/// Type of a local: a scalar, or a vector along the fastest axis of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    /// Kind of each lane.
    pub elem: Elem,
    /// Whether it has one lane per element of a vector.
    pub vector: bool,
}

/// A named value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Unique in the kernel; the user's where there is one.
    pub name: String,
    /// Its type.
    pub ty: Ty,
}

/// Arithmetic on positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexOp {
    /// a + b
    Add,
    /// a · b
    Mul,
    /// ⌊a / b⌋
    Div,
    /// a mod b
    Rem,
    /// a < b, a mask
    Lt,
    /// a = b, a mask
    Eq,
}

/// The right-hand side of a statement. Operands have equal types unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Number of the unit in the launch.
    AbsolutePos,
    /// Number of the unit in its cube.
    UnitPos,
    /// Number of the cube.
    TeamPos,
    /// Number of cubes.
    TeamCount,
    /// Units per cube.
    TeamUnits,
    /// Lanes of a vector.
    Width,
    /// A constant position.
    Position(usize),
    /// A constant number, by its bits.
    Number(u32),
    /// Arithmetic on positions.
    Index(IndexOp, Var, Var),
    /// Element of a buffer, or the vector that begins there, widened to the kind of its slot.
    Load {
        /// Which buffer of [`Kernel::buffers`].
        buffer: usize,
        /// Position in elements.
        at: Var,
    },
    /// One-operand map.
    Unary(Scalar, Var),
    /// Two-operand map or comparison.
    Binary(Scalar, Var, Var),
    /// Mask ? a : b.
    Select(Var, Var, Var),
    /// The same value: where an accumulator starts.
    Copy(Var),
    /// A scalar in every lane.
    Splat(Var),
    /// The first lane of a vector.
    FirstLane(Var),
    /// A mask, id or position as a number.
    ToF32(Var),
    /// A number as an id.
    ToI32(Var),
    /// Whether a number or an id differs from 0.
    ToMask(Var),
    /// Rounded to the element type of a slot.
    Round(usize, Var),
    /// Position plus lane number, as numbers.
    Lanes(Var),
    /// Partner position in a rotation: (position + extent/2) mod extent.
    Rotate {
        /// Position.
        coord: Var,
        /// Size of the axis.
        extent: Var,
    },
    /// −1 if position < extent/2, else 1.
    HalfSign {
        /// Position.
        coord: Var,
        /// Size of the axis.
        extent: Var,
    },
    /// An id as a position below `extent`; the last position where it is out of range, so that no read leaves the buffer.
    Clamp {
        /// The id.
        id: Var,
        /// Bound.
        extent: Var,
    },
    /// Whether an id is a position below `extent`; a scalar mask.
    InRange {
        /// The id.
        id: Var,
        /// Bound.
        extent: Var,
    },
    /// Uniform numbers of a stream at a position, and at multiples of `lane_stride` after it if that is given.
    Uniform {
        /// Which buffer holds the random words.
        buffer: usize,
        /// Which stream.
        stream: usize,
        /// Position of the first lane in the logical tensor, relative to the stream's first local element.
        at: Var,
        /// Distance of lanes; a vector if given.
        lane_stride: Option<Var>,
    },
    /// Sum of the lanes.
    SumLanes(Var),
    /// Maximum of the lanes.
    MaxLanes(Var),
    /// Sum over the units of the cube.
    SumTeam(Var),
    /// Maximum over the units of the cube.
    MaxTeam(Var),
    /// Σ over j in `starts[segment]..ends[segment]` of `values[order[j]·interior + at]`.
    SegmentSum {
        /// Buffer of the rows.
        values: usize,
        /// Buffer of the row numbers.
        order: usize,
        /// Buffer of first positions.
        starts: usize,
        /// Buffer of last positions.
        ends: usize,
        /// Number of the segment.
        segment: Var,
        /// Position in the row.
        at: Var,
        /// Elements of a row.
        interior: Var,
    },
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stmt {
    /// Defines a local.
    Let(Var, Expr),
    /// Defines an accumulator.
    Mut(Var, Expr),
    /// Assigns to an accumulator.
    Set(Var, Expr),
    /// Writes an element or a vector, narrowed to the slot's type in memory.
    Store {
        /// Which buffer of [`Kernel::buffers`].
        buffer: usize,
        /// Position in elements.
        at: Var,
        /// What; its value is representable in the slot's type.
        value: Var,
    },
    /// Writes `value` the first time, adds it later.
    Accumulate {
        /// Which buffer of [`Kernel::buffers`].
        buffer: usize,
        /// Position in elements.
        at: Var,
        /// What.
        value: Var,
        /// Whether it is the first time.
        first: Var,
        /// Number of the vector in the unit's walk over the row.
        turn: Var,
    },
    /// Writes what a walk's units have summed aside, if they have.
    Flush {
        /// Which buffer of [`Kernel::buffers`].
        buffer: usize,
        /// Position of the row in the buffer, in elements.
        base: Var,
        /// First position of the unit in a row.
        start: Var,
        /// End of the positions.
        end: Var,
        /// Distance of the unit's positions.
        step: Var,
    },
    /// A team's walk over a row: `for (turn, var) in (start..end).step_by(step).enumerate()`, unrolled where the number of turns is known.
    Walk {
        /// Number of the turn.
        turn: Var,
        /// Position in the row.
        var: Var,
        /// First position.
        start: Var,
        /// End of the positions.
        end: Var,
        /// Their distance.
        step: Var,
        /// Body.
        body: Vec<Stmt>,
    },
    /// `for var in (start..end).step_by(step)`.
    For {
        /// Loop variable.
        var: Var,
        /// First position.
        start: Var,
        /// End of the positions.
        end: Var,
        /// Distance.
        step: Var,
        /// Statements.
        body: Vec<Stmt>,
    },
    /// Statements under a condition.
    If {
        /// A scalar mask.
        condition: Var,
        /// Statements.
        body: Vec<Stmt>,
    },
}

/// A buffer argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which.
    pub arg: BufferArg,
    /// Name of the argument.
    pub name: String,
    /// Element type in memory: a slot, or `None` for f32 partial sums and u32 random words.
    pub dtype: Option<usize>,
    /// What its elements are.
    pub elem: Elem,
    /// Whether it is read and written by vectors.
    pub vector: bool,
}

/// Which extent a vector width must divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aligned {
    /// The whole domain.
    Domain,
    /// The interior of a row.
    Interior,
    /// The fastest axis.
    Last,
    /// The fastest axis and its half.
    Half,
}

/// A region as a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Buffer arguments, in the order of [`Region::abi`].
    pub buffers: Vec<Buffer>,
    /// Integer arguments, in the order of [`Region::abi`].
    pub indices: Vec<Var>,
    /// f32 arguments.
    pub scalars: Vec<Var>,
    /// All locals, arguments included.
    pub locals: Vec<Local>,
    /// The program.
    pub body: Vec<Stmt>,
    /// Whether units of a cube combine values.
    pub combines: bool,
    /// Whether any value is a vector; else it runs with width 1.
    pub vector: bool,
    aligned: Aligned,
}

impl Kernel {
    /// The program of a region.
    pub fn of(region: &Region) -> Result<Kernel, KernelError> {
        check(region)?;
        let mut lower = Lower::new(region);
        if region.has_rows() {
            lower.rows()?
        } else {
            lower.map()?
        };
        Ok(lower.finish())
    }

    /// Whether vectors of `width` lanes tile a domain of these extents; `rows` leading ones number the rows.
    pub fn accepts_width(&self, width: usize, extents: &[usize], rows: usize) -> bool {
        let last = extents.last().copied().unwrap_or(1);
        width == 1
            || self.vector
                && match self.aligned {
                    Aligned::Domain => extents.iter().product::<usize>() % width == 0,
                    Aligned::Interior => extents[rows..].iter().product::<usize>() % width == 0,
                    Aligned::Last => last % width == 0,
                    Aligned::Half => last % 2 == 0 && (last / 2) % width == 0,
                }
    }
}

impl Region {
    /// For each instruction the set of domain axes, by bit, that its value depends on.
    fn dependences(&self) -> Vec<u64> {
        let all = (1u64 << self.domain.len()) - 1;
        let row_axes = (1u64 << self.rows) - 1;
        let mut deps: Vec<u64> = Vec::with_capacity(self.code.len());
        for instr in &self.code {
            let d = match *instr {
                Instr::Load(i) => {
                    let of = |index: &Index| match *index {
                        Index::Domain(a) | Index::Rotated(a) => 1 << a,
                        Index::Value(r) => deps[r],
                    };
                    self.inputs[i].axes.iter().map(of).fold(0, |a, b| a | b)
                }
                Instr::Scalar(_) => 0,
                Instr::Iota(a) | Instr::HalfSign(a) => 1 << a,
                Instr::Unary(_, a) | Instr::Round(_, a) => deps[a],
                Instr::Binary(_, a, b) => deps[a] | deps[b],
                Instr::Select(m, a, b) => deps[m] | deps[a] | deps[b],
                Instr::Uniform(s) => self.streams[s].axes.iter().fold(0, |d, a| d | 1 << a),
                Instr::RowSum(a) | Instr::RowMax(a) => deps[a] & row_axes,
                Instr::ColumnSum(_) => all & !row_axes,
                Instr::SegmentSum { .. } => all,
            };
            deps.push(d);
        }
        deps
    }
}

fn check(region: &Region) -> Result<(), KernelError> {
    if region.dtypes.len() > MAX_DTYPES {
        return Err(KernelError::DTypes(region.dtypes.len()));
    }
    for (reg, instr) in region.code.iter().enumerate() {
        let fits = match instr {
            Instr::RowSum(_) | Instr::RowMax(_) | Instr::ColumnSum(_) => region.has_rows(),
            Instr::SegmentSum { .. } => !region.has_rows(),
            _ => true,
        };
        if !fits {
            return Err(KernelError::Template { reg, template: format!("{:?}", region.template) });
        }
    }
    for (reg, instr) in region.code.iter().enumerate() {
        if region.operands(instr).iter().any(|&a| matches!(region.code[a], Instr::ColumnSum(_))) {
            return Err(KernelError::Template { reg, template: format!("{:?}", region.template) });
        }
    }
    let deps = region.dependences();
    let interior: Vec<Index> = (region.rows..region.domain.len()).map(Index::Domain).collect();
    for (i, (reg, layout)) in region.outputs.iter().enumerate() {
        if matches!(region.code[*reg], Instr::ColumnSum(_)) && layout.axes != interior {
            return Err(KernelError::ColumnLayout(i));
        }
        let stored = layout.axes.iter().fold(0u64, |d, index| match index {
            Index::Domain(a) | Index::Rotated(a) => d | 1 << a,
            Index::Value(_) => d,
        });
        let row_axes = (1u64 << region.rows) - 1;
        let lacks_interior = region.has_rows() && stored & !row_axes == 0;
        if lacks_interior && deps[*reg] & !row_axes != 0 {
            return Err(KernelError::Varying(i));
        }
    }
    Ok(())
}

/// The fastest axis of the domain, if the region reads and writes vectors along it.
fn vector_axis(region: &Region, deps: &[u64]) -> Option<usize> {
    let last = region.domain.len().checked_sub(1)?;
    let dealt_by_rows = region.has_rows() || region.code.iter().any(|i| matches!(i, Instr::SegmentSum { .. }));
    if dealt_by_rows && region.rows == region.domain.len() {
        return None;
    }
    let along = |index: &Index| matches!(*index, Index::Domain(a) | Index::Rotated(a) if a == last);
    let mut any = dealt_by_rows;
    for (i, layout) in region.layouts().enumerate() {
        if region.is_segment_operand(i) {
            continue;
        }
        let value_varies = |index: &Index| matches!(*index, Index::Value(r) if deps[r] >> last & 1 == 1);
        let (fastest, slower) = match layout.axes.split_last() {
            Some((fastest, slower)) => (Some(fastest), slower),
            None => (None, layout.axes.as_slice()),
        };
        if slower.iter().any(along) || layout.axes.iter().any(value_varies) {
            return None;
        }
        any |= fastest.is_some_and(along);
    }
    any.then_some(last)
}

const INDEX: Ty = Ty { elem: Elem::Index, vector: false };

struct Lower<'a> {
    region: &'a Region,
    deps: Vec<u64>,
    vector_axis: Option<usize>,
    buffers: Vec<Buffer>,
    locals: Vec<Local>,
    names: HashSet<String>,
    indices: HashMap<IndexKey, Var>,
    index_vars: Vec<Var>,
    scalars: Vec<Var>,
    /// Open blocks, outermost first, with what each defines.
    blocks: Vec<Block>,
    combines: bool,
    aligned: Aligned,
    /// Position in the domain of the first lane (maps), number of the row and position in it (rows).
    flat: Option<Var>,
    row: Option<Var>,
    inner: Option<Var>,
}

#[derive(Default)]
struct Block {
    stmts: Vec<Stmt>,
    exprs: HashMap<Expr, Var>,
    regs: HashMap<Reg, Var>,
}

#[derive(PartialEq, Eq, Hash)]
enum IndexKey {
    Extent(usize),
    Extra(usize),
    Stride(usize, usize),
    Offset(usize),
    StreamStride(usize, usize),
}

impl From<IndexArg> for IndexKey {
    fn from(arg: IndexArg) -> Self {
        match arg {
            IndexArg::Extent(a) => IndexKey::Extent(a),
            IndexArg::Extra(a) => IndexKey::Extra(a),
            IndexArg::Stride { buffer, axis } => IndexKey::Stride(buffer, axis),
            IndexArg::Offset(a) => IndexKey::Offset(a),
            IndexArg::StreamStride { stream, axis } => IndexKey::StreamStride(stream, axis),
        }
    }
}

impl<'a> Lower<'a> {
    fn new(region: &'a Region) -> Self {
        let deps = region.dependences();
        let vector_axis = vector_axis(region, &deps);
        let mut lower = Lower {
            region,
            deps,
            vector_axis,
            buffers: Vec::new(),
            locals: Vec::new(),
            names: HashSet::new(),
            indices: HashMap::new(),
            index_vars: Vec::new(),
            scalars: Vec::new(),
            blocks: vec![Block::default()],
            combines: false,
            aligned: if region.has_rows() { Aligned::Interior } else { Aligned::Domain },
            flat: None,
            row: None,
            inner: None,
        };
        lower.arguments();
        lower
    }

    fn arguments(&mut self) {
        let region = self.region;
        let abi = region.abi();
        for (i, arg) in abi.buffers.iter().copied().enumerate() {
            let dtype = match arg {
                BufferArg::Input(k) => Some(region.inputs[k].dtype),
                BufferArg::Output(k) => Some(region.outputs[k].1.dtype),
                BufferArg::Partial(_) | BufferArg::Random => None,
            };
            let elem = match dtype.map(|d| region.dtypes[d]) {
                Some(DType::I32) => Elem::I32,
                Some(DType::Bool) => Elem::Mask,
                _ => Elem::F32,
            };
            let segment_values =
                region.code.iter().any(|c| matches!(*c, Instr::SegmentSum { values, .. } if values == i));
            let vector = self.vector_axis.is_some_and(|last| match arg {
                BufferArg::Partial(_) => true,
                BufferArg::Random => false,
                BufferArg::Input(_) | BufferArg::Output(_) if region.is_segment_operand(i) => segment_values,
                BufferArg::Input(_) | BufferArg::Output(_) => {
                    let fastest = region.layouts().nth(i).and_then(|l| l.axes.last());
                    matches!(fastest, Some(Index::Domain(a) | Index::Rotated(a)) if *a == last)
                }
            });
            let wanted = match arg {
                BufferArg::Random => "random",
                BufferArg::Input(_) => region.names.get(i).map_or("", String::as_str),
                BufferArg::Output(_) | BufferArg::Partial(_) => region.names.get(i).map_or("", String::as_str),
            };
            let fallback = match arg {
                BufferArg::Input(k) => format!("x{k}"),
                BufferArg::Output(k) | BufferArg::Partial(k) => format!("y{k}"),
                BufferArg::Random => "random".to_owned(),
            };
            let name = self.name(if wanted.is_empty() { &fallback } else { wanted });
            self.buffers.push(Buffer { arg, name, dtype, elem, vector });
        }
        for arg in abi.indices {
            let name = match arg {
                IndexArg::Extent(a) => format!("size_{}", region.domain[a].name().to_lowercase()),
                IndexArg::Extra(a) => format!("size_{}", region.extra_axes[a].name().to_lowercase()),
                IndexArg::Stride { buffer, axis } => format!("{}_stride_{axis}", self.buffers[buffer].name),
                IndexArg::Offset(a) => format!("offset_{}", region.domain[a].name().to_lowercase()),
                IndexArg::StreamStride { stream, axis } => format!("stream_{stream}_stride_{axis}"),
            };
            let var = self.local(&name, INDEX);
            self.indices.insert(arg.into(), var);
            self.index_vars.push(var);
        }
        for i in 0..region.scalars.len() {
            let var = self.local(&format!("scalar_{i}"), Ty { elem: Elem::F32, vector: false });
            self.scalars.push(var);
        }
    }

    fn finish(mut self) -> Kernel {
        let body = std::mem::take(&mut self.blocks[0].stmts);
        Kernel {
            buffers: self.buffers,
            indices: self.index_vars,
            scalars: self.scalars,
            locals: self.locals,
            body,
            combines: self.combines,
            vector: self.vector_axis.is_some(),
            aligned: self.aligned,
        }
    }

    // ---- templates ----

    /// One vector per unit.
    fn map(&mut self) -> Result<(), KernelError> {
        let region = self.region;
        let unit = self.define("unit", INDEX, Expr::AbsolutePos);
        let flat = self.times_width("flat", unit);
        self.flat = Some(flat);
        let len = self.product("len", 0, region.domain.len());
        let inside = self.index("inside", IndexOp::Lt, flat, len);
        self.open();
        let values: Vec<Var> = (0..region.outputs.len()).map(|o| self.stored_value(o)).collect();
        for (o, value) in values.into_iter().enumerate() {
            let missing = (0..region.domain.len()).filter(|a| !stores_axis(region, o, *a)).collect::<Vec<_>>();
            self.store_where_zero(o, value, &missing);
        }
        let body = self.close();
        self.push(Stmt::If { condition: inside, body });
        Ok(())
    }

    /// One team of units per row, in turn.
    fn rows(&mut self) -> Result<(), KernelError> {
        let region = self.region;
        let d = region.domain.len();
        let rows = self.product("rows", 0, region.rows);
        let interior = self.product("interior", region.rows, d);
        let owner = self.define("owner", INDEX, Expr::TeamPos);
        let owners = self.define("owners", INDEX, Expr::TeamCount);
        let unit = self.define("unit", INDEX, Expr::UnitPos);
        let first_inner = self.times_width("first", unit);
        let units = self.define("units", INDEX, Expr::TeamUnits);
        let step = self.times_width("step", units);
        let row = self.local("row", INDEX);
        self.row = Some(row);
        self.open();

        let depth = reduction_depths(region);
        for phase in 1..=depth.iter().copied().max().unwrap_or(0) {
            let reductions: Vec<(Reg, Reg, bool)> = (region.code.iter().enumerate())
                .filter_map(|(r, instr)| match *instr {
                    Instr::RowSum(a) if depth[r] == phase => Some((r, a, true)),
                    Instr::RowMax(a) if depth[r] == phase => Some((r, a, false)),
                    _ => None,
                })
                .collect();
            self.reduce(&reductions, first_inner, interior, step);
        }

        let is_inner = |o: &usize| {
            let (reg, layout) = &region.outputs[*o];
            matches!(region.code[*reg], Instr::ColumnSum(_))
                || layout.axes.iter().any(|i| matches!(*i, Index::Domain(a) | Index::Rotated(a) if a >= region.rows))
        };
        let (inner, outer): (Vec<usize>, Vec<usize>) = (0..region.outputs.len()).partition(is_inner);
        if !inner.is_empty() {
            self.store_interior(&inner, row, owner, first_inner, interior, step);
        }
        if !outer.is_empty() {
            let values: Vec<Var> = outer.iter().map(|o| self.stored_value(*o)).collect();
            let zero = self.position(0);
            let one_unit = self.index("is_first_unit", IndexOp::Eq, unit, zero);
            self.open();
            for (o, value) in outer.into_iter().zip(values) {
                let missing: Vec<usize> = (0..region.rows).filter(|a| !stores_axis(region, o, *a)).collect();
                self.store_where_zero(o, value, &missing);
            }
            let body = self.close();
            self.push(Stmt::If { condition: one_unit, body });
        }
        let body = self.close();
        self.push(Stmt::For { var: row, start: owner, end: rows, step: owners, body });
        let is_column = |o: &usize| matches!(region.code[region.outputs[*o].0], Instr::ColumnSum(_));
        let columns: Vec<usize> = (0..region.outputs.len()).filter(is_column).collect();
        if !columns.is_empty() {
            let base = self.index("partial_row", IndexOp::Mul, owner, interior);
            for o in columns {
                let buffer = region.inputs.len() + o;
                self.push(Stmt::Flush { buffer, base, start: first_inner, end: interior, step });
            }
        }
        Ok(())
    }

    /// Row reductions whose operands are ready, in one walk over the row.
    fn reduce(&mut self, reductions: &[(Reg, Reg, bool)], start: Var, end: Var, step: Var) {
        let vector = self.vector_axis.is_some();
        let ty = Ty { elem: Elem::F32, vector };
        let mut accumulators = Vec::new();
        for &(reg, operand, is_sum) in reductions {
            self.hoist(operand);
            // The least finite number, because shading languages have no infinite constants.
            let neutral = if is_sum { 0.0f32 } else { f32::MIN };
            let neutral =
                self.define("neutral", Ty { elem: Elem::F32, vector: false }, Expr::Number(neutral.to_bits()));
            let acc = self.local(&format!("{}_{reg}", if is_sum { "sum" } else { "max" }), ty);
            self.push(Stmt::Mut(acc, if vector { Expr::Splat(neutral) } else { Expr::Copy(neutral) }));
            accumulators.push(acc);
        }
        let inner = self.local("inner", INDEX);
        self.inner = Some(inner);
        self.open();
        for (&(_, operand, is_sum), &acc) in reductions.iter().zip(&accumulators) {
            let value = self.value(operand);
            let value = self.number(value);
            let value = self.widen(value, vector);
            let op = if is_sum { Scalar::Add } else { Scalar::Max };
            self.push(Stmt::Set(acc, Expr::Binary(op, acc, value)));
        }
        let body = self.close();
        let turn = self.local("turn", INDEX);
        self.push(Stmt::Walk { turn, var: inner, start, end, step, body });
        self.inner = None;
        self.combines = true;
        let scalar = Ty { elem: Elem::F32, vector: false };
        for (&(reg, _, is_sum), &acc) in reductions.iter().zip(&accumulators) {
            let lanes = if is_sum { Expr::SumLanes(acc) } else { Expr::MaxLanes(acc) };
            let of_unit = if vector { self.define("of_unit", scalar, lanes) } else { acc };
            let of_row = if is_sum { Expr::SumTeam(of_unit) } else { Expr::MaxTeam(of_unit) };
            let of_row = self.define(&format!("row_{}_{reg}", if is_sum { "sum" } else { "max" }), scalar, of_row);
            self.block().regs.insert(reg, of_row);
        }
    }

    /// The last walk over a row: stores and partial column sums.
    fn store_interior(&mut self, outputs: &[usize], row: Var, owner: Var, start: Var, end: Var, step: Var) {
        let region = self.region;
        let column = |o: usize| match region.code[region.outputs[o].0] {
            Instr::ColumnSum(a) => Some(a),
            _ => None,
        };
        for &o in outputs {
            self.hoist(column(o).unwrap_or(region.outputs[o].0));
        }
        let has_columns = outputs.iter().any(|o| column(*o).is_some());
        let is_first_row = has_columns.then(|| self.index("is_first_row", IndexOp::Eq, row, owner));
        let partial_base = has_columns.then(|| self.index("partial_base", IndexOp::Mul, owner, end));
        let inner = self.local("inner", INDEX);
        let turn = self.local("turn", INDEX);
        self.inner = Some(inner);
        self.open();
        let values: Vec<Var> = (outputs.iter())
            .map(|&o| match column(o) {
                Some(operand) => {
                    let value = self.value(operand);
                    let value = self.number(value);
                    self.widen(value, self.vector_axis.is_some())
                }
                None => self.stored_value(o),
            })
            .collect();
        for (&o, value) in outputs.iter().zip(values) {
            let buffer = region.inputs.len() + o;
            match (column(o), is_first_row, partial_base) {
                (Some(_), Some(first), Some(base)) => {
                    let at = self.index("partial_at", IndexOp::Add, base, inner);
                    self.push(Stmt::Accumulate { buffer, at, value, first, turn });
                }
                _ => {
                    let d = region.domain.len();
                    let missing: Vec<usize> = (0..d).filter(|a| !stores_axis(region, o, *a)).collect();
                    self.store_where_zero(o, value, &missing);
                }
            }
        }
        let body = self.close();
        self.push(Stmt::Walk { turn, var: inner, start, end, step, body });
        self.inner = None;
    }

    /// Defines ahead of a walk over the row what does not change during it.
    fn hoist(&mut self, reg: Reg) {
        let region = self.region;
        let row_axes = (1u64 << region.rows) - 1;
        if self.deps[reg] & !row_axes == 0 {
            self.value(reg);
            return;
        }
        match region.code[reg] {
            Instr::Load(i) => {
                for index in &region.inputs[i].axes {
                    if let Index::Value(r) = *index {
                        self.hoist(r);
                    }
                }
                self.row_base(i);
            }
            Instr::Unary(_, a) | Instr::Round(_, a) => self.hoist(a),
            Instr::Binary(_, a, b) => {
                self.hoist(a);
                self.hoist(b);
            }
            Instr::Select(m, a, b) => {
                self.hoist(m);
                self.hoist(a);
                self.hoist(b);
            }
            Instr::Scalar(_) | Instr::Iota(_) | Instr::HalfSign(_) | Instr::Uniform(_) => {}
            Instr::RowSum(_) | Instr::RowMax(_) | Instr::ColumnSum(_) | Instr::SegmentSum { .. } => {}
        }
    }

    // ---- values ----

    fn value(&mut self, reg: Reg) -> Var {
        if let Some(var) = self.blocks.iter().rev().find_map(|b| b.regs.get(&reg)) {
            return *var;
        }
        let var = self.compute(reg);
        self.block().regs.insert(reg, var);
        var
    }

    fn compute(&mut self, reg: Reg) -> Var {
        let region = self.region;
        let name = self.value_name(reg);
        match region.code[reg] {
            Instr::Load(i) => {
                let at = self.buffer_index(i);
                let Buffer { elem, vector, .. } = self.buffers[i];
                let loaded = self.define(&name, Ty { elem, vector }, Expr::Load { buffer: i, at });
                self.where_in_range(i, loaded)
            }
            Instr::Scalar(i) => self.scalars[i],
            Instr::Iota(a) => {
                let coord = self.coord(a);
                let offset = self.arg(IndexArg::Offset(a));
                let global = self.index("global", IndexOp::Add, coord, offset);
                let vector = self.vector_axis == Some(a);
                let expr = if vector { Expr::Lanes(global) } else { Expr::ToF32(global) };
                self.define(&name, Ty { elem: Elem::F32, vector }, expr)
            }
            Instr::HalfSign(a) => {
                self.halves(a);
                let (coord, extent) = (self.coord(a), self.arg(IndexArg::Extent(a)));
                self.define(&name, Ty { elem: Elem::F32, vector: false }, Expr::HalfSign { coord, extent })
            }
            Instr::Unary(f, a) => {
                let a = self.value(a);
                let a = self.number(a);
                self.define(&name, self.locals[a].ty, Expr::Unary(f, a))
            }
            Instr::Binary(f, a, b) => self.binary(&name, f, a, b),
            Instr::Select(m, a, b) => {
                let (m, a, b) = (self.value(m), self.value(a), self.value(b));
                let m = self.mask(m);
                let (a, b) = self.alike(a, b);
                let vector = [m, a, b].iter().any(|v| self.locals[*v].ty.vector);
                let (m, a, b) = (self.widen(m, vector), self.widen(a, vector), self.widen(b, vector));
                self.define(&name, self.locals[a].ty, Expr::Select(m, a, b))
            }
            Instr::Round(slot, a) => {
                let a = self.value(a);
                self.rounded(&name, slot, a)
            }
            Instr::Uniform(s) => self.uniform(&name, s),
            Instr::SegmentSum { values, order, starts, ends } => {
                let d = region.domain.len();
                let interior = self.product("interior", region.rows, d);
                let flat = self.flat.expect("segmented sums are maps");
                let segment = self.index("segment", IndexOp::Div, flat, interior);
                let at = self.index("at", IndexOp::Rem, flat, interior);
                self.align(Aligned::Interior);
                let vector = self.buffers[values].vector;
                let expr = Expr::SegmentSum { values, order, starts, ends, segment, at, interior };
                self.define(&name, Ty { elem: Elem::F32, vector }, expr)
            }
            Instr::RowSum(_) | Instr::RowMax(_) => panic!("row reduction {reg} is used before its walk over the row"),
            Instr::ColumnSum(_) => panic!("a sum over rows, {reg}, is used as a value"),
        }
    }

    /// A row that an id picks: zeros where there is none, so that gather and scatter_add are adjoint for all ids.
    fn where_in_range(&mut self, operand: usize, loaded: Var) -> Var {
        let axes = self.region.inputs[operand].axes.clone();
        let mut value = loaded;
        for (k, index) in axes.into_iter().enumerate() {
            let Index::Value(reg) = index else { continue };
            let (id, extent) = self.id(operand, k, reg);
            let inside = self.define("in_range", Ty { elem: Elem::Mask, vector: false }, Expr::InRange { id, extent });
            let number = self.number(value);
            let vector = self.locals[number].ty.vector;
            let zero = self.define("zero", Ty { elem: Elem::F32, vector: false }, Expr::Number(0));
            let (inside, zero) = (self.widen(inside, vector), self.widen(zero, vector));
            value = self.define("picked", self.locals[number].ty, Expr::Select(inside, number, zero));
        }
        value
    }

    /// The id that is the index along axis `k` of an operand, and the size of that axis.
    fn id(&mut self, operand: usize, k: usize, reg: Reg) -> (Var, Var) {
        let id = self.value(reg);
        let id = match self.locals[id].ty {
            Ty { elem: Elem::I32, .. } => id,
            ty => {
                let number = self.number(id);
                self.define("id", Ty { elem: Elem::I32, ..ty }, Expr::ToI32(number))
            }
        };
        (id, self.arg(IndexArg::Extra(self.extra_ordinal(operand, k))))
    }

    fn binary(&mut self, name: &str, f: Scalar, a: Reg, b: Reg) -> Var {
        use Scalar::*;
        let compares = matches!(f, Lt | Le | Gt | Ge | Eq | Ne);
        let (a, b) = (self.value(a), self.value(b));
        let ids = self.locals[a].ty.elem == Elem::I32 && self.locals[b].ty.elem == Elem::I32;
        let (a, b) = if compares && ids { (a, b) } else { (self.number(a), self.number(b)) };
        let vector = self.locals[a].ty.vector || self.locals[b].ty.vector;
        let (a, b) = (self.widen(a, vector), self.widen(b, vector));
        let elem = if compares { Elem::Mask } else { Elem::F32 };
        self.define(name, Ty { elem, vector }, Expr::Binary(f, a, b))
    }

    fn uniform(&mut self, name: &str, stream: usize) -> Var {
        let axes = self.region.streams[stream].axes.clone();
        let mut terms = Vec::new();
        let mut lane_stride = None;
        for (k, &a) in axes.iter().enumerate() {
            let coord = self.coord(a);
            let stride = (k + 1 < axes.len()).then(|| self.arg(IndexArg::StreamStride { stream, axis: k }));
            if self.vector_axis == Some(a) {
                lane_stride = Some(match stride {
                    Some(stride) => stride,
                    None => self.position(1),
                });
            }
            terms.push(match stride {
                Some(stride) => self.index("step", IndexOp::Mul, coord, stride),
                None => coord,
            });
        }
        let at = self.sum("random_at", &terms);
        let buffer = self.buffers.len() - 1;
        let ty = Ty { elem: Elem::F32, vector: lane_stride.is_some() };
        self.define(name, ty, Expr::Uniform { buffer, stream, at, lane_stride })
    }

    /// The value of an output as it is stored: rounded to its slot.
    fn stored_value(&mut self, output: usize) -> Var {
        let (reg, layout) = &self.region.outputs[output];
        let value = self.value(*reg);
        if matches!(self.region.code[*reg], Instr::Round(slot, _) if slot == layout.dtype) {
            return value;
        }
        let name = self.region.names.get(self.region.inputs.len() + output).cloned().unwrap_or_default();
        let name = if name.is_empty() { format!("y{output}_value") } else { format!("{name}_value") };
        self.rounded(&name, layout.dtype, value)
    }

    fn rounded(&mut self, name: &str, slot: usize, value: Var) -> Var {
        match self.region.dtypes[slot] {
            DType::Bool => self.mask(value),
            DType::I32 => match self.locals[value].ty.elem {
                Elem::I32 => value,
                Elem::F32 | Elem::Mask | Elem::Index => {
                    let value = self.number(value);
                    let ty = Ty { elem: Elem::I32, ..self.locals[value].ty };
                    self.define(name, ty, Expr::ToI32(value))
                }
            },
            DType::F32 | DType::Bf16 | DType::F16 | DType::Compute | DType::Sub(_) => {
                let value = self.number(value);
                self.define(name, self.locals[value].ty, Expr::Round(slot, value))
            }
        }
    }

    fn store_where_zero(&mut self, output: usize, value: Var, missing: &[usize]) {
        let mut conditions = Vec::new();
        for &a in missing {
            let coord = self.coord(a);
            let zero = self.position(0);
            conditions.push(self.index("is_zero", IndexOp::Eq, coord, zero));
        }
        let buffer = self.region.inputs.len() + output;
        let at = self.buffer_index(buffer);
        let value = match self.buffers[buffer].vector {
            true => self.widen(value, true),
            false if self.locals[value].ty.vector => {
                let ty = Ty { vector: false, ..self.locals[value].ty };
                self.define("lane", ty, Expr::FirstLane(value))
            }
            false => value,
        };
        let mut stmt = Stmt::Store { buffer, at, value };
        for condition in conditions.into_iter().rev() {
            stmt = Stmt::If { condition, body: vec![stmt] };
        }
        self.push(stmt);
    }

    fn number(&mut self, var: Var) -> Var {
        let ty = self.locals[var].ty;
        match ty.elem {
            Elem::F32 => var,
            Elem::I32 | Elem::Mask | Elem::Index => {
                self.define("number", Ty { elem: Elem::F32, ..ty }, Expr::ToF32(var))
            }
        }
    }

    fn mask(&mut self, var: Var) -> Var {
        let ty = self.locals[var].ty;
        match ty.elem {
            Elem::Mask => var,
            Elem::F32 | Elem::I32 | Elem::Index => {
                let var = if ty.elem == Elem::Index { self.number(var) } else { var };
                self.define("mask", Ty { elem: Elem::Mask, ..ty }, Expr::ToMask(var))
            }
        }
    }

    /// Two values of one kind: ids and masks stay what they are where both are.
    fn alike(&mut self, a: Var, b: Var) -> (Var, Var) {
        match self.locals[a].ty.elem == self.locals[b].ty.elem && self.locals[a].ty.elem != Elem::Mask {
            true => (a, b),
            false => (self.number(a), self.number(b)),
        }
    }

    fn widen(&mut self, var: Var, vector: bool) -> Var {
        let ty = self.locals[var].ty;
        if ty.vector || !vector {
            return var;
        }
        self.define("splat", Ty { vector: true, ..ty }, Expr::Splat(var))
    }

    // ---- positions ----

    fn buffer_index(&mut self, buffer: usize) -> Var {
        let region = self.region;
        let layout = region.layouts().nth(buffer).expect("an index is asked for a buffer of the region");
        let axes = &layout.axes;
        let is_range = |from: usize, to: usize| {
            axes.len() == to - from && axes.iter().zip(from..to).all(|(i, a)| *i == Index::Domain(a))
        };
        let d = region.domain.len();
        if axes.is_empty() {
            return self.position(0);
        }
        if let Some(flat) = self.flat.filter(|_| is_range(0, d)) {
            return flat;
        }
        if let Some(row) = self.row.filter(|_| is_range(0, region.rows)) {
            return row;
        }
        if let Some(inner) = self.inner.filter(|_| is_range(region.rows, d) && region.rows > 0) {
            return inner;
        }
        let base = self.row_base(buffer);
        if let Some(inner) = self.inner.filter(|_| is_range(0, d)) {
            return match base {
                Some(base) => self.index("at", IndexOp::Add, base, inner),
                None => inner,
            };
        }
        let mut terms: Vec<Var> = base.into_iter().collect();
        for (k, index) in axes.clone().into_iter().enumerate() {
            if !self.is_hoisted(index) {
                terms.push(self.term(buffer, k, index));
            }
        }
        let name = format!("{}_at", self.buffers[buffer].name);
        self.sum(&name, &terms)
    }

    /// The part of a buffer's index that is the same for the whole row.
    fn row_base(&mut self, buffer: usize) -> Option<Var> {
        let region = self.region;
        let row = self.row?;
        let axes = region.layouts().nth(buffer)?.axes.clone();
        let d = region.domain.len();
        if axes.len() == d && axes.iter().enumerate().all(|(a, i)| *i == Index::Domain(a)) {
            let interior = self.product("interior", region.rows, d);
            return Some(self.index("row_base", IndexOp::Mul, row, interior));
        }
        let mut terms = Vec::new();
        for (k, index) in axes.into_iter().enumerate() {
            if self.is_hoisted(index) {
                terms.push(self.term(buffer, k, index));
            }
        }
        (!terms.is_empty()).then(|| self.sum("row_base", &terms))
    }

    /// Whether an index is the same for the whole row.
    fn is_hoisted(&self, index: Index) -> bool {
        let row_axes = (1u64 << self.region.rows) - 1;
        self.row.is_some()
            && match index {
                Index::Domain(a) | Index::Rotated(a) => a < self.region.rows,
                Index::Value(r) => self.deps[r] & !row_axes == 0,
            }
    }

    fn term(&mut self, buffer: usize, k: usize, index: Index) -> Var {
        let position = match index {
            Index::Domain(a) => self.coord(a),
            Index::Rotated(a) => {
                self.halves(a);
                let (coord, extent) = (self.coord(a), self.arg(IndexArg::Extent(a)));
                self.define("partner", INDEX, Expr::Rotate { coord, extent })
            }
            Index::Value(reg) => {
                let (id, extent) = self.id(buffer, k, reg);
                self.define("position", INDEX, Expr::Clamp { id, extent })
            }
        };
        let layout = self.region.layouts().nth(buffer).expect("a term belongs to a buffer of the region");
        if k + 1 == layout.axes.len() {
            return position;
        }
        let stride = self.arg(IndexArg::Stride { buffer, axis: k });
        self.index("offset", IndexOp::Mul, position, stride)
    }

    /// Which extra axis axis `k` of a buffer is.
    fn extra_ordinal(&self, buffer: usize, k: usize) -> usize {
        let by_value = |i: &&Index| matches!(i, Index::Value(_));
        let before: usize = self.region.inputs[..buffer].iter().map(|l| l.axes.iter().filter(by_value).count()).sum();
        before + self.region.inputs[buffer].axes[..k].iter().filter(by_value).count()
    }

    /// Position along a domain axis: of the row for its axes, else of the first lane.
    fn coord(&mut self, axis: usize) -> Var {
        let region = self.region;
        let d = region.domain.len();
        let (from, to, base) = match (self.flat, self.row) {
            (Some(flat), _) => (0, d, flat),
            (None, Some(row)) if axis < region.rows => (0, region.rows, row),
            (None, _) => (region.rows, d, self.inner.expect("interior positions are asked for during a walk")),
        };
        if self.flat.is_some() || axis >= region.rows {
            self.align(Aligned::Last);
        }
        let mut rest = base;
        for k in (axis + 1..to).rev() {
            let extent = self.arg(IndexArg::Extent(k));
            rest = self.index("rest", IndexOp::Div, rest, extent);
        }
        if axis == from {
            return rest;
        }
        let extent = self.arg(IndexArg::Extent(axis));
        self.index(&format!("{}_pos", region.domain[axis].name().to_lowercase()), IndexOp::Rem, rest, extent)
    }

    /// An axis is used by halves: no vector may straddle its middle.
    fn halves(&mut self, axis: usize) {
        if self.vector_axis == Some(axis) {
            self.align(Aligned::Half);
        }
    }

    fn align(&mut self, needed: Aligned) {
        let strength = |a: Aligned| match a {
            Aligned::Domain => 0,
            Aligned::Interior => 1,
            Aligned::Last => 2,
            Aligned::Half => 3,
        };
        if strength(needed) > strength(self.aligned) {
            self.aligned = needed;
        }
    }

    fn product(&mut self, name: &str, from: usize, to: usize) -> Var {
        let Some(first) = (from < to).then(|| self.arg(IndexArg::Extent(from))) else { return self.position(1) };
        (from + 1..to).fold(first, |product, a| {
            let extent = self.arg(IndexArg::Extent(a));
            self.index(name, IndexOp::Mul, product, extent)
        })
    }

    fn sum(&mut self, name: &str, terms: &[Var]) -> Var {
        match terms.split_first() {
            None => self.position(0),
            Some((&first, others)) => others.iter().fold(first, |sum, &t| self.index(name, IndexOp::Add, sum, t)),
        }
    }

    fn times_width(&mut self, name: &str, var: Var) -> Var {
        if self.vector_axis.is_none() {
            return var;
        }
        let width = self.define("width", INDEX, Expr::Width);
        self.index(name, IndexOp::Mul, var, width)
    }

    fn position(&mut self, n: usize) -> Var {
        self.define(&format!("n{n}"), INDEX, Expr::Position(n))
    }

    fn index(&mut self, name: &str, op: IndexOp, a: Var, b: Var) -> Var {
        let elem = match op {
            IndexOp::Lt | IndexOp::Eq => Elem::Mask,
            IndexOp::Add | IndexOp::Mul | IndexOp::Div | IndexOp::Rem => Elem::Index,
        };
        self.define(name, Ty { elem, vector: false }, Expr::Index(op, a, b))
    }

    fn arg(&self, arg: IndexArg) -> Var {
        *self.indices.get(&IndexKey::from(arg)).unwrap_or_else(|| panic!("{arg:?} is not an argument of the kernel"))
    }

    // ---- statements ----

    /// A local equal to `expr`: the one that is already in scope, or a new one.
    fn define(&mut self, name: &str, ty: Ty, expr: Expr) -> Var {
        if let Some(var) = self.blocks.iter().rev().find_map(|b| b.exprs.get(&expr)) {
            return *var;
        }
        let var = self.local(name, ty);
        self.push(Stmt::Let(var, expr));
        self.block().exprs.insert(expr, var);
        var
    }

    fn local(&mut self, name: &str, ty: Ty) -> Var {
        let name = self.name(name);
        self.locals.push(Local { name, ty });
        self.locals.len() - 1
    }

    fn value_name(&self, reg: Reg) -> String {
        let region = self.region;
        let named = |i: usize| region.names.get(i).filter(|n| !n.is_empty()).map(|n| format!("{n}_value"));
        let output = region.outputs.iter().position(|(r, _)| *r == reg).and_then(|o| named(region.inputs.len() + o));
        match region.code[reg] {
            Instr::Load(i) => named(i),
            _ => output,
        }
        .unwrap_or_else(|| format!("v{reg}"))
    }

    fn name(&mut self, wanted: &str) -> String {
        let plain: String = wanted.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let is_ident = plain.starts_with(|c: char| c.is_ascii_alphabetic()) && !RESERVED.contains(&plain.as_str());
        let plain = if is_ident { plain } else { format!("n_{plain}") };
        let mut name = plain.clone();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{plain}_{n}");
        }
        name
    }

    fn block(&mut self) -> &mut Block {
        self.blocks.last_mut().expect("the outermost block stays open")
    }

    fn push(&mut self, stmt: Stmt) {
        self.block().stmts.push(stmt);
    }

    fn open(&mut self) {
        self.blocks.push(Block::default());
    }

    fn close(&mut self) -> Vec<Stmt> {
        self.blocks.pop().expect("blocks are closed once").stmts
    }
}

/// Words that a user may have bound in a body that is not a kernel, but that kernels use or Rust reserves.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "crate",
    "else",
    "enum",
    "extern",
    "false",
    "fn",
    "for",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "match",
    "mod",
    "move",
    "mut",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "type",
    "unsafe",
    "use",
    "where",
    "while",
    "async",
    "await",
    "dyn",
    "gen",
    "abstract",
    "become",
    "box",
    "do",
    "final",
    "macro",
    "override",
    "priv",
    "try",
    "typeof",
    "unsized",
    "virtual",
    "yield",
    "spec",
    "builder",
    "shared",
    "scope",
    "select",
    "range",
    "comptime",
    "width",
    "team",
    "accumulate",
];

/// Whether output `o` has the domain axis `a` in memory.
fn stores_axis(region: &Region, o: usize, a: usize) -> bool {
    region.outputs[o].1.axes.iter().any(|i| matches!(*i, Index::Domain(x) | Index::Rotated(x) if x == a))
}

/// How many row reductions deep each instruction lies, itself included.
fn reduction_depths(region: &Region) -> Vec<usize> {
    let mut depth: Vec<usize> = Vec::with_capacity(region.code.len());
    for instr in &region.code {
        let below = region.operands(instr).into_iter().map(|a| depth[a]).max().unwrap_or(0);
        depth.push(below + usize::from(matches!(instr, Instr::RowSum(_) | Instr::RowMax(_))));
    }
    depth
}
