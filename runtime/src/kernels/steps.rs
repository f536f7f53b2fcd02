//! Single steps of a program as `#[cube]` functions: what the walk over a program expands, one for each kind of statement.

use cubecl::prelude::*;

macro_rules! positions {
    ($($name:ident => $value:expr;)*) => {
        $(#[cube]
        pub fn $name() -> usize {
            $value
        })*
    };
}

positions! {
    absolute_pos => ABSOLUTE_POS;
}

#[cube]
pub fn constant(#[comptime] n: usize) -> usize {
    n.runtime()
}

#[cube]
pub fn number_of_bits(#[comptime] bits: u32) -> Vector<f32, Const<1>> {
    Vector::<f32, Const<1>>::new(comptime!(f32::from_bits(bits)).runtime())
}

#[cube]
pub fn index_add(a: usize, b: usize) -> usize {
    a + b
}

#[cube]
pub fn index_mul(a: usize, b: usize) -> usize {
    a * b
}

#[cube]
pub fn index_div(a: usize, b: usize) -> usize {
    a / b
}

#[cube]
pub fn index_rem(a: usize, b: usize) -> usize {
    a % b
}

#[cube]
pub fn index_lt(a: usize, b: usize) -> bool {
    a < b
}

#[cube]
pub fn index_eq(a: usize, b: usize) -> bool {
    a == b
}

#[cube]
pub fn index_to_number(a: usize) -> Vector<f32, Const<1>> {
    Vector::new(f32::cast_from(a))
}

#[cube]
pub fn load_number<E: Scalar, N: Size>(x: &Array<Vector<E, N>>, at: usize, #[comptime] width: usize) -> Vector<f32, N> {
    Vector::<f32, N>::cast_from(x[at / width])
}

#[cube]
pub fn load_id<E: Scalar, N: Size>(x: &Array<Vector<E, N>>, at: usize, #[comptime] width: usize) -> Vector<i32, N> {
    Vector::<i32, N>::cast_from(x[at / width])
}

#[cube]
pub fn load_mask<E: Scalar, N: Size>(x: &Array<Vector<E, N>>, at: usize, #[comptime] width: usize) -> Vector<bool, N> {
    Vector::<u32, N>::cast_from(x[at / width]).not_equal(Vector::new(0u32))
}

#[cube]
pub fn mask_to_word<N: Size>(m: Vector<bool, N>) -> Vector<u32, N> {
    select_many(m, Vector::<u32, N>::new(1u32), Vector::<u32, N>::new(0u32))
}

#[cube]
pub fn mask_to_number<N: Size>(m: Vector<bool, N>) -> Vector<f32, N> {
    select_many(m, Vector::<f32, N>::new(1.0f32), Vector::<f32, N>::new(0.0f32))
}

#[cube]
pub fn number_to_mask<N: Size>(a: Vector<f32, N>) -> Vector<bool, N> {
    a.not_equal(Vector::new(0.0f32))
}

#[cube]
pub fn id_to_mask<N: Size>(a: Vector<i32, N>) -> Vector<bool, N> {
    a.not_equal(Vector::new(0i32))
}

#[cube]
pub fn cast<A: Scalar, B: Scalar, N: Size, M: Size>(a: Vector<A, N>) -> Vector<B, M> {
    Vector::<B, M>::cast_from(a)
}

#[cube]
pub fn recip<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    Vector::<f32, N>::new(1.0f32) / a
}

#[cube]
pub fn div<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    a / b
}

#[cube]
pub fn mul<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    a * b
}
