//! `reduce_sum`: y = Σ x over `axes`, in f32. x̄ = ȳ, repeated over them.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Type};

/// y = Σ x.
pub static DEF: OpDef = OpDef {
    name: "reduce_sum",
    class: Class::Reduce,
    infer: |attrs, xs| infer("reduce_sum", attrs, xs),
    vjp: Vjp::Rule(|b, n| {
        let shape = b.shape(n.x(0));
        vec![Some(b.broadcast(n.dy(), &shape))]
    }),
    eval: |cx, n| vec![reduce(cx, n, 0.0, |a, x| a + x)],
    expand: None,
    scalar: None,
    flops: rules::per_operand,
};

/// The type rule of reductions: the result lacks `axes`.
pub(super) fn infer(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    let axes = rules::axes(op, attrs, "axes")?;
    for &a in axes {
        rules::has(op, 0, x, a)?;
    }
    Ok(vec![Type::f32(super::without(x, axes))])
}

/// Folds the elements that share their index along the axes of the result.
pub(super) fn reduce(cx: &EvalCx<'_>, n: &EvalNode<'_>, start: f64, f: fn(f64, f64) -> f64) -> Array {
    let mut y = Array::full(cx.sizes.shape(n.out_axes(0)), start);
    for (o, &x) in interp::offsets(cx.sizes, n.axes(0), n.out_axes(0)).into_iter().zip(&n.args[0].data) {
        y.data[o] = f(y.data[o], x);
    }
    y
}
