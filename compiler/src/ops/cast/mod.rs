//! Identities with a meaning to passes: rounding (`cast`), "do not round" (`f32`), "do not differentiate" (`stop_gradient`).

use super::{Class, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Builder, DType, Type, ValueId};

/// y = x rounded to `dtype`, ties to even. Straight through: x̄ = ȳ.
pub static CAST: OpDef = OpDef {
    name: "cast",
    class: Class::Map,
    infer: infer_cast,
    vjp: Vjp::Rule(pass),
    eval: |_, n| {
        let dtype = n.attrs().dtype("dtype");
        let x = n.args[0];
        vec![Array::new(x.dims.clone(), x.data.iter().map(|&x| interp::round(dtype, x)).collect())]
    },
    expand: None,
    scalar: None,
    flops: rules::per_result,
};

/// y = x, marked: the precision pass does not round it. x̄ = ȳ.
pub static F32: OpDef = OpDef {
    name: "f32",
    class: Class::View,
    infer: |_, xs| infer_identity("f32", xs),
    vjp: Vjp::Rule(pass),
    eval: |_, n| vec![n.args[0].clone()],
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// y = x; x̄ = 0, because the user says so.
pub static STOP_GRADIENT: OpDef = OpDef {
    name: "stop_gradient",
    class: Class::View,
    infer: |_, xs| infer_identity("stop_gradient", xs),
    vjp: Vjp::Zero,
    eval: |_, n| vec![n.args[0].clone()],
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer_cast(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("cast", xs)?;
    rules::float("cast", 0, x)?;
    let dtype: DType = rules::dtype("cast", attrs, "dtype")?;
    match dtype.is_float() {
        true => Ok(vec![x.with(dtype)]),
        false => Err(TypeError::new("K0105", format!("`cast` rounds to a float type, `{dtype}` is none"))),
    }
}

fn infer_identity(op: &str, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    Ok(vec![x.clone()])
}

fn pass(_: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    vec![Some(n.dy())]
}
