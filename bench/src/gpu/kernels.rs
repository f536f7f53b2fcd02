//! Every step of a model's plan, timed on the device, with the bytes that it must move and the products that it computes.

use super::Result;
use crate::models::{CLIP, Model};
use kiln::device::Target;
use kiln::exec::{Mode, Run};
use kiln::plan::cost::{cost, name};
use kiln_examples::gpt::GptTied;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Launches of one name in one phase.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// Kernel, or operation with the axes of its operands.
    pub name: String,
    /// Forward, replay or backward.
    pub phase: String,
    /// Seconds of each launch of a step.
    pub seconds: Vec<f64>,
    /// Bytes of all operands and results, each counted once a launch; a table that is gathered from counts whole.
    pub bytes: usize,
    /// Floating-point operations of products: two for a multiplication and an addition.
    pub flops: f64,
}

/// A plan's launches and the device's copy.
#[derive(Debug, Serialize)]
pub struct Timed {
    /// Name of the model.
    pub model: &'static str,
    /// What its layers compute in.
    pub precision: String,
    /// Tokens of a batch.
    pub tokens_per_step: usize,
    /// Times that each launch was repeated between two waits.
    pub repeats: usize,
    /// By time, the longest first.
    pub rows: Vec<Row>,
    /// The device's own copy; none on the host.
    pub copy: Option<Copied>,
}

/// A copy within the device's memory.
#[derive(Debug, Serialize)]
pub struct Copied {
    /// Bytes read, which are as many as were written.
    pub bytes: usize,
    /// Seconds of each.
    pub seconds: Vec<f64>,
    /// Read and written, per second.
    pub gb_per_second: f64,
}

/// Launches between two waits: a wait costs as much as a launch of a few kilobytes.
const REPEATS: usize = 20;
const QUICK_REPEATS: usize = 2;
/// Rows that are printed.
const SHOWN: usize = 12;
const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;

/// Times them all.
///
/// # Errors
/// If the session cannot be built, or the device fails.
pub fn run(model: &Model, target: &Target, is_quick: bool) -> Result<Timed> {
    let precision = model.precision;
    let repeats = if is_quick { QUICK_REPEATS } else { REPEATS };
    let copy = copy(target, is_quick)?;
    let mut trainer = model.trainer::<GptTied>(target.clone()).clip(CLIP).build()?;
    // Values of a real step lie in all buffers.
    trainer.step(&model.batch(&model.tokens(1), 0))?;
    let first = Run { step: 0, micro: 0, part: 0, loss_scale: 1.0 };
    let times = trainer.ranks_mut().engine_mut().device_mut().time_steps(Mode::Train, first, repeats)?;
    let plan = trainer.plan();
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for (step, time) in plan.steps.iter().zip(&times) {
        let name = name(trainer.model(), step);
        let phase = format!("{:?}", step.phase).to_lowercase();
        let row = rows.entry((name.clone(), phase.clone())).or_default();
        (row.name, row.phase) = (name, phase);
        row.seconds.push(time.as_secs_f64());
        let cost = cost(plan, step);
        row.bytes += cost.bytes;
        row.flops += cost.flops;
    }
    // A step that runs together with a later one takes no time of its own.
    let mut rows: Vec<Row> = rows.into_values().filter(|row| row.total() > 0.0).collect();
    rows.sort_by(|a, b| b.total().total_cmp(&a.total()));
    let all: Duration = times.iter().sum();
    println!(
        "{} in {precision}: {} launches, {:.3} ms one after the other",
        model.name,
        times.len(),
        1e3 * all.as_secs_f64()
    );
    rows.iter().take(SHOWN).for_each(|row| println!("{}", row.line()));
    let (precision, tokens_per_step) = (precision.to_string(), model.tokens_per_step());
    Ok(Timed { model: model.name, precision, tokens_per_step, repeats, rows, copy })
}

impl Row {
    fn total(&self) -> f64 {
        self.seconds.iter().sum()
    }

    fn line(&self) -> String {
        let (total, n) = (self.total(), self.seconds.len());
        let rate = self.bytes as f64 / total / GIGA;
        let products =
            if self.flops > 0.0 { format!(", {:.2} TFLOP/s", self.flops / total / TERA) } else { String::new() };
        format!("{:>9.3} ms {n:>4} x {:<8} {rate:>8.1} GB/s{products}  {}", 1e3 * total, self.phase, self.name)
    }
}

/// A copy of at least 256 MB where the device binds as much, else of the largest piece.
fn copy(target: &Target, is_quick: bool) -> Result<Option<Copied>> {
    const BYTES: usize = 1 << 30;
    const QUICK_BYTES: usize = 1 << 20;
    const SAMPLES: usize = 5;
    let wanted = if is_quick { QUICK_BYTES } else { BYTES };
    let bytes = wanted.min(target.memory().chunk);
    let mut seconds = Vec::new();
    for _ in 0..SAMPLES {
        match target.time_copy(bytes / size_of::<f32>(), REPEATS)? {
            Some(time) => seconds.push(time.as_secs_f64()),
            None => return Ok(None),
        }
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let gb_per_second = 2.0 * bytes as f64 / sorted[SAMPLES / 2] / GIGA;
    println!("copy of {} MB: {gb_per_second:.1} GB/s read and written", bytes >> 20);
    Ok(Some(Copied { bytes, seconds, gb_per_second }))
}
