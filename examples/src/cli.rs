//! The command line of `gpt`: flags to a resolved [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Checkpoint, Config, DeviceChoice, Precision, Preset};
use crate::failure::Failure;

/// Trains a small GPT on text, byte by byte.
#[derive(Debug, Parser)]
#[command(name = "gpt", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `train` if nothing is given.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `train`.
    #[command(flatten)]
    pub train: TrainArgs,
}

/// What `gpt` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, or resume a run (default)
    Train(TrainArgs),
    /// Write text with a trained model
    Generate(GenerateArgs),
    /// Print the plan of a run without training: memory, casts, recomputation, collectives
    Explain(TrainArgs),
    /// List the kernels that the layers' macros emitted, show one, or compile all that a run needs
    Kernels(KernelsArgs),
}

/// Flags of `kernels`.
#[derive(Clone, Debug, Default, Args)]
pub struct KernelsArgs {
    /// Compile every kernel of a run of `train` with the same flags, so that its first step does not wait for them
    #[arg(long, conflicts_with = "show")]
    pub warm: bool,
    /// Print a kernel: its region, the function that its macro wrote, and the CUDA C++ that CubeCL makes of it
    #[arg(long, value_name = "NAME")]
    pub show: Option<String>,
    /// The run whose kernels are compiled.
    #[command(flatten)]
    pub train: TrainArgs,
}

/// Flags of `train`. Absent ones take the default, or on `--resume` the run's own value.
#[derive(Clone, Debug, Default, Args)]
pub struct TrainArgs {
    /// Steps of the whole schedule [default: 400]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Save and end after this step, without changing the schedule
    #[arg(long)]
    pub stop_at: Option<u64>,
    /// Rows per step, over all ranks [default: 16 for xs, 8 for s]
    #[arg(long, value_parser = positive)]
    pub batch: Option<usize>,
    /// Bytes per row [default: 128 for xs, 256 for s]
    #[arg(long, value_parser = positive)]
    pub seq: Option<usize>,
    /// Transformer blocks [default: 4 for xs, 6 for s]
    #[arg(long, value_parser = positive)]
    pub layers: Option<usize>,
    /// Sizes of the model [default: xs]
    #[arg(long)]
    pub preset: Option<Preset>,
    /// Where to compute; auto takes a card of NVIDIA, another GPU or the host, in this order [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// What layers compute in; f16 scales the loss [default: f32]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// What layers keep for backward: their inputs, or never recompute [default: never]
    #[arg(long)]
    pub checkpoint: Option<Checkpoint>,
    /// Ranks, as threads of this process [default: the product of the mesh]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub local_ranks: Option<usize>,
    /// Mesh axes and their sizes, such as tensor=2 or data=2,tensor=2 [default: data = all ranks]
    #[arg(long, value_name = "AXIS=N", value_parser = mesh)]
    pub mesh: Option<BTreeMap<String, usize>>,
    /// Worker threads; the result does not depend on it [default: one per processor]
    #[arg(long, value_parser = positive)]
    pub threads: Option<usize>,
    /// File or folder of text [default: the Rust sources that cargo has downloaded]
    #[arg(long, value_name = "PATH")]
    pub corpus: Option<PathBuf>,
    /// File or folder of validation text [default: a tenth of the corpus, by whole files]
    #[arg(long, value_name = "PATH")]
    pub valid: Option<PathBuf>,
    /// Folder of runs
    #[arg(long, value_name = "PATH", default_value = "runs")]
    pub runs: PathBuf,
    /// Name of the run [default: date and time, always new]
    #[arg(long)]
    pub name: Option<String>,
    /// Key of the initial weights and of the order of the text [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Continue the named run, or the one that saved last
    #[arg(long)]
    pub resume: bool,
    /// Record some steps, print where their time went, and write a Chrome trace to profile.json of the run; on the host
    #[arg(long)]
    pub profile: bool,
    /// Steps between lines of metrics.jsonl [default: 10, and 1 for at most 100 steps]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: Option<u64>,
    /// Steps between saves [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: Option<u64>,
    /// Steps between evaluations [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,
}

