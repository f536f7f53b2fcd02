//! Copies of parts of a matrix, widened to f32, in the layouts that the micro-kernel reads.

use super::buffer::Buf;
use super::cpu::{Fma, multiversion};

/// A part of a row-major matrix in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub src: Buf,
    /// Its first element.
    pub at: usize,
    /// From one row to the next.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

multiversion! {
    /// The part times `factor`, in rows of `width` filled up with zeros.
    pub(super) fn rows(part: Part, factor: f32, width: usize, dst: &mut [f32]) = rows_body
}

#[inline(always)]
fn rows_body<F: Fma>(part: Part, factor: f32, width: usize, dst: &mut [f32]) {
    for (i, row) in dst.chunks_exact_mut(width).take(part.rows).enumerate() {
        let (values, rest) = row.split_at_mut(part.columns);
        part.src.load(part.at + i * part.stride, values);
        values.iter_mut().for_each(|x| *x *= factor);
        rest.fill(0.0);
    }
}

multiversion! {
    /// The part transposed: its columns in rows of `width` filled up with zeros.
    pub(super) fn transposed(part: Part, width: usize, dst: &mut [f32]) = transposed_body
}

#[inline(always)]
fn transposed_body<F: Fma>(part: Part, width: usize, dst: &mut [f32]) {
    const SIDE: usize = 16;
    let mut square = [[0.0f32; SIDE]; SIDE];
    for c in (0..part.columns).step_by(SIDE) {
        let n = SIDE.min(part.columns - c);
        for r in (0..width).step_by(SIDE) {
            for (i, line) in square.iter_mut().enumerate() {
                let at = part.at + (r + i) * part.stride + c;
                if r + i >= part.rows {
                    line.fill(0.0);
                } else if n == SIDE {
                    part.src.load(at, line);
                } else {
                    part.src.load(at, &mut line[..n]);
                }
            }
            if width - r >= SIDE {
                for i in 0..n {
                    let to = &mut dst[(c + i) * width + r..][..SIDE];
                    for l in 0..SIDE {
                        to[l] = square[l][i];
                    }
                }
            } else {
                for i in 0..n {
                    let to = &mut dst[(c + i) * width + r..(c + i + 1) * width];
                    to.iter_mut().zip(&square).for_each(|(to, line)| *to = line[i]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::*;
    use kiln_compiler::ir::DType;

    #[test]
    fn parts_lie_where_the_layout_says() {
        for (rows_n, columns) in [(1, 1), (5, 7), (12, 16), (16, 33), (17, 5), (33, 32)] {
            let stride = columns + 3;
            let x = noise(1, rows_n * stride + 2);
            let mut owned = Owned::of(DType::F32, &x);
            let part = Part { src: owned.buf(), at: 2, stride, rows: rows_n, columns };
            let element = |i: usize, j: usize| if i < rows_n && j < columns { x[2 + i * stride + j] } else { 0.0 };
            for width in [columns, columns + 9] {
                let mut dst = vec![f32::NAN; rows_n * width];
                rows(part, 2.0, width, &mut dst);
                assert!((0..rows_n * width).all(|p| dst[p] == 2.0 * element(p / width, p % width)));
            }
            for width in [rows_n, rows_n + 3, 40] {
                let mut dst = vec![f32::NAN; columns * width];
                transposed(part, width, &mut dst);
                assert!((0..columns * width).all(|p| dst[p] == element(p % width, p / width)));
            }
        }
    }
}
