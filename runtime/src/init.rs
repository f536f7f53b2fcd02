//! Initial values of parameters: from the kind of initialisation, the sizes and the key of a random stream to numbers.

use crate::random;
use kiln_compiler::ir::Init;

/// Fans of a weight: inputs are all axes but the last, as `x.matmul(w)` contracts the first.
fn fans(dims: &[usize]) -> (f64, f64) {
    let out = dims.last().copied().unwrap_or(1) as f64;
    let all: usize = dims.iter().product();
    (all as f64 / out, out)
}

/// Writes the initial values of a parameter of these sizes, row-major. They depend on the key alone, so any mesh starts from the same.
pub fn fill(values: &mut [f32], init: Init, dims: &[usize], key: u64) {
    let (fan_in, fan_out) = fans(dims);
    let normal = |std: f64| move |i: u64| (f64::from(random::normal(key, i, 0)) * std) as f32;
    let uniform = |a: f64, b: f64| move |i: u64| (a + (b - a) * f64::from(random::uniform(key, i, 0))) as f32;
    let mut set = |f: &dyn Fn(u64) -> f32| values.iter_mut().enumerate().for_each(|(i, x)| *x = f(i as u64));
    match init {
        Init::Zeros => set(&|_| 0.0),
        Init::Ones => set(&|_| 1.0),
        Init::Normal(std) => set(&normal(std)),
        Init::Uniform(a, b) => set(&uniform(a, b)),
        Init::Xavier => {
            let a = (6.0 / (fan_in + fan_out)).sqrt();
            set(&uniform(-a, a));
        }
        Init::Kaiming => set(&normal((2.0 / fan_in).sqrt())),
    }
}

/// The stream of the parameter at `path`.
pub fn key(seed: u64, path: &str) -> u64 {
    random::stream_key(seed, path, 0, random::Purpose::Init)
}
