//! `dot_general`: the einsum of two operands, to which `matmul` and `einsum` lower.
//!
//! With i the axes of `out`, c the axes in both operands and not in `out` (contracted), y\[i\] = Σ_c a·b. Axes in both and in
//! `out` are batch axes; an axis of one operand only must be in `out`. ā is the einsum of ȳ and b with the axes of a, and b̄
//! that of ȳ and a with the axes of b.

mod spelling;

pub use spelling::{einsum_axes, matmul_axes};

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, Node, Sizes, Type, ValueId};

/// y = Σ a·b, accumulated in f32.
pub static DEF: OpDef = OpDef {
    name: "dot_general",
    class: Class::Library,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: None,
    flops,
};

/// Axes that are summed: in both operands and not in `out`, in the order of `a`.
pub fn contracted(a: &[Axis], b: &[Axis], out: &[Axis]) -> Vec<Axis> {
    a.iter().copied().filter(|x| b.contains(x) && !out.contains(x)).collect()
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let op = "dot_general";
    let [a, b] = rules::operands(op, xs)?;
    rules::float(op, 0, a)?;
    rules::float(op, 1, b)?;
    let out = rules::axes(op, attrs, "out")?;
    spelling::check_contraction("the contraction", a, b, out)?;
    Ok(vec![Type::f32(out)])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (left, right) = (b.shape(n.x(0)), b.shape(n.x(1)));
    vec![Some(b.dot(n.dy(), n.x(1), &left)), Some(b.dot(n.dy(), n.x(0), &right))]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (a, b, out) = (n.axes(0), n.axes(1), n.out_axes(0));
    let summed = contracted(a, b, out);
    let at = |from: &[Axis]| (interp::offsets(cx.sizes, out, from), interp::offsets(cx.sizes, &summed, from));
    let ((a_out, a_sum), (b_out, b_sum)) = (at(a), at(b));
    let dot = |i: usize| -> f64 {
        let terms = a_sum.iter().zip(&b_sum);
        terms.map(|(&p, &q)| n.args[0].data[a_out[i] + p] * n.args[1].data[b_out[i] + q]).sum()
    };
    vec![interp::build(cx.sizes, out, dot)]
}

fn flops(sizes: &Sizes, _: &Node, args: &[&Type], outs: &[&Type]) -> u64 {
    let summed = contracted(&args[0].shape, &args[1].shape, &outs[0].shape);
    2 * (sizes.elements(&summed) * sizes.elements(&outs[0].shape)) as u64
}
