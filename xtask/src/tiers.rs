//! The tiers of tests: which cargo commands each consists of, how they are run, counted and printed.

use crate::report::{Counts, listed};
use crate::{gxx, nvrtc, peers, valgrind, vulkan, workspace};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Default)]
pub struct Options {
    /// Print cases only.
    pub list: bool,
    /// Recompute peers' values.
    pub fresh: bool,
    /// Only these tiers; all if empty.
    pub only: Vec<&'static str>,
}

/// One tier: a question, and the cargo commands that answer it.
pub struct Tier {
    /// Its name.
    pub name: &'static str,
    /// What it answers.
    pub question: &'static str,
    /// Arguments after `cargo test`, one list per command. Without `-p` they select targets of [`OF_THE_WORKSPACE`].
    commands: &'static [&'static [&'static str]],
}

/// Every package but the macros: as a test target their dependencies would add features to crates that wgpu builds on, and cargo
/// would build wgpu once with and once without them.
const OF_THE_WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "kiln-macros"];

/// Its NVRTC is unpacked when it runs.
const CUDA_COMPILE: &str = "cuda-compile";

/// Its g++ is installed when it runs.
const CUDA_EMULATED: &str = "cuda-emulated";

/// Its valgrind is installed, and its program built, when it runs.
const COUNTS: &str = "counts";

/// All tiers, cheapest answers first.
pub const TIERS: &[Tier] = &[
    Tier { name: "tidy", question: "is the tree as ARCHITECTURE.md says?", commands: &[&["--test", "tidy"]] },
    Tier {
        name: "unit",
        question: "is this function right?",
        commands: &[
            &["-p", "kiln-macros", "--lib"],
            &["--lib", "--bins"],
            &["--test", "text", "--test", "type_errors"],
        ],
    },
    Tier {
        name: "ui",
        question: "does each rule fire on the right token, and only then?",
        commands: &[&["--test", "ui"]],
    },
    Tier {
        name: "golden",
        question: "what does each pass do?",
        commands: &[&["--test", "golden", "--test", "emit", "--test", "launches"]],
    },
    Tier { name: "gradients", question: "is every derivative right?", commands: &[&["--test", "ops"]] },
    Tier {
        name: "random",
        question: "do passes keep the meaning of programs?",
        commands: &[&["--test", "random", "--test", "passes"]],
    },
    Tier {
        name: "differential",
        question: "do the host and wgpu compute what the interpreter computes?",
        commands: &[&["--test", "kernels", "--test", "registered", "--test", "library"]],
    },
    Tier {
        name: CUDA_COMPILE,
        question: "does every kernel compile for CUDA cards, and without spills?",
        commands: &[&["--test", "nvrtc"]],
    },
    Tier {
        name: CUDA_EMULATED,
        question: "does the code for CUDA cards, run on the CPU, compute what f64 computes?",
        commands: &[&["--test", "cuda_emulation"]],
    },
    Tier {
        name: "plan",
        question: "is everything decided and checked before anything is allocated, and is the plan what runs?",
        commands: &[&["--test", "plan", "--test", "memory"]],
    },
    Tier {
        name: "equivalence",
        question: "do annotations, ranks, micro-batches and threads change what a step costs, never what it means?",
        commands: &[&["--test", "equivalence"]],
    },
    Tier {
        name: "decode",
        question: "does a decoder compute what whole windows compute, and allocate nothing?",
        commands: &[&["--test", "decode", "--test", "decode_memory"]],
    },
    Tier {
        name: COUNTS,
        question: "does the host device take more instructions than it did?",
        commands: &[&["--test", "counts"]],
    },
    Tier {
        name: "devices",
        question: "are whole training steps on a GPU those of the host, and are its failures typed errors?",
        commands: &[&["--test", "devices", "--test", "gpu_suite"]],
    },
    Tier { name: "peers", question: "does PyTorch get the same values?", commands: &[&["--test", "peers"]] },
    Tier {
        name: "runs",
        question: "does a run survive bad input, Ctrl-C and kill, and resume with the same bits?",
        commands: &[&["--test", "runs"]],
    },
    Tier { name: "docs", question: "do the blocks of the documentation and of the book run?", commands: &[&["--doc"]] },
    Tier {
        name: "book",
        question: "does the book link, name and quote what is there?",
        commands: &[&["--test", "book"]],
    },
    Tier {
        name: "outside",
        question: "does a user's own crate, with one dependency and its own layers, work?",
        commands: &[&["--test", "outside"]],
    },
    Tier {
        name: "newcomer",
        question: "does the book, followed block by block, work?",
        commands: &[&["--test", "newcomer"]],
    },
];

