//! The resolved configuration of a GPT run, as `config.json` keeps it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use kiln::optim::{AdamW, Optimizer};
use kiln::schedule::Schedule;
use serde::{Deserialize, Serialize};

/// Every byte is a token; of a larger vocabulary the rest is never seen.
pub const BYTES: usize = 256;

/// Values that may change when a run is resumed: they do not change what is computed.
pub const FREE: &[&str] = &["threads", "log_every", "save_every", "eval_every"];

/// Everything that determines a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows of a batch, over all ranks.
    pub batch: usize,
    /// What layers keep for backward.
    pub checkpoint: Checkpoint,
    /// Text to train on; the Rust sources that cargo has downloaded if absent.
    pub corpus: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Blocks.
    pub layers: usize,
    /// Ranks, as threads of this process.
    pub local_ranks: usize,
    /// Steps between records of `metrics.jsonl`.
    pub log_every: u64,
    /// Mesh axis → ranks along it.
    pub mesh: BTreeMap<String, usize>,
    /// Precision of layers.
    pub precision: Precision,
    /// Widths.
    pub preset: Preset,
    /// Steps between saves.
    pub save_every: u64,
    /// Key of initial weights and of the order of the text.
    pub seed: u64,
    /// Bytes of a row.
    pub seq: usize,
    /// Horizon of the schedule.
    pub steps: u64,
    /// Worker threads; 0 means one per processor.
    pub threads: usize,
    /// Text to validate on; a part of the corpus if absent.
    pub valid: Option<PathBuf>,
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 128 wide, 4 blocks of 4 heads, hidden 384, 256 tokens; 16 rows of 128 bytes.
    Xs,
    /// 256 wide, 6 blocks of 4 heads, hidden 704, 4096 tokens; 8 rows of 256 bytes.
    S,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// The best device of the machine; a software driver never.
    Auto,
    /// The CPU.
    Host,
    /// Vulkan, Metal, DX12.
    Wgpu,
    /// NVIDIA.
    Cuda,
}

/// Precision of layers that do not set one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision, with dynamic loss scaling.
    F16,
}

/// What layers that do not say it keep for backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpoint {
    /// Their inputs; forward runs again before backward.
    Inputs,
    /// Everything that backward reads.
    Never,
}

/// Sizes of a preset that have no flag of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Model width.
    pub d: usize,
    /// Key/value groups.
    pub g: usize,
    /// Query heads per group.
    pub r: usize,
    /// Head width.
    pub k: usize,
    /// Hidden width.
    pub f: usize,
    /// Vocabulary.
    pub v: usize,
}

impl Preset {
    /// Its widths: those of the benchmarks.
    pub fn widths(self) -> Widths {
        match self {
            Preset::Xs => Widths { d: 128, g: 4, r: 1, k: 32, f: 384, v: BYTES },
            Preset::S => Widths { d: 256, g: 4, r: 1, k: 64, f: 704, v: 4096 },
        }
    }

    /// Its rows, bytes per row and blocks.
    pub fn shape(self) -> (usize, usize, usize) {
        match self {
            Preset::Xs => (16, 128, 4),
            Preset::S => (8, 256, 6),
        }
    }
}

impl Config {
    /// The defaults of a preset.
    pub fn of_preset(preset: Preset) -> Config {
        let (batch, seq, layers) = preset.shape();
        Config {
            batch,
            checkpoint: Checkpoint::Never,
            corpus: None,
            device: DeviceChoice::Auto,
            eval_every: 50,
            layers,
            local_ranks: 1,
            log_every: 10,
            mesh: BTreeMap::new(),
            precision: Precision::F32,
            preset,
            save_every: 100,
            seed: 0,
            seq,
            steps: 400,
            threads: 0,
            valid: None,
        }
    }

    /// A short warm-up, then half a cosine down to a tenth.
    pub fn schedule(&self) -> Schedule {
        /// Narrow models bear a high rate; with gradients clipped at 1, XS trains stably at it.
        const PEAK_LR: f64 = 3e-3;
        let warmup = (self.steps / 20).min(100);
        Schedule::cosine(PEAK_LR, PEAK_LR / 10.0, self.steps - warmup).warmup(warmup)
    }

    /// The optimizer of the GPT literature.
    pub fn optimizer(&self) -> Optimizer {
        Optimizer::AdamW(AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1 })
    }

    /// Tokens of a step.
    pub fn tokens_per_step(&self) -> usize {
        self.batch * self.seq
    }
}
