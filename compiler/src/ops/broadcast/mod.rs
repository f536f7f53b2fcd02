//! `broadcast`: repeats x over the axes of `to` that it lacks, in the order of `to`. x̄ = Σ ȳ over these axes.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Builder, Type, ValueId};

/// y\[i, j\] = x\[i\].
pub static DEF: OpDef = OpDef {
    name: "broadcast",
    class: Class::View,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("broadcast", xs)?;
    let to = rules::axes("broadcast", attrs, "to")?;
    match x.shape.iter().find(|a| !to.contains(a)) {
        None => Ok(vec![Type::new(x.dtype, to)]),
        Some(a) => {
            let message =
                format!("`{{0}}` cannot be broadcast to {}: its axis `{a}` is missing there", rules::list(to));
            Err(TypeError::at(0, "K0115", message).help(format!("add `{a}`, or sum over it first")))
        }
    }
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let shape = b.shape(n.x(0));
    let repeated = super::without(b.ty(n.dy()), &shape);
    let sum = b.sum(n.dy(), &repeated);
    vec![Some(super::permute::to(b, sum, &shape))]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let at = interp::offsets(cx.sizes, n.out_axes(0), n.axes(0));
    vec![interp::build(cx.sizes, n.out_axes(0), |i| n.args[0].data[at[i]])]
}
