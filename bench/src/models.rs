//! The models that the suites train, how long, and the tokens; peers read the same from `models.json` and the files beside it.

use crate::Result;
use kiln::device::Target;
use kiln::layer::Layer;
use kiln::optim::{AdamW, Optimizer};
use kiln::schedule::Schedule;
use kiln::trainer::{Trainer, TrainerBuilder};
use kiln::{Axis, DType, Sizes, random, sizes};
use kiln_examples::gpt::{B, D, F, G, K, L, R, S, V};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A model with the batch that it is trained on, and for how long.
#[derive(Clone, Debug)]
pub struct Model {
    /// `xs`, `s`, `s_odd` or `124m`.
    pub name: &'static str,
    /// What its layers compute in.
    pub precision: DType,
    /// Sizes of its axes.
    pub sizes: Sizes,
    /// How it is timed.
    pub protocol: Protocol,
}

/// How a model is timed: steps that are not, then blocks of steps with one report at the end of each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Protocol {
    /// Steps before the first timed one.
    pub warm_up: usize,
    /// Timed blocks.
    pub blocks: usize,
    /// Steps of a block.
    pub steps_per_block: usize,
}

/// 20 steps end what compilers and memory pools do at the start; 50 steps in all.
const FULL: Protocol = Protocol { warm_up: 20, blocks: 3, steps_per_block: 10 };
/// For steps of half a second.
const SHORT: Protocol = Protocol { warm_up: 5, blocks: 3, steps_per_block: 3 };
const QUICK: Protocol = Protocol { warm_up: 1, blocks: 2, steps_per_block: 1 };
/// Most sequences of a batch in f32, for the same reason.
const MAX_F32_BATCH: usize = 8;

/// What the benchmarks of the project use.
const LR: f64 = 3e-4;
const BETAS: (f64, f64) = (0.9, 0.95);
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;
/// Largest norm of the gradients on a card.
pub const CLIP: f64 = 1.0;
const SEED: u64 = 5;

impl Protocol {
    /// All steps.
    pub fn steps(self) -> usize {
        self.warm_up + self.blocks * self.steps_per_block
    }
}

/// 918,656 parameters with a head of its own.
pub fn xs(is_quick: bool) -> Model {
    let full = sizes! { B = 16, S = 128, D = 128, G = 4, R = 1, K = 32, F = 384, V = 256, L = 4 };
    Model::new("xs", DType::F32, full, FULL, is_quick)
}

/// 6,917,376 parameters with a head of its own.
pub fn s(precision: DType, is_quick: bool) -> Model {
    let full = sizes! { B = 8, S = 256, D = 256, G = 4, R = 1, K = 64, F = 704, V = 4096, L = 6 };
    Model::new("s", precision, full, FULL, is_quick)
}

/// As S, with sizes that are no powers of two and no multiples of a vector.
pub fn s_odd(is_quick: bool) -> Model {
    let full = sizes! { B = 8, S = 200, D = 240, G = 5, R = 1, K = 48, F = 650, V = 4096, L = 6 };
    Model::new("s_odd", DType::F32, full, FULL, is_quick)
}

/// GPT-2's smallest sizes with SwiGLU: 124 million parameters. In f32 the batch is small and steps are few.
pub fn gpt_124m(batch: usize, precision: DType, is_quick: bool) -> Model {
    let (batch, protocol) = match precision {
        DType::F32 => (batch.min(MAX_F32_BATCH), SHORT),
        _ => (batch, FULL),
    };
    let full = sizes! { B = batch, S = 1024, D = 768, G = 12, R = 1, K = 64, F = 2048, V = 50304, L = 12 };
    Model::new("124m", precision, full, protocol, is_quick)
}

/// Seconds on a software driver; two heads a group, which the others have not.
fn dry() -> Sizes {
    sizes! { B = 2, S = 16, D = 16, G = 2, R = 2, K = 8, F = 24, V = 64, L = 2 }
}

impl Model {
    fn new(name: &'static str, precision: DType, sizes: Sizes, protocol: Protocol, is_quick: bool) -> Model {
        match is_quick {
            true => Model { name, precision, sizes: dry(), protocol: QUICK },
            false => Model { name, precision, sizes, protocol },
        }
    }

