//! Prints a kernel's program as a `#[cube]` function, one statement for each of the program.

use crate::fuse::BufferArg;
use crate::fuse::kernel::{Buffer, Elem, Expr, IndexOp, Kernel, Stmt, Ty, Var};
use crate::ops::Scalar;
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote};
use std::collections::BTreeSet;

/// The function.
pub fn function(kernel: &Kernel, name: &str) -> TokenStream {
    let name = Ident::new(name, Span::call_site());
    let buffers = kernel.buffers.iter().map(|buffer| {
        let (name, element) = (ident(&buffer.name), element(buffer));
        match buffer.arg {
            BufferArg::Input(_) | BufferArg::Random => quote! { #name: &Array<#element> },
            BufferArg::Output(_) | BufferArg::Partial(_) => quote! { #name: &mut Array<#element> },
        }
    });
    let indices = kernel.indices.iter().map(|v| local(kernel, *v));
    let scalars: Vec<Ident> = kernel.scalars.iter().map(|v| local(kernel, *v)).collect();
    let roundings = rounded_slots(kernel).into_iter().map(rounding);
    let shared = kernel
        .combines
        .then(|| quote! { let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize)); });
    let partials = kernel.buffers.iter().filter(|b| matches!(b.arg, BufferArg::Partial(_))).map(|b| {
        let (aside, lanes) = (aside(b), width(b.vector));
        quote! { let mut #aside = gpu::zeros::<#lanes>(team); }
    });
    let body = kernel.body.iter().map(|s| stmt(kernel, s));
    // #[cube]
    // pub fn swiglu(
    //     gate: &Array<Vector<gpu::F0, gpu::N0>>, .., size_s: usize, scalar_0: f32,
    //     #[comptime] width: usize, #[comptime] team: gpu::Team, #[comptime] accumulate: u32, #[comptime] rounding_0: gpu::Rounding,
    // ) {
    //     let scalar_0 = Vector::<f32, gpu::N1>::new(scalar_0);
    //     let unit = ABSOLUTE_POS;
    //     ..
    // }
    quote! {
        #[cube]
        pub fn #name(
            #(#buffers,)* #(#indices: usize,)* #(#scalars: f32,)*
            #[comptime] width: usize, #[comptime] team: gpu::Team, #[comptime] accumulate: u32,
            #(#[comptime] #roundings: gpu::Rounding,)*
        ) {
            #shared
            #(#partials)*
            #(let #scalars = Vector::<f32, gpu::N1>::new(#scalars);)*
            #(#body)*
        }
    }
}

/// An identifier for a name of the program.
pub fn ident(name: &str) -> Ident {
    Ident::new(name, Span::call_site())
}

/// The identifier of a local.
pub fn local(kernel: &Kernel, var: Var) -> Ident {
    ident(&kernel.locals[var].name)
}

