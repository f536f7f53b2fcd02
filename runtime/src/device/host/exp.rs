//! The exponential of softmax, for inner loops: a polynomial, at most 2 ulp off, compiled into the loop that calls it.

use super::cpu::Fma;

/// e^x for x ≤ 88. Below -87, where e^x leaves the normal range, it is 0; a NaN stays a NaN.
#[inline(always)]
pub(super) fn exp<F: Fma>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    // ln 2 in two parts, of which the first has 9 bits, so that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ leaves the nearest integer in the low bits.
    const TO_INTEGER: f32 = 12_582_912.0;
    // Minimax on |r| ≤ ln 2 / 2, of Cephes' `expf` (Moshier 1989).
    const C: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let shifted = F::fma(x, std::f32::consts::LOG2_E, TO_INTEGER);
    let n = shifted - TO_INTEGER;
    let r = F::fma(n, -LN2_LOW, F::fma(n, -LN2_HIGH, x));
    let mut p = C[0];
    for c in &C[1..] {
        p = F::fma(p, r, *c);
    }
    let p = F::fma(p, r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()).wrapping_add(127) << 23;
    let y = p * f32::from_bits(exponent);
    if x < LOWEST { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::super::cpu::{Fused, Separate};
    use super::*;

    // The polynomial's error and the roundings of its last three operations.
    const BOUND: f64 = 2.0 * f32::EPSILON as f64;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -86_999..=88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            for got in [exp::<Fused>(x), exp::<Separate>(x)] {
                assert!((f64::from(got) - want).abs() <= BOUND * want, "e^{x}: {got} for {want}");
            }
        }
        assert_eq!(exp::<Fused>(0.0), 1.0);
        for x in [-87.1, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp::<Fused>(x), 0.0);
        }
        assert!(exp::<Fused>(f32::NAN).is_nan());
    }
}
