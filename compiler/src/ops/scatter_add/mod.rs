//! `scatter_add`: rows summed by id, the adjoint of `gather`: y\[v, r\] = Σ over i with idᵢ = v of x\[i, r\]; negative ids are skipped.
//!
//! It expands into `sort_index` (a stable sort of the positions by id) and `segment_sum` (a sum over each run of equal ids), so
//! that the order of summation is fixed and no atomics are needed.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, DType, Node, Sizes, Type, ValueId};

/// y\[v\] = Σ x\[i\] over idᵢ = v; x̄ = gather(ȳ, ids).
pub static DEF: OpDef = OpDef {
    name: "scatter_add",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(|b, n| vec![None, Some(b.op("gather", Attrs::new(), &[n.dy(), n.x(0)]))]),
    eval,
    expand: Some(expand),
    scalar: None,
    flops: |sizes, _, args, _| sizes.elements(&args[1].shape) as u64,
};

/// (order, starts, ends): flat positions of the ids ≥ 0 in stable order of id, then -1 for each skipped one; the ids v lie in
/// `order[starts[v]..ends[v]]`.
pub static SORT_INDEX: OpDef = OpDef {
    name: "sort_index",
    class: Class::Library,
    infer: infer_sort,
    vjp: Vjp::Zero,
    eval: eval_sort,
    expand: None,
    scalar: None,
    flops: sort_flops,
};

/// y\[v, r\] = Σ x\[order\[j\], r\] over j in starts\[v\]..ends\[v\]. It stands in backward functions only and has no derivative.
pub static SEGMENT_SUM: OpDef = OpDef {
    name: "segment_sum",
    class: Class::Reduce,
    infer: infer_segments,
    vjp: Vjp::Missing,
    eval: eval_segments,
    expand: None,
    scalar: None,
    flops: rules::per_operand,
};

/// Result of summing `rows`, whose leading axes are those of `ids`, into the axis `into`.
fn summed(op: &str, ids: (usize, &Type), rows: (usize, &Type), into: Axis) -> Result<Type, TypeError> {
    rules::ids(op, ids.0, ids.1)?;
    rules::float(op, rows.0, rows.1)?;
    if !rows.1.shape.starts_with(&ids.1.shape) {
        let message = format!(
            "`{op}` needs the axes of `{{{}}}`, {}, as the first axes of `{{{}}}`, which are {}",
            ids.0,
            rules::list(&ids.1.shape),
            rows.0,
            rules::list(&rows.1.shape)
        );
        return Err(TypeError::at(rows.0, "K0112", message));
    }
    let shape: Vec<Axis> = std::iter::once(into).chain(rows.1.shape[ids.1.rank()..].iter().copied()).collect();
    rules::distinct(op, &shape)?;
    Ok(Type::f32(shape))
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [ids, rows] = rules::operands("scatter_add", xs)?;
    let axis = rules::axis("scatter_add", attrs, "axis")?;
    Ok(vec![summed("scatter_add", (0, ids), (1, rows), axis)?])
}

fn infer_sort(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [ids] = rules::operands("sort_index", xs)?;
    rules::ids("sort_index", 0, ids)?;
    let bound = Type::new(DType::I32, [rules::axis("sort_index", attrs, "axis")?]);
    Ok(vec![ids.clone(), bound.clone(), bound])
}

fn infer_segments(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let op = "segment_sum";
    let [rows, order, starts, ends] = rules::operands(op, xs)?;
    let axis = rules::axis(op, attrs, "axis")?;
    for (i, bound) in [(2, starts), (3, ends)] {
        rules::ids(op, i, bound)?;
        if bound.shape != [axis] {
            let message =
                format!("`{op}` needs one bound per `{axis}`, but `{{{i}}}` has {}", rules::list(&bound.shape));
            return Err(TypeError::at(i, "K0112", message));
        }
    }
    Ok(vec![summed(op, (1, order), (0, rows), axis)?])
}

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let attrs = Attrs::new().with("axis", n.attrs.axis("axis"));
    let sorted = b.ops("sort_index", attrs.clone(), &[n.inputs[0]]);
    vec![b.op("segment_sum", attrs, &[n.inputs[1], sorted[0], sorted[1], sorted[2]])]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (ids, rows) = (n.args[0], n.args[1]);
    let mut y = Array::full(cx.sizes.shape(n.out_axes(0)), 0.0);
    let width: usize = y.dims[1..].iter().product();
    for (i, &x) in rows.data.iter().enumerate() {
        let id = ids.data[i / width];
        assert!(id < y.dims[0] as f64, "`scatter_add`: id {id} for {} rows", y.dims[0]);
        if id >= 0.0 {
            y.data[id as usize * width + i % width] += x;
        }
    }
    vec![y]
}

fn eval_sort(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let ids = n.args[0];
    let bins = cx.sizes.of(n.attrs().axis("axis"));
    let mut order: Vec<usize> = (0..ids.data.len()).filter(|&i| ids.data[i] >= 0.0).collect();
    order.sort_by_key(|&i| ids.data[i] as usize);
    let first = |v: usize| order.partition_point(|&i| (ids.data[i] as usize) < v) as f64;
    let starts = Array::new([bins], (0..bins).map(first).collect());
    let ends = Array::new([bins], (1..=bins).map(first).collect());
    let mut flat: Vec<f64> = order.iter().map(|&i| i as f64).collect();
    flat.resize(ids.data.len(), -1.0);
    vec![Array::new(ids.dims.clone(), flat), starts, ends]
}

fn eval_segments(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (rows, order, starts, ends) = (n.args[0], n.args[1], n.args[2], n.args[3]);
    let width = cx.sizes.elements(&n.out_axes(0)[1..]);
    let sum = |i: usize| -> f64 {
        let (v, r) = (i / width, i % width);
        let run = starts.data[v] as usize..ends.data[v] as usize;
        run.map(|j| rows.data[order.data[j] as usize * width + r]).sum()
    };
    vec![interp::build(cx.sizes, n.out_axes(0), sum)]
}

fn sort_flops(sizes: &Sizes, _: &Node, args: &[&Type], _: &[&Type]) -> u64 {
    let n = sizes.elements(&args[0].shape) as u64;
    n * u64::from(n.max(1).ilog2())
}
