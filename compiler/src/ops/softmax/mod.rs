//! `softmax` and `log_softmax` along one axis, shifted by the maximum so that no exponential overflows.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, Type, ValueId};

/// y = eˣ / Σ eˣ; x̄ = y·(ȳ − Σ ȳy).
pub static SOFTMAX: OpDef = OpDef {
    name: "softmax",
    class: Class::Composite,
    infer: |attrs, xs| infer("softmax", attrs, xs),
    vjp: Vjp::Rule(vjp),
    eval: |cx, n| vec![eval(cx, n, |x, lse| (x - lse).exp())],
    expand: Some(|b, n| {
        let s = shifted(b, n.inputs[0], n.attrs.axis("axis"));
        vec![s.probabilities(b)]
    }),
    scalar: None,
    flops: |sizes, n, args, outs| 5 * rules::per_result(sizes, n, args, outs),
};

/// y = x − ln Σ eˣ; x̄ = ȳ − eʸ·Σ ȳ.
pub static LOG_SOFTMAX: OpDef = OpDef {
    name: "log_softmax",
    class: Class::Composite,
    infer: |attrs, xs| infer("log_softmax", attrs, xs),
    vjp: Vjp::Rule(vjp_log),
    eval: |cx, n| vec![eval(cx, n, |x, lse| x - lse)],
    expand: Some(|b, n| {
        let s = shifted(b, n.inputs[0], n.attrs.axis("axis"));
        let shape = b.shape(s.z);
        let log = b.unary("log", s.sum);
        let log = b.broadcast(log, &shape);
        vec![b.sub(s.z, log)]
    }),
    scalar: None,
    flops: |sizes, n, args, outs| 5 * rules::per_result(sizes, n, args, outs),
};

/// z = x − max x, e = exp z, sum = Σ e: what softmax and the cross-entropy share.
pub(super) struct Shifted {
    pub z: ValueId,
    pub e: ValueId,
    pub sum: ValueId,
}

/// The shifted exponentials of `x` along `axis`.
pub(super) fn shifted(b: &mut Builder, x: ValueId, axis: Axis) -> Shifted {
    let shape = b.shape(x);
    let max = b.op("reduce_max", Attrs::new().with("axes", vec![axis]), &[x]);
    let max = b.broadcast(max, &shape);
    let z = b.sub(x, max);
    let e = b.unary("exp", z);
    let sum = b.sum(e, &[axis]);
    Shifted { z, e, sum }
}

impl Shifted {
    /// e / Σ e.
    pub(super) fn probabilities(&self, b: &mut Builder) -> ValueId {
        let shape = b.shape(self.e);
        let sum = b.broadcast(self.sum, &shape);
        b.div(self.e, sum)
    }
}

fn infer(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    rules::has(op, 0, x, rules::axis(op, attrs, "axis")?)?;
    Ok(vec![Type::f32(x.shape.clone())])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (y, dy, axis) = (n.y(0), n.dy(), n.node.attrs.axis("axis"));
    let shape = b.shape(y);
    let product = b.mul(dy, y);
    let dot = b.sum(product, &[axis]);
    let dot = b.broadcast(dot, &shape);
    let centred = b.sub(dy, dot);
    vec![Some(b.mul(y, centred))]
}

fn vjp_log(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (y, dy, axis) = (n.y(0), n.dy(), n.node.attrs.axis("axis"));
    let shape = b.shape(y);
    let p = b.unary("exp", y);
    let total = b.sum(dy, &[axis]);
    let total = b.broadcast(total, &shape);
    let pull = b.mul(p, total);
    vec![Some(b.sub(dy, pull))]
}

/// `f(x, ln Σ eˣ)` of each element.
fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>, f: fn(f64, f64) -> f64) -> Array {
    let x = n.args[0];
    let rows = super::without(n.arg_types[0], &[n.attrs().axis("axis")]);
    let row = interp::offsets(cx.sizes, n.axes(0), &rows);
    let mut max = vec![f64::NEG_INFINITY; cx.sizes.elements(&rows)];
    row.iter().zip(&x.data).for_each(|(&r, &x)| max[r] = max[r].max(x));
    let mut sum = vec![0.0; max.len()];
    row.iter().zip(&x.data).for_each(|(&r, &x)| sum[r] += (x - max[r]).exp());
    interp::build(cx.sizes, n.axes(0), |i| f(x.data[i], max[row[i]] + f64::ln(sum[row[i]])))
}
