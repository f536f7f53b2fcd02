//! `slice`, `pad` and `concat`: a row of the result is a few runs, each copied from a row of an operand or zero.
#![allow(unsafe_code)]

use super::buffer::Buf;
use super::cpu::{Fma, multiversion};
use super::pool::Pool;
use kiln_compiler::ir::{Axis, Sizes};

// Elements of a task, so that one takes some microseconds.
const CHUNK: usize = 1 << 14;
// Elements widened at a time where the element types differ.
const LINE: usize = 64;

/// What an axis and all axes after it look like, in elements.
#[derive(Clone, Copy)]
struct Extent {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Extent {
    fn of(shape: &[Axis], axis: Axis, sizes: &Sizes) -> Extent {
        let at = shape.iter().position(|&a| a == axis);
        let at = at.unwrap_or_else(|| panic!("axis `{axis}` passed the type rule"));
        let (outer, inner) = (sizes.elements(&shape[..at]), sizes.elements(&shape[at + 1..]));
        Extent { outer, size: sizes.of(axis), inner }
    }

    /// Elements of the axis and those after it.
    fn row(self) -> usize {
        self.size * self.inner
    }
}

/// Consecutive elements of a row of the result.
#[derive(Clone, Copy)]
struct Run {
    len: usize,
    from: From,
}

#[derive(Clone, Copy)]
enum From {
    Zero,
    /// Row r of the result has them at `first + r·stride` of this operand.
    Operand {
        operand: usize,
        first: usize,
        stride: usize,
    },
}

impl Run {
    fn copy(operand: usize, first: usize, stride: usize, len: usize) -> Run {
        Run { len, from: From::Operand { operand, first, stride } }
    }

    fn zero(len: usize) -> Run {
        Run { len, from: From::Zero }
    }
}

/// A planned copy.
pub struct CopyPlan {
    rows: usize,
    row: usize,
    runs: [Run; 3],
}

impl CopyPlan {
    /// `sizes[to]` elements from `start` on along `axis` of a tensor over `shape`.
    ///
    /// # Panics
    /// If they do not fit: linking checks it.
    pub fn slice(shape: &[Axis], axis: Axis, start: usize, to: Axis, sizes: &Sizes) -> CopyPlan {
        let x = Extent::of(shape, axis, sizes);
        let n = sizes.of(to);
        assert!(start + n <= x.size, "{n} elements of `{to}` from {start} do not fit into {} of `{axis}`", x.size);
        let run = Run::copy(0, start * x.inner, x.row(), n * x.inner);
        CopyPlan::new(x.outer, [run, Run::zero(0), Run::zero(0)])
    }

    /// A tensor over `shape` with `before` zeros before it and others after it, so that `axis` becomes `to`.
    ///
    /// # Panics
    /// If it does not fit: linking checks it.
    pub fn pad(shape: &[Axis], axis: Axis, before: usize, to: Axis, sizes: &Sizes) -> CopyPlan {
        let x = Extent::of(shape, axis, sizes);
        let total = sizes.of(to);
        assert!(before + x.size <= total, "{} of `{axis}` from {before} do not fit into {total} of `{to}`", x.size);
        let after = (total - before - x.size) * x.inner;
        CopyPlan::new(x.outer, [Run::zero(before * x.inner), Run::copy(0, 0, x.row(), x.row()), Run::zero(after)])
    }

    /// The second operand, whose axis is `other`, after the first, over `shape`, along `axis`.
    pub fn concat(shape: &[Axis], axis: Axis, other: Axis, sizes: &Sizes) -> CopyPlan {
        let x = Extent::of(shape, axis, sizes);
        let y = Extent { size: sizes.of(other), ..x };
        let runs = [Run::copy(0, 0, x.row(), x.row()), Run::copy(1, 0, y.row(), y.row()), Run::zero(0)];
        CopyPlan::new(x.outer, runs)
    }

    fn new(rows: usize, runs: [Run; 3]) -> CopyPlan {
        CopyPlan { rows, row: runs.iter().map(|r| r.len).sum(), runs }
    }

