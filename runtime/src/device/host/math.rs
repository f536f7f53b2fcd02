//! Elementary functions of f32 without branches or tables, so that loops over them vectorise; each is within 2 ulp of the exact value.
//!
//! They are generic in how they multiply and add ([`Fma`]) and inline into loops that are compiled per instruction set.

use super::cpu::Fma;

// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Horner's scheme; coefficients from the highest power down.
#[inline(always)]
fn horner<F: Fma, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[0];
    let mut i = 1;
    while i < N {
        y = F::fma(y, x, c[i]);
        i += 1;
    }
    y
}

/// Combines the elements in halves until one is left: an order that their number alone decides. N is a power of two.
#[inline(always)]
pub fn tree<const N: usize>(x: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    // Hidden, or the compiler would cut the vectors of the loop that filled it to the shape of these steps.
    let mut x = std::hint::black_box(x);
    let mut n = N / 2;
    while n > 0 {
        for i in 0..n {
            x[i] = f(x[i], x[i + n]);
        }
        n /= 2;
    }
    x[0]
}

/// eˣ: x = n·ln 2 + r, with a polynomial in r (coefficients of Cephes) and a scaling by 2ⁿ in two steps, which reaches subnormals.
#[inline(always)]
pub fn exp<F: Fma>(x: f32) -> f32 {
    // Beyond these the result is +∞ and 0; a comparison with NaN fails and keeps it. The 0 of a mask is not computed: an underflow
    // costs some hundred cycles.
    let x = if x > 89.0 { 89.0 } else { x };
    let vanishes = x < -104.0;
    let x = if vanishes { 0.0 } else { x };
    let (y, n) = scaled_exp::<F>(x);
    let half = n >> 1;
    let y = y * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if vanishes { 0.0 } else { y }
}

// Below it, eˣ is subnormal.
const SMALLEST: f32 = -87.33;

/// eˣ for x ≤ 88, and 0 where that would be subnormal: the exponential of a softmax, in two thirds of the instructions.
#[inline(always)]
pub fn exp_flushing<F: Fma>(x: f32) -> f32 {
    let vanishes = x < SMALLEST;
    let x = if vanishes { 0.0 } else { x };
    let (y, n) = scaled_exp::<F>(x);
    let y = y * power_of_two(n);
    if vanishes { 0.0 } else { y }
}

