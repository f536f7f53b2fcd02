//! Scalar functions, lane by lane, where devices differ or lose accuracy: NaN in max and min, large arguments of sine and cosine.
//!
//! Coefficients are those of Cephes (sinf, cosf, tanhf) and of Eigen (erf); each is within 3 units in the last place.

use cubecl::prelude::*;

/// −a, exactly. CubeCL writes the sign before a vector, which in CUDA C++ has none.
#[cube]
pub fn neg<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    a * Vector::new(-1.0f32)
}

/// Where a lane is NaN, by its bits: shading languages may assume that comparisons never see one. Never of a constant, whose bits CubeCL
/// takes in CUDA C++ as if it had an address.
#[cube]
pub fn is_nan<N: Size>(a: Vector<f32, N>) -> Vector<bool, N> {
    let magnitude = Vector::<u32, N>::reinterpret(a) & Vector::new(0x7fff_ffffu32);
    magnitude.greater_than(Vector::new(0x7f80_0000u32))
}

/// The larger; NaN if either is.
#[cube]
pub fn maximum<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let larger = select_many(a.greater_than(b), a, b);
    select_many(is_nan::<N>(a), a, select_many(is_nan::<N>(b), b, larger))
}

/// The smaller; NaN if either is.
#[cube]
pub fn minimum<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let smaller = select_many(a.less_than(b), a, b);
    select_many(is_nan::<N>(a), a, select_many(is_nan::<N>(b), b, smaller))
}

/// 1/(1+e⁻ᵃ)
#[cube]
pub fn logistic<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + neg::<N>(a).exp())
}

/// −1, 0 or 1.
#[cube]
pub fn sign<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    let zero = Vector::<f32, N>::new(0.0f32);
    let one = Vector::<f32, N>::new(1.0f32);
    let not_negative = select_many(a.greater_than(zero), one, zero);
    select_many(a.less_than(zero), Vector::new(-1.0f32), not_negative)
}

/// tanh a: an odd polynomial below 0.625, else 1 − 2/(e²ᵃ+1).
#[cube]
pub fn tanh<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let two = Vector::<f32, N>::new(2.0f32);
    let z = a * a;
    let mut p = z * Vector::new(-5.704_988_7e-3f32) + Vector::new(2.063_909e-2_f32);
    p = p * z + Vector::new(-5.373_971_6e-2f32);
    p = p * z + Vector::new(1.333_144_2e-1f32);
    p = p * z + Vector::new(-3.333_328e-1_f32);
    let small = p * z * a + a;
    let magnitude = a.abs();
    let large = one - two / ((magnitude * two).exp() + one);
    let signed = select_many(a.less_than(Vector::new(0.0f32)), neg::<N>(large), large);
    select_many(magnitude.less_than(Vector::new(0.625f32)), small, signed)
}

/// erf a: a·P(a²)/Q(a²) for |a| ≤ 4, beyond which it is ±1.
#[cube]
pub fn erf<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    let (most, least) = (Vector::new(4.0f32), Vector::new(-4.0f32));
    let below = select_many(a.less_than(most), a, most);
    let x = select_many(below.greater_than(least), below, least);
    let z = x * x;
    let mut p = z * Vector::new(-2.726_142_3e-10f32) + Vector::new(2.770_681_4e-8f32);
    p = p * z + Vector::new(-2.101_024e-6f32);
    p = p * z + Vector::new(-5.692_506_4e-5f32);
    p = p * z + Vector::new(-7.349_906_3e-4f32);
    p = p * z + Vector::new(-2.954_6e-3_f32);
    p = p * z + Vector::new(-1.609_603_3e-2f32);
    let mut q = z * Vector::new(-1.456_607_2e-5f32) + Vector::new(-2.133_740_6e-4f32);
    q = q * z + Vector::new(-1.682_827e-3f32);
    q = q * z + Vector::new(-7.373_329e-3f32);
    q = q * z + Vector::new(-1.426_473_9e-2f32);
    select_many(is_nan::<N>(a), a, x * p / q)
}

/// sin a.
#[cube]
pub fn sine<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    wave::<N>(a, 0u32)
}

/// cos a = sin(a + π/2).
#[cube]
pub fn cosine<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    wave::<N>(a, 1u32)
}

/// sin(a + quadrant·π/2): a = k·π/2 + r with |r| ≤ π/4 and π/2 in three parts, so that k·part is exact for |k| < 8192.
#[cube]
fn wave<N: Size>(a: Vector<f32, N>, #[comptime] quadrant: u32) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let k = fma(a, Vector::new(std::f32::consts::FRAC_2_PI), Vector::new(0.5f32)).floor();
    let mut r = fma(k, Vector::new(-1.570_312_5f32), a);
    r = fma(k, Vector::new(-4.837_513e-4f32), r);
    r = fma(k, Vector::new(-7.549_79e-8f32), r);
    let z = r * r;
    let mut s = fma(z, Vector::new(-1.951_529_6e-4f32), Vector::new(8.332_161e-3f32));
    s = fma(s, z, Vector::new(-1.666_665_5e-1f32));
    let s = fma(s * z, r, r);
    let mut c = fma(z, Vector::new(2.443_315_7e-5f32), Vector::new(-1.388_731_6e-3f32));
    c = fma(c, z, Vector::new(4.166_664_6e-2f32));
    c = fma(c, z, Vector::new(-0.5f32));
    let c = fma(c, z, one);
    let turn = Vector::<i32, N>::cast_from(k) + Vector::cast_from(comptime!(quadrant as i32).runtime());
    let odd = (turn & Vector::new(1i32)).equal(Vector::new(1i32));
    let negative = (turn & Vector::new(2i32)).equal(Vector::new(2i32));
    let value = select_many(odd, c, s);
    select_many(negative, neg::<N>(value), value)
}
