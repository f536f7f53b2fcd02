//! Rounding to a storage type: by bits where the device stores the type wider, or converts in its own way.

use super::math::is_nan;
use cubecl::prelude::*;
use half::{bf16, f16};

/// What a slot's values are rounded to, nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Stays f32.
    None,
    /// IEEE half precision, subnormals and overflow to infinity included.
    F16,
    /// bfloat16.
    Bf16,
    /// [`Rounding::F16`] by the device's own conversion, which does the same.
    ByF16,
    /// [`Rounding::Bf16`] by the device's own conversion.
    ByBf16,
}

/// Rounded, still as f32.
#[cube]
pub fn round<N: Size>(v: Vector<f32, N>, #[comptime] to: Rounding) -> Vector<f32, N> {
    if comptime!(to == Rounding::Bf16) {
        round_bf16::<N>(v)
    } else if comptime!(to == Rounding::F16) {
        round_f16::<N>(v)
    } else if comptime!(to == Rounding::ByBf16) {
        Vector::<f32, N>::cast_from(Vector::<bf16, N>::cast_from(v))
    } else if comptime!(to == Rounding::ByF16) {
        Vector::<f32, N>::cast_from(Vector::<f16, N>::cast_from(v))
    } else {
        v
    }
}

#[cube]
fn round_bf16<N: Size>(v: Vector<f32, N>) -> Vector<f32, N> {
    let bits = Vector::<u32, N>::reinterpret(v);
    let odd = (bits >> Vector::new(16u32)) & Vector::new(1u32);
    let rounded = (bits + Vector::new(0x7fffu32) + odd) & Vector::new(0xffff_0000u32);
    let quiet = (bits | Vector::new(0x0040_0000u32)) & Vector::new(0xffff_0000u32);
    Vector::<f32, N>::reinterpret(select_many(is_nan::<N>(v), quiet, rounded))
}

/// Normal numbers keep 10 fraction bits; below 2⁻¹⁴ the last bit is worth 2⁻²⁴; from 65520 on the result is infinite.
#[cube]
fn round_f16<N: Size>(v: Vector<f32, N>) -> Vector<f32, N> {
    let bits = Vector::<u32, N>::reinterpret(v);
    let sign = bits & Vector::new(0x8000_0000u32);
    let magnitude = bits & Vector::new(0x7fff_ffffu32);
    let odd = (magnitude >> Vector::new(13u32)) & Vector::new(1u32);
    let normal = (magnitude + Vector::new(0xfffu32) + odd) & Vector::new(0xffff_e000u32);
    let infinite = Vector::new(0x7f80_0000u32);
    let normal = select_many(normal.greater_equal(Vector::new(0x4780_0000u32)), infinite, normal);
    // Below 2⁻¹⁴ (exponent field 113): significand / 2^(126 − exponent) steps of 2⁻²⁴, rounded as an integer.
    let exponent = magnitude >> Vector::new(23u32);
    let is_small = exponent.less_than(Vector::new(113u32));
    let exponent = select_many(is_small, exponent, Vector::new(112u32));
    let exponent = select_many(exponent.less_than(Vector::new(101u32)), Vector::new(101u32), exponent);
    let shift = Vector::new(126u32) - exponent;
    let significand = (magnitude & Vector::new(0x007f_ffffu32)) | Vector::new(0x0080_0000u32);
    let one = Vector::<u32, N>::new(1u32);
    let half = (one << (shift - one)) - one;
    let steps = (significand + half + ((significand >> shift) & one)) >> shift;
    let tiny = magnitude.less_than(Vector::new(0x3280_0000u32));
    let steps = select_many(tiny, Vector::new(0u32), steps);
    let small = Vector::<u32, N>::reinterpret(Vector::<f32, N>::cast_from(steps) * Vector::new(5.960_464_5e-8f32));
    let rounded = sign | select_many(is_small, small, normal);
    let quiet = bits | Vector::new(0x0040_0000u32);
    Vector::<f32, N>::reinterpret(select_many(is_nan::<N>(v), quiet, rounded))
}
