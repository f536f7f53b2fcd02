//! Values of one operation by the f64 interpreter, for tests of its kernel.

use super::buffer::testing::Owned;
use kiln_compiler::interp::{Array, run};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, Sizes, Type};
use kiln_compiler::ops::EvalCx;

/// Axes of one letter each.
pub fn axes(names: &str) -> Vec<Axis> {
    names.chars().map(|c| Axis::new(&c.to_string())).collect()
}

/// Sizes of axes of one letter each.
pub fn sizes(names: &str, dims: &[usize]) -> Sizes {
    axes(names).into_iter().zip(dims.iter().copied()).collect()
}

/// Results of `op` on what the operands hold; each comes with its axes.
pub fn eval(op: &str, attrs: Attrs, operands: &mut [(&mut Owned, &str)], sizes: &Sizes) -> Vec<Vec<f64>> {
    let mut b = Builder::default();
    let mut inputs = Vec::new();
    let mut arrays = Vec::new();
    for (i, (memory, names)) in operands.iter_mut().enumerate() {
        let shape = axes(names);
        let dtype = memory.buf().dtype();
        inputs.push(b.func.add_input(Type::new(dtype, shape.clone()), &format!("x{i}")));
        let values = memory.values();
        let number = |x: &f32| if dtype == DType::I32 { f64::from(x.to_bits() as i32) } else { f64::from(*x) };
        arrays.push(Array::new(sizes.shape(&shape), values.iter().map(number).collect()));
    }
    b.func.outputs = b.ops(op, attrs, &inputs);
    let cx = EvalCx { sizes, uniform: &|_, _| 0.0 };
    run(&cx, &b.func, &arrays).into_iter().map(|a| a.data).collect()
}

/// Relative distance of neighbours of `dtype`, halved: the error of one rounding. 0 for f32, whose errors are counted apart.
pub fn half_ulp(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 0.0,
    }
}
