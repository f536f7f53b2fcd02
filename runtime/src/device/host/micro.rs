//! The micro-kernel that every matrix product on the host ends in: C[m×nr] = or += Σₖ A[m×k] · B[k×nr], in registers.
//!
//! A is read by broadcast with any strides, so transposed operands need no copy; a row of B is `nr` contiguous elements. Each
//! element of C is one chain of multiply-adds in the order of k, whatever `m`: splitting a product over rows, columns or threads
//! never changes bits.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::cpu::has_bf16_dot;
use super::cpu::{Isa, LINE, prefetch};

/// What happens to the old value of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Into {
    /// It is not read.
    Overwrite,
    /// The sum is added to it.
    Add,
}

/// Operands of one call; strides in elements.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub k: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_k: usize,
    /// After so many steps of k, A goes on `a_skip` elements farther.
    pub a_run: usize,
    pub a_skip: usize,
    pub b: *const f32,
    pub b_k: usize,
    pub c: *mut f32,
    pub c_row: usize,
}

type Call = unsafe fn(Operands, Into);

/// The micro-kernels of one instruction set.
pub(super) struct Micro {
    /// Most rows of C per call.
    pub mr: usize,
    /// Columns of C per call.
    pub nr: usize,
    /// `calls[m - 1]` computes `m` rows.
    calls: &'static [Call],
}

impl Micro {
    /// For the detected instruction set.
    pub fn detect() -> &'static Micro {
        Micro::of(Isa::detect())
    }

    /// For bf16 operands, where the processor multiplies them itself: words of A and B hold two neighbours along k, the first in
    /// the low half, and `k` counts words.
    pub fn detect_pairs() -> Option<&'static Micro> {
        #[cfg(target_arch = "x86_64")]
        if has_bf16_dot() {
            return Some(&x86::PAIRS);
        }
        None
    }

    fn of(isa: Isa) -> &'static Micro {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::V4 => &x86::V4,
            #[cfg(target_arch = "x86_64")]
            Isa::V3 => &x86::V3,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &arm::NEON,
            _ => &PORTABLE,
        }
    }

    /// Computes `m` rows.
    ///
    /// # Safety
    /// `1 <= m <= mr` and `a_run >= 1`; A is readable at `i·a_row + p·a_k + p/a_run·a_skip` for `i < m`, `p < k`, B at `p·b_k + j` for `j < nr`, and C is readable and
    /// writable at `i·c_row + j`, with no other user.
    #[inline]
    pub unsafe fn call(&self, m: usize, o: Operands, into: Into) {
        // SAFETY: the caller's promise is that of the kernel, and the table belongs to the detected instruction set.
        unsafe { self.calls[m - 1](o, into) }
    }
}

static PORTABLE: Micro = Micro { mr: 4, nr: 8, calls: &[portable::<1>, portable::<2>, portable::<3>, portable::<4>] };

