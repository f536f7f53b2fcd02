//! Optimizers as numbers: hyper-parameters, the scalars of one step, and which parameters decay. Devices do the arithmetic.

use crate::device::Update;
use serde::{Deserialize, Serialize};

/// The update rule of every parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// Stochastic gradient descent with momentum.
    Sgd(Sgd),
}

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), as `torch.optim.AdamW`:
///
/// p ← p·(1 − η·λ); m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²; p ← p − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamW {
    /// (β₁, β₂).
    pub betas: (f64, f64),
    /// ε.
    pub eps: f64,
    /// λ, for parameters of the decay group.
    pub weight_decay: f64,
}

/// Gradient descent with momentum, as `torch.optim.SGD` without dampening:
///
/// g ← g + λ·p; b ← μ·b + g; p ← p − η·b, or with `nesterov` p ← p − η·(g + μ·b)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sgd {
    /// μ.
    pub momentum: f64,
    /// λ, for parameters of the decay group.
    pub weight_decay: f64,
    /// Nesterov's form.
    pub nesterov: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

impl Default for Sgd {
    fn default() -> Self {
        Sgd { momentum: 0.9, weight_decay: 0.0, nesterov: false }
    }
}

/// A hyper-parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("K0842: the optimizer's `{field}` is {value}, it must be {wanted}")]
pub struct OptimizerError {
    /// Which one.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
    /// Its range.
    pub wanted: &'static str,
}

/// Whether weight decay applies to a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Matrices: it does.
    Decay,
    /// Norm weights and biases: it does not.
    NoDecay,
}

/// Puts parameters into groups: rank ≥ 2 decays, rank 0 and 1 does not, unless an override says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    /// (path or the start of one, group); a later entry wins. `trunk.emb` and `trunk` both match `trunk.emb`.
    pub overrides: Vec<(String, Group)>,
}

/// One AdamW step as a fused kernel takes it. All are computed in f64 and rounded once.
///
/// g ← g·grad_factor; p ← p·decay; m ← m + one_minus_beta1·(g − m); v ← beta2·v + one_minus_beta2·g²;
/// p ← p − step_size·m / (√v·inv_sqrt_bias2 + eps)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// 1/(token count · loss scale) · clip factor.
    pub grad_factor: f32,
    /// 1 − η·λ, or 1 outside the decay group.
    pub decay: f32,
    /// 1 − β₁.
    pub one_minus_beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// 1 − β₂.
    pub one_minus_beta2: f32,
    /// η/(1 − β₁ᵗ).
    pub step_size: f32,
    /// 1/√(1 − β₂ᵗ).
    pub inv_sqrt_bias2: f32,
    /// ε.
    pub eps: f32,
}

/// One momentum step as a fused kernel takes it.
///
/// g ← g·grad_factor + weight_decay·p; b ← momentum·b + g; p ← p − lr·(nesterov·momentum·b + (nesterov ? g : b))
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// 1/(token count · loss scale) · clip factor.
    pub grad_factor: f32,
    /// λ, or 0 outside the decay group.
    pub weight_decay: f32,
    /// μ.
    pub momentum: f32,
    /// Nesterov's form.
    pub nesterov: bool,
    /// η.
    pub lr: f32,
}

impl Optimizer {
    /// The scalars of step `t` (from 1) for both groups, as devices take them.
    pub fn update(&self, lr: f64, t: u64, grad_factor: f64) -> Update {
        const GROUPS: [Group; 2] = [Group::Decay, Group::NoDecay];
        match self {
            Optimizer::AdamW(o) => Update::AdamW(GROUPS.map(|g| o.step(lr, t, grad_factor, g))),
            Optimizer::Sgd(o) => Update::Sgd(GROUPS.map(|g| o.step(lr, grad_factor, g))),
        }
    }

    /// Moments that it keeps for each parameter, named as in the state file.
    pub fn moments(&self) -> &'static [&'static str] {
        match self {
            Optimizer::AdamW(_) => &["exp_avg", "exp_avg_sq"],
            Optimizer::Sgd(_) => &["momentum_buffer"],
        }
    }

    /// Refuses values with which the formulas break.
    ///
    /// # Errors
    /// [`OptimizerError`] names the first.
    pub fn check(&self) -> Result<(), OptimizerError> {
        const UNIT: &str = "at least 0 and less than 1";
        const POSITIVE: &str = "finite and not negative";
        let in_unit = |v: f64| (0.0..1.0).contains(&v);
        let not_negative = |v: f64| v.is_finite() && v >= 0.0;
        let ranges = match self {
            Optimizer::AdamW(a) => vec![
                ("betas.0", a.betas.0, in_unit(a.betas.0), UNIT),
                ("betas.1", a.betas.1, in_unit(a.betas.1), UNIT),
                ("eps", a.eps, not_negative(a.eps), POSITIVE),
                ("weight_decay", a.weight_decay, not_negative(a.weight_decay), POSITIVE),
            ],
            Optimizer::Sgd(s) => vec![
                ("momentum", s.momentum, in_unit(s.momentum), UNIT),
                ("weight_decay", s.weight_decay, not_negative(s.weight_decay), POSITIVE),
            ],
        };
        match ranges.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, wanted)) => Err(OptimizerError { field, value, wanted }),
            None => Ok(()),
        }
    }
}

