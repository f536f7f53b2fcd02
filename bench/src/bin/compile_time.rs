//! What Kiln costs a user at compile time: `cargo check` after a changed body, and what a hundred more kernels add to it.
//!
//! In: the sources of the example `gpt`, copied into a crate of its own under the target folder. Out: medians in seconds.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use kiln_examples as _;

/// Changed bodies, of which the median is printed.
const ROUNDS: usize = 5;
/// Kernels that the second measurement adds.
const KERNELS: usize = 100;
/// The line of the example that each round changes.
const BODY: &str = "let h = x.matmul(gate).silu() * x.matmul(up);";

fn main() -> Result<(), Box<dyn Error>> {
    let crate_folder = generate()?;
    let model = fs::read_to_string(root().join("examples/src/gpt.rs"))?;
    if !model.contains(BODY) {
        return Err(format!("the example has no line `{BODY}`").into());
    }
    let library = crate_folder.join("src/gpt.rs");
    let copies = crate_folder.join("src/copies.rs");
    fs::write(&copies, "//! No copies.\n")?;
    fs::write(&library, &model)?;
    let cold = check(&crate_folder)?;
    println!("first `cargo check` of the example, dependencies included: {cold:.1} s");

    let changed = |round: usize| model.replace(BODY, &format!("{} * {}.5;", BODY.trim_end_matches(';'), round + 2));
    let bodies = (0..ROUNDS).map(|round| {
        fs::write(&library, changed(round))?;
        check(&crate_folder)
    });
    println!("`cargo check` after a changed body: {}", spread(bodies.collect::<Result<_, _>>()?));

    let of_block = block_kernels();
    let n = KERNELS.div_ceil(of_block);
    let kernels = n * of_block;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        fs::write(&copies, format!("//! No copies, round {round}.\n"))?;
        without.push(check(&crate_folder)?);
        fs::write(&copies, renamed_copies(&model, n, round))?;
        with.push(check(&crate_folder)?);
    }
    let added = median(&with) - median(&without);
    println!("`cargo check` without copies: {}", spread(without));
    println!("`cargo check` with {n} renamed copies of the block, {kernels} kernels: {}", spread(with));
    println!("{KERNELS} kernels add {:.2} s", added * KERNELS as f64 / kernels as f64);
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A crate with the example's sources that depends on Kiln by path, as a user's does, in the workspace's profile.
fn generate() -> Result<PathBuf, Box<dyn Error>> {
    let folder = target().join("compile-time");
    let sources = folder.join("src");
    fs::create_dir_all(&sources)?;
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::write(
        sources.join("lib.rs"),
        "//! The example's model, and copies of its block.\n\npub mod copies;\npub mod gpt;\n",
    )?;
    let workspace = fs::read_to_string(root().join("Cargo.toml"))?;
    let profiles = workspace.find("[profile.dev]").map_or("", |at| &workspace[at..]);
    let kiln = root().join("runtime").canonicalize()?;
    let manifest = format!(
        "[package]\nname = \"compile-time\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\nkiln = {{ path = {kiln:?} }}\n\n{profiles}"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    Ok(folder)
}

/// Seconds of one `cargo check`.
fn check(folder: &Path) -> Result<f64, Box<dyn Error>> {
    let begin = Instant::now();
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["check", "--quiet", "--offline"]).current_dir(folder).env("CARGO_TARGET_DIR", target());
    match command.status()?.success() {
        true => Ok(begin.elapsed().as_secs_f64()),
        false => Err("`cargo check` failed".into()),
    }
}

/// Kernels of the block and its children.
fn block_kernels() -> usize {
    let of_block = |name: &str| ["block", "attention", "swiglu"].contains(&name);
    kiln::layers().filter(|l| l.module.ends_with("::gpt") && of_block(l.name)).map(|l| l.kernels.len()).sum()
}

/// The example's layers up to the block, `n` times, each in a module and under names of its own.
fn renamed_copies(model: &str, n: usize, round: usize) -> String {
    let block = model.split("/// Embedding, blocks").next().unwrap_or(model);
    let body: String = block.lines().filter(|l| !l.starts_with("//!")).map(|l| format!("{l}\n")).collect();
    let mut text = format!("//! Round {round}.\n");
    for i in 0..n {
        let mut copy = body.clone();
        for (lower, upper) in [("swiglu", "Swiglu"), ("attention", "Attention"), ("block", "Block")] {
            copy = copy.replace(&format!("fn {lower}("), &format!("fn {lower}_r{round}_{i}("));
            copy = copy.replace(&format!(": {upper},"), &format!(": {upper}R{round}{i},"));
        }
        text.push_str(&format!("/// Copy {i}.\npub mod copy_{i} {{\n{copy}}}\n"));
    }
    text
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(seconds: Vec<f64>) -> String {
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seconds.iter().copied().fold(0.0, f64::max);
    format!("median {:.2} s ({least:.2}–{most:.2}, {} runs)", median(&seconds), seconds.len())
}
