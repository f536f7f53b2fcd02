//! `silu`: y = x·σ(x) (Elfwing et al. 2017; also swish). y′ = σ(x)·(1 + x·(1 − σ(x))).

use super::{Class, OpDef, Vjp, VjpNode, rules, unary};
use crate::ir::{Builder, Node, ValueId};

/// y = x·σ(x).
pub static DEF: OpDef = OpDef {
    name: "silu",
    class: Class::Composite,
    infer: |_, xs| unary::infer("silu", xs),
    vjp: Vjp::Rule(vjp),
    eval: |_, n| vec![unary::map(n, |x| x * unary::logistic(x))],
    expand: Some(expand),
    scalar: None,
    flops: |sizes, n, args, outs| 5 * rules::per_result(sizes, n, args, outs),
};

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let s = b.unary("logistic", n.inputs[0]);
    vec![b.mul(n.inputs[0], s)]
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let x = n.x(0);
    let s = b.unary("logistic", x);
    let one = b.constant_like(1.0, x);
    let rest = b.sub(one, s);
    let bend = b.mul(x, rest);
    let factor = b.add(one, bend);
    let slope = b.mul(s, factor);
    vec![Some(b.mul(n.dy(), slope))]
}
