//! `split` and `merge`: one axis read as several, slowest first, and back. Each is the other's derivative.

use super::{Argument, Class, OpDef, TypeError, Vjp, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Type};

/// y\[.., i₁, i₂, ..\] = x\[.., i₁·n₂ + i₂, ..\]: `axis` becomes the axes `into`, whose sizes multiply to its size. x̄ = merge ȳ.
pub static SPLIT: OpDef = OpDef {
    name: "split",
    class: Class::View,
    infer: infer_split,
    vjp: Vjp::Rule(|b, n| {
        let (axis, into) = (n.node.attrs.axis("axis"), n.node.attrs.axes("into"));
        vec![Some(b.op("merge", Attrs::new().with("axes", into).with("into", axis), &[n.dy()]))]
    }),
    eval: |cx, n| vec![Array::new(cx.sizes.shape(n.out_axes(0)), n.args[0].data.clone())],
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y\[.., i₁·n₂ + i₂, ..\] = x\[.., i₁, i₂, ..\]: the adjacent `axes` become one axis `into`. x̄ = split ȳ.
pub static MERGE: OpDef = OpDef {
    name: "merge",
    class: Class::View,
    infer: infer_merge,
    vjp: Vjp::Rule(|b, n| {
        let (axes, into) = (n.node.attrs.axes("axes"), n.node.attrs.axis("into"));
        vec![Some(b.op("split", Attrs::new().with("axis", into).with("into", axes), &[n.dy()]))]
    }),
    eval: |cx, n| vec![Array::new(cx.sizes.shape(n.out_axes(0)), n.args[0].data.clone())],
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer_split(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("split", xs)?;
    let (axis, into) = (rules::axis("split", attrs, "axis")?, rules::axes("split", attrs, "into")?);
    let at = rules::has("split", 0, x, axis)?;
    if into.is_empty() {
        return Err(TypeError::new("K0117", format!("`split` of `{axis}` needs the axes that it becomes"))
            .argument(Argument::Axes));
    }
    let mut shape = x.shape.clone();
    shape.splice(at..at + 1, into.iter().copied());
    rules::distinct("split", &shape)?;
    Ok(vec![Type::new(x.dtype, shape)])
}

fn infer_merge(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("merge", xs)?;
    let (axes, into) = (rules::axes("merge", attrs, "axes")?, rules::axis("merge", attrs, "into")?);
    let Some(&first) = axes.first() else {
        return Err(
            TypeError::new("K0117", format!("`merge` into `{into}` needs the axes to merge")).argument(Argument::Axes)
        );
    };
    let at = rules::has("merge", 0, x, first)?;
    for &a in axes {
        rules::has("merge", 0, x, a)?;
    }
    if x.shape.get(at..at + axes.len()) != Some(axes) {
        let message = format!(
            "`merge` needs {} side by side in this order; the axes of `{{0}}` are {}",
            rules::list(axes),
            rules::list(&x.shape)
        );
        return Err(TypeError::at(0, "K0114", message).argument(Argument::Axes).help("permute first"));
    }
    let mut shape = x.shape.clone();
    shape.splice(at..at + axes.len(), [into]);
    rules::distinct("merge", &shape)?;
    Ok(vec![Type::new(x.dtype, shape)])
}
