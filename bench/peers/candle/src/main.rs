//! The models of the host suite in candle: trains step by step as the lines of standard input say.

mod model;

use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use model::{Gpt, Loader};
use peer_serve::{Batch, Result, Sizes, job, serve};

/// A model with its optimizers: one decays, one does not.
struct Run {
    model: Gpt,
    optimizers: [AdamW; 2],
}

fn main() -> Result<()> {
    let job = job()?;
    let mut loader = Loader { weights: &job.weights, device: &Device::Cpu, parameters: Vec::new() };
    let model = Gpt::load(&mut loader, job.sizes)?;
    let optimizers = optimizers(loader.parameters, job.adamw)?;
    serve(&job.batches, Run { model, optimizers }, |run, batch| step(run, batch, job.sizes))
}

fn step(mut run: Run, batch: &Batch, sizes: Sizes) -> Result<(Run, f64)> {
    // Indices of candle are unsigned; ids are never negative.
    let tensor = |ids: &[i32]| Tensor::from_iter(ids.iter().map(|&id| id as u32), &Device::Cpu);
    let ids = tensor(&batch.ids)?.reshape((sizes.b, sizes.s))?;
    let loss = run.model.loss(&ids, &tensor(&batch.targets)?)?;
    let gradients = loss.backward()?;
    for optimizer in &mut run.optimizers {
        optimizer.step(&gradients)?;
    }
    Ok((run, loss.to_scalar::<f32>()?.into()))
}

fn optimizers(parameters: Vec<Var>, adamw: peer_serve::AdamW) -> Result<[AdamW; 2]> {
    let (decayed, others) = parameters.into_iter().partition(|p| p.rank() >= 2);
    let params = |weight_decay| ParamsAdamW {
        lr: adamw.lr,
        beta1: adamw.betas.0,
        beta2: adamw.betas.1,
        eps: adamw.eps,
        weight_decay,
    };
    Ok([AdamW::new(decayed, params(adamw.weight_decay))?, AdamW::new(others, params(0.0))?])
}
