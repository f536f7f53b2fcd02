//! The models of the host suite in burn: trains step by step as the lines of standard input say.

mod model;

use burn::module::ParamGroup;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};
use model::{Gpt, Tables};
use peer_serve::{AdamW, Batch, Result, Sizes, job, serve};

/// A model with its optimizer.
struct Run {
    model: Gpt,
    optimizer: ModuleOptimizer,
}

fn main() -> Result<()> {
    let job = job()?;
    let device = Device::flex().autodiff();
    let tables = Tables::new(job.sizes, &device);
    let run = Run { model: Gpt::load(&job.weights, job.sizes, &device)?, optimizer: optimizer(job.adamw) };
    serve(&job.batches, run, |run, batch| step(run, batch, &tables, job.sizes, job.adamw.lr, &device))
}

fn step(mut run: Run, batch: &Batch, tables: &Tables, sizes: Sizes, lr: f64, device: &Device) -> Result<(Run, f64)> {
    let ids = Tensor::<2, Int>::from_data(TensorData::new(batch.ids.clone(), [sizes.b, sizes.s]), device);
    let targets = Tensor::<1, Int>::from_data(TensorData::new(batch.targets.clone(), [sizes.b * sizes.s]), device);
    let loss = run.model.loss(ids, targets, tables);
    let gradients = GradientsParams::from_grads(loss.backward(), &run.model);
    run.model = run.optimizer.step(lr, run.model, gradients);
    Ok((run, loss.try_into_scalar::<f32>()?.into()))
}

fn optimizer(adamw: AdamW) -> ModuleOptimizer {
    let config = AdamWConfig::new()
        .with_beta_1(adamw.betas.0 as f32)
        .with_beta_2(adamw.betas.1 as f32)
        .with_epsilon(adamw.eps as f32)
        .with_weight_decay(adamw.weight_decay as f32);
    // Norms have the only parameters of one axis.
    let norms = ParamGroup::from_predicate("gamma");
    let without_decay = config.clone().with_weight_decay(0.0).build();
    config.init().with_group(norms, without_decay, None)
}
