//! `permute`: the same elements with the axes in the order of `to`. x̄ = ȳ in the order of x.

use super::{Argument, Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, Type, ValueId};

/// y\[π(i)\] = x\[i\].
pub static DEF: OpDef = OpDef {
    name: "permute",
    class: Class::View,
    infer,
    vjp: Vjp::Rule(|b, n| {
        let shape = b.shape(n.x(0));
        vec![Some(to(b, n.dy(), &shape))]
    }),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// `x` with its axes in the order of `shape`; the identity when they are.
pub(super) fn to(b: &mut Builder, x: ValueId, shape: &[Axis]) -> ValueId {
    match b.ty(x).shape == shape {
        true => x,
        false => b.op("permute", Attrs::new().with("to", shape), &[x]),
    }
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("permute", xs)?;
    let to = rules::axes("permute", attrs, "to")?;
    let fits = to.len() == x.rank() && to.iter().all(|&a| x.position(a).is_some());
    match fits {
        true => Ok(vec![Type::new(x.dtype, to)]),
        false => {
            let message = format!(
                "`permute` to {} needs exactly the axes of `{{0}}`, which are {}",
                rules::list(to),
                rules::list(&x.shape)
            );
            let other = to.iter().find(|a| x.position(**a).is_none());
            Err(TypeError::at(0, "K0113", message).argument(other.map_or(Argument::Axes, |a| Argument::Axis(*a))))
        }
    }
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let at = interp::offsets(cx.sizes, n.out_axes(0), n.axes(0));
    vec![interp::build(cx.sizes, n.out_axes(0), |i| n.args[0].data[at[i]])]
}
