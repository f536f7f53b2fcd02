//! Copies of parts of a matrix, widened to f32, in the layouts that the micro-kernel reads.

use super::buffer::Buf;
use super::cpu::{Fma, LINE, multiversion, prefetch};
use super::transpose::{self, SIDE};
use kiln_compiler::ir::DType;

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
    /// The part in rows of `width` filled up with zeros.
    pub(super) fn rows(part: Part, width: usize, dst: &mut [f32]) = rows_body
}

#[inline(always)]
fn rows_body<F: Fma>(part: Part, width: usize, dst: &mut [f32]) {
    for (i, row) in dst.chunks_exact_mut(width).take(part.rows).enumerate() {
        let (values, rest) = row.split_at_mut(part.columns);
        part.src.load(part.at + i * part.stride, values);
        rest.fill(0.0);
    }
}

// How many rows ahead of those that are read the next ones are asked for.
const AHEAD: usize = 2 * SIDE;

multiversion! {
    /// The part transposed: its columns in rows of `width` filled up with zeros.
    pub(super) fn transposed(part: Part, width: usize, dst: &mut [f32]) = transposed_body
}

#[inline(always)]
fn transposed_body<F: Fma>(part: Part, width: usize, dst: &mut [f32]) {
    let Part { src, at, stride, rows, columns } = part;
    let dst = &mut dst[..columns * width];
    if rows < width {
        dst.fill(0.0);
    }
    let whole = (rows / SIDE * SIDE, columns / SIDE * SIDE);
    let memory = (src.dtype() == DType::F32).then(|| src.f32s(0, src.len()));
    for r in (0..whole.0).step_by(SIDE) {
        for c in (0..whole.1).step_by(SIDE) {
            let first = |i: usize| at + (r + i) * stride + c;
            let to = &mut dst[c * width + r..];
            if let Some(x) = memory {
                if c.is_multiple_of(LINE) {
                    (0..SIDE).for_each(|i| prefetch(x.as_ptr().wrapping_add(first(AHEAD + i))));
                }
                let mut lines = [&x[..0]; SIDE];
                lines.iter_mut().enumerate().for_each(|(i, line)| *line = &x[first(i)..first(i) + SIDE]);
                transpose::lanes::<F, SIDE>(lines, to, width);
            } else {
                let mut square = [[0.0f32; SIDE]; SIDE];
                square.iter_mut().enumerate().for_each(|(i, line)| src.load(first(i), line));
                transpose::square::<F>(square.each_ref(), to, width);
            }
        }
    }
    // What is left: rows behind the last square, and columns.
    let mut line = [0.0f32; SIDE];
    for r in 0..rows {
        let first = if r < whole.0 { whole.1 } else { 0 };
        for c in (first..columns).step_by(SIDE) {
            let line = &mut line[..SIDE.min(columns - c)];
            src.load(at + r * stride + c, line);
            for (i, &x) in line.iter().enumerate() {
                dst[(c + i) * width + r] = x;
            }
        }
    }
}

// Rows that are packed for all strips before the next ones, so that memory is read in order.
const STRIP_ROWS: usize = 32;

multiversion! {
    /// The first `columns` columns of a matrix with `rows` rows, `stride` elements apart, in strips of `width` columns: element (i, j) at
    /// `(j / width · rows + i) · width + j % width`. What is missing from the last strip is not written.
    pub(super) fn strips(
        src: &[f32], stride: usize, rows: usize, columns: usize, width: usize, dst: &mut [f32],
    ) = strips_body
}

#[inline(always)]
fn strips_body<F: Fma>(src: &[f32], stride: usize, rows: usize, columns: usize, width: usize, dst: &mut [f32]) {
    for first in (0..rows).step_by(STRIP_ROWS) {
        let n = STRIP_ROWS.min(rows - first);
        for (s, j) in (0..columns).step_by(width).enumerate() {
            let (from, to) = (&src[first * stride + j..], &mut dst[(s * rows + first) * width..][..n * width]);
            match width.min(columns - j) {
                12 => strip::<12>(from, stride, to, width),
                6 => strip::<6>(from, stride, to, width),
                4 => strip::<4>(from, stride, to, width),
                rest => {
                    for (i, to) in to.chunks_exact_mut(width).enumerate() {
                        to[..rest].copy_from_slice(&from[i * stride..][..rest]);
                    }
                }
            }
        }
    }
}

/// N columns: a number that the compiler knows.
#[inline(always)]
fn strip<const N: usize>(from: &[f32], stride: usize, to: &mut [f32], width: usize) {
    for (i, to) in to.chunks_exact_mut(width).enumerate() {
        to[..N].copy_from_slice(&from[i * stride..][..N]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::*;

    #[test]
    fn strips_lie_where_the_layout_says() {
        for (rows, columns, width) in [(1, 1, 4), (5, 7, 4), (40, 24, 12), (33, 25, 12), (70, 13, 6)] {
            let stride = columns + 3;
            let x = noise(1, rows * stride);
            let mut dst = vec![f32::NAN; columns.next_multiple_of(width) * rows];
            strips(&x, stride, rows, columns, width, &mut dst);
            for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                assert_eq!(dst[(j / width * rows + i) * width + j % width], x[i * stride + j]);
            }
        }
    }

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
                rows(part, width, &mut dst);
                assert!((0..rows_n * width).all(|p| dst[p] == element(p / width, p % width)));
            }
            for width in [rows_n, rows_n + 3, 40] {
                let mut dst = vec![f32::NAN; columns * width];
                transposed(part, width, &mut dst);
                assert!((0..columns * width).all(|p| dst[p] == element(p % width, p / width)));
            }
        }
    }
}
