//! `dropout` (Srivastava et al. 2014): y = x/(1 − p) where u ≥ p, 0 elsewhere, with u uniform in [0, 1) and p the `rate`.
//!
//! x̄ = ȳ/(1 − p) where u ≥ p: the mask is not kept, its random numbers are drawn again from the same `site`.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Builder, Type, ValueId};

/// y = x/(1 − p) or 0.
pub static DEF: OpDef = OpDef {
    name: "dropout",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(|b: &mut Builder, n: &VjpNode<'_>| vec![Some(masked(b, n.dy(), &n.node.attrs))]),
    eval,
    expand: Some(|b, n| vec![masked(b, n.inputs[0], &n.attrs)]),
    scalar: None,
    flops: |sizes, n, args, outs| 12 * rules::per_result(sizes, n, args, outs),
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("dropout", xs)?;
    rules::float("dropout", 0, x)?;
    rules::number("dropout", attrs, "rate", |p| (0.0..1.0).contains(&p), "in [0, 1)")?;
    rules::count("dropout", attrs, "site")?;
    Ok(vec![Type::f32(x.shape.clone())])
}

/// `x` scaled where it is kept.
fn masked(b: &mut Builder, x: ValueId, attrs: &Attrs) -> ValueId {
    let shape = b.shape(x);
    let mut rate = Attrs::new().with("shape", shape.clone());
    if let Some(p) = attrs.get("rate") {
        rate.set("value", p.clone());
    }
    let rate = b.op("const", rate, &[]);
    let random = b.op("uniform", Attrs::new().with("site", attrs.int("site")).with("shape", shape.clone()), &[]);
    let kept = b.binary("ge", random, rate);
    let (one, zero) = (b.constant(1.0, &shape), b.constant(0.0, &shape));
    let share = b.sub(one, rate);
    let scaled = b.div(x, share);
    b.op("select", Attrs::new(), &[kept, scaled, zero])
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (p, site, x) = (n.attrs().float("rate"), n.attrs().int("site"), n.args[0]);
    let kept = |i: usize| f64::from((cx.uniform)(site, i as u64)) >= p;
    vec![interp::build(cx.sizes, n.axes(0), |i| if kept(i) { x.data[i] / (1.0 - p) } else { 0.0 })]
}
