//! `repeat` and `repeat_vjp`: a body applied once per copy of a child along an axis, carrying one value; and its backward.

use super::{Class, OpDef, TypeError, Vjp, call, rules};
use crate::ir::{Attrs, Type};

/// `repeat(carried, captured..)`: c₀ = carried, cₗ₊₁ = body(cₗ, captured..) for each l along `axis`; the result is the last c.
/// The body's calls of child `sub` mean its l-th copy.
pub static REPEAT: OpDef = OpDef {
    name: "repeat",
    class: Class::Structural,
    infer,
    vjp: Vjp::Structural,
    eval: |_, n| panic!("linking unrolls `{}` before anything is evaluated", n.node.op.name),
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// `repeat_vjp(carried, captured.., cotangent of the result)`: cotangents of the arguments marked in `mask`, each of its argument's
/// type; those of captured values are summed over the copies.
pub static REPEAT_VJP: OpDef = OpDef {
    name: "repeat_vjp",
    class: Class::Structural,
    infer: |attrs, xs| {
        infer(attrs, xs)?;
        call::infer_cotangents("repeat_vjp", attrs, xs)
    },
    vjp: Vjp::Missing,
    eval: |_, n| panic!("linking unrolls `{}` before anything is evaluated", n.node.op.name),
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    rules::at_least("repeat", xs, 1)?;
    rules::count("repeat", attrs, "sub")?;
    rules::axis("repeat", attrs, "axis")?;
    rules::float("repeat", 0, xs[0])?;
    Ok(vec![xs[0].clone()])
}