/// y and n with eˣ = y·2ⁿ.
#[inline(always)]
fn scaled_exp<F: Fma>(x: f32) -> (f32, i32) {
    let shifted = F::fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = F::fma(n, -0.693_359_4, x);
    let r = F::fma(n, 2.121_944_4e-4, r);
    let p = horner::<F, 6>(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    (F::fma(p * r, r, r) + 1.0, (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// ln x: x = 2ᵏ·(1 + f) and s = f/(2 + f), after FreeBSD's `logf`.
#[inline(always)]
pub fn log<F: Fma>(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let subnormal = x < f32::MIN_POSITIVE;
    let scaled = if subnormal { x * 33_554_432.0 } else { x };
    let bits = scaled.to_bits().wrapping_add(0x3f80_0000 - SQRT_HALF);
    let k = ((bits >> 23) as i32 - 127) as f32 - if subnormal { 25.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * F::fma(w, 0.242_790_79, 0.400_009_72);
    let odd = z * F::fma(w, 0.284_987_87, 0.666_666_6);
    let r = odd + even;
    let half_square = 0.5 * f * f;
    let y = F::fma(s, half_square + r, k * 9.058_001e-6) - half_square + f;
    let y = F::fma(k, 0.693_138_1, y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// tanh x: an odd polynomial near zero (coefficients of Cephes), 1 − 2/(e²ˣ + 1) elsewhere.
#[inline(always)]
pub fn tanh<F: Fma>(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let p = horner::<F, 5>(z, [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let near = F::fma(p * z, x, x);
    let far = 1.0 - 2.0 / (exp::<F>(a + a) + 1.0);
    // The polynomial rounds −0 to +0.
    (if a < 0.625 { near } else { far }).copysign(x)
}

/// erf x: a polynomial near zero, 1 − e^(−q(|x|)) elsewhere (minimax coefficients by N. Juffa).
#[inline(always)]
pub fn erf<F: Fma>(x: f32) -> f32 {
    let a = x.abs();
    // Beyond 4 the result is ±1; the limit keeps the polynomial finite.
    let t = if a > 4.0 { 4.0 } else { a };
    let q = horner::<F, 7>(
        t,
        [
            -1.728_534_7e-5,
            3.831_972e-4,
            -3.883_964_4e-3,
            2.425_462_2e-2,
            -1.067_778_8e-1,
            -6.348_467e-1,
            -1.287_175_1e-1,
        ],
    );
    let far = (1.0 - exp::<F>(F::fma(q, t, -t))).copysign(x);
    let s = x * x;
    let p = horner::<F, 6>(
        s,
        [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let near = F::fma(p, x, x);
    if a > 0.927_734_4 { far } else { near }
}

/// 1/(1 + e⁻ˣ), through e^(−|x|), so that small results keep their digits. Where the processor has no fused multiply-add, within
/// 2.5 ulp.
#[inline(always)]
pub fn logistic<F: Fma>(x: f32) -> f32 {
    let e = exp::<F>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    let d = 1.0 + e;
    let y = numerator / d;
    if !F::FUSED {
        return y;
    }
    // One Newton step takes back the rounding of 1 + e; near the solution 1 − e/2 is close enough to 1/d.
    let lost = e - (d - 1.0);
    let residual = F::fma(-y, lost, F::fma(-y, d, numerator));
    F::fma(residual, F::fma(-0.5, e, 1.0), y)
}

// Up to here n·(π/2) is exact enough in two parts of f64; larger arguments take `far_sin` and `far_cos`.
const NEAR_LIMIT: f32 = 2.0e8;

/// Whether [`sin`] and [`cos`] are accurate for `x`.
#[inline(always)]
pub fn near(x: f32) -> bool {
    x.abs() < NEAR_LIMIT
}

/// x − n·π/2 in f64, and n mod 4.
#[inline(always)]
fn quadrant(x: f32) -> (f64, u32) {
    // 1.5·2⁵²: as `ROUND`, for f64.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUND;
    let n = shifted - ROUND;
    // π/2 in two parts; n has at most 28 bits and the first part 25, so their product is exact.
    let r = (x - n * 1.570_796_310_901_641_8) - n * 1.589_325_477_352_819_7e-8;
    (r, shifted.to_bits() as u32 & 3)
}

/// sin and cos on [−π/4, π/4], after FreeBSD's `k_sinf` and `k_cosf`.
#[inline(always)]
fn kernels(x: f64) -> (f64, f64) {
    let z = x * x;
    let w = z * z;
    let r = -0.000_198_393_348_360_966_32 + z * 0.000_002_718_311_493_989_822;
    let s = z * x;
    let sin = (x + s * (-0.166_666_666_416_265_24 + z * 0.008_333_329_385_889_463)) + s * w * r;
    let r = -0.001_388_676_377_460_993 + z * 0.000_024_390_448_796_277_41;
    let cos = ((1.0 + z * -0.499_999_997_251_031) + w * 0.041_666_623_323_739_06) + (w * z) * r;
    (sin, cos)
}

#[inline(always)]
fn sin_shifted(x: f32, by: u32) -> f32 {
    let (r, n) = quadrant(x);
    let n = n + by;
    let (sin, cos) = kernels(r);
    let y = if n & 1 == 0 { sin } else { cos };
    (if n & 2 == 0 { y } else { -y }) as f32
}

/// sin x where [`near`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    sin_shifted(x, 0)
}

/// cos x where [`near`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    sin_shifted(x, 1)
}

/// sin x elsewhere.
#[cold]
pub fn far_sin(x: f32) -> f32 {
    f64::from(x).sin() as f32
}

/// cos x elsewhere.
#[cold]
pub fn far_cos(x: f32) -> f32 {
    f64::from(x).cos() as f32
}

#[cfg(test)]
mod tests {
    use super::super::cpu::{Fused, Separate};
    use super::*;

    const LIMIT: f64 = 2.0;
    const LOGISTIC_WITHOUT_FMA: f64 = 2.5;

    /// Error in units of the last place of the exact result.
    fn ulps(got: f32, want: f64) -> f64 {
        if want.is_nan() {
            return if got.is_nan() { 0.0 } else { f64::INFINITY };
        }
        let rounded = want as f32;
        if rounded.is_infinite() || got.is_infinite() {
            return if rounded == got { 0.0 } else { f64::INFINITY };
        }
        let exponent = (want.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor();
        (f64::from(got) - want).abs() / (exponent - 23.0).exp2()
    }

    /// Bits of both signs over all exponents, and the given range densely.
    fn arguments(lo: f32, hi: f32) -> impl Iterator<Item = f32> {
        let n = 400_000;
        let dense = (0..=n).map(move |i| lo + (hi - lo) * (i as f32 / n as f32));
        let all = (0..=u32::MAX).step_by(10_007).map(f32::from_bits);
        let edges = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            1.0,
            -1.0,
        ];
        dense.chain(all).chain(edges)
    }

    fn check(name: &str, lo: f32, hi: f32, f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64) {
        check_within(LIMIT, name, lo, hi, f, truth);
    }

    fn check_within(limit: f64, name: &str, lo: f32, hi: f32, f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64) {
        let mut worst = (0.0, 0.0);
        for x in arguments(lo, hi) {
            let e = ulps(f(x), truth(f64::from(x)));
            if e > worst.0 {
                worst = (e, x);
            }
        }
        assert!(worst.0 <= limit, "{name}({:e}) = {:e} is off by {:.2} ulp", worst.1, f(worst.1), worst.0);
        println!("{name}: {:.3} ulp at {:e}", worst.0, worst.1);
    }

    /// erf by its series near zero and the continued fraction of erfc elsewhere.
    fn erf_f64(x: f64) -> f64 {
        let a = x.abs();
        if x.is_nan() {
            return x;
        }
        if a > 6.0 {
            return x.signum();
        }
        if a < 2.5 {
            let (mut term, mut sum, mut n) = (x, x, 0.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 1.0;
                term *= -x * x / n;
                sum += term / (2.0 * n + 1.0);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let fraction = (1..=80).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (a + f));
        let erfc = (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction);
        (1.0 - erfc) * x.signum()
    }

    /// [`exp_flushing`] where it is promised.
    fn flushing<F: Fma>(x: f32) -> f32 {
        if x > 88.0 { exp::<F>(x) } else { exp_flushing::<F>(x) }
    }

    fn flushed(x: f64) -> f64 {
        if x < f64::from(SMALLEST) { 0.0 } else { x.exp() }
    }

    #[test]
    fn within_two_ulp_of_f64() {
        check("exp", -105.0, 90.0, exp::<Fused>, f64::exp);
        check("exp_flushing", -88.0, 88.0, flushing::<Fused>, flushed);
        check("log", 0.0, 3.0, log::<Fused>, f64::ln);
        check("tanh", -10.0, 10.0, tanh::<Fused>, f64::tanh);
        check("erf", -5.0, 5.0, erf::<Fused>, erf_f64);
        check("logistic", -105.0, 105.0, logistic::<Fused>, |x| 1.0 / (1.0 + (-x).exp()));
        let sine = |x: f32| if near(x) { sin(x) } else { far_sin(x) };
        let cosine = |x: f32| if near(x) { cos(x) } else { far_cos(x) };
        check("sin", -300.0, 300.0, sine, f64::sin);
        check("cos", -300.0, 300.0, cosine, f64::cos);
        check("sin", 0.0, 3e8, sine, f64::sin);
    }

    #[test]
    fn within_two_ulp_without_fused_multiply_add() {
        check("exp", -105.0, 90.0, exp::<Separate>, f64::exp);
        check("exp_flushing", -88.0, 88.0, flushing::<Separate>, flushed);
        check("log", 0.0, 3.0, log::<Separate>, f64::ln);
        check("tanh", -10.0, 10.0, tanh::<Separate>, f64::tanh);
        let truth = |x: f64| 1.0 / (1.0 + (-x).exp());
        check_within(LOGISTIC_WITHOUT_FMA, "logistic", -105.0, 105.0, logistic::<Separate>, truth);
        check("erf", -5.0, 5.0, erf::<Separate>, erf_f64);
    }

    #[test]
    fn signs_of_zero_and_limits() {
        assert_eq!(exp::<Fused>(f32::NEG_INFINITY), 0.0);
        for x in [-87.34, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp_flushing::<Fused>(x), 0.0);
        }
        assert!(exp_flushing::<Fused>(f32::NAN).is_nan());
        assert_eq!(log::<Fused>(0.0), f32::NEG_INFINITY);
        assert_eq!(tanh::<Fused>(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(erf::<Fused>(f32::NEG_INFINITY), -1.0);
        assert_eq!(logistic::<Fused>(f32::INFINITY), 1.0);
    }
}
