//! What every peer shares: the command line, the files that `host prepare` wrote, and the line protocol of `bench/src/host/serve.rs`;
//! no type of any library.

use clap::Parser;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::{Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An error is a message for whoever started the program.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a model adds below each square root of a norm.
pub const NORM_EPS: f64 = 1e-5;
/// Base of the rotary positions.
pub const ROPE_BASE: f64 = 10_000.0;

#[derive(Parser)]
#[command(about = "Trains a model of the host suite as the lines of standard input say")]
struct Cli {
    /// What `host prepare` wrote
    folder: PathBuf,
    /// Model: xs, s or s_odd
    model: String,
    /// Worker threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// All that a peer is given.
pub struct Job {
    /// Sizes of the model.
    pub sizes: Sizes,
    /// The optimizer.
    pub adamw: AdamW,
    /// Initial weights.
    pub weights: Weights,
    /// Batches in order.
    pub batches: Vec<Batch>,
}

/// Sizes of the model's axes, under Kiln's letters.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub struct Sizes {
    /// Sequences of a batch.
    pub b: usize,
    /// Tokens of a sequence.
    pub s: usize,
    /// Width.
    pub d: usize,
    /// Heads.
    pub g: usize,
    /// Queries for each key.
    pub r: usize,
    /// Width of a head.
    pub k: usize,
    /// Hidden width of an MLP.
    pub f: usize,
    /// Tokens of the vocabulary.
    pub v: usize,
    /// Layers.
    pub l: usize,
}

/// Hyper-parameters; the decay is for parameters of two and more axes only.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of both moments.
    pub betas: (f64, f64),
    /// Beside the root of the second moment.
    pub eps: f64,
    /// Decay of weights.
    pub weight_decay: f64,
}

/// Ids and what follows each, `B·S` of both.
pub struct Batch {
    /// Input.
    pub ids: Vec<i32>,
    /// Output.
    pub targets: Vec<i32>,
}

/// A file of tensors.
pub struct Weights {
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct Recipe {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    clip: Option<f64>,
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    precision: String,
    sizes: Sizes,
    weights: String,
    tokens: String,
}

/// Reads the command line and the files it names, and sets the number of threads. Comes before any other call: libraries read that
/// number once.
///
/// # Errors
/// If a file cannot be read, or asks for what peers do not do.
pub fn job() -> Result<Job> {
    let cli = Cli::parse();
    // SAFETY: called first in `main`, so this process has one thread and nobody else reads or writes its environment.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", cli.threads.to_string()) };
    let text = fs::read_to_string(cli.folder.join("models.json")).map_err(about("models.json"))?;
    let recipe: Recipe = serde_json::from_str(&text).map_err(about("models.json"))?;
    let entry = recipe.models.into_iter().find(|m| m.name == cli.model).ok_or(format!("no model `{}`", cli.model))?;
    if recipe.clip.is_some() || entry.sizes.r != 1 || entry.precision != "f32" {
        return Err("peers do neither clip gradients, nor group queries, nor compute in anything but f32".into());
    }
    let bytes = fs::read(cli.folder.join(&entry.weights)).map_err(about(&entry.weights))?;
    Ok(Job {
        sizes: entry.sizes,
        adamw: AdamW { lr: recipe.lr, betas: recipe.betas, eps: recipe.eps, weight_decay: recipe.weight_decay },
        weights: Weights { bytes },
        batches: read_batches(&cli.folder, &entry.tokens, entry.sizes.b * entry.sizes.s)?,
    })
}

/// Answers until the end of input. `step` takes the state of training and gives it back with the loss.
///
/// # Errors
/// If a step fails or a line is not a number.
pub fn serve<S>(batches: &[Batch], state: S, step: impl Fn(S, &Batch) -> Result<(S, f64)>) -> Result<()> {
    let mut turns = batches.iter().cycle();
    let mut steps = |mut state: S, n: usize| -> Result<(S, f64, f64)> {
        let begin = Instant::now();
        let mut last = f64::NAN;
        for batch in turns.by_ref().take(n) {
            (state, last) = step(state, batch)?;
        }
        Ok((state, begin.elapsed().as_secs_f64(), last))
    };
    let (mut state, _, loss) = steps(state, 1)?;
    answer(&serde_json::json!({ "loss": loss }))?;
    for line in stdin().lines() {
        let line = line?;
        let n = line.trim().parse().map_err(about(&line))?;
        let (next, seconds, loss) = steps(state, n)?;
        state = next;
        answer(&serde_json::json!({ "seconds": seconds, "loss": loss }))?;
    }
    Ok(())
}

/// Cosine and sine of position · base^(−2k/K), `[S, K/2]` each.
pub fn rope_tables(sizes: Sizes) -> (Vec<f32>, Vec<f32>) {
    let half = sizes.k / 2;
    let angle = |i: usize| (i / half) as f64 * ROPE_BASE.powf(-2.0 * (i % half) as f64 / sizes.k as f64);
    (0..sizes.s * half).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip()
}

impl Weights {
    /// Values of a tensor with `len` elements.
    ///
    /// # Errors
    /// If there is none of that name and size in f32.
    pub fn get(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(about("weights"))?;
        let tensor = tensors.tensor(name).map_err(about(name))?;
        let (values, rest) = tensor.data().as_chunks::<4>();
        if tensor.dtype() != Dtype::F32 || values.len() != len || !rest.is_empty() {
            return Err(format!("{name}: {:?} of {:?} where {len} f32 belong", tensor.dtype(), tensor.shape()).into());
        }
        Ok(values.iter().copied().map(f32::from_le_bytes).collect())
    }
}

/// Batch `i` is tokens `i·n .. (i + 1)·n` with those that follow each as targets.
fn read_batches(folder: &Path, name: &str, n: usize) -> Result<Vec<Batch>> {
    let bytes = fs::read(folder.join(name)).map_err(about(name))?;
    let tokens: Vec<i32> = bytes.as_chunks::<4>().0.iter().copied().map(i32::from_le_bytes).collect();
    let whole = tokens.len().saturating_sub(1) / n;
    if whole == 0 {
        return Err(format!("{name}: {} tokens are no batch of {n}", tokens.len()).into());
    }
    let part = |from: usize| tokens[from..from + n].to_vec();
    Ok((0..whole).map(|i| Batch { ids: part(i * n), targets: part(i * n + 1) }).collect())
}

/// One line, at once: whoever asked waits for it.
fn answer(value: &serde_json::Value) -> Result<()> {
    let mut output = stdout().lock();
    writeln!(output, "{value}")?;
    Ok(output.flush()?)
}

/// Puts what an error is about before it.
fn about<E: Display>(what: &str) -> impl Fn(E) -> Box<dyn Error> {
    move |e| format!("{what}: {e}").into()
}
