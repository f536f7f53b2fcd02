//! The dynamic loss scale of f16 training, step by step that of `torch.amp.GradScaler`.

use serde::{Deserialize, Serialize};

/// How the scale moves; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalerOptions {
    /// The first scale.
    pub init_scale: f32,
    /// Factor after `growth_interval` clean steps.
    pub growth_factor: f64,
    /// Factor after a step with a non-finite gradient.
    pub backoff_factor: f64,
    /// Clean steps in a row before the scale grows.
    pub growth_interval: u32,
}

impl Default for ScalerOptions {
    fn default() -> Self {
        ScalerOptions { init_scale: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 }
    }
}

/// What the optimizer does with the gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are finite: unscale, clip, step.
    Step,
    /// One is not: weights, moments and the step count stay as they are.
    Skip,
}

/// The scale and what moves it. `scale` and `growth_tracker` are its whole saved state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaler {
    options: ScalerOptions,
    scale: f32,
    growth_tracker: u32,
}

impl LossScaler {
    /// A scale at its start.
    pub fn new(options: ScalerOptions) -> Self {
        LossScaler { options, scale: options.init_scale, growth_tracker: 0 }
    }

    /// A scale as it was saved.
    pub fn restore(options: ScalerOptions, scale: f32, growth_tracker: u32) -> Self {
        LossScaler { options, scale, growth_tracker }
    }

    /// The backward pass starts with this cotangent.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Clean steps since the scale last changed.
    pub fn growth_tracker(&self) -> u32 {
        self.growth_tracker
    }

    /// Moves the scale after a backward pass; `found_inf` says that a gradient is not finite on any rank.
    ///
    /// As PyTorch's `_amp_update_scale_`: on found_inf, scale ← scale·backoff and the tracker restarts; else the tracker counts
    /// up, and on `growth_interval` scale ← scale·growth, unless that is infinite.
    pub fn update(&mut self, found_inf: bool) -> Verdict {
        if found_inf {
            self.scale = scaled(self.scale, self.options.backoff_factor);
            self.growth_tracker = 0;
            return Verdict::Skip;
        }
        self.growth_tracker += 1;
        if self.growth_tracker == self.options.growth_interval {
            let grown = scaled(self.scale, self.options.growth_factor);
            if grown.is_finite() {
                self.scale = grown;
            }
            self.growth_tracker = 0;
        }
        Verdict::Step
    }
}

/// PyTorch multiplies the f32 scale by a double and rounds once.
fn scaled(scale: f32, factor: f64) -> f32 {
    (f64::from(scale) * factor) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(options: ScalerOptions, pattern: &[bool]) -> Vec<f32> {
        let mut scaler = LossScaler::new(options);
        pattern
            .iter()
            .map(|&found_inf| {
                scaler.update(found_inf);
                scaler.scale()
            })
            .collect()
    }

    #[test]
    fn scale_grows_after_clean_steps_and_halves_on_overflow() {
        let options = ScalerOptions { growth_interval: 2, ..ScalerOptions::default() };
        let pattern = [false, true, false, false, true, true, false, false];
        let expected = [65536.0, 32768.0, 32768.0, 65536.0, 32768.0, 16384.0, 16384.0, 32768.0];
        assert_eq!(trace(options, &pattern), expected);
    }

    #[test]
    fn scale_never_grows_to_infinity() {
        let options = ScalerOptions { init_scale: f32::MAX / 1.5, growth_interval: 1, ..ScalerOptions::default() };
        assert_eq!(trace(options, &[false, false]), [f32::MAX / 1.5; 2]);
    }

    #[test]
    fn a_restored_scale_continues() {
        let options = ScalerOptions { growth_interval: 3, ..ScalerOptions::default() };
        let mut scaler = LossScaler::new(options);
        assert_eq!(scaler.update(true), Verdict::Skip);
        assert_eq!(scaler.update(false), Verdict::Step);
        let mut restored = LossScaler::restore(options, scaler.scale(), scaler.growth_tracker());
        for found_inf in [false, false, true, false, false, false] {
            assert_eq!(scaler.update(found_inf), restored.update(found_inf));
            assert_eq!(scaler, restored);
        }
    }
}
