//! Uniform random numbers by position: Philox4x32-10 on 32-bit words, bit for bit what the host computes.

use cubecl::prelude::*;

/// Multipliers, key increments and rounds of Philox4x32-10 (Salmon et al., 2011).
const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;
const ROUNDS: u32 = 10;

/// Words of the buffer before those of the first stream, and per stream.
const STEP_WORDS: u32 = 2;
const STREAM_WORDS: u32 = 4;

/// Numbers of a stream in [0, 1): at `at`, and at each multiple of `lane_stride` after it.
#[cube]
pub fn uniform<N: Size>(words: &Array<u32>, #[comptime] stream: u32, at: usize, lane_stride: usize) -> Vector<f32, N> {
    let mut v = Vector::<f32, N>::new(0.0f32);
    let width = comptime!(v.size());
    if comptime!(width > 1) {
        #[unroll]
        for k in 0..width {
            v[k] = one_uniform(words, stream, at + k * lane_stride);
        }
    } else {
        v = Vector::new(one_uniform(words, stream, at));
    }
    v
}

#[cube]
fn one_uniform(words: &Array<u32>, #[comptime] stream: u32, at: usize) -> f32 {
    let base = comptime!((STEP_WORDS + stream * STREAM_WORDS) as usize);
    let first = words[base + 2];
    let low = first + u32::cast_from(at);
    let carry = select(low < first, 1u32, 0u32);
    let high = words[base + 3] + carry;
    let mut c0 = (low >> 2u32) | (high << 30u32);
    let mut c1 = high >> 2u32;
    let mut c2 = words[0];
    let mut c3 = words[1];
    let mut k0 = words[base];
    let mut k1 = words[base + 1];
    #[unroll]
    for _ in 0..ROUNDS {
        let high_0 = u32::mul_hi(MULTIPLIER_0, c0);
        let low_0 = c0 * MULTIPLIER_0;
        let high_1 = u32::mul_hi(MULTIPLIER_1, c2);
        let low_1 = c2 * MULTIPLIER_1;
        c0 = high_1 ^ c1 ^ k0;
        c1 = low_1;
        c2 = high_0 ^ c3 ^ k1;
        c3 = low_0;
        k0 += WEYL_0;
        k1 += WEYL_1;
    }
    let lane = low & 3u32;
    let word = select(lane < 2u32, select(lane == 0u32, c0, c1), select(lane == 2u32, c2, c3));
    // The upper 24 bits: every value is exact in f32 and below 1.
    f32::cast_from(word >> 8u32) * 5.960_464_5e-8f32
}
