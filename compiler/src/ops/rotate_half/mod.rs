//! `rotate_half`: exchanges the two halves of an axis of even size. It is its own adjoint: x̄ = rotate_half ȳ.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Type};

/// y\[k\] = x\[(k + K/2) mod K\] along `axis` of size K.
pub static DEF: OpDef = OpDef {
    name: "rotate_half",
    class: Class::View,
    infer,
    vjp: Vjp::Rule(|b, n| vec![Some(b.op("rotate_half", n.node.attrs.clone(), &[n.dy()]))]),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("rotate_half", xs)?;
    rules::float("rotate_half", 0, x)?;
    rules::has("rotate_half", 0, x, rules::axis("rotate_half", attrs, "axis")?)?;
    Ok(vec![x.clone()])
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (axis, shape) = (n.attrs().axis("axis"), n.axes(0));
    let size = cx.sizes.of(axis);
    assert!(size.is_multiple_of(2), "`rotate_half` exchanges two halves, but `{axis}` has {size} elements");
    let k = interp::offsets(cx.sizes, shape, &[axis]);
    let stride: usize = shape.iter().rev().take_while(|&&a| a != axis).map(|&a| cx.sizes.of(a)).product();
    let half = size / 2 * stride;
    vec![interp::build(cx.sizes, shape, |i| n.args[0].data[if k[i] < size / 2 { i + half } else { i - half }])]
}
