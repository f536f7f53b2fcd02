//! The f64 meaning of a region: operands in, results out, one instruction after the other over the whole domain. The truth that
//! the tile engine and the kernels are compared with; it knows no template and no device.

use super::{Index, Instr, Region};
use crate::interp::{Array, round};
use crate::ir::{DType, Sizes};
use crate::ops::Scalar;

/// What a launch binds besides sizes and operands.
pub struct Bindings<'a> {
    /// Element type of each slot, resolved.
    pub dtypes: &'a [DType],
    /// Values of [`Region::scalars`].
    pub scalars: &'a [f32],
    /// Number `index` of a stream, uniform in [0, 1).
    pub uniform: &'a dyn Fn(usize, u64) -> f32,
}

/// Runs a region on one rank: local sizes are global sizes.
pub fn run(region: &Region, sizes: &Sizes, bindings: &Bindings<'_>, inputs: &[Array]) -> Vec<Array> {
    let extents = region.extents(sizes);
    let len: usize = extents.iter().product();
    let interior: usize = extents[region.rows..].iter().product();
    let points: Vec<Vec<usize>> = (0..len).map(|i| position(i, &extents)).collect();
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(region.code.len());
    for instr in &region.code {
        let of = |f: &dyn Fn(usize) -> f64| (0..len).map(f).collect::<Vec<f64>>();
        let row = |i: usize| i - i % interior..i - i % interior + interior;
        let value = match *instr {
            Instr::Load(k) => of(&|i| {
                let at = element(&region.inputs[k].axes, &inputs[k].dims, &points[i], &extents, &values, i);
                at.map_or(0.0, |at| inputs[k].data[at])
            }),
            Instr::Scalar(k) => vec![f64::from(bindings.scalars[k]); len],
            Instr::Iota(a) => of(&|i| points[i][a] as f64),
            Instr::HalfSign(a) => of(&|i| if points[i][a] < extents[a] / 2 { -1.0 } else { 1.0 }),
            Instr::Unary(f, a) => of(&|i| unary(f, values[a][i])),
            Instr::Binary(f, a, b) => of(&|i| binary(f, values[a][i], values[b][i])),
            Instr::Select(m, a, b) => of(&|i| if values[m][i] != 0.0 { values[a][i] } else { values[b][i] }),
            Instr::Round(slot, a) => of(&|i| round(bindings.dtypes[slot], values[a][i])),
            Instr::Uniform(s) => of(&|i| {
                let axes = &region.streams[s].axes;
                let index = axes.iter().fold(0, |index, &a| index * extents[a] + points[i][a]);
                f64::from((bindings.uniform)(s, index as u64))
            }),
            Instr::RowSum(a) => of(&|i| values[a][row(i)].iter().sum()),
            Instr::RowMax(a) => {
                of(&|i| values[a][row(i)].iter().fold(f64::NEG_INFINITY, |m, &x| binary(Scalar::Max, m, x)))
            }
            Instr::ColumnSum(a) => of(&|i| values[a].iter().skip(i % interior).step_by(interior).sum()),
            Instr::SegmentSum { values: rows, order, starts, ends } => of(&|i| {
                let segment = i / interior;
                let bounds = inputs[starts].data[segment] as usize..inputs[ends].data[segment] as usize;
                bounds.map(|j| inputs[rows].data[inputs[order].data[j] as usize * interior + i % interior]).sum()
            }),
        };
        values.push(value);
    }
    region
        .outputs
        .iter()
        .map(|(reg, layout)| {
            let axes: Vec<usize> = layout
                .axes
                .iter()
                .map(|index| match *index {
                    Index::Domain(a) | Index::Rotated(a) => a,
                    Index::Value(_) => panic!("an output is stored at positions of the domain"),
                })
                .collect();
            let dims: Vec<usize> = axes.iter().map(|&a| extents[a]).collect();
            let mut out = Array::full(dims.clone(), f64::NAN);
            for (i, point) in points.iter().enumerate() {
                let is_stored = (0..extents.len()).all(|a| axes.contains(&a) || point[a] == 0);
                if is_stored {
                    let at = element(&layout.axes, &dims, point, &extents, &values, i);
                    let at = at.expect("an output is stored at positions of the domain");
                    out.data[at] = round(bindings.dtypes[layout.dtype], values[*reg][i]);
                }
            }
            out
        })
        .collect()
}

