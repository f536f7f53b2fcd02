//! Maps without operands: positions (`iota`), sizes (`size`), signs of a rotation (`half_sign`), random numbers (`uniform`).

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Type};

/// y\[.., i, ..\] = i along `axis`, counted in the whole tensor where the axis is split over ranks.
pub static IOTA: OpDef = OpDef {
    name: "iota",
    class: Class::Map,
    infer: |attrs, xs| along("iota", attrs, xs),
    vjp: Vjp::Zero,
    eval: |cx, n| vec![index_map(cx, n, |i, _| i as f64)],
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y = −1 in the first half of `axis`, +1 in the second.
pub static HALF_SIGN: OpDef = OpDef {
    name: "half_sign",
    class: Class::Map,
    infer: |attrs, xs| along("half_sign", attrs, xs),
    vjp: Vjp::Zero,
    eval: |cx, n| vec![index_map(cx, n, |i, size| if i < size / 2 { -1.0 } else { 1.0 })],
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y = ∏ sizes of `axes` in the whole tensor, or with `recip` its reciprocal.
pub static SIZE: OpDef = OpDef {
    name: "size",
    class: Class::Map,
    infer: infer_size,
    vjp: Vjp::Zero,
    eval: eval_size,
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y\[i\] = the random number `site` at row-major index i of the whole tensor, uniform in [0, 1).
pub static UNIFORM: OpDef = OpDef {
    name: "uniform",
    class: Class::Map,
    infer: infer_uniform,
    vjp: Vjp::Zero,
    eval: eval_uniform,
    expand: None,
    scalar: None,
    flops: rules::per_result,
};

fn along(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [] = rules::operands(op, xs)?;
    let ty = Type::f32(rules::axes(op, attrs, "shape")?);
    let axis = rules::axis(op, attrs, "axis")?;
    match ty.position(axis) {
        Some(_) => Ok(vec![ty]),
        None => {
            Err(TypeError::new("K0103", format!("`{op}` needs axis `{axis}`; its axes are {}", rules::list(&ty.shape))))
        }
    }
}

/// An array whose elements are `f(index along the axis, size of the axis)`.
fn index_map(cx: &EvalCx<'_>, n: &EvalNode<'_>, f: fn(usize, usize) -> f64) -> Array {
    let axis = n.attrs().axis("axis");
    let size = cx.sizes.of(axis);
    let index = interp::offsets(cx.sizes, n.out_axes(0), &[axis] as &[Axis]);
    interp::build(cx.sizes, n.out_axes(0), |k| f(index[k], size))
}

fn infer_size(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [] = rules::operands("size", xs)?;
    rules::axes("size", attrs, "axes")?;
    Ok(vec![Type::f32(rules::axes("size", attrs, "shape")?)])
}

fn eval_size(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let product = cx.sizes.elements(n.attrs().axes("axes")) as f64;
    let y = if n.attrs().flag("recip") { 1.0 / product } else { product };
    vec![interp::build(cx.sizes, n.out_axes(0), |_| y)]
}

fn infer_uniform(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [] = rules::operands("uniform", xs)?;
    rules::count("uniform", attrs, "site")?;
    Ok(vec![Type::f32(rules::axes("uniform", attrs, "shape")?)])
}

fn eval_uniform(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let site = n.attrs().int("site");
    vec![interp::build(cx.sizes, n.out_axes(0), |i| (cx.uniform)(site, i as u64) as f64)]
}