/// Element type of a buffer: `Vector<gpu::F0, gpu::N0>`, with one lane (`gpu::N1`) where it is read by elements.
pub fn element(buffer: &Buffer) -> TokenStream {
    let scalar = scalar(buffer);
    if matches!(buffer.arg, BufferArg::Random) {
        return scalar;
    }
    let lanes = width(buffer.vector);
    quote! { Vector<#scalar, #lanes> }
}

fn scalar(buffer: &Buffer) -> TokenStream {
    match (buffer.dtype, buffer.arg) {
        (Some(slot), _) => {
            let placeholder = format_ident!("F{slot}");
            quote! { gpu::#placeholder }
        }
        (None, BufferArg::Random) => quote! { u32 },
        (None, BufferArg::Input(_) | BufferArg::Output(_) | BufferArg::Partial(_)) => quote! { f32 },
    }
}

/// Slots that the program rounds to, ascending.
pub fn rounded_slots(kernel: &Kernel) -> Vec<usize> {
    fn collect(stmts: &[Stmt], slots: &mut BTreeSet<usize>) {
        for stmt in stmts {
            match stmt {
                Stmt::Let(_, e) | Stmt::Mut(_, e) | Stmt::Set(_, e) => {
                    if let Expr::Round(slot, _) = e {
                        slots.insert(*slot);
                    }
                }
                Stmt::For { body, .. } | Stmt::Walk { body, .. } | Stmt::If { body, .. } => collect(body, slots),
                Stmt::Store { .. } | Stmt::Accumulate { .. } | Stmt::Flush { .. } => {}
            }
        }
    }
    let mut slots = BTreeSet::new();
    collect(&kernel.body, &mut slots);
    slots.into_iter().collect()
}

/// Where a unit sums what it will write to a buffer.
fn aside(buffer: &Buffer) -> Ident {
    format_ident!("{}_aside", buffer.name)
}

fn rounding(slot: usize) -> Ident {
    format_ident!("rounding_{slot}")
}

fn stmt(kernel: &Kernel, stmt_: &Stmt) -> TokenStream {
    let name = |v: &Var| local(kernel, *v);
    match stmt_ {
        Stmt::Let(v, e) => {
            let (v, e) = (name(v), expr(kernel, kernel.locals[*v].ty, e));
            quote! { let #v = #e; }
        }
        Stmt::Mut(v, e) => {
            let (v, e) = (name(v), expr(kernel, kernel.locals[*v].ty, e));
            quote! { let mut #v = #e; }
        }
        Stmt::Set(v, e) => {
            let (v, e) = (name(v), expr(kernel, kernel.locals[*v].ty, e));
            quote! { #v = #e; }
        }
        Stmt::Store { buffer, at, value } => {
            let b = &kernel.buffers[*buffer];
            let (to, at, value) = (ident(&b.name), at_index(b, name(at)), stored(kernel, *value));
            match b.arg {
                BufferArg::Output(o) => {
                    let o = Literal::u32_suffixed(o as u32);
                    quote! { gpu::store(#to, #at, #value, comptime!(accumulate >> #o & 1u32 == 1u32)); }
                }
                BufferArg::Input(_) | BufferArg::Partial(_) | BufferArg::Random => panic!("only outputs are stored"),
            }
        }
        Stmt::Accumulate { buffer, at, value, first, turn } => {
            let b = &kernel.buffers[*buffer];
            let (lanes, aside, turn) = (width(b.vector), aside(b), name(turn));
            let (to, at, value, first) = (ident(&b.name), at_index(b, name(at)), name(value), name(first));
            quote! { gpu::accumulate::<#lanes>(#to, #at, #value, #first, &mut #aside, #turn, team); }
        }
        Stmt::Flush { buffer, base, start, end, step } => {
            let b = &kernel.buffers[*buffer];
            let (lanes, aside, to) = (width(b.vector), aside(b), ident(&b.name));
            let (base, start, end, step) = (name(base), name(start), name(end), name(step));
            let width = if b.vector {
                quote! { width }
            } else {
                quote! { 1usize }
            };
            quote! { gpu::flush::<#lanes>(#to, &#aside, #base, #start, #end, #step, #width, team); }
        }
        Stmt::Walk { turn, var, start, end, step, body } => {
            let (turn, var, start, end, step) = (name(turn), name(var), name(start), name(end), name(step));
            let body = body.iter().map(|s| stmt(kernel, s));
            quote! {
                #[unroll(team.turns > 0)]
                for #turn in 0..gpu::turns(#end, #step, team) {
                    let #var = #start + #turn * #step;
                    if gpu::has_vector(#var, #end, team) { #(#body)* }
                }
            }
        }
        Stmt::For { var, start, end, step, body } => {
            let (var, start, end, step) = (name(var), name(start), name(end), name(step));
            let body = body.iter().map(|s| stmt(kernel, s));
            quote! { for #var in range_stepped(#start, #end, #step) { #(#body)* } }
        }
        Stmt::If { condition, body } => {
            let condition = name(condition);
            let body = body.iter().map(|s| stmt(kernel, s));
            quote! { if #condition { #(#body)* } }
        }
    }
}

/// What a store converts to the type in memory: numbers and ids as they are, masks as 0 or 1.
fn stored(kernel: &Kernel, value: Var) -> TokenStream {
    let name = local(kernel, value);
    let ty = kernel.locals[value].ty;
    let lanes = width(ty.vector);
    match ty.elem {
        Elem::F32 | Elem::I32 | Elem::Index => quote! { #name },
        Elem::Mask => {
            quote! { select_many(#name, Vector::<u32, #lanes>::new(1u32), Vector::<u32, #lanes>::new(0u32)) }
        }
    }
}

fn at_index(buffer: &Buffer, at: Ident) -> TokenStream {
    if buffer.vector {
        quote! { #at / width }
    } else {
        quote! { #at }
    }
}

fn width(vector: bool) -> TokenStream {
    if vector {
        quote! { gpu::N0 }
    } else {
        quote! { gpu::N1 }
    }
}

fn expr(kernel: &Kernel, ty: Ty, e: &Expr) -> TokenStream {
    let name = |v: &Var| local(kernel, *v);
    let n = width(ty.vector);
    match e {
        Expr::AbsolutePos => quote! { ABSOLUTE_POS },
        Expr::UnitPos => quote! { gpu::unit_of_team(team) },
        Expr::TeamPos => quote! { gpu::team_pos(team) },
        Expr::TeamCount => quote! { gpu::team_count(team) },
        Expr::TeamUnits => quote! { gpu::team_units(team) },
        Expr::Width => quote! { comptime!(width).runtime() },
        Expr::Position(k) => {
            let k = Literal::usize_suffixed(*k);
            quote! { comptime!(#k).runtime() }
        }
        Expr::Number(bits) => quote! { Vector::<f32, gpu::N1>::new(comptime!(f32::from_bits(#bits)).runtime()) },
        Expr::Index(op, a, b) => {
            let (a, b) = (name(a), name(b));
            match op {
                IndexOp::Add => quote! { #a + #b },
                IndexOp::Mul => quote! { #a * #b },
                IndexOp::Div => quote! { #a / #b },
                IndexOp::Rem => quote! { #a % #b },
                IndexOp::Lt => quote! { #a < #b },
                IndexOp::Eq => quote! { #a == #b },
            }
        }
        Expr::Load { buffer, at } => {
            let b = &kernel.buffers[*buffer];
            let (from, at) = (ident(&b.name), at_index(b, name(at)));
            match b.elem {
                Elem::I32 => quote! { Vector::<i32, #n>::cast_from(#from[#at]) },
                Elem::Mask => quote! { Vector::<u32, #n>::cast_from(#from[#at]).not_equal(Vector::new(0u32)) },
                Elem::F32 | Elem::Index => quote! { Vector::<f32, #n>::cast_from(#from[#at]) },
            }
        }
        Expr::Unary(f, a) => unary(*f, name(a), &n),
        Expr::Binary(f, a, b) => binary(*f, name(a), name(b), &n),
        Expr::Select(m, a, b) => {
            let (m, a, b) = (name(m), name(a), name(b));
            quote! { select_many(#m, #a, #b) }
        }
        Expr::Copy(a) => {
            let a = name(a);
            quote! { #a }
        }
        Expr::Splat(a) => {
            let a_name = name(a);
            let scalar = match ty.elem {
                Elem::F32 | Elem::Index => quote! { f32 },
                Elem::I32 => quote! { i32 },
                Elem::Mask => quote! { bool },
            };
            quote! { Vector::<#scalar, gpu::N0>::cast_from(#a_name) }
        }
        Expr::FirstLane(a) => {
            let a = name(a);
            let scalar = match ty.elem {
                Elem::F32 | Elem::Index => quote! { f32 },
                Elem::I32 => quote! { i32 },
                Elem::Mask => quote! { bool },
            };
            quote! { gpu::first_lane::<#scalar, gpu::N0>(#a) }
        }
        Expr::ToF32(a) => {
            let a_name = name(a);
            match kernel.locals[*a].ty.elem {
                Elem::Mask => {
                    quote! { select_many(#a_name, Vector::<f32, #n>::new(1.0f32), Vector::<f32, #n>::new(0.0f32)) }
                }
                Elem::F32 | Elem::I32 | Elem::Index => quote! { Vector::<f32, #n>::cast_from(#a_name) },
            }
        }
        Expr::ToI32(a) => {
            let a = name(a);
            quote! { Vector::<i32, #n>::cast_from(#a) }
        }
        Expr::ToMask(a) => {
            let a_name = name(a);
            match kernel.locals[*a].ty.elem {
                Elem::I32 => quote! { #a_name.not_equal(Vector::new(0i32)) },
                Elem::F32 | Elem::Mask | Elem::Index => quote! { #a_name.not_equal(Vector::new(0.0f32)) },
            }
        }
        Expr::Round(slot, a) => {
            let (a, rounding) = (name(a), rounding(*slot));
            quote! { gpu::round::<#n>(#a, #rounding) }
        }
        Expr::Lanes(a) => {
            let a = name(a);
            quote! { gpu::lanes::<gpu::N0>(#a) }
        }
        Expr::Rotate { coord, extent } => {
            let (coord, extent) = (name(coord), name(extent));
            quote! { gpu::rotate(#coord, #extent) }
        }
        Expr::HalfSign { coord, extent } => {
            let (coord, extent) = (name(coord), name(extent));
            quote! { gpu::half_sign(#coord, #extent) }
        }
        Expr::Clamp { id, extent } => {
            let (id, extent) = (name(id), name(extent));
            quote! { gpu::clamp(#id, #extent) }
        }
        Expr::InRange { id, extent } => {
            let (id, extent) = (name(id), name(extent));
            quote! { gpu::in_range(#id, #extent) }
        }
        Expr::Uniform { buffer, stream, at, lane_stride } => {
            let (words, at) = (ident(&kernel.buffers[*buffer].name), name(at));
            let stream = Literal::u32_suffixed(*stream as u32);
            match lane_stride {
                Some(stride) => {
                    let stride = name(stride);
                    quote! { gpu::uniform::<gpu::N0>(#words, #stream, #at, #stride) }
                }
                None => quote! { gpu::uniform::<gpu::N1>(#words, #stream, #at, #at) },
            }
        }
        Expr::SumLanes(a) => {
            let a = name(a);
            quote! { gpu::sum_lanes::<gpu::N0>(#a) }
        }
        Expr::MaxLanes(a) => {
            let a = name(a);
            quote! { gpu::max_lanes::<gpu::N0>(#a) }
        }
        Expr::SumTeam(a) => {
            let a = name(a);
            quote! { gpu::sum_team(#a, &mut shared, team) }
        }
        Expr::MaxTeam(a) => {
            let a = name(a);
            quote! { gpu::max_team(#a, &mut shared, team) }
        }
        Expr::SegmentSum { values, order, starts, ends, segment, at, interior } => {
            let buffer = |b: &usize| ident(&kernel.buffers[*b].name);
            let (values, order, starts, ends) = (buffer(values), buffer(order), buffer(starts), buffer(ends));
            let (segment, at, interior) = (name(segment), name(at), name(interior));
            quote! { gpu::segment_sum(#values, #order, #starts, #ends, #segment, #at, #interior) }
        }
    }
}

fn unary(f: Scalar, a: Ident, n: &TokenStream) -> TokenStream {
    match f {
        Scalar::Neg => quote! { gpu::neg::<#n>(#a) },
        Scalar::Exp => quote! { #a.exp() },
        Scalar::Log => quote! { #a.ln() },
        Scalar::Sqrt => quote! { #a.sqrt() },
        Scalar::Rsqrt => quote! { #a.inverse_sqrt() },
        Scalar::Recip => quote! { Vector::<f32, #n>::new(1.0f32) / #a },
        Scalar::Sin => quote! { gpu::sine::<#n>(#a) },
        Scalar::Cos => quote! { gpu::cosine::<#n>(#a) },
        Scalar::Tanh => quote! { gpu::tanh::<#n>(#a) },
        Scalar::Erf => quote! { gpu::erf::<#n>(#a) },
        Scalar::Logistic => quote! { gpu::logistic::<#n>(#a) },
        Scalar::Abs => quote! { #a.abs() },
        Scalar::Sign => quote! { gpu::sign::<#n>(#a) },
        Scalar::Add
        | Scalar::Sub
        | Scalar::Mul
        | Scalar::Div
        | Scalar::Max
        | Scalar::Min
        | Scalar::Lt
        | Scalar::Le
        | Scalar::Gt
        | Scalar::Ge
        | Scalar::Eq
        | Scalar::Ne
        | Scalar::Select => panic!("{f:?} has more than one operand"),
    }
}

fn binary(f: Scalar, a: Ident, b: Ident, n: &TokenStream) -> TokenStream {
    match f {
        Scalar::Add => quote! { #a + #b },
        Scalar::Sub => quote! { #a - #b },
        Scalar::Mul => quote! { #a * #b },
        Scalar::Div => quote! { #a / #b },
        Scalar::Max => quote! { gpu::maximum::<#n>(#a, #b) },
        Scalar::Min => quote! { gpu::minimum::<#n>(#a, #b) },
        Scalar::Lt => quote! { #a.less_than(#b) },
        Scalar::Le => quote! { #a.less_equal(#b) },
        Scalar::Gt => quote! { #a.greater_than(#b) },
        Scalar::Ge => quote! { #a.greater_equal(#b) },
        Scalar::Eq => quote! { #a.equal(#b) },
        Scalar::Ne => quote! { #a.not_equal(#b) },
        Scalar::Neg
        | Scalar::Exp
        | Scalar::Log
        | Scalar::Sqrt
        | Scalar::Rsqrt
        | Scalar::Recip
        | Scalar::Sin
        | Scalar::Cos
        | Scalar::Tanh
        | Scalar::Erf
        | Scalar::Logistic
        | Scalar::Abs
        | Scalar::Sign
        | Scalar::Select => {
            panic!("{f:?} does not have two operands")
        }
    }
}
