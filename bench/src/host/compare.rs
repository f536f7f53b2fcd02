//! All libraries side by side: starts their programs, lets them take turns, compares their losses, keeps every raw number.

use super::products::{self, Product};
use super::{models, named, prepare, processor, today};
use crate::Result;
use crate::models::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// A library: its name in the file, and the program with arguments, in which `{folder}` and `{model}` stand for what they say.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `kiln`, `torch_eager`, `torch_compile`, `burn` or `candle`.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Kiln first.
    pub peers: Vec<Peer>,
    /// Gives the rates of another library's products, as [`products`] does for Kiln.
    pub products: Option<Peer>,
    /// Names of models.
    pub models: Vec<String>,
    /// Turns of each library.
    pub rounds: usize,
    /// The commit that is measured.
    pub commit: String,
}

/// Numbers of one library on one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Of each turn.
    pub tokens_per_s: Vec<f64>,
    /// Largest resident size of the process.
    pub peak_bytes: u64,
    /// From the start of the process to the end of its first step, compilation included.
    pub first_step_s: f64,
    /// Of the last step.
    pub loss: f64,
    /// Minor page faults per timed step.
    pub faults_per_step: f64,
    /// Part of the processor time of the timed steps that the kernel took.
    pub system_share: f64,
}

/// The file of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Day, as YYYY-MM-DD.
    pub date: String,
    /// The commit that was measured.
    pub commit: String,
    /// Name of the processor.
    pub cpu: String,
    /// Worker threads of each library.
    pub threads: usize,
    /// Model, in capitals → library → numbers.
    pub models: BTreeMap<String, BTreeMap<String, Measured>>,
    /// Model → tokens/s if its products took no longer than the faster of Kiln and PyTorch takes for each, and all else nothing.
    pub floor_tokens_per_s: BTreeMap<String, f64>,
    /// Model → products with the rates of each library.
    pub products: BTreeMap<String, Vec<Product>>,
}

impl Results {
    /// `host-amd-epyc-9r14-2026-11-26`.
    pub fn name(&self) -> String {
        named(&self.cpu, &self.date)
    }
}

/// Threads of each library.
pub const THREADS: usize = 2;
/// Losses of all libraries after the same steps agree within this.
const TOLERANCE: f64 = 1e-3;
/// A turn takes about as long as Kiln needs for so many tokens.
const TOKENS_PER_TURN: usize = 6_144;

/// Measures everything.
///
/// # Errors
/// If a program cannot be started or ends early, or if losses differ.
pub fn run(plan: &Plan, folder: &Path) -> Result<Results> {
    fs::create_dir_all(folder)?;
    prepare(folder, super::BATCHES)?;
    let known = models();
    let mut results = Results {
        date: today(),
        commit: plan.commit.clone(),
        cpu: processor(),
        threads: THREADS,
        models: BTreeMap::new(),
        floor_tokens_per_s: BTreeMap::new(),
        products: BTreeMap::new(),
    };
    for name in &plan.models {
        let model = known.iter().find(|m| m.name == name).ok_or(format!("no model `{name}`"))?;
        let measured = side_by_side(plan, model, folder)?;
        let mut rates = products::of(model, THREADS)?;
        if let Some(other) = &plan.products {
            add_rates(&mut rates, other, name, folder)?;
        }
        let name = name.to_uppercase();
        let floor: f64 = rates.iter().map(Product::least_seconds).sum();
        results.floor_tokens_per_s.insert(name.clone(), model.tokens_per_step() as f64 / floor);
        results.products.insert(name.clone(), rates);
        results.models.insert(name, measured);
    }
    Ok(results)
}

/// One model.
fn side_by_side(plan: &Plan, model: &Model, folder: &Path) -> Result<BTreeMap<String, Measured>> {
    let steps = (TOKENS_PER_TURN * if model.name == "xs" { 4 } else { 1 }).div_ceil(model.tokens_per_step());
    let mut running = Vec::new();
    for peer in &plan.peers {
        let started = Running::start(peer, model.name, folder)?;
        println!("{} {}: first step after {:.2} s", model.name, peer.name, started.first_step_s);
        running.push(started);
    }
    // Pools, caches and compilers settle.
    for peer in &mut running {
        peer.turn(steps)?;
    }
    for _ in 0..plan.rounds {
        for peer in &mut running {
            peer.timed_turn(steps, model.tokens_per_step())?;
        }
    }
    let measured = running.into_iter().map(|r| r.end(steps * plan.rounds)).collect::<Result<BTreeMap<_, _>>>()?;
    let losses = || measured.iter().map(|(name, m)| (m.loss, name));
    let (Some((least, a)), Some((most, b))) =
        (losses().min_by(|x, y| x.0.total_cmp(&y.0)), losses().max_by(|x, y| x.0.total_cmp(&y.0)))
    else {
        return Err("nothing to measure".into());
    };
    let apart = most - least;
    if apart.is_nan() || apart > TOLERANCE {
        return Err(
            format!("{}: the loss of {a} is {least}, that of {b} {most}, after the same steps", model.name).into()
        );
    }
    Ok(measured)
}

