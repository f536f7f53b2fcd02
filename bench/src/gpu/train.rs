//! The example's XS model on a device and on the host, from the same seed over the same tokens.

use super::Result;
use crate::models::{self, CLIP};
use kiln::device::Target;
use kiln_examples::gpt::GptTied;
use serde::Serialize;

/// Both runs.
#[derive(Debug, Default, Serialize)]
pub struct Trained {
    /// Loss of each step on the device.
    pub device_loss: Vec<f64>,
    /// The same on the host.
    pub host_loss: Vec<f64>,
    /// Gradient norm of each step on the device.
    pub device_norm: Vec<f64>,
    /// The same on the host.
    pub host_norm: Vec<f64>,
    /// Largest relative difference of the loss.
    pub loss_difference: f64,
    /// Largest relative difference of the norm.
    pub norm_difference: f64,
}

const STEPS: usize = 200;
const QUICK_STEPS: usize = 3;
/// Steps between lines.
const SHOWN: usize = 20;

/// Trains both.
///
/// # Errors
/// If a session cannot be built, or a step fails.
pub fn run(target: &Target, is_quick: bool) -> Result<Trained> {
    let (model, steps) = (models::xs(is_quick), if is_quick { QUICK_STEPS } else { STEPS });
    let tokens = model.tokens(steps);
    // Two micro-batches a step: a run that begins gradients, and one that adds to them.
    let session = |target: Target| model.trainer::<GptTied>(target).clip(CLIP).accumulate(2);
    let (mut device, mut host) = (session(target.clone()).build()?, session(Target::Host).build()?);
    let mut all = Trained::default();
    for step in 0..steps {
        let batch = model.batch(&tokens, step);
        let (d, h) = (device.step(&batch)?, host.step(&batch)?);
        let apart = |a: f64, b: f64| (a - b).abs() / b.abs();
        all.loss_difference = all.loss_difference.max(apart(d.loss, h.loss));
        all.norm_difference = all.norm_difference.max(apart(d.grad_norm, h.grad_norm));
        all.device_loss.push(d.loss);
        all.host_loss.push(h.loss);
        all.device_norm.push(d.grad_norm);
        all.host_norm.push(h.grad_norm);
        if step % SHOWN == 0 || step + 1 == steps {
            println!("step {:>3}: loss {:.6}, on the host {:.6}", d.step, d.loss, h.loss);
        }
    }
    println!("largest relative difference: loss {:.1e}, norm {:.1e}", all.loss_difference, all.norm_difference);
    Ok(all)
}
