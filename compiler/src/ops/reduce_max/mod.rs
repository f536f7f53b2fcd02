//! `reduce_max`: y = max x over `axes`. x̄ = ȳ · (x = y) / n, where n counts the elements that reach the maximum.

use super::{Class, OpDef, Vjp, VjpNode, reduce_sum, rules};
use crate::ir::{Attrs, Builder, ValueId};

/// y = max x; NaN if any element is.
pub static DEF: OpDef = OpDef {
    name: "reduce_max",
    class: Class::Reduce,
    infer: |attrs, xs| reduce_sum::infer("reduce_max", attrs, xs),
    vjp: Vjp::Rule(vjp),
    eval: |cx, n| {
        let max = |a: f64, x: f64| if a.is_nan() || x.is_nan() { f64::NAN } else { a.max(x) };
        vec![reduce_sum::reduce(cx, n, f64::NEG_INFINITY, max)]
    },
    expand: None,
    scalar: None,
    flops: rules::per_operand,
};

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (x, axes) = (n.x(0), n.node.attrs.axes("axes"));
    let shape = b.shape(x);
    let y = b.broadcast(n.y(0), &shape);
    let reached = b.binary("eq", x, y);
    let (one, zero) = (b.constant(1.0, &shape), b.constant(0.0, &shape));
    let hits = b.op("select", Attrs::new(), &[reached, one, zero]);
    let count = b.sum(hits, axes);
    let share = b.div(n.dy(), count);
    let share = b.broadcast(share, &shape);
    vec![Some(b.op("select", Attrs::new(), &[reached, share, zero]))]
}
