//! The f64 interpreter of unfused IR: the truth for values. Executes cast nodes, never fuses, knows no device.

use crate::ir::{DType, Func, ValueId};
use crate::ops::EvalCx;

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
    let get = |env: &Vec<Option<Array>>, v: ValueId| {
        env[v.index()].clone().unwrap_or_else(|| panic!("{v:?} is used before it is defined"))
    };
    for node in &func.nodes {
        let args: Vec<Array> = node.inputs.iter().map(|&v| get(&env, v)).collect();
        let refs: Vec<&Array> = args.iter().collect();
        let types: Vec<_> = node.outputs.iter().map(|&v| func.ty(v).clone()).collect();
        let results = (node.op.eval)(cx, node, &refs, &types);
        for ((&v, r), t) in node.outputs.iter().zip(results).zip(&types) {
            assert_eq!(r.dims, cx.sizes.shape(&t.shape), "result of `{}`: {t}", node.op.name);
            env[v.index()] = Some(r);
        }
    }
    env
}
