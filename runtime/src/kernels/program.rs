//! Kernels of regions that no macro has emitted (recorded layers, groups formed at start-up): the same program, walked when the
//! kernel is built. The code on the device is that of the emitted kernel; only its construction costs more.

use super::steps;
use super::{Rounding, math, placeholders::*, position, random, reduce, rounding, segment, team};
use crate::device::cube::Spec;
use cubecl::ir::ManagedVariable;
use cubecl::prelude::*;
use kiln_compiler::fuse::BufferArg;
use kiln_compiler::fuse::kernel::{Buffer, Elem, Expr, IndexOp, Kernel, Stmt, Ty, Var};
use kiln_compiler::ops::Scalar as Function;

/// Evaluates `$body` with `$F` standing for the placeholder of a slot; partial sums, which have no slot, are f32.
macro_rules! with_slot {
    ($slot:expr, $F:ident => $body:expr) => {{
        macro_rules! arm {
            ($ty:ty) => {{
                type $F = $ty;
                $body
            }};
        }
        match $slot {
            None => arm!(f32),
            Some(0) => arm!(F0),
            Some(1) => arm!(F1),
            Some(2) => arm!(F2),
            Some(3) => arm!(F3),
            Some(4) => arm!(F4),
            Some(5) => arm!(F5),
            Some(6) => arm!(F6),
            Some(7) => arm!(F7),
            Some(8) => arm!(F8),
            Some(9) => arm!(F9),
            Some(10) => arm!(F10),
            Some(11) => arm!(F11),
            Some(other) => panic!("slot {other} has no placeholder; the region was checked"),
        }
    }};
}

/// Builds the kernel of the spec's program.
pub fn define_program(builder: &mut KernelBuilder, spec: &Spec) {
    let program = spec.program.as_ref().expect("a walked kernel carries its program");
    let kernel = &*program.0;
    let mut walk = Walk {
        kernel,
        spec,
        buffers: Vec::new(),
        locals: vec![None; kernel.locals.len()],
        shared: None,
        asides: Vec::new(),
    };
    for buffer in &kernel.buffers {
        walk.buffers.push(walk.argument(builder, buffer));
    }
    for &v in &kernel.indices {
        walk.locals[v] = Some(super::position(builder).expand);
    }
    for &v in &kernel.scalars {
        walk.locals[v] = Some(super::number(builder).expand);
    }
    let scope = &mut builder.scope;
    if kernel.combines {
        walk.shared = Some(SharedMemory::<f32>::__expand_new(scope, spec.cube_dim as usize).expand);
    }
    for (i, buffer) in kernel.buffers.iter().enumerate().filter(|(_, b)| matches!(b.arg, BufferArg::Partial(_))) {
        let aside = match buffer.vector {
            true => reduce::zeros::expand::<N0>(scope, spec.team()).expand,
            false => reduce::zeros::expand::<N1>(scope, spec.team()).expand,
        };
        walk.asides.push((i, aside));
    }
    walk.stmts(scope, &kernel.body);
}

struct Walk<'a> {
    kernel: &'a Kernel,
    spec: &'a Spec,
    buffers: Vec<ManagedVariable>,
    locals: Vec<Option<ManagedVariable>>,
    shared: Option<ManagedVariable>,
    /// Sums of a unit, by the buffer that they will be written to.
    asides: Vec<(usize, ManagedVariable)>,
}

