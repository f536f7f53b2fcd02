//! `relu`: y = max(x, 0); y′ = 1 for x > 0, 0 elsewhere (also at 0).

use super::{Class, OpDef, Vjp, VjpNode, rules, unary};
use crate::ir::{Attrs, Builder, Node, ValueId};

/// y = max(x, 0).
pub static DEF: OpDef = OpDef {
    name: "relu",
    class: Class::Composite,
    infer: |_, xs| unary::infer("relu", xs),
    vjp: Vjp::Rule(vjp),
    eval: |_, n| vec![unary::map(n, |x| if x.is_nan() || x > 0.0 { x } else { 0.0 })],
    expand: Some(expand),
    scalar: None,
    flops: rules::per_result,
};

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let zero = b.constant_like(0.0, n.inputs[0]);
    vec![b.binary("max", n.inputs[0], zero)]
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let zero = b.constant_like(0.0, n.x(0));
    let positive = b.binary("gt", n.x(0), zero);
    vec![Some(b.op("select", Attrs::new(), &[positive, n.dy(), zero]))]
}