impl AdamW {
    /// The scalars of step `t`, which counts from 1.
    pub fn step(&self, lr: f64, t: u64, grad_factor: f64, group: Group) -> AdamWStep {
        let (beta1, beta2) = self.betas;
        let bias1 = 1.0 - beta1.powf(t as f64);
        let bias2 = 1.0 - beta2.powf(t as f64);
        AdamWStep {
            grad_factor: grad_factor as f32,
            decay: (1.0 - lr * group.decay_of(self.weight_decay)) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / bias1) as f32,
            inv_sqrt_bias2: (1.0 / bias2.sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

impl Sgd {
    /// The scalars of a step.
    pub fn step(&self, lr: f64, grad_factor: f64, group: Group) -> SgdStep {
        SgdStep {
            grad_factor: grad_factor as f32,
            weight_decay: group.decay_of(self.weight_decay) as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            lr: lr as f32,
        }
    }
}

impl Group {
    fn decay_of(self, weight_decay: f64) -> f64 {
        match self {
            Group::Decay => weight_decay,
            Group::NoDecay => 0.0,
        }
    }
}

impl Groups {
    /// The group of the parameter at `path`.
    pub fn of(&self, path: &str, rank: usize) -> Group {
        let matches =
            |pattern: &str| path.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        match self.overrides.iter().rev().find(|(pattern, _)| matches(pattern)) {
            Some((_, group)) => *group,
            None if rank >= 2 => Group::Decay,
            None => Group::NoDecay,
        }
    }
}

/// The factor that scales a gradient of this norm to at most `max_norm`: min(1, max/(norm + 10⁻⁶)), as
/// `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    /// PyTorch's own guard against a zero norm.
    const CLIP_EPS: f64 = 1e-6;
    (max_norm / (norm + CLIP_EPS)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps of `torch.optim.AdamW` by its formula in f64, against the scalars in f32: f32 rounding of ten operations.
    const F32_ROUNDING: f64 = 16.0 * f32::EPSILON as f64;

    #[test]
    fn scalars_of_adamw_give_the_formula() {
        let adamw = AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1 };
        let (mut p, mut m, mut v) = (0.7f64, 0.0f64, 0.0f64);
        let (mut p32, mut m32, mut v32) = (0.7f32, 0.0f32, 0.0f32);
        for (t, g) in [(1u64, 0.3f64), (2, -0.2), (3, 1.5)] {
            let lr = 1e-2 / t as f64;
            p *= 1.0 - lr * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            let (b1, b2) = (1.0 - 0.9f64.powi(t as i32), 1.0 - 0.95f64.powi(t as i32));
            p -= lr * (m / b1) / ((v / b2).sqrt() + 1e-8);

            let s = adamw.step(lr, t, 0.5, Group::Decay);
            let g32 = (2.0 * g) as f32 * s.grad_factor;
            p32 *= s.decay;
            m32 += s.one_minus_beta1 * (g32 - m32);
            v32 = s.beta2 * v32 + s.one_minus_beta2 * g32 * g32;
            p32 -= s.step_size * m32 / (v32.sqrt() * s.inv_sqrt_bias2 + s.eps);
            assert!((f64::from(p32) - p).abs() <= F32_ROUNDING * p.abs(), "step {t}: {p32} is not {p}");
        }
    }

    #[test]
    fn groups_follow_rank_and_overrides() {
        let mut groups = Groups::default();
        assert_eq!(groups.of("blocks.0.mlp.gate", 2), Group::Decay);
        assert_eq!(groups.of("blocks.0.n1", 1), Group::NoDecay);
        groups.overrides = vec![("blocks".into(), Group::NoDecay), ("blocks.0.mlp".into(), Group::Decay)];
        assert_eq!(groups.of("blocks.1.mlp.gate", 2), Group::NoDecay);
        assert_eq!(groups.of("blocks.0.mlp.gate", 2), Group::Decay);
        assert_eq!(groups.of("blocks2.gate", 2), Group::Decay, "a prefix ends at a dot");
        assert_eq!(AdamW::default().step(0.1, 1, 1.0, Group::NoDecay).decay, 1.0);
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
    }

    #[test]
    fn broken_hyper_parameters_are_named() {
        let bad = Optimizer::AdamW(AdamW { betas: (0.9, 1.0), ..AdamW::default() });
        assert_eq!(bad.check().unwrap_err().field, "betas.1");
        assert!(Optimizer::Sgd(Sgd { weight_decay: f64::NAN, ..Sgd::default() }).check().is_err());
        assert_eq!(Optimizer::Sgd(Sgd::default()).check(), Ok(()));
    }
}
