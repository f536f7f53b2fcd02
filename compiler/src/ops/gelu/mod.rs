//! `gelu` and `gelu_tanh`: the Gaussian error linear unit (Hendrycks & Gimpel 2016), exact and in its tanh approximation.

use super::{Class, OpDef, Vjp, VjpNode, rules, unary};
use crate::ir::{Builder, Node, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// y = x·Φ(x) with Φ(x) = ½(1 + erf(x/√2)); y′ = Φ(x) + x·φ(x) with φ(x) = e^(−x²/2)/√(2π).
pub static GELU: OpDef = OpDef {
    name: "gelu",
    class: Class::Composite,
    infer: |_, xs| unary::infer("gelu", xs),
    vjp: Vjp::Rule(vjp_exact),
    eval: |_, n| vec![unary::map(n, |x| 0.5 * x * (1.0 + unary::erf(x * FRAC_1_SQRT_2)))],
    expand: Some(|b, n| {
        let cdf = cdf(b, n.inputs[0]);
        vec![b.mul(n.inputs[0], cdf)]
    }),
    scalar: None,
    flops: |sizes, n, args, outs| 5 * rules::per_result(sizes, n, args, outs),
};

/// y = ½x(1 + t) with t = tanh u, u = √(2/π)·(x + 0.044715 x³);
/// y′ = ½(1 + t) + ½x(1 − t²)·√(2/π)·(1 + 3·0.044715 x²).
pub static GELU_TANH: OpDef = OpDef {
    name: "gelu_tanh",
    class: Class::Composite,
    infer: |_, xs| unary::infer("gelu_tanh", xs),
    vjp: Vjp::Rule(vjp_tanh),
    eval: |_, n| vec![unary::map(n, |x| 0.5 * x * (1.0 + (root() * (x + CUBIC * x.powi(3))).tanh()))],
    expand: Some(expand_tanh),
    scalar: None,
    flops: |sizes, n, args, outs| 8 * rules::per_result(sizes, n, args, outs),
};

/// The paper's coefficient of x³.
const CUBIC: f64 = 0.044715;

/// √(2/π).
fn root() -> f64 {
    (2.0 / PI).sqrt()
}

/// Φ(x).
fn cdf(b: &mut Builder, x: ValueId) -> ValueId {
    let scaled = b.scale(x, FRAC_1_SQRT_2);
    let erf = b.unary("erf", scaled);
    let one = b.constant_like(1.0, x);
    let sum = b.add(one, erf);
    b.scale(sum, 0.5)
}

fn vjp_exact(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let x = n.x(0);
    let cdf = cdf(b, x);
    let x2 = b.mul(x, x);
    let exponent = b.scale(x2, -0.5);
    let e = b.unary("exp", exponent);
    let density = b.scale(e, 1.0 / (2.0 * PI).sqrt());
    let tilt = b.mul(x, density);
    let slope = b.add(cdf, tilt);
    vec![Some(b.mul(n.dy(), slope))]
}

/// (x², t).
fn tanh_of(b: &mut Builder, x: ValueId) -> (ValueId, ValueId) {
    let x2 = b.mul(x, x);
    let x3 = b.mul(x2, x);
    let cubic = b.scale(x3, CUBIC);
    let sum = b.add(x, cubic);
    let u = b.scale(sum, root());
    (x2, b.unary("tanh", u))
}

fn expand_tanh(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let x = n.inputs[0];
    let (_, t) = tanh_of(b, x);
    let one = b.constant_like(1.0, x);
    let sum = b.add(one, t);
    let half = b.scale(x, 0.5);
    vec![b.mul(half, sum)]
}

fn vjp_tanh(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let x = n.x(0);
    let (x2, t) = tanh_of(b, x);
    let one = b.constant_like(1.0, x);
    let sum = b.add(one, t);
    let level = b.scale(sum, 0.5);
    let t2 = b.mul(t, t);
    let sech2 = b.sub(one, t2);
    let quadratic = b.scale(x2, 3.0 * CUBIC);
    let inner = b.add(one, quadratic);
    let du = b.scale(inner, root());
    let half = b.scale(x, 0.5);
    let bend = b.mul(half, sech2);
    let tilt = b.mul(bend, du);
    let slope = b.add(level, tilt);
    vec![Some(b.mul(n.dy(), slope))]
}
