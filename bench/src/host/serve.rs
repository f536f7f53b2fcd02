//! One library's side: trains a model step by step as it is told.
//!
//! The protocol, which every program of the suite speaks: after its first step it writes `{"loss": x}`; then for each line `N` that it
//! reads it does N steps and writes `{"seconds": t, "loss": x}`, the loss being that of the last step; at the end of input it ends.
//! Batch `i` is tokens `i·n .. (i + 1)·n` with those that follow each as targets, from the first token again after the last whole batch.

use super::trainer;
use crate::Result;
use crate::models::Model;
use std::io::{BufRead, Write};
use std::time::Instant;

/// Answers until the end of input.
///
/// # Errors
/// If the session cannot be built, a step fails, or a line is not a number.
pub fn serve(model: &Model, threads: usize, batches: usize, input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut trainer = trainer(model, threads).build()?;
    let tokens = model.tokens(batches);
    let batches: Vec<_> = (0..batches).map(|i| model.batch(&tokens, i)).collect();
    let mut turns = batches.iter().cycle();
    let mut steps = |n: usize| -> Result<(f64, f64)> {
        let begin = Instant::now();
        for batch in turns.by_ref().take(n) {
            trainer.submit(batch)?;
        }
        let loss = trainer.report()?.loss;
        Ok((begin.elapsed().as_secs_f64(), loss))
    };
    let (_, loss) = steps(1)?;
    writeln!(output, "{}", serde_json::json!({ "loss": loss }))?;
    output.flush()?;
    for line in input.lines() {
        let (seconds, loss) = steps(line?.trim().parse()?)?;
        writeln!(output, "{}", serde_json::json!({ "seconds": seconds, "loss": loss }))?;
        output.flush()?;
    }
    Ok(())
}
