//! Counter-based random numbers: value `i` of a stream at a step depends on nothing else, so recomputation, sharding and
//! micro-batches cannot change it.
//!
//! value(i) = philox4x32-10(key, counter = (i/4 as u64, step as u64))[i mod 4], after Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3" (2011).

use xxhash_rust::xxh3::Xxh3Default;

/// What a stream is for; streams of different purposes never share values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Initial values of parameters; `site` is the parameter's ordinal in its layer.
    Init = 0,
    /// Random operations of a layer; `site` is the operation's ordinal in source order.
    Operation = 1,
    /// The order of training data.
    Data = 2,
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32-10: four words for each (key, counter).
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The four words of block `block`, which holds values `4·block..4·block + 4`.
#[inline(always)]
pub fn block(key: u64, block: u64, step: u64) -> [u32; 4] {
    philox([key as u32, (key >> 32) as u32], [block as u32, (block >> 32) as u32, step as u32, (step >> 32) as u32])
}

/// A word as a number in [0, 1): a multiple of 2⁻²⁴, which f32 holds exactly.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Uniform random number `index` of stream `key` at `step`, in [0, 1).
pub fn uniform(key: u64, index: u64, step: u64) -> f32 {
    unit(block(key, index / 4, step)[(index % 4) as usize])
}

/// Standard normal random number `index`.
pub fn normal(key: u64, index: u64, step: u64) -> f32 {
    normals(key, index / 2, step)[(index % 2) as usize]
}

/// Standard normal random numbers 2·`pair` and 2·`pair` + 1, by Box–Muller: the two coordinates of one pair of uniforms.
pub fn normals(key: u64, pair: u64, step: u64) -> [f32; 2] {
    let words = block(key, pair / 2, step);
    let first = (pair % 2 * 2) as usize;
    // 1 − u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - f64::from(unit(words[first]))).ln()).sqrt();
    let angle = std::f64::consts::TAU * f64::from(unit(words[first + 1]));
    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
}

/// Key of a stream: a hash of the run's seed, the layer's path with its repeat index (`blocks.3.attention`), the site and the purpose.
pub fn stream_key(seed: u64, layer_path: &str, site: i64, purpose: Purpose) -> u64 {
    let mut h = Xxh3Default::new();
    h.update(&seed.to_le_bytes());
    h.update(&(layer_path.len() as u64).to_le_bytes());
    h.update(layer_path.as_bytes());
    h.update(&site.to_le_bytes());
    h.update(&[purpose as u8]);
    h.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The known-answer file of Random123, `philox4x32 10`.
    #[test]
    fn known_answers() {
        let all = u32::MAX;
        assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([all; 2], [all; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox([0xa409_3822, 0x299f_31d0], counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn the_counter_is_block_then_step() {
        let (key, index, step) = (0x0123_4567_89ab_cdef, 0x5_4321_0fed_u64 * 4 + 3, 0x9_8765_4321);
        let words = philox([0x89ab_cdef, 0x0123_4567], [0x4321_0fed, 0x5, 0x8765_4321, 0x9]);
        assert_eq!(uniform(key, index, step), unit(words[3]));
        assert_eq!(unit(u32::MAX), 1.0 - 2f32.powi(-24));
    }

    #[test]
    fn moments() {
        let n = 40_000;
        let mean = |f: &dyn Fn(u64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        let u = |i| f64::from(uniform(7, i, 1));
        let z = |i| f64::from(normal(7, i, 1));
        // Five standard errors.
        let error = |sd: f64| 5.0 * sd / (n as f64).sqrt();
        assert!((mean(&u) - 0.5).abs() < error(0.289));
        assert!(mean(&z).abs() < error(1.0));
        assert!((mean(&|i| z(i) * z(i)) - 1.0).abs() < error(2f64.sqrt()));
        assert!(mean(&|i| z(i) * z(i ^ 1)).abs() < error(1.0));
        assert!((mean(&|i| z(i).powi(4)) - 3.0).abs() < error(96f64.sqrt()));
    }

    #[test]
    fn keys_separate_streams() {
        let keys = [
            stream_key(0, "a", 0, Purpose::Init),
            stream_key(1, "a", 0, Purpose::Init),
            stream_key(0, "b", 0, Purpose::Init),
            stream_key(0, "a", 1, Purpose::Init),
            stream_key(0, "a", 0, Purpose::Operation),
            stream_key(0, "", 0, Purpose::Init),
        ];
        let distinct: std::collections::HashSet<u64> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
