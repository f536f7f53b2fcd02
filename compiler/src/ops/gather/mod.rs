//! `gather`: rows of a table by id: y\[i, r\] = e\[idᵢ, r\] with i the axes of the ids and r the other axes of the table.
//!
//! ē = `scatter_add` of ȳ by the same ids. A negative id reads zeros, so that gather and scatter_add are adjoint for all ids.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Type};

/// y = e\[ids\].
pub static DEF: OpDef = OpDef {
    name: "gather",
    class: Class::Map,
    infer,
    vjp: Vjp::Rule(|b, n| {
        let rows = b.shape(n.x(0))[0];
        vec![Some(b.op("scatter_add", Attrs::new().with("axis", rows), &[n.x(1), n.dy()])), None]
    }),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [table, ids] = rules::operands("gather", xs)?;
    rules::float("gather", 0, table)?;
    rules::ids("gather", 1, ids)?;
    if table.rank() == 0 {
        return Err(TypeError::at(0, "K0106", "`gather` picks along the first axis, but `{0}` is a scalar"));
    }
    let shape: Vec<_> = ids.shape.iter().chain(&table.shape[1..]).copied().collect();
    rules::distinct("gather", &shape)?;
    Ok(vec![Type::new(table.dtype, shape)])
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (table, ids) = (n.args[0], n.args[1]);
    let rows = table.dims[0];
    let width = cx.sizes.elements(&n.axes(0)[1..]);
    let read = |i: usize| {
        let id = ids.data[i / width];
        assert!(id < rows as f64, "`gather`: id {id} in a table of {rows} rows");
        if id < 0.0 { 0.0 } else { table.data[id as usize * width + i % width] }
    };
    vec![interp::build(cx.sizes, n.out_axes(0), read)]
}
