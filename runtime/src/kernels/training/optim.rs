//! Optimizers over a range of flat parameters: one unit updates the neighbours of one vector.
//!
//! The factor of the gradient stands in the report of the step, which also says whether there is an update at all.

use super::report::{FACTOR, UPDATES};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{N0, N1};
use cubecl::prelude::*;

/// g ← g·factor; m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²; p ← p·decay − step·m / (√v·inv_sqrt_bias2 + ε)
#[cube]
fn adamw(
    p: &mut Array<Vector<f32, N0>>,
    g: &Array<Vector<f32, N0>>,
    m: &mut Array<Vector<f32, N0>>,
    v: &mut Array<Vector<f32, N0>>,
    report: &Array<Vector<f32, N1>>,
    len: usize,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    inv_sqrt_bias2: f32,
    eps: f32,
) {
    let at = ABSOLUTE_POS;
    let updates = f32::cast_from(report[UPDATES]) > 0.0f32;
    if at < len && updates {
        let g = g[at] * Vector::new(f32::cast_from(report[FACTOR]));
        let m_new = m[at] + Vector::new(one_minus_beta1) * (g - m[at]);
        let v_new = Vector::new(beta2) * v[at] + Vector::new(one_minus_beta2) * g * g;
        let denominator = v_new.sqrt() * Vector::new(inv_sqrt_bias2) + Vector::new(eps);
        p[at] = p[at] * Vector::new(decay) - Vector::new(step_size) * m_new / denominator;
        m[at] = m_new;
        v[at] = v_new;
    }
}

/// Builds it: buffers p, g, m, v, report; vectors; decay, 1 − β₁, β₂, 1 − β₂, step, 1/√(1 − β₂ᵗ), ε.
pub fn define_adamw(builder: &mut KernelBuilder, _: &Spec) {
    let p = arguments::output::<Vector<f32, N0>>(builder);
    let g = arguments::input::<Vector<f32, N0>>(builder);
    let m = arguments::output::<Vector<f32, N0>>(builder);
    let v = arguments::output::<Vector<f32, N0>>(builder);
    let report = arguments::input::<Vector<f32, N1>>(builder);
    let len = arguments::position(builder);
    let [decay, b1, beta2, b2, step, bias2, eps] = std::array::from_fn(|_| arguments::number(builder));
    adamw::expand(&mut builder.scope, p, g, m, v, report, len, decay, b1, beta2, b2, step, bias2, eps);
}

/// g ← g·factor + λ·p; b ← μ·b + g; p ← p − η·b, or p − η·(g + μ·b)
#[cube]
fn sgd(
    p: &mut Array<Vector<f32, N0>>,
    g: &Array<Vector<f32, N0>>,
    b: &mut Array<Vector<f32, N0>>,
    report: &Array<Vector<f32, N1>>,
    len: usize,
    weight_decay: f32,
    momentum: f32,
    lr: f32,
    #[comptime] nesterov: bool,
) {
    let at = ABSOLUTE_POS;
    let updates = f32::cast_from(report[UPDATES]) > 0.0f32;
    if at < len && updates {
        let factor = Vector::new(f32::cast_from(report[FACTOR]));
        let g = g[at] * factor + Vector::new(weight_decay) * p[at];
        let b_new = Vector::new(momentum) * b[at] + g;
        b[at] = b_new;
        if comptime!(nesterov) {
            p[at] = p[at] - Vector::new(lr) * (g + Vector::new(momentum) * b_new);
        } else {
            p[at] = p[at] - Vector::new(lr) * b_new;
        }
    }
}

/// Builds it: buffers p, g, b, report; vectors; λ, μ, η. Constant 0: Nesterov's form.
pub fn define_sgd(builder: &mut KernelBuilder, spec: &Spec) {
    let p = arguments::output::<Vector<f32, N0>>(builder);
    let g = arguments::input::<Vector<f32, N0>>(builder);
    let b = arguments::output::<Vector<f32, N0>>(builder);
    let report = arguments::input::<Vector<f32, N1>>(builder);
    let len = arguments::position(builder);
    let [weight_decay, momentum, lr] = std::array::from_fn(|_| arguments::number(builder));
    sgd::expand(&mut builder.scope, p, g, b, report, len, weight_decay, momentum, lr, spec.constants[0] == 1);
}