    /// Writes the result, in the element type of its buffer.
    ///
    /// # Panics
    /// If a buffer is shorter than planned, or an operand is missing.
    pub fn run(&self, pool: &Pool, operands: &[Buf], out: Buf) {
        let total = self.rows * self.row;
        assert!(out.len() >= total, "the result of a copy has {} of {total} elements", out.len());
        pool.run(total.div_ceil(CHUNK), |task, _| {
            let (mut at, end) = (task * CHUNK, total.min((task + 1) * CHUNK));
            while at < end {
                let (row, mut column) = (at / self.row, at % self.row);
                for run in &self.runs {
                    let n = run.len.saturating_sub(column).min(end - at);
                    if n > 0 {
                        match run.from {
                            From::Zero => zeros(out, at, n),
                            From::Operand { operand, first, stride } => {
                                transfer(operands[operand], first + row * stride + column, out, at, n);
                            }
                        }
                    }
                    at += n;
                    column = (column + n).saturating_sub(run.len);
                }
            }
        });
    }
}

fn zeros(out: Buf, at: usize, n: usize) {
    for i in (0..n).step_by(LINE) {
        out.store(at + i, &[0.0; LINE][..LINE.min(n - i)]);
    }
}

/// Copies `n` elements.
fn transfer(src: Buf, from: usize, out: Buf, to: usize, n: usize) {
    if src.dtype() != out.dtype() {
        return convert(src, from, out, to, n);
    }
    let size = src.dtype().bytes();
    assert!(from + n <= src.len() && to + n <= out.len(), "a copy of {n} elements reaches beyond its buffers");
    // SAFETY: both ranges were checked; the result of a kernel does not overlap its operands.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr().add(from * size), out.as_ptr().add(to * size), n * size) }
}

multiversion! {
    fn convert(src: Buf, from: usize, out: Buf, to: usize, n: usize) = convert_body
}

#[inline(always)]
fn convert_body<F: Fma>(src: Buf, from: usize, out: Buf, to: usize, n: usize) {
    let mut line = [0.0f32; LINE];
    for i in (0..n).step_by(LINE) {
        let line = &mut line[..LINE.min(n - i)];
        src.load(from + i, line);
        out.store(to + i, line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::round;
    use super::super::buffer::testing::{Owned, noise};
    use super::super::oracle::{axes, eval, sizes};
    use super::*;
    use kiln_compiler::ir::{Attrs, DType};

    const TYPES: [[DType; 2]; 5] = [
        [DType::F32, DType::F32],
        [DType::Bf16, DType::Bf16],
        [DType::F16, DType::F16],
        [DType::Bf16, DType::F32],
        [DType::F32, DType::F16],
    ];

    /// Every result equals the interpreter's, rounded to the element type of the result.
    fn check(plan: &CopyPlan, operands: &mut [&mut Owned], want: &[f64], out: DType) {
        let want: Vec<f32> = want.iter().map(|&x| round(out, x as f32)).collect();
        let bufs: Vec<Buf> = operands.iter_mut().map(|o| o.buf()).collect();
        for threads in [1, 2, 3, 7] {
            let mut y = Owned::poisoned(out, want.len());
            plan.run(&Pool::new(threads).unwrap(), &bufs, y.buf());
            assert_eq!(y.values(), want);
        }
    }

    /// Sizes before the axis, of the small axis, of the large one, and after the axis; the place of the small in the large one.
    const CASES: [([usize; 4], usize); 8] = [
        ([1, 1, 1, 1], 0),
        ([1, 5, 13, 1], 8),
        ([3, 7, 7, 5], 0),
        ([3, 1, 17, 2], 16),
        ([2, 64, 129, 31], 65),
        ([1, 70, 200, 127], 100),
        ([1000, 3, 8, 2], 2),
        ([4, 0, 6, 3], 6),
    ];

    #[test]
    fn slices_and_pads_agree_with_the_interpreter() {
        for (dims, start) in CASES {
            let bound = sizes("oslt", &[dims[0], dims[1], dims[2], dims[3]]);
            let [small, large] = [axes("s")[0], axes("l")[0]];
            for [input, output] in TYPES {
                let mut x = Owned::of(input, &noise(1, dims[0] * dims[2] * dims[3]));
                let attrs = Attrs::new().with("axis", large).with("to", small).with("start", start as i64);
                let want = eval("slice", attrs, &mut [(&mut x, "olt")], &bound);
                let plan = CopyPlan::slice(&axes("olt"), large, start, small, &bound);
                check(&plan, &mut [&mut x], &want[0], output);

                let mut x = Owned::of(input, &noise(2, dims[0] * dims[1] * dims[3]));
                let attrs = Attrs::new().with("axis", small).with("to", large).with("before", start as i64);
                let want = eval("pad", attrs, &mut [(&mut x, "ost")], &bound);
                let plan = CopyPlan::pad(&axes("ost"), small, start, large, &bound);
                check(&plan, &mut [&mut x], &want[0], output);
            }
        }
    }

    #[test]
    fn concatenations_agree_with_the_interpreter() {
        for (dims, _) in CASES {
            let [outer, a, b, inner] = dims;
            let bound = sizes("oabti", &[outer, a, b, a + b, inner]);
            for [input, output] in TYPES {
                let mut x = Owned::of(input, &noise(1, outer * a * inner));
                let mut y = Owned::of(output, &noise(2, outer * b * inner));
                let attrs =
                    Attrs::new().with("axis", axes("a")[0]).with("other", axes("b")[0]).with("to", axes("t")[0]);
                let want = eval("concat", attrs, &mut [(&mut x, "oai"), (&mut y, "obi")], &bound);
                let plan = CopyPlan::concat(&axes("oai"), axes("a")[0], axes("b")[0], &bound);
                check(&plan, &mut [&mut x, &mut y], &want[0], output);
            }
        }
    }
}