impl Walk<'_> {
    fn argument(&self, builder: &mut KernelBuilder, buffer: &Buffer) -> ManagedVariable {
        let element = match buffer.arg {
            BufferArg::Random => u32::as_type(&builder.scope),
            BufferArg::Input(_) | BufferArg::Output(_) | BufferArg::Partial(_) => {
                with_slot!(buffer.dtype, F => F::as_type(&builder.scope))
            }
        };
        let ty = element.with_vector_size(self.width(buffer));
        match buffer.arg {
            BufferArg::Input(_) | BufferArg::Random => builder.input_array(ty),
            BufferArg::Output(_) | BufferArg::Partial(_) => builder.output_array(ty),
        }
    }

    fn width(&self, buffer: &Buffer) -> usize {
        if buffer.vector { self.spec.width } else { 1 }
    }

    /// An earlier value as what a step takes.
    fn get<T: From<ManagedVariable>>(&self, var: Var) -> T {
        let value = self.locals[var].clone();
        value.unwrap_or_else(|| panic!("{} is used before it is defined", self.kernel.locals[var].name)).into()
    }

    fn buffer<T: From<ManagedVariable>>(&self, i: usize) -> T {
        self.buffers[i].clone().into()
    }

    fn shared<T: From<ManagedVariable>>(&self) -> T {
        let shared = self.shared.clone();
        shared.expect("a kernel that combines has shared memory").into()
    }

    fn aside<T: From<ManagedVariable>>(&self, buffer: usize) -> T {
        let known = self.asides.iter().find(|(b, _)| *b == buffer);
        known.expect("every partial sum has its place aside").1.clone().into()
    }

    fn stmts(&mut self, scope: &mut Scope, stmts: &[Stmt]) {
        for stmt in stmts {
            self.stmt(scope, stmt);
        }
    }

    fn stmt(&mut self, scope: &mut Scope, stmt: &Stmt) {
        match stmt {
            Stmt::Let(v, e) => {
                self.locals[*v] = Some(self.value(scope, *v, e));
            }
            Stmt::Mut(v, e) => {
                let start: NativeExpand<f32> = self.value(scope, *v, e).into();
                self.locals[*v] = Some(start.into_mut(scope).expand);
            }
            Stmt::Set(v, e) => {
                let value: NativeExpand<f32> = self.value(scope, *v, e).into();
                assign::expand(scope, value, self.get(*v));
            }
            Stmt::Store { buffer, at, value } => match self.kernel.locals[*value].ty.vector {
                true => self.store::<N0>(scope, *buffer, *at, *value),
                false => self.store::<N1>(scope, *buffer, *at, *value),
            },
            Stmt::Accumulate { buffer, at, value, first, turn } => {
                let width = constant(scope, self.width(&self.kernel.buffers[*buffer]));
                let at = steps::index_div::expand(scope, self.get(*at), width);
                let (first, turn, team) = (self.get(*first), self.get(*turn), self.spec.team());
                let to = *buffer;
                match self.kernel.buffers[to].vector {
                    true => reduce::accumulate::expand::<N0>(
                        scope,
                        self.buffer(to),
                        at,
                        self.get(*value),
                        first,
                        self.aside(to),
                        turn,
                        team,
                    ),
                    false => reduce::accumulate::expand::<N1>(
                        scope,
                        self.buffer(to),
                        at,
                        self.get(*value),
                        first,
                        self.aside(to),
                        turn,
                        team,
                    ),
                }
            }
            Stmt::Flush { buffer, base, start, end, step } => {
                let (base, start, end, step) = (self.get(*base), self.get(*start), self.get(*end), self.get(*step));
                let (to, team) = (*buffer, self.spec.team());
                let width = self.width(&self.kernel.buffers[to]);
                match self.kernel.buffers[to].vector {
                    true => reduce::flush::expand::<N0>(
                        scope,
                        self.buffer(to),
                        self.aside(to),
                        base,
                        start,
                        end,
                        step,
                        width,
                        team,
                    ),
                    false => reduce::flush::expand::<N1>(
                        scope,
                        self.buffer(to),
                        self.aside(to),
                        base,
                        start,
                        end,
                        step,
                        width,
                        team,
                    ),
                }
            }
            Stmt::Walk { turn, var, start, end, step, body } => {
                let known = self.spec.team().turns > 0;
                let turns = team::turns::expand(scope, self.get(*end), self.get(*step), self.spec.team());
                let range = RangeExpand::new(constant(scope, 0), turns, false);
                for_expand(scope, range, known, |scope, position| {
                    let far = steps::index_mul::expand(scope, position.clone(), self.get(*step));
                    let at = steps::index_add::expand(scope, self.get(*start), far);
                    let inside = team::has_vector::expand(scope, at.clone(), self.get(*end), self.spec.team());
                    self.locals[*turn] = Some(position.expand);
                    self.locals[*var] = Some(at.expand);
                    if_expand(scope, inside, |scope| self.stmts(scope, body));
                });
            }
            Stmt::For { var, start, end, step, body } => {
                let (start, end, step) = (self.get::<NativeExpand<usize>>(*start), self.get(*end), self.get(*step));
                let range = range_stepped::expand(scope, start, end, step);
                for_expand(scope, range, false, |scope, position| {
                    self.locals[*var] = Some(position.expand);
                    self.stmts(scope, body);
                });
            }
            Stmt::If { condition, body } => {
                if_expand(scope, self.get(*condition), |scope| self.stmts(scope, body));
            }
        }
    }

    fn store<N: Size>(&self, scope: &mut Scope, buffer: usize, at: Var, value: Var) {
        let b = &self.kernel.buffers[buffer];
        let BufferArg::Output(o) = b.arg else { panic!("only outputs are stored") };
        let add = self.spec.accumulate >> o & 1 == 1;
        let width = constant(scope, self.width(b));
        let at = steps::index_div::expand(scope, self.get(at), width);
        with_slot!(b.dtype, F => match self.kernel.locals[value].ty.elem {
            Elem::F32 | Elem::Index => {
                reduce::store::expand::<F, f32, N>(scope, self.buffer(buffer), at, self.get(value), add)
            }
            Elem::I32 => reduce::store::expand::<F, i32, N>(scope, self.buffer(buffer), at, self.get(value), add),
            Elem::Mask => {
                let word = steps::mask_to_word::expand::<N>(scope, self.get(value));
                reduce::store::expand::<F, u32, N>(scope, self.buffer(buffer), at, word, add)
            }
        })
    }

    fn value(&self, scope: &mut Scope, var: Var, e: &Expr) -> ManagedVariable {
        let ty = self.kernel.locals[var].ty;
        if ty.vector { self.expr::<N0>(scope, ty, e) } else { self.expr::<N1>(scope, ty, e) }
    }

    fn expr<N: Size>(&self, scope: &mut Scope, ty: Ty, e: &Expr) -> ManagedVariable {
        match *e {
            Expr::AbsolutePos => steps::absolute_pos::expand(scope).expand,
            Expr::UnitPos => team::unit_of_team::expand(scope, self.spec.team()).expand,
            Expr::TeamPos => team::team_pos::expand(scope, self.spec.team()).expand,
            Expr::TeamCount => team::team_count::expand(scope, self.spec.team()).expand,
            Expr::TeamUnits => team::team_units::expand(scope, self.spec.team()).expand,
            Expr::Width => constant(scope, self.spec.width).expand,
            Expr::Position(n) => constant(scope, n).expand,
            Expr::Number(bits) => steps::number_of_bits::expand(scope, bits).expand,
            Expr::Index(op, a, b) => {
                let (a, b) = (self.get(a), self.get(b));
                match op {
                    IndexOp::Add => steps::index_add::expand(scope, a, b).expand,
                    IndexOp::Mul => steps::index_mul::expand(scope, a, b).expand,
                    IndexOp::Div => steps::index_div::expand(scope, a, b).expand,
                    IndexOp::Rem => steps::index_rem::expand(scope, a, b).expand,
                    IndexOp::Lt => steps::index_lt::expand(scope, a, b).expand,
                    IndexOp::Eq => steps::index_eq::expand(scope, a, b).expand,
                }
            }
            Expr::Load { buffer, at } => self.load::<N>(scope, buffer, at),
            Expr::Unary(f, a) => unary::<N>(scope, f, self.get(a)).expand,
            Expr::Binary(f, a, b) => match self.kernel.locals[a].ty.elem {
                Elem::I32 => compare::<i32, N>(scope, f, self.get(a), self.get(b)),
                Elem::F32 | Elem::Mask | Elem::Index => binary::<N>(scope, f, self.get(a), self.get(b)),
            },
            Expr::Select(m, a, b) => match ty.elem {
                Elem::I32 => select_many::expand::<i32, N>(scope, self.get(m), self.get(a), self.get(b)).expand,
                Elem::F32 | Elem::Mask | Elem::Index => {
                    select_many::expand::<f32, N>(scope, self.get(m), self.get(a), self.get(b)).expand
                }
            },
            Expr::Copy(a) => self.get::<NativeExpand<f32>>(a).expand,
            Expr::Splat(a) => match ty.elem {
                Elem::F32 | Elem::Index => steps::cast::expand::<f32, f32, N1, N>(scope, self.get(a)).expand,
                Elem::I32 => steps::cast::expand::<i32, i32, N1, N>(scope, self.get(a)).expand,
                Elem::Mask => steps::cast::expand::<bool, bool, N1, N>(scope, self.get(a)).expand,
            },
            Expr::FirstLane(a) => match ty.elem {
                Elem::F32 | Elem::Index => position::first_lane::expand::<f32, N0>(scope, self.get(a)).expand,
                Elem::I32 => position::first_lane::expand::<i32, N0>(scope, self.get(a)).expand,
                Elem::Mask => position::first_lane::expand::<bool, N0>(scope, self.get(a)).expand,
            },
            Expr::ToF32(a) => match self.kernel.locals[a].ty.elem {
                Elem::Mask => steps::mask_to_number::expand::<N>(scope, self.get(a)).expand,
                Elem::I32 => steps::cast::expand::<i32, f32, N, N>(scope, self.get(a)).expand,
                Elem::Index => steps::index_to_number::expand(scope, self.get(a)).expand,
                Elem::F32 => self.get::<NativeExpand<f32>>(a).expand,
            },
            Expr::ToI32(a) => steps::cast::expand::<f32, i32, N, N>(scope, self.get(a)).expand,
            Expr::ToMask(a) => match self.kernel.locals[a].ty.elem {
                Elem::I32 => steps::id_to_mask::expand::<N>(scope, self.get(a)).expand,
                Elem::F32 | Elem::Mask | Elem::Index => steps::number_to_mask::expand::<N>(scope, self.get(a)).expand,
            },
            Expr::Round(slot, a) => {
                let to: Rounding = self.spec.rounding(slot);
                rounding::round::expand::<N>(scope, self.get(a), to).expand
            }
            Expr::Lanes(a) => position::lanes::expand::<N>(scope, self.get(a)).expand,
            Expr::Rotate { coord, extent } => position::rotate::expand(scope, self.get(coord), self.get(extent)).expand,
            Expr::HalfSign { coord, extent } => {
                position::half_sign::expand(scope, self.get(coord), self.get(extent)).expand
            }
            Expr::Clamp { id, extent } => position::clamp::expand(scope, self.get(id), self.get(extent)).expand,
            Expr::InRange { id, extent } => position::in_range::expand(scope, self.get(id), self.get(extent)).expand,
            Expr::Uniform { buffer, stream, at, lane_stride } => {
                let (words, stride) = (self.buffer(buffer), self.get(lane_stride.unwrap_or(at)));
                random::uniform::expand::<N>(scope, words, stream as u32, self.get(at), stride).expand
            }
            Expr::SumLanes(a) => reduce::sum_lanes::expand::<N0>(scope, self.get(a)).expand,
            Expr::MaxLanes(a) => reduce::max_lanes::expand::<N0>(scope, self.get(a)).expand,
            Expr::SumTeam(a) => reduce::sum_team::expand(scope, self.get(a), self.shared(), self.spec.team()).expand,
            Expr::MaxTeam(a) => reduce::max_team::expand(scope, self.get(a), self.shared(), self.spec.team()).expand,
            Expr::SegmentSum { .. } => self.segment_sum::<N>(scope, e),
        }
    }

    fn load<N: Size>(&self, scope: &mut Scope, buffer: usize, at: Var) -> ManagedVariable {
        let b = &self.kernel.buffers[buffer];
        let (width, at) = (self.width(b), self.get(at));
        with_slot!(b.dtype, F => match b.elem {
            Elem::F32 | Elem::Index => steps::load_number::expand::<F, N>(scope, self.buffer(buffer), at, width).expand,
            Elem::I32 => steps::load_id::expand::<F, N>(scope, self.buffer(buffer), at, width).expand,
            Elem::Mask => steps::load_mask::expand::<F, N>(scope, self.buffer(buffer), at, width).expand,
        })
    }

    fn segment_sum<N: Size>(&self, scope: &mut Scope, e: &Expr) -> ManagedVariable {
        let Expr::SegmentSum { values, order, starts, ends, segment, at, interior } = *e else {
            panic!("{e:?} is no segmented sum")
        };
        let (segment, at, interior) = (self.get(segment), self.get(at), self.get(interior));
        let (order, starts, ends) = (self.buffer(order), self.buffer(starts), self.buffer(ends));
        // Ids are stored as i32 on every device.
        with_slot!(self.kernel.buffers[values].dtype, F => segment::segment_sum::expand::<F, N, i32, i32, i32>(
            scope, self.buffer(values), order, starts, ends, segment, at, interior,
        ).expand)
    }
}