    /// A session of a root as the suites train it.
    pub fn trainer<Root: Layer>(&self, target: Target) -> TrainerBuilder<Root> {
        let rule = AdamW { betas: BETAS, eps: EPS, weight_decay: WEIGHT_DECAY };
        Trainer::<Root>::new(self.sizes.clone())
            .seed(SEED)
            .precision(self.precision)
            .optimizer(Optimizer::AdamW(rule))
            .schedule(Schedule::constant(LR))
            .device(target)
    }

    /// Size of an axis.
    fn size<A: Axis>(&self) -> usize {
        self.sizes.iter().find(|(axis, _)| axis.name() == A::NAME).map_or(1, |(_, n)| n)
    }

    /// Tokens of a batch.
    pub fn tokens_per_step(&self) -> usize {
        self.size::<B>() * self.size::<S>()
    }

    /// Tokens for `steps` batches: each follows from the one before it, except for one in eight, so that there is something to learn.
    pub fn tokens(&self, steps: usize) -> Vec<i32> {
        const FACTOR: usize = 31;
        const SURPRISE: f32 = 0.125;
        let vocab = self.size::<V>();
        let mut token = 1;
        let next = |i: usize| {
            let drawn = |stream: u64| random::uniform(stream, i as u64, 0);
            token = match drawn(SEED) < SURPRISE {
                true => (drawn(SEED + 1) * vocab as f32) as usize % vocab,
                false => (FACTOR * token + 1) % vocab,
            };
            token as i32
        };
        (0..steps * self.tokens_per_step() + 1).map(next).collect()
    }

    /// Batch `step` of a stream: its tokens in rows, and those that follow each.
    pub fn batch(&self, tokens: &[i32], step: usize) -> (Vec<i32>, Vec<i32>) {
        let n = self.tokens_per_step();
        let ids = &tokens[step * n..(step + 1) * n + 1];
        (ids[..n].to_vec(), ids[1..].to_vec())
    }

    /// File of the weights that training starts from.
    pub fn weights_file(&self) -> String {
        format!("{}-{}.safetensors", self.name, self.precision)
    }

    /// File of the tokens: 32-bit integers, the least byte first.
    pub fn tokens_file(&self) -> String {
        format!("{}-{}.tokens.i32", self.name, self.precision)
    }

    /// Writes where training starts and what it reads.
    ///
    /// # Errors
    /// If a file cannot be written, or the device has failed.
    pub fn write<Root: Layer>(&self, trainer: &Trainer<Root>, tokens: &[i32], folder: &Path) -> Result<()> {
        let mut state = trainer.state(&[])?;
        state.tensors.retain(|name, _| !name.starts_with("optimizer."));
        state.save(&folder.join(self.weights_file()))?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        Ok(fs::write(folder.join(self.tokens_file()), bytes)?)
    }
}

/// Everything that a peer must know to do the same.
#[derive(Serialize)]
struct Recipe {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    /// Largest norm of the gradients; absent where they are not clipped.
    clip: Option<f64>,
    models: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    precision: String,
    protocol: Protocol,
    sizes: BTreeMap<String, usize>,
    weights: String,
    tokens: String,
}

/// The models whose steps are timed on a card beside PyTorch's.
pub fn timed(batch: usize, is_quick: bool) -> [Model; 4] {
    let [bf16, f32] = [DType::Bf16, DType::F32];
    [gpt_124m(batch, bf16, is_quick), gpt_124m(batch, f32, is_quick), s(bf16, is_quick), s(f32, is_quick)]
}

/// Writes `models.json`.
///
/// # Errors
/// If it cannot be written.
pub fn write_recipe(folder: &Path, models: &[Model], clip: Option<f64>) -> Result<()> {
    let entry = |m: &Model| Entry {
        name: m.name,
        precision: m.precision.to_string(),
        protocol: m.protocol,
        sizes: m.sizes.iter().map(|(axis, n)| (axis.to_string(), n)).collect(),
        weights: m.weights_file(),
        tokens: m.tokens_file(),
    };
    let models = models.iter().map(entry).collect();
    let recipe = Recipe { lr: LR, betas: BETAS, eps: EPS, weight_decay: WEIGHT_DECAY, clip, models };
    fs::create_dir_all(folder)?;
    Ok(fs::write(folder.join("models.json"), serde_json::to_string_pretty(&recipe)?)?)
}
