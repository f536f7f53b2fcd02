//! `const`: y = c over the axes `shape`, where c is a number or a `#[config]` value that linking replaces.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Type};

/// y = c; no operand, hence no derivative.
pub static DEF: OpDef = OpDef {
    name: "const",
    class: Class::Map,
    infer,
    vjp: Vjp::Zero,
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [] = rules::operands("const", xs)?;
    rules::number("const", attrs, "value", |_| true, "a number")?;
    Ok(vec![Type::f32(rules::axes("const", attrs, "shape")?)])
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let c = n.attrs().float("value");
    vec![interp::build(cx.sizes, n.out_axes(0), |_| c)]
}