fn constant(scope: &mut Scope, n: usize) -> NativeExpand<usize> {
    steps::constant::expand(scope, n)
}

type Number<N> = NativeExpand<Vector<f32, N>>;

fn unary<N: Size>(scope: &mut Scope, f: Function, a: Number<N>) -> Number<N> {
    match f {
        Function::Neg => math::neg::expand::<N>(scope, a),
        Function::Exp => a.__expand_exp_method(scope),
        Function::Log => a.__expand_ln_method(scope),
        Function::Sqrt => a.__expand_sqrt_method(scope),
        Function::Rsqrt => a.__expand_inverse_sqrt_method(scope),
        Function::Recip => steps::recip::expand::<N>(scope, a),
        Function::Sin => math::sine::expand::<N>(scope, a),
        Function::Cos => math::cosine::expand::<N>(scope, a),
        Function::Tanh => math::tanh::expand::<N>(scope, a),
        Function::Erf => math::erf::expand::<N>(scope, a),
        Function::Logistic => math::logistic::expand::<N>(scope, a),
        Function::Abs => a.__expand_abs_method(scope),
        Function::Sign => math::sign::expand::<N>(scope, a),
        other => panic!("{other:?} has more than one operand"),
    }
}

fn binary<N: Size>(scope: &mut Scope, f: Function, a: Number<N>, b: Number<N>) -> ManagedVariable {
    match f {
        Function::Add => a.__expand_add_method(scope, b).expand,
        Function::Sub => a.__expand_sub_method(scope, b).expand,
        Function::Mul => steps::mul::expand::<N>(scope, a, b).expand,
        Function::Div => steps::div::expand::<N>(scope, a, b).expand,
        Function::Max => math::maximum::expand::<N>(scope, a, b).expand,
        Function::Min => math::minimum::expand::<N>(scope, a, b).expand,
        other => compare::<f32, N>(scope, other, a, b),
    }
}

fn compare<E: Scalar, N: Size>(
    scope: &mut Scope,
    f: Function,
    a: NativeExpand<Vector<E, N>>,
    b: NativeExpand<Vector<E, N>>,
) -> ManagedVariable {
    match f {
        Function::Lt => a.__expand_less_than_method(scope, b).expand,
        Function::Le => a.__expand_less_equal_method(scope, b).expand,
        Function::Gt => a.__expand_greater_than_method(scope, b).expand,
        Function::Ge => a.__expand_greater_equal_method(scope, b).expand,
        Function::Eq => a.__expand_equal_method(scope, b).expand,
        Function::Ne => a.__expand_not_equal_method(scope, b).expand,
        other => panic!("{other:?} is no comparison"),
    }
}
