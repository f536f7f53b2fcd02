//! The parts of the suite and the file of their numbers. A part that dies is a line in the file, and the others go on.

use super::check::{Checked, Share};
use super::{Result, check, kernels, step, train};
use crate::models;
use clap::{Parser, ValueEnum};
use kiln::DType;
use kiln::device::Target;
use kiln::device::cube::CACHE_VARIABLE;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Checks and times Kiln on one device.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpu", version)]
pub struct Options {
    /// `cuda`, `wgpu` or `host`
    #[arg(long, default_value = "cuda")]
    pub device: String,
    /// File of the numbers; parts that it has from before stay, unless they run again
    #[arg(long, default_value = "kiln.json")]
    pub out: PathBuf,
    /// Folder of the weights and tokens that PyTorch reads [default: `weights` beside the file]
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Sequences of a batch of the 124M model in bf16; in f32 at most 8
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Small sizes and few steps: a dry run
    #[arg(long)]
    pub quick: bool,
    /// Only these parts
    #[arg(long = "part", value_enum)]
    pub parts: Vec<Part>,
    /// Seconds after which a part is ended
    #[arg(long, default_value_t = 900)]
    pub limit: u64,
    /// Launch every kernel by itself, where the device could replay all of a run at once
    #[arg(long)]
    pub launch_each: bool,
    /// Only say, by the exit status, whether two steps of the 124M model fit
    #[arg(long)]
    pub probe: bool,
    /// What a process of the checks takes
    #[arg(long, value_parser = Share::parse, default_value = "0/1", hide = true)]
    pub share: Share,
    /// The process of one part
    #[arg(long, value_enum, hide = true)]
    pub alone: Option<Part>,
}

/// Most processes that share the checks: each has a context on the card.
const MAX_SHARES: usize = 14;

/// What the suite does, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Kernels and library operations against the interpreter.
    Check,
    /// XS beside the host.
    Train,
    /// Launches of the 124M plan.
    Kernels,
    /// Steps of the 124M model in bf16.
    #[value(name = "step-124m-bf16")]
    Step124mBf16,
    /// Steps of the 124M model in f32.
    #[value(name = "step-124m-f32")]
    Step124mF32,
    /// Steps of S in bf16.
    #[value(name = "step-s-bf16")]
    StepSBf16,
    /// Steps of S in f32.
    #[value(name = "step-s-f32")]
    StepSF32,
}

/// The file.
#[derive(Debug, Serialize)]
struct Suite {
    kiln: &'static str,
    commit: &'static str,
    /// Seconds since 1970.
    date: u64,
    device: String,
    identity: String,
    quick: bool,
    batch: usize,
    parts: BTreeMap<String, Value>,
    failures: BTreeMap<String, String>,
}

/// Runs what the options ask for; true when every part ended and every check held.
///
/// # Errors
/// If the device cannot be opened, or the file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    if options.probe {
        let model = models::gpt_124m(options.batch, DType::Bf16, options.quick);
        step::probe(&model, &Target::named(&options.device)?)?;
        return Ok(true);
    }
    if let Some(part) = options.alone {
        let value = options.numbers(part, &options.target()?)?;
        fs::write(&options.out, serde_json::to_string(&value)?)?;
        return Ok(true);
    }
    // It keeps a context on a card and no memory besides; what is missing is said before any part starts.
    let identity = Target::named(&options.device)?.identity().to_owned();
    println!("{} {}: {identity}", options.device, env!("CARGO_PKG_VERSION"));
    let earlier = earlier(&options.out);
    let mut suite = Suite {
        kiln: env!("CARGO_PKG_VERSION"),
        commit: option_env!("KILN_COMMIT").unwrap_or("unknown"),
        date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        device: options.device.clone(),
        identity,
        quick: options.quick,
        batch: options.batch,
        parts: earlier.parts,
        failures: earlier.failures,
    };
    models::write_recipe(&options.weights(), &models::timed(options.batch, options.quick), Some(models::CLIP))?;
    let all = Part::value_variants();
    for &part in all.iter().filter(|p| options.parts.is_empty() || options.parts.contains(p)) {
        let begin = Instant::now();
        println!("\n== {}", part.name());
        suite.parts.remove(&part.name());
        suite.failures.remove(&part.name());
        match options.in_processes(part) {
            Ok(value) => {
                if let Some(failed) = value["failures"].as_array().filter(|f| !f.is_empty()) {
                    suite.failures.insert(part.name(), format!("{} checks failed", failed.len()));
                }
                suite.parts.insert(part.name(), value);
            }
            Err(why) => {
                println!("FAILED {}: {why}", part.name());
                suite.failures.insert(part.name(), why.to_string());
            }
        }
        println!("{:.1} s", begin.elapsed().as_secs_f64());
        fs::write(&options.out, serde_json::to_string_pretty(&suite)?)?;
    }
    println!("\n{} parts, {} of them failed; {}", suite.parts.len(), suite.failures.len(), options.out.display());
    Ok(suite.failures.is_empty())
}

