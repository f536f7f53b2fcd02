//! `linear_cross_entropy`: `cross_entropy` of the logits x·wᵀ, which are never held: (sum, count, lse).
//!
//! x: i ++ \[D\], w: \[V, D\], targets: i. lse\[i\] = ln Σ_V e^(x·w) is kept for the derivative. With P = e^(x·wᵀ − lse) and
//! the cotangent s̄ of the sum: E = (P − onehot(t))·s̄ at counted positions, 0 elsewhere; x̄ = E·w, w̄ = Eᵀ·x.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, cross_entropy, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Builder, Sizes, Type, ValueId};

/// (sum, count, lse) of (x, w, targets).
pub static DEF: OpDef = OpDef {
    name: "linear_cross_entropy",
    class: Class::Loss,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: None,
    flops: |sizes, _, args, _| 2 * products(sizes, args),
};

/// (x̄, w̄) of (x, w, targets, lse, s̄). It stands in backward functions only and has no derivative.
pub static VJP: OpDef = OpDef {
    name: "linear_cross_entropy_vjp",
    class: Class::Library,
    infer: infer_vjp,
    vjp: Vjp::Missing,
    eval: eval_vjp,
    expand: None,
    scalar: None,
    flops: |sizes, _, args, _| 6 * products(sizes, args),
};

/// Multiply-adds of x·wᵀ.
fn products(sizes: &Sizes, args: &[&Type]) -> u64 {
    (sizes.elements(&args[0].shape) * sizes.of(args[1].shape[0])) as u64
}

fn check(x: &Type, w: &Type, targets: &Type) -> Result<(), TypeError> {
    let op = "linear_cross_entropy";
    rules::float(op, 0, x)?;
    rules::float(op, 1, w)?;
    let last = rules::last_axis(op, 0, x)?;
    let [vocab, contracted] = w.shape[..] else {
        let message = format!("`{op}` needs a weight over vocabulary and `{last}`, but `{{1}}` is {w}");
        return Err(TypeError::at(1, "K0106", message));
    };
    if contracted != last {
        let message = format!(
            "`{op}` contracts `{last}` with `{contracted}`: the last axis of `{{0}}` is `{last}`, that of `{{1}}` is `{contracted}`"
        );
        let error = TypeError::at(1, "K0101", message);
        return Err(if vocab == last {
            error.help(format!("permute `{{1}}` to [{contracted}, {last}]"))
        } else {
            error
        });
    }
    if x.position(vocab).is_some() {
        let message = format!("`{op}` predicts `{vocab}`, the first axis of `{{1}}`, which `{{0}}` has already");
        return Err(TypeError::at(1, "K0104", message));
    }
    cross_entropy::check_targets(op, 2, targets, &x.shape[..x.rank() - 1])
}

fn infer(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x, w, targets] = rules::operands("linear_cross_entropy", xs)?;
    check(x, w, targets)?;
    Ok(vec![Type::f32([]), Type::f32([]), Type::f32(&x.shape[..x.rank() - 1])])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    assert!(n.cotangents[2].is_none(), "the log-sum-exp of `linear_cross_entropy` is read by its own derivative only");
    let Some(dsum) = n.cotangents[0] else { return vec![None, None, None] };
    let inputs = [n.x(0), n.x(1), n.x(2), n.y(2), dsum];
    let d = b.ops("linear_cross_entropy_vjp", Attrs::new(), &inputs);
    vec![Some(d[0]), Some(d[1]), None]
}

fn infer_vjp(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let op = "linear_cross_entropy_vjp";
    let [x, w, targets, lse, dsum] = rules::operands(op, xs)?;
    check(x, w, targets)?;
    rules::scalar(op, 4, dsum)?;
    if lse.shape != targets.shape {
        let message = format!("`{op}` needs {} for `{{3}}`, which is {lse}", rules::list(&targets.shape));
        return Err(TypeError::at(3, "K0112", message));
    }
    Ok(vec![Type::f32(x.shape.clone()), Type::f32(w.shape.clone())])
}

/// Logits of row `x`.
fn logits(x: &[f64], w: &Array) -> Vec<f64> {
    w.data.chunks(x.len()).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn eval(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (x, w, targets) = (n.args[0], n.args[1], n.args[2]);
    let (mut sum, mut count, mut lse) = (0.0, 0.0, Vec::new());
    for (row, &t) in x.data.chunks(w.dims[1]).zip(&targets.data) {
        let logits = logits(row, w);
        let l = cross_entropy::log_sum_exp(&logits);
        lse.push(l);
        assert!(t < w.dims[0] as f64, "`linear_cross_entropy`: target {t} of {} classes", w.dims[0]);
        if t >= 0.0 {
            sum += l - logits[t as usize];
            count += 1.0;
        }
    }
    vec![Array::scalar(sum), Array::scalar(count), Array::new(targets.dims.clone(), lse)]
}

fn eval_vjp(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let [x, w, targets, lse, dsum] = std::array::from_fn(|i| n.args[i]);
    let d = w.dims[1];
    let (mut dx, mut dw) = (Array::full(x.dims.clone(), 0.0), Array::full(w.dims.clone(), 0.0));
    for (i, row) in x.data.chunks(d).enumerate().filter(|(i, _)| targets.data[*i] >= 0.0) {
        for (v, z) in logits(row, w).into_iter().enumerate() {
            let onehot = f64::from(u8::from(targets.data[i] == v as f64));
            let e = ((z - lse.data[i]).exp() - onehot) * dsum.data[0];
            for (c, &x) in row.iter().enumerate() {
                dx.data[i * d + c] += e * w.data[v * d + c];
                dw.data[v * d + c] += e * x;
            }
        }
    }
    vec![dx, dw]
}
