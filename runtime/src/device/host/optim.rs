//! Updates of flat parameter ranges: AdamW and momentum in one pass, shadows written while the values are in cache, and what the
//! step must know of the gradients beforehand: their sum of squares and whether all are finite.
//!
//! Ranges are cut into chunks of a fixed length; every element is its own, and sums follow a tree that depends on the length alone.
#![allow(unsafe_code)]

use super::buffer::Buf;
use super::cpu::{Fma, multiversion};
use super::pool::Pool;
use super::share::Shared;
use crate::optim::{AdamWStep, SgdStep};
use std::sync::atomic::{AtomicBool, Ordering};

// Elements of a task: the four arrays of AdamW are 256 KiB, a quarter of the second-level cache.
const CHUNK: usize = 1 << 14;
// Partial sums of a range: 4 KiB on the stack.
const PARTIALS: usize = 512;
// Partial sums of a chunk.
const LANES: usize = 16;

/// A copy of some parameters in the element type of its buffer, which consumers read instead of the f32 masters.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    /// The first parameter, counted from the start of the updated range.
    pub first: usize,
    /// One element per parameter.
    pub to: Buf,
}

/// One AdamW step of the range `params` with its gradients and both moments, all f32; `shadows` get the new values.
///
/// # Panics
/// If a buffer is not of f32 or shorter than `params`, or a shadow reaches beyond it.
pub fn adamw(pool: &Pool, step: &AdamWStep, params: Buf, grads: Buf, moments: [Buf; 2], shadows: &[Shadow]) {
    chunks(pool, params, shadows, |at, p| {
        let [m, v] = &moments;
        adamw_chunk(step, p, grads.f32s(at, p.len()), m.f32s_mut(at, p.len()), v.f32s_mut(at, p.len()));
    });
}

/// One momentum step of the range `params`, as [`adamw`].
///
/// # Panics
/// As [`adamw`].
pub fn sgd(pool: &Pool, step: &SgdStep, params: Buf, grads: Buf, momentum: Buf, shadows: &[Shadow]) {
    chunks(pool, params, shadows, |at, p| {
        sgd_chunk(step, p, grads.f32s(at, p.len()), momentum.f32s_mut(at, p.len()));
    });
}

/// Writes shadows of parameters that did not change, as after loading.
///
/// # Panics
/// If `params` is not of f32, or a shadow reaches beyond it.
pub fn write_shadows(pool: &Pool, params: Buf, shadows: &[Shadow]) {
    chunks(pool, params, shadows, |_, _| {});
}

/// Calls `update(first, chunk)` for all chunks, and then writes what shadows have of them.
fn chunks(pool: &Pool, params: Buf, shadows: &[Shadow], update: impl Fn(usize, &mut [f32]) + Sync) {
    let n = params.len();
    for s in shadows {
        assert!(s.first + s.to.len() <= n, "a shadow of {}.. + {} of {n} parameters", s.first, s.to.len());
    }
    pool.run(n.div_ceil(CHUNK), |task, _| {
        let (first, end) = (task * CHUNK, n.min((task + 1) * CHUNK));
        let p = params.f32s_mut(first, end - first);
        update(first, p);
        for s in shadows {
            let (from, to) = (s.first.max(first), (s.first + s.to.len()).min(end));
            if from < to {
                round_into(s.to, from - s.first, &p[from - first..to - first]);
            }
        }
    });
}

multiversion! {
    fn adamw_chunk(s: &AdamWStep, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) = adamw_body
}

#[inline(always)]
fn adamw_body<F: Fma>(s: &AdamWStep, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * s.grad_factor;
        *m = F::fma(s.one_minus_beta1, g - *m, *m);
        *v = F::fma(s.beta2, *v, s.one_minus_beta2 * g * g);
        let step = s.step_size * *m / F::fma(v.sqrt(), s.inv_sqrt_bias2, s.eps);
        *p = F::fma(*p, s.decay, -step);
    }
}

multiversion! {
    fn sgd_chunk(s: &SgdStep, p: &mut [f32], g: &[f32], b: &mut [f32]) = sgd_body
}

#[inline(always)]
fn sgd_body<F: Fma>(s: &SgdStep, p: &mut [f32], g: &[f32], b: &mut [f32]) {
    let ahead = if s.nesterov { 1.0 } else { 0.0 };
    let past = if s.nesterov { s.momentum } else { 1.0 };
    for ((p, &g), b) in p.iter_mut().zip(g).zip(b) {
        let g = F::fma(s.weight_decay, *p, g * s.grad_factor);
        *b = F::fma(s.momentum, *b, g);
        let direction = F::fma(past, *b, ahead * g);
        *p = F::fma(-s.lr, direction, *p);
    }
}