/// The tier called `name`.
pub fn find(name: &str) -> Result<&'static Tier, String> {
    TIERS.iter().find(|tier| tier.name == name).ok_or_else(|| {
        let known: Vec<&str> = TIERS.iter().map(|tier| tier.name).collect();
        format!("no tier `{name}`; there are {}", known.join(", "))
    })
}

/// Runs or lists the tiers; true when nothing failed.
pub fn run(options: &Options) -> Result<bool, String> {
    let machine = Machine::probe(!options.list);
    let mut total = Counts::default();
    let mut rows = Vec::new();
    for tier in TIERS.iter().filter(|tier| options.only.is_empty() || options.only.contains(&tier.name)) {
        println!("\n== {}: {}", tier.name, tier.question);
        let begin = Instant::now();
        let mut counts = if options.list { list(tier, &machine)? } else { execute(tier, &machine, options)? };
        if counts.cases() == 0 {
            println!("tier `{}` has no case: that is a failure", tier.name);
            counts.failed += 1;
        }
        rows.push(row(tier.name, &counts, options.list, begin.elapsed()));
        total.add(counts);
    }
    println!("\n{:<14} {:>7} {:>7} {:>7} {:>7}", "tier", "cases", "failed", "skipped", "s");
    for row in rows {
        println!("{row}");
    }
    let verb = if options.list { "to run" } else { "passed" };
    println!("\n{} {verb}, {} failed, {} skipped", total.passed, total.failed, total.skips());
    Ok(total.failed == 0)
}

/// What this machine lacks; each is the reason of a skip.
struct Machine {
    no_wgpu: Option<String>,
    no_cuda: Option<String>,
    no_nvrtc: Option<String>,
    no_gxx: Option<String>,
    no_valgrind: Option<String>,
}

impl Machine {
    fn probe(may_install: bool) -> Machine {
        let has_card = std::path::Path::new("/proc/driver/nvidia").exists();
        let no_cuda = (!has_card).then(|| "no CUDA card: kernels are compiled for it, none is run".to_owned());
        let no_nvrtc =
            nvrtc::installed().is_none().then(|| "no NVRTC yet; the tier unpacks it when it runs".to_owned());
        let (no_gxx, no_valgrind) = (gxx::missing(), valgrind::missing());
        Machine { no_wgpu: vulkan::prepare(may_install), no_cuda, no_nvrtc, no_gxx, no_valgrind }
    }

    /// Why a case cannot run here; cases say in their names which device they need.
    fn reason_to_skip(&self, case: &str) -> Option<&str> {
        let needs = |word: &str| case.contains(word);
        match () {
            () if needs("wgpu") => self.no_wgpu.as_deref(),
            () if needs("cuda") => self.no_cuda.as_deref(),
            () if needs("nvrtc") => self.no_nvrtc.as_deref(),
            () if needs("emulated") => self.no_gxx.as_deref(),
            () if needs("counted") => self.no_valgrind.as_deref(),
            () => None,
        }
    }
}

