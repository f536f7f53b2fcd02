//! Comparisons of two operands with equal axes, real numbers or ids in any mix: y is a mask. Piecewise constant, so ā = b̄ = 0.

use super::{Class, OpDef, Scalar, TypeError, Vjp, binary, rules};
use crate::ir::{DType, Type};

macro_rules! compare {
    ($($(#[$doc:meta])* $def:ident $name:literal $scalar:ident $symbol:tt;)*) => {$(
        $(#[$doc])*
        pub static $def: OpDef = OpDef {
            name: $name,
            class: Class::Map,
            infer: |_, xs| infer($name, xs),
            vjp: Vjp::Zero,
            eval: |_, n| vec![binary::map(n, |a, b| f64::from(u8::from(a $symbol b)))],
            expand: None,
            scalar: Some(Scalar::$scalar),
            flops: rules::per_result,
        };
    )*};
}

compare! {
    /// y = a < b.
    LT "lt" Lt <;
    /// y = a ≤ b.
    LE "le" Le <=;
    /// y = a > b.
    GT "gt" Gt >;
    /// y = a ≥ b.
    GE "ge" Ge >=;
    /// y = (a = b).
    EQ "eq" Eq ==;
    /// y = (a ≠ b).
    NE "ne" Ne !=;
}

fn infer(op: &str, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [a, _] = rules::operands(op, xs)?;
    if let Some(i) = xs.iter().position(|x| x.dtype == DType::Bool) {
        let message = format!("`{op}` compares numbers or ids, but `{{{i}}}` is a mask ({})", xs[i]);
        return Err(TypeError::at(i, "K0105", message));
    }
    rules::same_axes(op, xs, 0)?;
    Ok(vec![Type::new(DType::Bool, a.shape.clone())])
}