multiversion! {
    fn round_into(to: Buf, at: usize, x: &[f32]) = round_into_body
}

#[inline(always)]
fn round_into_body<F: Fma>(to: Buf, at: usize, x: &[f32]) {
    to.store(at, x);
}

/// Σx² of an f32 range. f64 throughout, so that it is finite if and only if every element is.
///
/// # Panics
/// If `x` is not of f32.
pub fn sum_of_squares(pool: &Pool, x: Buf) -> f64 {
    let n = x.len();
    let each = n.div_ceil(PARTIALS).next_multiple_of(CHUNK).max(CHUNK);
    let mut partials = [0.0f64; PARTIALS];
    let shared = Shared::new(&mut partials);
    pool.run(n.div_ceil(each), |task, _| {
        let (first, end) = (task * each, n.min((task + 1) * each));
        let sum = (first..end).step_by(CHUNK).map(|at| squares_chunk(x.f32s(at, CHUNK.min(end - at)))).sum();
        // SAFETY: each task has its own partial sum; `each` gives at most PARTIALS tasks.
        unsafe { shared.slice(task, 1)[0] = sum };
    });
    let mut n = PARTIALS / 2;
    while n > 0 {
        for i in 0..n {
            partials[i] += partials[i + n];
        }
        n /= 2;
    }
    partials[0]
}

multiversion! {
    fn squares_chunk(x: &[f32]) -> f64 = squares_body
}

#[inline(always)]
fn squares_body<F: Fma>(x: &[f32]) -> f64 {
    let (lines, rest) = x.as_chunks::<LANES>();
    let mut acc = [0.0f64; LANES];
    for line in lines {
        for l in 0..LANES {
            // The product of two f32 is exact in f64.
            acc[l] += f64::from(line[l]) * f64::from(line[l]);
        }
    }
    for (acc, &x) in acc.iter_mut().zip(rest) {
        *acc += f64::from(x) * f64::from(x);
    }
    acc.iter().sum()
}