fn position(mut flat: usize, extents: &[usize]) -> Vec<usize> {
    let mut point = vec![0; extents.len()];
    for (p, &n) in point.iter_mut().zip(extents).rev() {
        *p = flat % n;
        flat /= n;
    }
    point
}

/// Position in a buffer; none where an id is out of range, which reads as zero.
fn element(
    axes: &[Index],
    dims: &[usize],
    point: &[usize],
    extents: &[usize],
    values: &[Vec<f64>],
    i: usize,
) -> Option<usize> {
    axes.iter().zip(dims).try_fold(0, |at, (index, &n)| {
        let k = match *index {
            Index::Domain(a) => point[a],
            Index::Rotated(a) => (point[a] + extents[a] / 2) % extents[a],
            Index::Value(r) if values[r][i] < 0.0 || values[r][i] >= n as f64 => return None,
            Index::Value(r) => values[r][i] as usize,
        };
        Some(at * n + k)
    })
}

/// A one-operand scalar function in f64.
pub fn unary(f: Scalar, a: f64) -> f64 {
    match f {
        Scalar::Neg => -a,
        Scalar::Exp => a.exp(),
        Scalar::Log => a.ln(),
        Scalar::Sqrt => a.sqrt(),
        Scalar::Rsqrt => 1.0 / a.sqrt(),
        Scalar::Recip => 1.0 / a,
        Scalar::Sin => a.sin(),
        Scalar::Cos => a.cos(),
        Scalar::Tanh => a.tanh(),
        Scalar::Erf => erf(a),
        Scalar::Logistic => 1.0 / (1.0 + (-a).exp()),
        Scalar::Abs => a.abs(),
        Scalar::Sign if a == 0.0 => 0.0,
        Scalar::Sign => a.signum(),
        Scalar::Add
        | Scalar::Sub
        | Scalar::Mul
        | Scalar::Div
        | Scalar::Max
        | Scalar::Min
        | Scalar::Lt
        | Scalar::Le
        | Scalar::Gt
        | Scalar::Ge
        | Scalar::Eq
        | Scalar::Ne
        | Scalar::Select => panic!("{f:?} has more than one operand"),
    }
}

/// A two-operand scalar function in f64; comparisons give 1 or 0.
pub fn binary(f: Scalar, a: f64, b: f64) -> f64 {
    let mask = |m: bool| f64::from(u8::from(m));
    match f {
        Scalar::Add => a + b,
        Scalar::Sub => a - b,
        Scalar::Mul => a * b,
        Scalar::Div => a / b,
        Scalar::Max | Scalar::Min if a.is_nan() || b.is_nan() => f64::NAN,
        Scalar::Max => a.max(b),
        Scalar::Min => a.min(b),
        Scalar::Lt => mask(a < b),
        Scalar::Le => mask(a <= b),
        Scalar::Gt => mask(a > b),
        Scalar::Ge => mask(a >= b),
        Scalar::Eq => mask(a == b),
        Scalar::Ne => mask(a != b),
        Scalar::Neg
        | Scalar::Exp
        | Scalar::Log
        | Scalar::Sqrt
        | Scalar::Rsqrt
        | Scalar::Recip
        | Scalar::Sin
        | Scalar::Cos
        | Scalar::Tanh
        | Scalar::Erf
        | Scalar::Logistic
        | Scalar::Abs
        | Scalar::Sign
        | Scalar::Select => {
            panic!("{f:?} does not have two operands")
        }
    }
}

/// Terms of the series below: at |x| = 3 the 60th term is under 1e-16 of the sum.
const ERF_TERMS: u32 = 60;
/// Depth of the continued fraction below: converged to 1e-16 for |x| ≥ 3.
const ERFC_DEPTH: u32 = 60;

/// erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!! for |x| < 3, else 1 − erfc x by the continued fraction of Laplace.
fn erf(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x.abs() < 3.0 {
        let mut term = x;
        let mut sum = x;
        for n in 1..ERF_TERMS {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 2.0 * scale * sum;
    }
    let a = x.abs();
    let fraction = (1..=ERFC_DEPTH).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
    x.signum() * (1.0 - scale / fraction)
}