/// # Safety
/// See [`Micro::call`].
unsafe fn portable<const M: usize>(o: Operands, into: Into) {
    const N: usize = 8;
    let mut acc = [[0.0f32; N]; M];
    for p in 0..o.k {
        // SAFETY: a row of B has `nr` elements, by contract.
        let b = unsafe { &*o.b.add(p * o.b_k).cast::<[f32; N]>() };
        for (i, row) in acc.iter_mut().enumerate() {
            // SAFETY: `i < m`, `p < k`, by contract.
            let a = unsafe { *o.a.add(i * o.a_row + p * o.a_k + p / o.a_run * o.a_skip) };
            for (c, &b) in row.iter_mut().zip(b) {
                *c += a * b;
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: row `i < m` of C has `nr` elements and no other user, by contract.
        let c = unsafe { &mut *o.c.add(i * o.c_row).cast::<[f32; N]>() };
        for (c, &x) in c.iter_mut().zip(row) {
            *c = if into == Into::Add { *c + x } else { x };
        }
    }
}

/// One step of k: a row of B times each element of a column of A.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! step {
    ($m:ident, $acc:ident, $rows:ident, $b:ident, ($one:ident, $two:ident), $o:ident, $lanes:literal, $load:ident, $set:ident, $fma:ident) => {
        // SAFETY: in range by contract; the pointers advance with k, and one past the last step is not read.
        unsafe {
            let b0 = $load($b);
            let b1 = $load($b.add($lanes));
            let mut i = 0;
            while i < $m {
                let by = if i % 3 == 0 {
                    0
                } else if i % 3 == 1 {
                    $one
                } else {
                    $two
                };
                let x = $set(*$rows[i / 3].wrapping_add(by));
                $acc[i][0] = $fma(x, b0, $acc[i][0]);
                $acc[i][1] = $fma(x, b1, $acc[i][1]);
                i += 1;
            }
        }
        let mut i = 0;
        while i < $m.div_ceil(3) {
            $rows[i] = $rows[i].wrapping_add($o.a_k);
            i += 1;
        }
        $b = $b.wrapping_add($o.b_k);
    };
}

/// A micro-kernel of two vectors of columns in an instruction set's own words.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! kernel {
    ($name:ident, $features:literal, $vector:ty, $lanes:literal, $zero:ident, $load:ident, $set:ident, $fma:ident, $add:ident, $store:ident) => {
        /// # Safety
        /// See [`Micro::call`]; the processor has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const M: usize>(o: Operands, into: Into) {
            let mut acc: [[$vector; 2]; M] = [[$zero(); 2]; M];
            // One pointer per three rows. What they have to do with each other is hidden: the compiler would compute each address from the
            // one before it, a chain as long as the multiplications take, so that no load could run ahead.
            let (one, two) = (black_box(o.a_row), black_box(2 * o.a_row));
            let mut rows = [o.a; 4];
            let mut i = 1;
            while i < M.div_ceil(3) {
                rows[i] = black_box(o.a.wrapping_add(3 * i * o.a_row));
                i += 1;
            }
            let mut b = o.b;
            let mut left = o.k;
            let (lines, mut asked) = ((2 * $lanes as usize).div_ceil(LINE), 0);
            loop {
                let run = left.min(o.a_run);
                // The tile of C may lie far away, and is needed when the sums are complete: one line is asked for in each of the first
                // steps, since all of them at once would hold up the loads of A and B.
                let early = run.min(M * lines - asked);
                for _ in 0..early {
                    prefetch(o.c.wrapping_add(asked / lines * o.c_row + asked % lines * LINE));
                    asked += 1;
                    step!(M, acc, rows, b, (one, two), o, $lanes, $load, $set, $fma);
                }
                for _ in early..run {
                    step!(M, acc, rows, b, (one, two), o, $lanes, $load, $set, $fma);
                }
                left -= run;
                if left == 0 {
                    break;
                }
                let mut i = 0;
                while i < M.div_ceil(3) {
                    rows[i] = rows[i].wrapping_add(o.a_skip);
                    i += 1;
                }
            }
            let mut i = 0;
            while i < M {
                // SAFETY: row `i < m` of C has two vectors, by contract.
                unsafe {
                    let c = o.c.add(i * o.c_row);
                    if into == Into::Add {
                        $store(c, $add($load(c), acc[i][0]));
                        $store(c.add($lanes), $add($load(c.add($lanes)), acc[i][1]));
                    } else {
                        $store(c, acc[i][0]);
                        $store(c.add($lanes), acc[i][1]);
                    }
                }
                i += 1;
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Into, LINE, Micro, Operands, prefetch};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    // 12 rows of two 16-lane vectors: 24 accumulators, two of B, and the broadcast is a memory operand. 8 × 3 vectors measured the same.
    pub static V4: Micro = Micro {
        mr: 12,
        nr: 32,
        calls: &[
            v4::<1>, v4::<2>, v4::<3>, v4::<4>, v4::<5>, v4::<6>, v4::<7>, v4::<8>, v4::<9>, v4::<10>, v4::<11>,
            v4::<12>,
        ],
    };

    // 6 rows of two 8-lane vectors: 12 accumulators, two of B, one broadcast, of 16 registers.
    pub static V3: Micro = Micro { mr: 6, nr: 16, calls: &[v3::<1>, v3::<2>, v3::<3>, v3::<4>, v3::<5>, v3::<6>] };

    // As V4, with two products per word.
    pub static PAIRS: Micro = Micro {
        mr: 12,
        nr: 32,
        calls: &[
            pairs::<1>,
            pairs::<2>,
            pairs::<3>,
            pairs::<4>,
            pairs::<5>,
            pairs::<6>,
            pairs::<7>,
            pairs::<8>,
            pairs::<9>,
            pairs::<10>,
            pairs::<11>,
            pairs::<12>,
        ],
    };

    /// a₀·b₀ + a₁·b₁ + c for the pairs of bf16 in each word.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot_pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: both types are 64 bytes without invalid values.
        let (a, b) =
            unsafe { (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b)) };
        _mm512_dpbf16_ps(c, a, b)
    }

    kernel!(
        v4,
        "avx512f",
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_storeu_ps
    );
    kernel!(
        v3,
        "avx2,fma",
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_storeu_ps
    );
    kernel!(
        pairs,
        "avx512f,avx512bf16",
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        dot_pairs,
        _mm512_add_ps,
        _mm512_storeu_ps
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Into, LINE, Micro, Operands, prefetch};
    use std::arch::aarch64::*;
    use std::hint::black_box;

    // 12 rows of two 4-lane vectors: 24 accumulators, two of B and one broadcast, of 32 registers.
    pub static NEON: Micro = Micro {
        mr: 12,
        nr: 8,
        calls: &[
            neon::<1>, neon::<2>, neon::<3>, neon::<4>, neon::<5>, neon::<6>, neon::<7>, neon::<8>, neon::<9>,
            neon::<10>, neon::<11>, neon::<12>,
        ],
    };

    /// a·b + c
    #[inline(always)]
    fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: every AArch64 has NEON.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn zero() -> float32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_f32(0.0) }
    }

    kernel!(neon, "neon", float32x4_t, 4, zero, vld1q_f32, vdupq_n_f32, multiply_add, vaddq_f32, vst1q_f32);
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::noise;
    use super::*;

    #[test]
    fn all_row_counts_and_strides_agree_with_f64() {
        let isas = [Isa::Portable, Isa::Neon, Isa::V3, Isa::V4].into_iter().filter(|&i| i <= Isa::detect());
        for micro in isas.map(Micro::of) {
            for m in 1..=micro.mr {
                for k in [0, 1, 5, 64] {
                    // Rows, columns, and rows in runs of five that lie three apart.
                    for (a_row, a_k, a_run, a_skip) in [(k, 1, k.max(1), 0), (1, m, k.max(1), 0), (2 * k + 3, 1, 5, 3)]
                    {
                        let a = noise(1, m * (2 * k + 3));
                        let b = noise(2, k * micro.nr);
                        let old = noise(3, m * micro.nr);
                        for into in [Into::Overwrite, Into::Add] {
                            let mut c = if into == Into::Add { old.clone() } else { vec![f32::NAN; m * micro.nr] };
                            let o = Operands {
                                k,
                                a: a.as_ptr(),
                                a_row,
                                a_k,
                                a_run,
                                a_skip,
                                b: b.as_ptr(),
                                b_k: micro.nr,
                                c: c.as_mut_ptr(),
                                c_row: micro.nr,
                            };
                            // SAFETY: the slices have exactly the sizes that the strides describe.
                            unsafe { micro.call(m, o, into) };
                            for i in 0..m {
                                for j in 0..micro.nr {
                                    let start = if into == Into::Add { f64::from(old[i * micro.nr + j]) } else { 0.0 };
                                    let want = (0..k).fold(start, |s, p| {
                                        s + f64::from(a[i * a_row + p * a_k + p / a_run * a_skip])
                                            * f64::from(b[p * micro.nr + j])
                                    });
                                    let got = f64::from(c[i * micro.nr + j]);
                                    let bound = (k as f64 + 2.0) * f64::from(f32::EPSILON);
                                    assert!((got - want).abs() <= bound, "{m}×{k}: {got} for {want}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pairs_of_bf16_agree_with_f64() {
        let Some(micro) = Micro::detect_pairs() else { return };
        let narrow = |seed, n| -> Vec<half::bf16> { noise(seed, n).into_iter().map(half::bf16::from_f32).collect() };
        let word = |x: &[half::bf16]| f32::from_bits(u32::from(x[1].to_bits()) << 16 | u32::from(x[0].to_bits()));
        for m in 1..=micro.mr {
            for k in [1, 2, 33] {
                // Rows of A and columns of B, two steps of k per word.
                let (a, b) = (narrow(1, m * 2 * k), narrow(2, micro.nr * 2 * k));
                let a_words: Vec<f32> = a.chunks(2).map(word).collect();
                let b_words: Vec<f32> =
                    (0..k * micro.nr).map(|i| word(&b[i % micro.nr * 2 * k + i / micro.nr * 2..][..2])).collect();
                let mut c = vec![f32::NAN; m * micro.nr];
                let o = Operands {
                    k,
                    a: a_words.as_ptr(),
                    a_row: k,
                    a_k: 1,
                    a_run: k,
                    a_skip: 0,
                    b: b_words.as_ptr(),
                    b_k: micro.nr,
                    c: c.as_mut_ptr(),
                    c_row: micro.nr,
                };
                // SAFETY: the slices have exactly the sizes that the strides describe.
                unsafe { micro.call(m, o, Into::Overwrite) };
                for i in 0..m {
                    for j in 0..micro.nr {
                        let (x, y) = (&a[i * 2 * k..(i + 1) * 2 * k], &b[j * 2 * k..(j + 1) * 2 * k]);
                        let want: f64 = x.iter().zip(y).map(|(x, y)| x.to_f64() * y.to_f64()).sum();
                        let got = f64::from(c[i * micro.nr + j]);
                        let bound = (2.0 * k as f64 + 2.0) * f64::from(f32::EPSILON);
                        assert!((got - want).abs() <= bound, "{m}×{k}: {got} for {want}");
                    }
                }
            }
        }
    }
}