/// Whether no element of an f32 range is infinite or NaN.
///
/// # Panics
/// If `x` is not of f32.
pub fn all_finite(pool: &Pool, x: Buf) -> bool {
    let n = x.len();
    let finite = AtomicBool::new(true);
    pool.run(n.div_ceil(CHUNK), |task, _| {
        if finite.load(Ordering::Relaxed) && !finite_chunk(x.f32s(task * CHUNK, CHUNK.min(n - task * CHUNK))) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    finite.into_inner()
}

multiversion! {
    fn finite_chunk(x: &[f32]) -> bool = finite_body
}

#[inline(always)]
fn finite_body<F: Fma>(x: &[f32]) -> bool {
    let magnitude = |x: &f32| x.to_bits() & !(1 << 31);
    x.iter().map(magnitude).fold(0, u32::max) < f32::INFINITY.to_bits()
}

#[cfg(test)]
mod tests {
    use super::super::buffer::round;
    use super::super::buffer::testing::{Owned, noise};
    use super::*;
    use crate::optim::{AdamW, Group, Sgd};
    use kiln_compiler::ir::DType;

    const LENGTHS: [usize; 8] = [0, 1, 17, 1009, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 37];
    // Roundings of the ten operations of a step, relative to the largest value that takes part.
    const STEP_ERROR: f64 = 16.0 * f32::EPSILON as f64;

    fn close(name: &str, n: usize, got: &[f32], want: &[f64]) {
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(g) - w).abs() <= STEP_ERROR * (1.0 + w.abs()), "{name}[{i}] of {n}: {g} for {w}");
        }
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn adamw_is_its_formula_on_every_element() {
        for n in LENGTHS {
            let optimizer = AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1 };
            let step = optimizer.step(0.02, 3, 0.5, Group::Decay);
            let (p, g, m) = (noise(1, n), noise(2, n), noise(3, n));
            let v: Vec<f32> = noise(4, n).iter().map(|x| x.abs()).collect();
            let (mut want, mut want_m, mut want_v) = (wide(&p), wide(&m), wide(&v));
            for i in 0..n {
                let g = f64::from(g[i]) * 0.5;
                want_m[i] = 0.9 * want_m[i] + 0.1 * g;
                want_v[i] = 0.95 * want_v[i] + 0.05 * g * g;
                let (b1, b2) = (1.0 - 0.9f64.powi(3), 1.0 - 0.95f64.powi(3));
                want[i] -= 0.02 * 0.1 * want[i];
                want[i] -= 0.02 * (want_m[i] / b1) / ((want_v[i] / b2).sqrt() + 1e-8);
            }
            let mut first = None;
            for threads in [1, 2, 3, 7] {
                let pool = Pool::new(threads).unwrap();
                let [mut p, mut g, mut m, mut v] = [&p, &g, &m, &v].map(|x| Owned::of(DType::F32, x));
                let (a, b) = (n / 3, n - n / 5);
                let mut low = Owned::poisoned(DType::Bf16, b - a);
                let mut all = Owned::poisoned(DType::F16, n);
                let shadows = [Shadow { first: a, to: low.buf() }, Shadow { first: 0, to: all.buf() }];
                adamw(&pool, &step, p.buf(), g.buf(), [m.buf(), v.buf()], &shadows);
                close("p", n, &p.values(), &want);
                close("m", n, &m.values(), &want_m);
                close("v", n, &v.values(), &want_v);
                let rounded = |d, x: &[f32]| x.iter().map(|&x| round(d, x)).collect::<Vec<f32>>();
                assert_eq!(low.values(), rounded(DType::Bf16, &p.values()[a..b]));
                assert_eq!(all.values(), rounded(DType::F16, &p.values()));
                let bits = [p.bits(), m.bits(), v.bits()];
                assert!(first.get_or_insert(bits.clone()) == &bits, "{n}: {threads} threads");

                let mut again = Owned::poisoned(DType::Bf16, b - a);
                write_shadows(&pool, p.buf(), &[Shadow { first: a, to: again.buf() }]);
                assert_eq!(again.values(), low.values());
            }
        }
    }

    #[test]
    fn momentum_is_its_formula_on_every_element() {
        for n in LENGTHS {
            for nesterov in [false, true] {
                let optimizer = Sgd { momentum: 0.9, weight_decay: 0.2, nesterov };
                let step = optimizer.step(0.1, 0.25, Group::Decay);
                let (p, g, b) = (noise(1, n), noise(2, n), noise(3, n));
                let (mut want, mut want_b) = (wide(&p), wide(&b));
                for i in 0..n {
                    let g = f64::from(g[i]) * 0.25 + 0.2 * want[i];
                    want_b[i] = 0.9 * want_b[i] + g;
                    want[i] -= 0.1 * if nesterov { g + 0.9 * want_b[i] } else { want_b[i] };
                }
                let mut first = None;
                for threads in [1, 2, 3, 7] {
                    let pool = Pool::new(threads).unwrap();
                    let [mut p, mut g, mut b] = [&p, &g, &b].map(|x| Owned::of(DType::F32, x));
                    sgd(&pool, &step, p.buf(), g.buf(), b.buf(), &[]);
                    close("p", n, &p.values(), &want);
                    close("b", n, &b.values(), &want_b);
                    let bits = [p.bits(), b.bits()];
                    assert!(first.get_or_insert(bits.clone()) == &bits, "{n}: {threads} threads");
                }
            }
        }
    }

    #[test]
    fn squares_are_summed_in_f64() {
        for n in LENGTHS.into_iter().chain([PARTIALS * CHUNK + 5]) {
            let x = noise(9, n);
            let want: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            let mut x = Owned::of(DType::F32, &x);
            let mut first = None;
            for threads in [1, 2, 3, 7] {
                let got = sum_of_squares(&Pool::new(threads).unwrap(), x.buf());
                assert!((got - want).abs() <= n as f64 * f64::EPSILON * want, "{n}: {got} for {want}");
                assert_eq!(*first.get_or_insert(got.to_bits()), got.to_bits(), "{n}: {threads} threads");
            }
        }
        let mut large = Owned::of(DType::F32, &[3e38; 100]);
        assert!(sum_of_squares(&Pool::serial(), large.buf()).is_finite());
    }

    #[test]
    fn one_element_that_is_not_finite_is_found() {
        for n in LENGTHS.into_iter().filter(|&n| n > 0) {
            let mut x = noise(1, n);
            x[0] = f32::MAX;
            for threads in [1, 3] {
                let pool = Pool::new(threads).unwrap();
                assert!(all_finite(&pool, Owned::of(DType::F32, &x).buf()));
                for at in [0, n / 2, n - 1] {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut x = x.clone();
                        x[at] = bad;
                        let mut x = Owned::of(DType::F32, &x);
                        assert!(!all_finite(&pool, x.buf()), "{bad} at {at} of {n}");
                        assert!(!sum_of_squares(&pool, x.buf()).is_finite());
                    }
                }
            }
        }
    }
}
