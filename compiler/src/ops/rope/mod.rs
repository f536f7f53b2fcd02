//! `rope`: rotary position embedding (Su et al. 2021), half-split form.
//!
//! With K the size of `head`, position p along `seq` and i = k mod K/2, θ = p·base^(−2i/K) and
//! y\[p, k\] = x\[p, k\]·cos θ ∓ x\[p, (k + K/2) mod K\]·sin θ, − in the first half, + in the second.
//! A rotation's adjoint is the rotation by −θ: x̄ = rope(ȳ) with `inverse` toggled. The base gets no cotangent.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, Node, Type, ValueId};

/// y = x rotated by θ, or by −θ with `inverse`.
pub static DEF: OpDef = OpDef {
    name: "rope",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: Some(expand),
    scalar: None,
    flops: |sizes, n, args, outs| 3 * rules::per_result(sizes, n, args, outs),
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x, base] = rules::operands("rope", xs)?;
    rules::float("rope", 0, x)?;
    rules::float("rope", 1, base)?;
    rules::scalar("rope", 1, base)?;
    let (seq, head) = (rules::axis("rope", attrs, "seq")?, rules::axis("rope", attrs, "head")?);
    rules::has("rope", 0, x, seq)?;
    rules::has("rope", 0, x, head)?;
    rules::distinct("rope", &[seq, head])?;
    Ok(vec![Type::f32(x.shape.clone())])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let mut attrs = n.node.attrs.clone();
    attrs.set("inverse", !attrs.flag("inverse"));
    vec![Some(b.op("rope", attrs, &[n.dy(), n.x(1)])), None]
}

/// base^(−2i/K) = exp(−2i/K · ln base) over `[head]`.
fn frequencies(b: &mut Builder, base: ValueId, head: Axis) -> ValueId {
    let shape = [head];
    let k = b.op("iota", Attrs::new().with("axis", head).with("shape", &shape[..]), &[]);
    let size = |recip| Attrs::new().with("axes", &shape[..]).with("recip", recip).with("shape", &shape[..]);
    let whole = b.op("size", size(false), &[]);
    let half = b.scale(whole, 0.5);
    let first = b.binary("lt", k, half);
    let beyond = b.sub(k, half);
    let i = b.op("select", Attrs::new(), &[first, k, beyond]);
    let recip = b.op("size", size(true), &[]);
    let fraction = b.mul(i, recip);
    let exponent = b.scale(fraction, -2.0);
    let log = b.unary("log", base);
    let log = b.broadcast(log, &shape);
    let power = b.mul(exponent, log);
    b.unary("exp", power)
}

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let (x, base) = (n.inputs[0], n.inputs[1]);
    let (seq, head) = (n.attrs.axis("seq"), n.attrs.axis("head"));
    let (shape, table) = (b.shape(x), [seq, head]);
    let frequency = frequencies(b, base, head);
    let frequency = b.broadcast(frequency, &table);
    let position = b.op("iota", Attrs::new().with("axis", seq).with("shape", &table[..]), &[]);
    let angle = b.mul(position, frequency);
    let (cos, sin) = (b.unary("cos", angle), b.unary("sin", angle));
    let sign = b.op("half_sign", Attrs::new().with("axis", head).with("shape", &table[..]), &[]);
    let sin = b.mul(sign, sin);
    let (cos, sin) = (b.broadcast(cos, &shape), b.broadcast(sin, &shape));
    let partner = b.op("rotate_half", Attrs::new().with("axis", head), &[x]);
    let straight = b.mul(x, cos);
    let crossed = b.mul(partner, sin);
    vec![if n.attrs.flag("inverse") { b.sub(straight, crossed) } else { b.add(straight, crossed) }]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (x, base) = (n.args[0], n.args[1].data[0]);
    let (seq, head, shape) = (n.attrs().axis("seq"), n.attrs().axis("head"), n.axes(0));
    let half = cx.sizes.of(head) / 2;
    assert_eq!(cx.sizes.of(head), 2 * half, "`rope` rotates pairs, but `{head}` has an odd size");
    let position = interp::offsets(cx.sizes, shape, &[seq]);
    let k = interp::offsets(cx.sizes, shape, &[head]);
    let stride: usize = shape.iter().rev().take_while(|&&a| a != head).map(|&a| cx.sizes.of(a)).product();
    let direction = if n.attrs().flag("inverse") { -1.0 } else { 1.0 };
    let rotate = |e: usize| {
        let i = k[e] % half;
        let theta = direction * position[e] as f64 * base.powf(-(i as f64) / half as f64);
        match k[e] < half {
            true => x.data[e] * theta.cos() - x.data[e + half * stride] * theta.sin(),
            false => x.data[e] * theta.cos() + x.data[e - half * stride] * theta.sin(),
        }
    };
    vec![interp::build(cx.sizes, shape, rotate)]
}
