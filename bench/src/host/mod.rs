//! The host suite: how fast are whole training steps beside those of other libraries, on the same processor?
//!
//! In: models, weights and tokens that `prepare` writes to a folder, and one program for each library that answers a line protocol
//! ([`serve`]). Out: one JSON file of raw numbers, a table and a picture. Programs stay alive and take turns, so that whatever slows the
//! machine down slows all of them. Reading order: `serve` (one side) → `compare` (all) → `products` (the floor) → `show`; `decode` times
//! cached generation, `scaling` how a step's cost grows. `counted` is beside it: work whose instructions are counted, and no time.

pub mod compare;
pub mod counted;
pub mod decode;
pub mod products;
pub mod scaling;
pub mod serve;
pub mod show;

use crate::Result;
use crate::models::{Model, s, s_odd, write_recipe, xs};
use kiln::DType;
use kiln::device::Target;
use kiln::run_dir::date_time;
use kiln::trainer::TrainerBuilder;
use kiln_examples::gpt::Gpt;
use std::fs;
use std::path::Path;

/// Batches of the stream of tokens, after which it begins again.
pub const BATCHES: usize = 64;

/// The models of the suite; the first two are the presets of `gpt`.
pub fn models() -> [Model; 3] {
    [xs(false), s(DType::F32, false), s_odd(false)]
}

/// A session as the suite trains it.
pub fn trainer(model: &Model, threads: usize) -> TrainerBuilder<Gpt> {
    model.trainer(Target::Host).threads(threads)
}

/// Writes `models.json`, and the weights and tokens of each model.
///
/// # Errors
/// If a session cannot be built or a file cannot be written.
pub fn prepare(folder: &Path, steps: usize) -> Result<()> {
    let models = models();
    write_recipe(folder, &models, None)?;
    for model in models {
        let trainer = trainer(&model, 1).build()?;
        model.write(&trainer, &model.tokens(steps), folder)?;
    }
    Ok(())
}

pub(crate) fn processor() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = all.lines().find_map(|l| Some(l.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Today in UTC.
pub(crate) fn today() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let all = date_time(seconds);
    format!("{}-{}-{}", &all[..4], &all[4..6], &all[6..8])
}

/// `host-amd-epyc-9r14-2026-11-26`: what the results of a day on a processor are called.
pub fn named(cpu: &str, date: &str) -> String {
    let cpu = cpu.replace("(R)", "").replace("(TM)", "").to_lowercase();
    let words = cpu.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    format!("host-{}-{date}", words.collect::<Vec<_>>().join("-"))
}