/// Flags of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Folder of runs
    #[arg(long, value_name = "PATH", default_value = "runs")]
    pub runs: PathBuf,
    /// Name of the run [default: the one that saved last]
    #[arg(long)]
    pub name: Option<String>,
    /// Text to continue
    #[arg(long, default_value = PROMPT)]
    pub prompt: String,
    /// Bytes to write
    #[arg(long, default_value_t = LENGTH)]
    pub length: usize,
    /// Below 1 the likely bytes become likelier; 0 always takes the likeliest
    #[arg(long, default_value_t = TEMPERATURE, value_parser = temperature)]
    pub temperature: f64,
    /// Key of the choices
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Worker threads [default: one per processor]
    #[arg(long, value_parser = positive)]
    pub threads: Option<usize>,
}

const PROMPT: &str = "pub fn ";
const LENGTH: usize = 400;
const TEMPERATURE: f64 = 0.8;

impl Default for GenerateArgs {
    fn default() -> Self {
        GenerateArgs {
            runs: PathBuf::from("runs"),
            name: None,
            prompt: PROMPT.to_owned(),
            length: LENGTH,
            temperature: TEMPERATURE,
            seed: 0,
            threads: None,
        }
    }
}

impl TrainArgs {
    /// The configuration of a new run.
    ///
    /// # Errors
    /// [`Failure::Option`] if flags contradict each other.
    pub fn resolve(&self) -> Result<Config, Failure> {
        let mut base = Config::of_preset(self.preset.unwrap_or(Preset::Xs));
        if self.steps.unwrap_or(base.steps) <= SHORT_RUN {
            base.log_every = 1;
        }
        self.over(base)
    }

    /// These flags over a run's configuration.
    ///
    /// # Errors
    /// [`Failure::Option`] if flags contradict each other.
    pub fn over(&self, base: Config) -> Result<Config, Failure> {
        let preset = self.preset.unwrap_or(base.preset);
        let (local_ranks, mesh) = self.ranks(&base)?;
        let config = Config {
            batch: self.batch.unwrap_or(base.batch),
            checkpoint: self.checkpoint.unwrap_or(base.checkpoint),
            corpus: self.corpus.clone().or(base.corpus),
            device: self.device.unwrap_or(base.device),
            eval_every: self.eval_every.unwrap_or(base.eval_every),
            layers: self.layers.unwrap_or(base.layers),
            local_ranks,
            log_every: self.log_every.unwrap_or(base.log_every),
            mesh,
            precision: self.precision.unwrap_or(base.precision),
            preset,
            save_every: self.save_every.unwrap_or(base.save_every),
            seed: self.seed.unwrap_or(base.seed),
            seq: self.seq.unwrap_or(base.seq),
            steps: self.steps.unwrap_or(base.steps),
            threads: self.threads.unwrap_or(base.threads),
            valid: self.valid.clone().or(base.valid),
        };
        let data_ranks = config.mesh.get("data").copied().unwrap_or(1);
        match config.batch.is_multiple_of(data_ranks) {
            true => Ok(config),
            false => Err(Failure::option(
                "--batch",
                format!("{} rows cannot be shared by data = {data_ranks}", config.batch),
            )),
        }
    }

    /// Ranks and mesh agree, or one follows from the other.
    fn ranks(&self, base: &Config) -> Result<(usize, BTreeMap<String, usize>), Failure> {
        let along_data = |n: usize| (n > 1).then(|| ("data".to_owned(), n)).into_iter().collect();
        match (self.local_ranks, &self.mesh) {
            (None, None) => Ok((base.local_ranks, base.mesh.clone())),
            (Some(n), None) => Ok((n, along_data(n))),
            (n, Some(mesh)) => {
                let product = mesh.values().product();
                match n {
                    Some(n) if n != product => {
                        Err(Failure::option("--local-ranks", format!("{n} is not the product of the mesh, {product}")))
                    }
                    _ => Ok((product, mesh.clone())),
                }
            }
        }
    }
}

/// Runs of at most this many steps log each one.
const SHORT_RUN: u64 = 100;

