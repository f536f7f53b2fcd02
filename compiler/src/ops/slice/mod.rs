//! `slice` and `pad`: a window of one axis, and its adjoint that puts a window into zeros.
//!
//! A position is an integer, or an axis that stands for its size: the second part of a concatenation starts at the first one's axis.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attr, Attrs, Axis, Builder, Sizes, Type, ValueId};

/// y\[j\] = x\[`start` + j\] along `axis`, which becomes `to`. x̄ = pad ȳ.
pub static SLICE: OpDef = OpDef {
    name: "slice",
    class: Class::View,
    infer: |attrs, xs| infer("slice", "start", attrs, xs),
    vjp: Vjp::Rule(|b, n| vjp(b, n, "start", "pad", "before")),
    eval: eval_slice,
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y\[`before` + j\] = x\[j\], 0 elsewhere, along `axis`, which becomes `to`. x̄ = slice ȳ.
pub static PAD: OpDef = OpDef {
    name: "pad",
    class: Class::View,
    infer: |attrs, xs| infer("pad", "before", attrs, xs),
    vjp: Vjp::Rule(|b, n| vjp(b, n, "before", "slice", "start")),
    eval: eval_pad,
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// The number of elements that a position attribute stands for.
pub fn position(sizes: &Sizes, attr: &Attr) -> usize {
    match attr {
        Attr::Axis(a) => sizes.of(*a),
        Attr::Int(i) => usize::try_from(*i).unwrap_or_else(|_| panic!("position {i} passed the type rule")),
        other => panic!("position {other:?} passed the type rule"),
    }
}

fn infer(op: &str, offset: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    rules::extent(op, attrs, offset)?;
    let (axis, to) = (rules::axis(op, attrs, "axis")?, rules::axis(op, attrs, "to")?);
    let at = rules::has(op, 0, x, axis)?;
    let mut shape = x.shape.clone();
    shape[at] = to;
    rules::distinct(op, &shape)?;
    Ok(vec![Type::new(x.dtype, shape)])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>, offset: &str, adjoint: &str, its_offset: &str) -> Vec<Option<ValueId>> {
    let (axis, to) = (n.node.attrs.axis("axis"), n.node.attrs.axis("to"));
    let mut attrs = Attrs::new().with("axis", to).with("to", axis);
    if let Some(position) = n.node.attrs.get(offset) {
        attrs.set(its_offset, position.clone());
    }
    vec![Some(b.op(adjoint, attrs, &[n.dy()]))]
}

/// For each element of the smaller tensor its place in the larger one, whose axis at `at` starts `offset` earlier.
fn places(sizes: &Sizes, small: &[Axis], large: &[Axis], at: usize, offset: &Attr) -> Vec<usize> {
    let start = position(sizes, offset);
    let (n, total) = (sizes.of(small[at]), sizes.of(large[at]));
    assert!(
        start + n <= total,
        "{n} elements of `{}` from {start} do not fit into {total} of `{}`",
        small[at],
        large[at]
    );
    let inner = sizes.elements(&large[at + 1..]);
    let outer = sizes.elements(&large[..at]);
    let block = move |o: usize| (0..n * inner).map(move |i| o * total * inner + start * inner + i);
    (0..outer).flat_map(block).collect()
}

fn changed(n: &EvalNode<'_>) -> usize {
    let axis = n.attrs().axis("axis");
    n.arg_types[0].position(axis).unwrap_or_else(|| panic!("axis `{axis}` passed the type rule"))
}

fn offset<'a>(n: &'a EvalNode<'_>, name: &str) -> &'a Attr {
    n.attrs().get(name).unwrap_or_else(|| panic!("`{name}` passed the type rule"))
}

fn eval_slice(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let at = places(cx.sizes, n.out_axes(0), n.axes(0), changed(n), offset(n, "start"));
    vec![interp::build(cx.sizes, n.out_axes(0), |i| n.args[0].data[at[i]])]
}

fn eval_pad(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let at = places(cx.sizes, n.axes(0), n.out_axes(0), changed(n), offset(n, "before"));
    let mut y = Array::full(cx.sizes.shape(n.out_axes(0)), 0.0);
    for (&i, &x) in at.iter().zip(&n.args[0].data) {
        y.data[i] = x;
    }
    vec![y]
}
