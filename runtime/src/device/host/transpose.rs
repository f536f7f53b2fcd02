//! Transposes of squares in registers: the inner step of packing a matrix whose fast axis is the other one.
#![allow(unsafe_code)]

use super::cpu::Fma;

/// Side of a square.
pub(super) const SIDE: usize = 8;

/// Writes column `i` of the square to `dst[i·pitch..i·pitch + 8]`.
#[inline(always)]
pub(super) fn square<F: Fma>(rows: [&[f32; SIDE]; SIDE], dst: &mut [f32], pitch: usize) {
    assert!(dst.len() >= (SIDE - 1) * pitch + SIDE);
    #[cfg(target_arch = "x86_64")]
    if F::FUSED {
        // SAFETY: `Fused` is chosen only where the processor has AVX2; the length of `dst` was checked.
        unsafe { avx(rows, dst.as_mut_ptr(), pitch) };
        return;
    }
    for i in 0..SIDE {
        for (to, row) in dst[i * pitch..].iter_mut().zip(rows) {
            *to = row[i];
        }
    }
}

/// # Safety
/// The processor has AVX; `dst` is writable at `i·pitch..i·pitch + 8` for `i < 8`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
unsafe fn avx(rows: [&[f32; SIDE]; SIDE], dst: *mut f32, pitch: usize) {
    use std::arch::x86_64::*;
    // SAFETY: each row has eight elements.
    let r = rows.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr()) });
    // Pairs, then quads within each half, then the halves.
    let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let ((a0, a1), (a2, a3)) = (pair(r[0], r[1]), pair(r[2], r[3]));
    let ((b0, b1), (b2, b3)) = (pair(r[4], r[5]), pair(r[6], r[7]));
    let quad = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
    let ((c0, c1), (c2, c3)) = (quad(a0, a2), quad(a1, a3));
    let ((d0, d1), (d2, d3)) = (quad(b0, b2), quad(b1, b3));
    let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
    let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
    let columns =
        [low(c0, d0), low(c1, d1), low(c2, d2), low(c3, d3), high(c0, d0), high(c1, d1), high(c2, d2), high(c3, d3)];
    for (i, column) in columns.into_iter().enumerate() {
        // SAFETY: in range by contract.
        unsafe { _mm256_storeu_ps(dst.add(i * pitch), column) };
    }
}

/// Side of a small square: lanes that are left of a panel whose width is no multiple of [`SIDE`].
pub(super) const SMALL: usize = 4;

/// As [`square`], of four rows of four.
#[inline(always)]
pub(super) fn small_square(rows: [&[f32; SMALL]; SMALL], dst: &mut [f32], pitch: usize) {
    assert!(dst.len() >= (SMALL - 1) * pitch + SMALL);
    for i in 0..SMALL {
        let to: &mut [f32; SMALL] = (&mut dst[i * pitch..][..SMALL]).try_into().expect("the range has four elements");
        *to = rows.map(|row| row[i]);
    }
}

/// A square of either side: row `i` becomes column `i` of `dst`.
#[inline(always)]
pub(super) fn lanes<F: Fma, const N: usize>(rows: [&[f32]; N], dst: &mut [f32], pitch: usize) {
    match N {
        SIDE => square::<F>(std::array::from_fn(|i| sized(rows[i])), dst, pitch),
        SMALL => small_square(std::array::from_fn(|i| sized(rows[i])), dst, pitch),
        _ => unreachable!("squares have {SIDE} or {SMALL} rows"),
    }
}

#[inline(always)]
fn sized<const N: usize>(row: &[f32]) -> &[f32; N] {
    row.try_into().expect("a row of a square is as long as there are rows")
}

#[cfg(test)]
mod tests {
    use super::super::cpu::{Fused, Isa, Separate};
    use super::*;

    #[test]
    fn columns_become_rows() {
        let rows: [[f32; SIDE]; SIDE] = std::array::from_fn(|i| std::array::from_fn(|j| (i * SIDE + j) as f32));
        for pitch in [8, 11, 32] {
            for fused in [false, true] {
                let mut dst = vec![-1.0; 7 * pitch + 8];
                match fused && Isa::detect() >= Isa::V3 {
                    true => square::<Fused>(rows.each_ref(), &mut dst, pitch),
                    false => square::<Separate>(rows.each_ref(), &mut dst, pitch),
                }
                for (at, &x) in dst.iter().enumerate() {
                    let want = if at % pitch < SIDE { rows[at % pitch][at / pitch] } else { -1.0 };
                    assert_eq!(x, want, "{at} of pitch {pitch}");
                }
            }
        }
    }
}