fn list(tier: &Tier, machine: &Machine) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for arguments in tier.commands {
        let all = names(arguments, &["--list"])?;
        let ignored = names(arguments, &["--list", "--ignored"])?;
        for case in &all {
            match machine.reason_to_skip(case) {
                Some(reason) => counts.skip(reason),
                None if ignored.contains(case) => counts.skip("marked as ignored in the source"),
                None => counts.passed += 1,
            }
        }
    }
    Ok(counts)
}

fn names(arguments: &[&str], flags: &[&str]) -> Result<Vec<String>, String> {
    let output = command(arguments)
        .arg("--")
        .args(flags)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo did not start: {e}"))?;
    if !output.status.success() {
        return Err(format!("`cargo test {}` does not build", arguments.join(" ")));
    }
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

fn execute(tier: &Tier, machine: &Machine, options: &Options) -> Result<Counts, String> {
    let skips = workspace::target().join("skips.txt");
    let mut counts = Counts::default();
    for arguments in tier.commands {
        fs::create_dir_all(workspace::target()).map_err(|e| format!("{}: {e}", workspace::target().display()))?;
        fs::write(&skips, "").map_err(|e| format!("{}: {e}", skips.display()))?;
        let mut command = command(arguments);
        command.env("KILN_SKIPS", &skips);
        // Compiled kernels stay out of the user's own cache.
        command.env("KILN_KERNEL_CACHE", workspace::target().join("kernels"));
        if let Some(reason) = &machine.no_wgpu {
            command.env("KILN_NO_WGPU", reason);
        }
        if let Some(reason) = &machine.no_cuda {
            command.env("KILN_NO_CUDA", reason);
        }
        if options.fresh && tier.name == "peers" {
            let fresh = peers::compute()?;
            command.env("KILN_PEERS_VALUES", fresh.values).env("KILN_PEERS_PYTHON", fresh.python);
        }
        if tier.name == CUDA_COMPILE {
            match nvrtc::prepare() {
                Ok(folder) => command.env("KILN_NVRTC", folder),
                Err(reason) => command.env("KILN_NO_NVRTC", reason),
            };
        }
        if tier.name == CUDA_EMULATED
            && let Some(reason) = gxx::prepare()
        {
            command.env("KILN_NO_GXX", reason);
        }
        if tier.name == COUNTS {
            match valgrind::prepare()? {
                Ok(program) => command.env("KILN_COUNTED", program),
                Err(reason) => command.env("KILN_NO_VALGRIND", reason),
            };
        }
        let (output, success) = stream(command)?;
        let mut one = Counts::of_run(&output);
        one.take_skips(&fs::read_to_string(&skips).unwrap_or_default());
        if !success && one.failed == 0 {
            // Did not build, or died before its summary.
            one.failed = 1;
        }
        counts.add(one);
    }
    Ok(counts)
}

/// Runs a command, prints its lines as they come, and returns them with its success.
fn stream(mut command: Command) -> Result<(String, bool), String> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cargo did not start: {e}"))?;
    let mut kept = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|e| format!("reading cargo's output: {e}"))?;
            // Passing cases are counted, not printed.
            if !line.ends_with(" ... ok") && !line.is_empty() {
                println!("{line}");
            }
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let status = child.wait().map_err(|e| format!("waiting for cargo: {e}"))?;
    Ok((kept, status.success()))
}

fn command(arguments: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.arg("test");
    if !arguments.contains(&"-p") {
        command.args(OF_THE_WORKSPACE);
    }
    command.args(arguments);
    command
}

fn row(name: &str, counts: &Counts, listing: bool, elapsed: Duration) -> String {
    let seconds = if listing { String::new() } else { elapsed.as_secs().to_string() };
    let mut row = format!("{name:<14} {:>7} {:>7} {:>7} {seconds:>7}", counts.cases(), counts.failed, counts.skips());
    for (reason, n) in &counts.skipped {
        row.push_str(&format!("\n{:<14} {n} skipped: {reason}", ""));
    }
    row
}
