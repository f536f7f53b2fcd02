//! `attention` and its derivative: no more than one score per unit is ever held (Dao 2023, "FlashAttention-2").
//!
//! With s = q·kᵀ/√K: forward keeps a running maximum and sum and gives o and lse. Backward walks twice, so that every sum has one owner and
//! a fixed order: once per query for q̄, once per key for k̄ and v̄, which sum over the queries of all heads of the key's group.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, F2, F3, N1};
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// Number of keys that query `i` sees.
#[cube]
pub fn visible(i: usize, s: usize, t: usize, #[comptime] causal: bool) -> usize {
    if comptime!(causal) {
        let end = i + 1 + t;
        let seen = select(end > s, end - s, 0usize);
        select(seen < t, seen, t)
    } else {
        t
    }
}

/// One unit per query: o\[h, i\] and lse\[h, i\].
#[cube]
fn attention(
    q: &Array<Vector<F0, N1>>,
    k: &Array<Vector<F1, N1>>,
    v: &Array<Vector<F2, N1>>,
    o: &mut Array<Vector<F3, N1>>,
    lse: &mut Array<Vector<f32, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] to: Rounding,
) {
    let at = ABSOLUTE_POS;
    if at < heads * s {
        let keys = at / s / group * t;
        let mut query = Array::<f32>::new(head);
        let mut sum = Array::<f32>::new(head);
        for x in 0..head {
            query[x] = f32::cast_from(q[at * head + x]) * scale;
            sum[x] = 0.0f32;
        }
        // The lowest finite number: shading languages have no infinity.
        let mut highest = f32::cast_from(-3.402_823_4e38f32);
        let mut total = 0.0f32;
        for j in 0..visible(at % s, s, t, causal) {
            let key = (keys + j) * head;
            let mut score = 0.0f32;
            for x in 0..head {
                score += query[x] * f32::cast_from(k[key + x]);
            }
            let next = select(score > highest, score, highest);
            let fade = (highest - next).exp();
            let weight = (score - next).exp();
            total = total * fade + weight;
            for x in 0..head {
                sum[x] = sum[x] * fade + weight * f32::cast_from(v[key + x]);
            }
            highest = next;
        }
        // A query that sees no key has the output 0.
        let share = select(total > 0.0f32, 1.0f32 / total, 0.0f32);
        for x in 0..head {
            o[at * head + x] = Vector::<F3, N1>::cast_from(round::<N1>(Vector::new(sum[x] * share), to));
        }
        lse[at] = Vector::new(highest + total.ln());
    }
}

/// Builds it: buffers q, k, v, o, lse; heads, heads of a group, S, T; 1/√K. Slot 4 is what o is rounded to before it is stored.
pub fn define_attention(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N1>>(builder);
    let k = arguments::input::<Vector<F1, N1>>(builder);
    let v = arguments::input::<Vector<F2, N1>>(builder);
    let o = arguments::output::<Vector<F3, N1>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    attention::expand(scope, q, k, v, o, lse, heads, group, s, t, scale, head, causal, spec.rounding(4));
}

/// One unit per query: q̄\[h, i\] = Σⱼ P·(ō·v − δ)·k/√K, and δ\[h, i\] = Σ ō·o for the second walk.
#[cube]
fn attention_queries(
    q: &Array<Vector<F0, N1>>,
    k: &Array<Vector<F1, N1>>,
    v: &Array<Vector<F1, N1>>,
    o: &Array<Vector<F2, N1>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F2, N1>>,
    d_q: &mut Array<Vector<F3, N1>>,
    delta: &mut Array<Vector<f32, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] to: Rounding,
) {
    let at = ABSOLUTE_POS;
    if at < heads * s {
        let keys = at / s / group * t;
        let mut query = Array::<f32>::new(head);
        let mut d = Array::<f32>::new(head);
        let mut sum = Array::<f32>::new(head);
        let mut own = 0.0f32;
        for x in 0..head {
            query[x] = f32::cast_from(q[at * head + x]) * scale;
            d[x] = f32::cast_from(d_o[at * head + x]);
            sum[x] = 0.0f32;
            own += d[x] * f32::cast_from(o[at * head + x]);
        }
        let row = f32::cast_from(lse[at]);
        for j in 0..visible(at % s, s, t, causal) {
            let key = (keys + j) * head;
            let mut score = 0.0f32;
            let mut along = 0.0f32;
            for x in 0..head {
                score += query[x] * f32::cast_from(k[key + x]);
                along += d[x] * f32::cast_from(v[key + x]);
            }
            let d_score = (score - row).exp() * (along - own) * scale;
            for x in 0..head {
                sum[x] += d_score * f32::cast_from(k[key + x]);
            }
        }
        for x in 0..head {
            d_q[at * head + x] = Vector::<F3, N1>::cast_from(round::<N1>(Vector::new(sum[x]), to));
        }
        delta[at] = Vector::new(own);
    }
}

