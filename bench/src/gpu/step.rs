//! Tokens per second of whole training steps, and the losses on the way.

use super::Result;
use crate::models::{CLIP, Model};
use kiln::device::Target;
use kiln_examples::gpt::GptTied;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// One model in one precision.
#[derive(Debug, Serialize)]
pub struct Timed {
    /// Name of the model.
    pub model: &'static str,
    /// What its layers compute in.
    pub precision: String,
    /// Sequences of a batch, times their length.
    pub tokens_per_step: usize,
    /// Steps of a block.
    pub steps_per_block: usize,
    /// Seconds of each block.
    pub seconds: Vec<f64>,
    /// Tokens per second of the median block.
    pub tokens_per_second: f64,
    /// Loss of the last step before the first timed one, and of the last step of each block.
    pub losses: Vec<f64>,
    /// Steps done in all.
    pub steps: usize,
    /// Bytes of the session on the device.
    pub bytes: usize,
    /// Seconds until every kernel was compiled or found in the cache.
    pub compile_seconds: f64,
}

/// Times a model; where it starts from and what it reads is written to `folder`.
///
/// # Errors
/// If the session cannot be built, a step fails, or a file cannot be written.
pub fn run(model: &Model, target: &Target, folder: &Path) -> Result<Timed> {
    let (precision, protocol) = (model.precision, model.protocol);
    let mut trainer = model.trainer::<GptTied>(target.clone()).clip(CLIP).build()?;
    let tokens = model.tokens(protocol.steps());
    model.write(&trainer, &tokens, folder)?;
    let begin = Instant::now();
    trainer.warm(|_, _| {})?;
    let compile_seconds = begin.elapsed().as_secs_f64();
    let mut step = 0;
    let mut block = |steps: usize| -> Result<(f64, f64)> {
        let batches: Vec<_> = (step..step + steps).map(|i| model.batch(&tokens, i)).collect();
        step += steps;
        let begin = Instant::now();
        for batch in &batches {
            trainer.submit(batch)?;
        }
        let loss = trainer.report()?.loss;
        Ok((begin.elapsed().as_secs_f64(), loss))
    };
    let (_, loss) = block(protocol.warm_up)?;
    let (mut seconds, mut losses) = (Vec::new(), vec![loss]);
    for _ in 0..protocol.blocks {
        let (elapsed, loss) = block(protocol.steps_per_block)?;
        seconds.push(elapsed);
        losses.push(loss);
    }
    let (n, steps_per_block) = (model.tokens_per_step(), protocol.steps_per_block);
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let tokens_per_second = (n * steps_per_block) as f64 / sorted[sorted.len() / 2];
    println!(
        "{} in {precision}: {tokens_per_second:.0} tokens/s, {} tokens a step, loss {:.4} after {step} steps",
        model.name,
        n,
        losses[losses.len() - 1]
    );
    let bytes = trainer.peak_bytes();
    Ok(Timed {
        model: model.name,
        precision: precision.to_string(),
        tokens_per_step: n,
        steps_per_block,
        seconds,
        tokens_per_second,
        losses,
        steps: step,
        bytes,
        compile_seconds,
    })
}

/// Whether two steps of the model run: an error says why not.
///
/// # Errors
/// If the session does not fit, or a step fails.
pub fn probe(model: &Model, target: &Target) -> Result<()> {
    const STEPS: usize = 2;
    let mut trainer = model.trainer::<GptTied>(target.clone()).clip(CLIP).build()?;
    let tokens = model.tokens(STEPS);
    for step in 0..STEPS {
        trainer.submit(&model.batch(&tokens, step))?;
    }
    trainer.report()?;
    Ok(())
}
