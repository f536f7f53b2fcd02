//! `mean`: y = (1/n) Σ x over `axes` with n elements. x̄ = ȳ/n, repeated over them.

use super::{Class, EvalCx, EvalNode, OpDef, Vjp, VjpNode, reduce_sum, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Axis, Builder, ValueId};

/// y = (1/n) Σ x.
pub static DEF: OpDef = OpDef {
    name: "mean",
    class: Class::Composite,
    infer: |attrs, xs| reduce_sum::infer("mean", attrs, xs),
    vjp: Vjp::Rule(vjp),
    eval,
    expand: Some(|b, n| vec![over(b, n.inputs[0], n.attrs.axes("axes"))]),
    scalar: None,
    flops: rules::per_operand,
};

/// The mean of `x` over `axes` in primitives; other operations build their means with it, so that equal ones merge.
pub(super) fn over(b: &mut Builder, x: ValueId, axes: &[Axis]) -> ValueId {
    let sum = b.op("reduce_sum", Attrs::new().with("axes", axes), &[x]);
    let shape = b.shape(sum);
    let n = reciprocal(b, axes, &shape);
    b.mul(sum, n)
}

fn reciprocal(b: &mut Builder, axes: &[Axis], shape: &[Axis]) -> ValueId {
    b.op("size", Attrs::new().with("axes", axes).with("recip", true).with("shape", shape), &[])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (shape, rows) = (b.shape(n.x(0)), b.shape(n.dy()));
    let recip = reciprocal(b, n.node.attrs.axes("axes"), &rows);
    let share = b.mul(n.dy(), recip);
    vec![Some(b.broadcast(share, &shape))]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let mut y = reduce_sum::reduce(cx, n, 0.0, |a, x| a + x);
    let count = cx.sizes.elements(n.attrs().axes("axes")) as f64;
    y.data.iter_mut().for_each(|y| *y /= count);
    vec![y]
}