/// Builds it: buffers q, k, v, o, lse, ō, q̄, δ; heads, heads of a group, S, T; 1/√K. Slot 4 rounds q̄.
pub fn define_attention_queries(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N1>>(builder);
    let k = arguments::input::<Vector<F1, N1>>(builder);
    let v = arguments::input::<Vector<F1, N1>>(builder);
    let o = arguments::input::<Vector<F2, N1>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F2, N1>>(builder);
    let d_q = arguments::output::<Vector<F3, N1>>(builder);
    let delta = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let to = spec.rounding(4);
    attention_queries::expand(scope, q, k, v, o, lse, d_o, d_q, delta, heads, group, s, t, scale, head, causal, to);
}

/// One unit per key: k̄\[g, j\] and v̄\[g, j\], over the queries of all heads of the group in order.
#[cube]
fn attention_keys(
    q: &Array<Vector<F0, N1>>,
    k: &Array<Vector<F1, N1>>,
    v: &Array<Vector<F1, N1>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F2, N1>>,
    delta: &Array<Vector<f32, N1>>,
    d_k: &mut Array<Vector<F3, N1>>,
    d_v: &mut Array<Vector<F3, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] to_k: Rounding,
    #[comptime] to_v: Rounding,
) {
    let at = ABSOLUTE_POS;
    if at < heads / group * t {
        let j = at % t;
        let first_head = at / t * group;
        let mut key = Array::<f32>::new(head);
        let mut value = Array::<f32>::new(head);
        let mut sum_k = Array::<f32>::new(head);
        let mut sum_v = Array::<f32>::new(head);
        for x in 0..head {
            key[x] = f32::cast_from(k[at * head + x]) * scale;
            value[x] = f32::cast_from(v[at * head + x]);
            sum_k[x] = 0.0f32;
            sum_v[x] = 0.0f32;
        }
        for of_group in 0..group {
            for i in 0..s {
                if j < visible(i, s, t, causal) {
                    let row = (first_head + of_group) * s + i;
                    let mut score = 0.0f32;
                    let mut along = 0.0f32;
                    for x in 0..head {
                        score += f32::cast_from(q[row * head + x]) * key[x];
                        along += f32::cast_from(d_o[row * head + x]) * value[x];
                    }
                    let weight = (score - f32::cast_from(lse[row])).exp();
                    let d_score = weight * (along - f32::cast_from(delta[row])) * scale;
                    for x in 0..head {
                        sum_k[x] += d_score * f32::cast_from(q[row * head + x]);
                        sum_v[x] += weight * f32::cast_from(d_o[row * head + x]);
                    }
                }
            }
        }
        for x in 0..head {
            d_k[at * head + x] = Vector::<F3, N1>::cast_from(round::<N1>(Vector::new(sum_k[x]), to_k));
            d_v[at * head + x] = Vector::<F3, N1>::cast_from(round::<N1>(Vector::new(sum_v[x]), to_v));
        }
    }
}

/// Builds it: buffers q, k, v, lse, ō, δ, k̄, v̄; heads, heads of a group, S, T; 1/√K. Slots 4 and 5 round k̄ and v̄.
pub fn define_attention_keys(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N1>>(builder);
    let k = arguments::input::<Vector<F1, N1>>(builder);
    let v = arguments::input::<Vector<F1, N1>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F2, N1>>(builder);
    let delta = arguments::input::<Vector<f32, N1>>(builder);
    let d_k = arguments::output::<Vector<F3, N1>>(builder);
    let d_v = arguments::output::<Vector<F3, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let [to_k, to_v] = [spec.rounding(4), spec.rounding(5)];
    attention_keys::expand(
        scope, q, k, v, lse, d_o, delta, d_k, d_v, heads, group, s, t, scale, head, causal, to_k, to_v,
    );
}