/// A size: a whole number from 1 that cannot overflow in products with others.
fn positive(text: &str) -> Result<usize, String> {
    const LARGEST: usize = 1 << 20;
    match text.parse() {
        Ok(n @ 1..=LARGEST) => Ok(n),
        _ => Err(format!("it must be a whole number from 1 to {LARGEST}")),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t.is_finite() && t >= 0.0 => Ok(t),
        _ => Err("it must be a number that is not negative".to_owned()),
    }
}

/// `data=2,tensor=2`.
fn mesh(text: &str) -> Result<BTreeMap<String, usize>, String> {
    const AXES: [&str; 2] = ["data", "tensor"];
    let mut mesh = BTreeMap::new();
    for entry in text.split(',') {
        let Some((axis, size)) = entry.split_once('=') else {
            return Err(format!("`{entry}` is not AXIS=N"));
        };
        if !AXES.contains(&axis) {
            return Err(format!("`{axis}` is not a mesh axis that is in force; they are {}", AXES.join(" and ")));
        }
        if mesh.insert(axis.to_owned(), positive(size)?).is_some() {
            return Err(format!("`{axis}` is given twice"));
        }
    }
    Ok(mesh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn resolved(flags: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["gpt"], flags].concat()).map_err(|e| e.to_string())?;
        cli.train.resolve().map_err(|e| e.to_string())
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_states_the_defaults() {
        let help = Cli::command().find_subcommand_mut("train").unwrap().render_long_help().to_string();
        let (xs, s) = (Config::of_preset(Preset::Xs), Config::of_preset(Preset::S));
        for wanted in [
            format!("[default: {}]", xs.steps),
            format!("[default: {} for xs, {} for s]", xs.batch, s.batch),
            format!("[default: {} for xs, {} for s]", xs.seq, s.seq),
            format!("[default: {} for xs, {} for s]", xs.layers, s.layers),
            format!("[default: {}, and 1 for at most {SHORT_RUN} steps]", xs.log_every),
            format!("[default: {}]", xs.save_every),
            format!("[default: {}]", xs.eval_every),
        ] {
            assert!(help.contains(&wanted), "{wanted} is not in\n{help}");
        }
    }

    #[test]
    fn train_is_the_default_command() {
        let cli = Cli::try_parse_from(["gpt", "--steps", "7"]).unwrap();
        assert!(cli.command.is_none() && cli.train.steps == Some(7));
        let cli = Cli::try_parse_from(["gpt", "train", "--steps", "7"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Train(t)) if t.steps == Some(7)));
    }

    #[test]
    fn short_runs_log_each_step() {
        assert_eq!(resolved(&["--steps", "100"]).unwrap().log_every, 1);
        assert_eq!(resolved(&["--steps", "101"]).unwrap().log_every, 10);
        assert_eq!(resolved(&["--steps", "100", "--log-every", "5"]).unwrap().log_every, 5);
    }

    #[test]
    fn ranks_and_mesh_follow_from_each_other() {
        let two = resolved(&["--local-ranks", "2"]).unwrap();
        assert_eq!((two.local_ranks, two.mesh), (2, BTreeMap::from([("data".into(), 2)])));
        let four = resolved(&["--mesh", "data=2,tensor=2"]).unwrap();
        assert_eq!((four.local_ranks, four.mesh.len()), (4, 2));
        assert!(resolved(&["--mesh", "tensor=2", "--local-ranks", "3"]).unwrap_err().contains("not the product"));
        assert!(resolved(&["--mesh", "rows=2"]).unwrap_err().contains("`rows` is not a mesh axis"));
        assert!(resolved(&["--local-ranks", "3"]).unwrap_err().contains("16 rows cannot be shared by data = 3"));
    }

    #[test]
    fn zero_and_overflowing_sizes_are_refused() {
        for flags in [["--batch", "0"], ["--seq", "99999999999999999999"], ["--layers", "-1"], ["--steps", "0"]] {
            assert!(resolved(&flags).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn a_resumed_run_keeps_what_no_flag_changes() {
        let saved = resolved(&["--steps", "300", "--seed", "5", "--batch", "4"]).unwrap();
        let cli = Cli::try_parse_from(["gpt", "--resume", "--threads", "1"]).unwrap();
        assert_eq!(cli.train.over(saved.clone()).unwrap(), Config { threads: 1, ..saved });
    }
}