/// A program that answers.
struct Running {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    first_step_s: f64,
    loss: f64,
    tokens_per_s: Vec<f64>,
    used: Used,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seconds: f64,
    loss: f64,
}

/// What the kernel counts for a process.
#[derive(Clone, Copy, Default)]
struct Used {
    faults: u64,
    user: u64,
    system: u64,
}

impl Running {
    fn start(peer: &Peer, model: &str, folder: &Path) -> Result<Running> {
        let mut command = command(peer, model, folder)?;
        let begin = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| {
            format!("{}: {} did not start: {e}", peer.name, peer.command.first().map_or("", String::as_str))
        })?;
        let (input, output) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
        let mut running = Running {
            name: peer.name.clone(),
            child,
            input,
            output: BufReader::new(output),
            first_step_s: 0.0,
            loss: f64::NAN,
            tokens_per_s: Vec::new(),
            used: Used::default(),
        };
        running.answer()?;
        running.first_step_s = begin.elapsed().as_secs_f64();
        Ok(running)
    }

    fn answer(&mut self) -> Result<f64> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            return Err(format!("{} ended with {status}", self.name).into());
        }
        let answer: Answer =
            serde_json::from_str(&line).map_err(|e| format!("{} answered `{}`: {e}", self.name, line.trim()))?;
        self.loss = answer.loss;
        Ok(answer.seconds)
    }

    fn turn(&mut self, steps: usize) -> Result<f64> {
        writeln!(self.input, "{steps}")?;
        self.input.flush()?;
        self.answer()
    }

    fn timed_turn(&mut self, steps: usize, tokens: usize) -> Result<()> {
        let before = self.counted();
        let seconds = self.turn(steps)?;
        let after = self.counted();
        self.used.faults += after.faults - before.faults;
        self.used.user += after.user - before.user;
        self.used.system += after.system - before.system;
        self.tokens_per_s.push((steps * tokens) as f64 / seconds);
        Ok(())
    }

    /// Faults and ticks so far; zeros where the system does not tell.
    fn counted(&self) -> Used {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name may have blanks; what follows it has fixed places, the state being the third field.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3).and_then(|f| f.parse().ok()).unwrap_or(0);
        Used { faults: number(10), user: number(14), system: number(15) }
    }

    /// Ends it; its numbers.
    fn end(mut self, steps: usize) -> Result<(String, Measured)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        drop(self.input);
        self.child.wait()?;
        let all = (self.used.user + self.used.system).max(1) as f64;
        let measured = Measured {
            tokens_per_s: self.tokens_per_s,
            peak_bytes: 1024 * peak.unwrap_or(0),
            first_step_s: self.first_step_s,
            loss: self.loss,
            faults_per_step: self.used.faults as f64 / steps as f64,
            system_share: self.used.system as f64 / all,
        };
        Ok((self.name, measured))
    }
}

fn command(peer: &Peer, model: &str, folder: &Path) -> Result<Command> {
    let filled = |arg: &String| arg.replace("{folder}", &folder.display().to_string()).replace("{model}", model);
    let mut words = peer.command.iter().map(filled);
    let mut command = Command::new(words.next().ok_or("a peer has a program")?);
    let threads = THREADS.to_string();
    command.args(words).env("OMP_NUM_THREADS", &threads).env("OMP_PROC_BIND", "true").env("OMP_PLACES", "cores");
    command.env("RAYON_NUM_THREADS", &threads).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Asks another library for the rates of the same products.
fn add_rates(rates: &mut [Product], other: &Peer, model: &str, folder: &Path) -> Result<()> {
    let wanted = folder.join("products.json");
    fs::write(&wanted, serde_json::to_string(&rates)?)?;
    let output = command(other, model, folder)?.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{} ended with {}", other.name, output.status).into());
    }
    let found: Vec<f64> = serde_json::from_slice(&output.stdout)?;
    for (product, gflops) in rates.iter_mut().zip(found) {
        product.gflops.insert(other.name.clone(), gflops);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_named_after_processor_and_day() {
        let results = Results {
            date: "2026-11-26".to_owned(),
            commit: String::new(),
            cpu: "Intel(R) Xeon(R) Processor".to_owned(),
            threads: THREADS,
            models: BTreeMap::new(),
            floor_tokens_per_s: BTreeMap::new(),
            products: BTreeMap::new(),
        };
        assert_eq!(results.name(), "host-intel-xeon-processor-2026-11-26");
    }
}
