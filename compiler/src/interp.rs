//! The f64 interpreter of unfused IR: the truth for values. Executes cast nodes, never fuses, knows no device.

use crate::ir::{Axis, DType, Func, Sizes, Type};
use crate::ops::{EvalCx, EvalNode};

/// A dense row-major array of f64 (integers and masks are stored as whole numbers).
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes, slowest first.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}

impl Array {
    /// An array from its parts.
    ///
    /// # Panics
    /// If the number of elements does not match.
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        let dims = dims.into();
        assert_eq!(dims.iter().product::<usize>(), data.len(), "{dims:?} does not hold {} elements", data.len());
        Array { dims, data }
    }

    /// A 0-dimensional array.
    pub fn scalar(x: f64) -> Self {
        Array { dims: Vec::new(), data: vec![x] }
    }

    /// All elements equal.
    pub fn full(dims: impl Into<Vec<usize>>, x: f64) -> Self {
        let dims = dims.into();
        let n = dims.iter().product();
        Array { dims, data: vec![x; n] }
    }
}

/// An array over `shape` whose element at each flat index is `f` of it.
pub fn build(sizes: &Sizes, shape: &[Axis], f: impl FnMut(usize) -> f64) -> Array {
    Array { dims: sizes.shape(shape), data: (0..sizes.elements(shape)).map(f).collect() }
}

/// `x` rounded to the nearest value of `dtype` (ties to even); f32 rounds to f32 only if `exact` types are wanted, which the
/// interpreter does not: it computes f32 values in f64.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::Bf16 => half::bf16::from_f64(x).to_f64(),
        DType::F16 => half::f16::from_f64(x).to_f64(),
        DType::F32 | DType::I32 | DType::Bool | DType::Compute | DType::Sub(_) => x,
    }
}

/// Runs a function without structural nodes.
///
/// # Panics
/// On a `call` or `repeat`: linking inlines them first.
pub fn run(cx: &EvalCx<'_>, func: &Func, inputs: &[Array]) -> Vec<Array> {
    let env = run_all(cx, func, inputs);
    func.outputs
        .iter()
        .map(|v| env[v.index()].clone().unwrap_or_else(|| panic!("output {v:?} was not computed")))
        .collect()
}

/// As [`run`], and returns every value.
pub fn run_all(cx: &EvalCx<'_>, func: &Func, inputs: &[Array]) -> Vec<Option<Array>> {
    assert_eq!(inputs.len(), func.inputs.len(), "the function takes {} arguments", func.inputs.len());
    let mut env: Vec<Option<Array>> = vec![None; func.values.len()];
    for (&v, a) in func.inputs.iter().zip(inputs) {
        assert_eq!(a.dims, cx.sizes.shape(&func.ty(v).shape), "argument {v:?}: {}", func.ty(v));
        env[v.index()] = Some(a.clone());
    }
    for node in &func.nodes {
        let results = {
            let args: Vec<&Array> = node
                .inputs
                .iter()
                .map(|v| env[v.index()].as_ref().unwrap_or_else(|| panic!("{v:?} is used before it is defined")))
                .collect();
            let arg_types: Vec<&Type> = node.inputs.iter().map(|&v| func.ty(v)).collect();
            let result_types: Vec<&Type> = node.outputs.iter().map(|&v| func.ty(v)).collect();
            let at = EvalNode { node, args: &args, arg_types: &arg_types, result_types: &result_types };
            (node.op.eval)(cx, &at)
        };
        for (&v, r) in node.outputs.iter().zip(results) {
            let t = func.ty(v);
            assert_eq!(r.dims, cx.sizes.shape(&t.shape), "result of `{}`: {t}", node.op.name);
            env[v.index()] = Some(r);
        }
    }
    env
}

/// Offsets into a row-major array over `from`, one for each index over `domain` in row-major order. Along axes that `from` lacks
/// the elements repeat; axes of `from` outside of `domain` stay at index 0.
pub fn offsets(sizes: &Sizes, domain: &[Axis], from: &[Axis]) -> Vec<usize> {
    let mut offsets = vec![0];
    for &axis in domain {
        let stride = match from.iter().position(|&a| a == axis) {
            Some(p) => sizes.elements(&from[p + 1..]),
            None => 0,
        };
        let n = sizes.of(axis);
        offsets = offsets.iter().flat_map(|&o| (0..n).map(move |i| o + i * stride)).collect();
    }
    offsets
}