/// Parts that an earlier run has left in the file.
#[derive(Default, Deserialize)]
struct Earlier {
    parts: BTreeMap<String, Value>,
    failures: BTreeMap<String, String>,
}

fn earlier(out: &Path) -> Earlier {
    let text = fs::read_to_string(out).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

impl Part {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

impl Options {
    fn weights(&self) -> PathBuf {
        let beside = || self.out.parent().unwrap_or(Path::new("")).join("weights");
        self.weights.clone().unwrap_or_else(beside)
    }

    fn target(&self) -> Result<Target> {
        let target = Target::named(&self.device)?;
        match target {
            Target::Gpu(device) if self.launch_each => {
                let alone = Arc::into_inner(device).ok_or("another session holds the device")?;
                Ok(Target::Gpu(Arc::new(alone.without_recording())))
            }
            target => Ok(target),
        }
    }

    /// Does one part.
    fn numbers(&self, part: Part, target: &Target) -> Result<Value> {
        let quick = self.quick;
        let [large, large_f32, s, s_f32] = models::timed(self.batch, quick);
        let timed = |model| step::run(model, target, &self.weights());
        Ok(match part {
            Part::Check => serde_json::to_value(check::run(target, quick, self.share)?)?,
            Part::Train => serde_json::to_value(train::run(target, quick)?)?,
            Part::Kernels => serde_json::to_value(kernels::run(&large, target, quick)?)?,
            Part::Step124mBf16 => serde_json::to_value(timed(&large)?)?,
            Part::Step124mF32 => serde_json::to_value(timed(&large_f32)?)?,
            Part::StepSBf16 => serde_json::to_value(timed(&s)?)?,
            Part::StepSF32 => serde_json::to_value(timed(&s_f32)?)?,
        })
    }

    /// Does one part in a process of its own, or the checks in as many as there are processors.
    fn in_processes(&self, part: Part) -> Result<Value> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let of = if part == Part::Check && self.device == "cuda" { processors.min(MAX_SHARES) } else { 1 };
        let shares = (0..of).map(|index| Share { index, of });
        let mut started = shares.map(|share| self.start(part, share)).collect::<Result<Vec<_>>>()?;
        match started.pop() {
            Some(only) if started.is_empty() => self.finish(only),
            last => {
                let mut all = Checked::default();
                for each in started.into_iter().chain(last) {
                    all.add(serde_json::from_value(self.finish(each)?)?);
                }
                println!(
                    "together {} trials and {} operations, {} failures",
                    all.trials,
                    all.operations,
                    all.failures.len()
                );
                Ok(serde_json::to_value(all)?)
            }
        }
    }

    /// Starts a process, and says where it will leave its numbers.
    fn start(&self, part: Part, share: Share) -> Result<(Child, PathBuf)> {
        let file = self.out.with_extension(format!("{}.{}.part", part.name(), share.index));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--device", &self.device, "--alone", &part.name(), "--batch", &self.batch.to_string()]);
        command.arg("--out").arg(&file).arg("--weights").arg(self.weights());
        command.args(["--share", &share.to_string()]);
        if self.quick {
            command.arg("--quick");
        }
        if self.launch_each {
            command.arg("--launch-each");
        }
        if share.of > 1 {
            // Processes do not append to one file.
            command.env(CACHE_VARIABLE, "off");
        }
        Ok((command.spawn()?, file))
    }

    /// Waits for a process and reads what it wrote.
    fn finish(&self, (child, file): (Child, PathBuf)) -> Result<Value> {
        let status = ended(child, Duration::from_secs(self.limit))?;
        if !status.success() {
            return Err(format!("its process ended with {status}; what it said is above").into());
        }
        let value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        fs::remove_file(&file)?;
        Ok(value)
    }
}

/// Waits for a process, and ends it after `limit`.
fn ended(mut child: Child, limit: Duration) -> Result<ExitStatus> {
    const PAUSE: Duration = Duration::from_millis(50);
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Err(format!("it took longer than {} s", limit.as_secs()).into());
        }
        std::thread::sleep(PAUSE);
    }
}
