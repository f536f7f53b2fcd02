//! Learning rates as pure functions of the step: constant, linear, cosine, and a warm-up before any of them.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Learning rate by step; `t` counts optimizer steps from 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// η(t) = η.
    Constant {
        /// η.
        lr: f64,
    },
    /// η(t) = η₀ + (η₁ − η₀)·min(t, T)/T, PyTorch's `LinearLR`.
    Linear {
        /// η₀.
        start: f64,
        /// η₁.
        end: f64,
        /// T.
        steps: u64,
    },
    /// η(t) = η₁ + (η₀ − η₁)·(1 + cos(π·min(t, T)/T))/2, PyTorch's `CosineAnnealingLR`, which ours follows up to T and then
    /// stays at η₁ (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).
    Cosine {
        /// η₀.
        start: f64,
        /// η₁.
        end: f64,
        /// T.
        steps: u64,
    },
    /// η(t) = η_then(0)·(t + 1)/W for t < W, then η_then(t − W): PyTorch's `SequentialLR` of `LinearLR(1/W, 1, W − 1)` and the rest.
    Warmup {
        /// W.
        steps: u64,
        /// What follows.
        then: Box<Schedule>,
    },
}

/// A rate that no training can use.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("K0841: the schedule's `{field}` is {value}: a learning rate must be finite and not negative")]
pub struct ScheduleError {
    /// Which one.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
}

impl Schedule {
    /// The same rate at every step.
    pub fn constant(lr: f64) -> Self {
        Schedule::Constant { lr }
    }

    /// A straight line from `start` to `end` over `steps` steps.
    pub fn linear(start: f64, end: f64, steps: u64) -> Self {
        Schedule::Linear { start, end, steps }
    }

    /// Half a cosine wave from `start` to `end` over `steps` steps.
    pub fn cosine(start: f64, end: f64, steps: u64) -> Self {
        Schedule::Cosine { start, end, steps }
    }

    /// This schedule, delayed by `steps` steps in which the rate rises to its first value.
    pub fn warmup(self, steps: u64) -> Self {
        Schedule::Warmup { steps, then: Box::new(self) }
    }

    /// The rate at step `t`.
    pub fn lr(&self, t: u64) -> f64 {
        match self {
            Schedule::Constant { lr } => *lr,
            Schedule::Linear { start, end, steps } => start + (end - start) * progress(t, *steps),
            Schedule::Cosine { start, end, steps } => {
                end + (start - end) * (1.0 + (PI * progress(t, *steps)).cos()) / 2.0
            }
            Schedule::Warmup { steps, then } if t < *steps => then.lr(0) * (t + 1) as f64 / *steps as f64,
            Schedule::Warmup { steps, then } => then.lr(t - steps),
        }
    }

    /// Refuses rates that are negative, infinite or NaN.
    ///
    /// # Errors
    /// [`ScheduleError`] names the first.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let fields = match self {
            Schedule::Constant { lr } => vec![("lr", *lr)],
            Schedule::Linear { start, end, .. } | Schedule::Cosine { start, end, .. } => {
                vec![("start", *start), ("end", *end)]
            }
            Schedule::Warmup { then, .. } => return then.check(),
        };
        match fields.into_iter().find(|(_, lr)| !lr.is_finite() || *lr < 0.0) {
            Some((field, value)) => Err(ScheduleError { field, value }),
            None => Ok(()),
        }
    }
}

/// min(t, T)/T; a schedule of no steps is at its end.
fn progress(t: u64, steps: u64) -> f64 {
    if t >= steps { 1.0 } else { t as f64 / steps as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides do the same few operations in f64, in different order: a handful of roundings apart.
    const F64_ROUNDING: f64 = 8.0 * f64::EPSILON;

    fn assert_rates(schedule: &Schedule, expected: &[f64]) {
        for (t, want) in expected.iter().enumerate() {
            let got = schedule.lr(t as u64);
            assert!((got - want).abs() <= F64_ROUNDING * want.abs().max(1e-3), "step {t}: {got} is not {want}");
        }
    }

    #[test]
    fn schedules_follow_their_formula() {
        assert_rates(&Schedule::constant(0.1), &[0.1, 0.1, 0.1]);
        assert_rates(&Schedule::linear(1.0, 0.2, 4), &[1.0, 0.8, 0.6, 0.4, 0.2, 0.2]);
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        assert_rates(&Schedule::cosine(1.0, 0.0, 4), &[1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]);
        assert_rates(&Schedule::linear(1.0, 0.0, 2).warmup(4), &[0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn no_steps_means_the_end() {
        assert_rates(&Schedule::cosine(1.0, 0.5, 0), &[0.5, 0.5]);
        assert_rates(&Schedule::constant(1.0).warmup(0), &[1.0]);
    }

    #[test]
    fn unusable_rates_are_refused() {
        assert_eq!(Schedule::cosine(1e-3, 0.0, 9).warmup(2).check(), Ok(()));
        let bad = Schedule::linear(1e-3, f64::NAN, 9).warmup(2).check().unwrap_err();
        assert_eq!(bad.field, "end");
        assert!(Schedule::constant(-1.0).check().is_err());
    }

    #[test]
    fn config_text_reads_back() {
        let schedule = Schedule::cosine(3e-4, 3e-5, 100).warmup(10);
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
