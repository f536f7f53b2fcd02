//! The host suite: installs the other libraries into folders of their own, builds all programs, and lets `host compare` measure.

use crate::gpu::commit;
use crate::{peers, workspace};
use std::path::PathBuf;
use std::process::Command;

/// What `cargo xtask bench` takes.
#[derive(Default)]
struct Options {
    /// PyTorch alone, the two presets, few turns: under three minutes.
    quick: bool,
    /// How the cost of a step grows, instead of other libraries.
    scaling: bool,
    /// Where the numbers go instead of `bench/results`.
    json: Option<PathBuf>,
}

const USAGE: &str = "cargo xtask bench [--quick | --scaling] [--json PATH]";
/// Turns of each library with `--quick`.
const QUICK_ROUNDS: &str = "5";

/// Measures; true if every library computed the same.
pub fn run(args: &[String]) -> Result<bool, String> {
    let options = parse(args)?;
    let host = build(&["-p", "kiln-bench", "--bin", "host"], workspace::root(), "host")?;
    if options.scaling {
        let mut command = Command::new(host);
        command.arg("scaling");
        return measure(command, options.json);
    }
    let python = peers::environment()?;
    let script = |name: &str| workspace::root().join("bench/host").join(name).display().to_string();
    let python = python.display();
    let torch = |mode: &str| format!("torch_{mode}={python} {} {{folder}} {{model}} {mode}", script("torch_serve.py"));
    let mut command = Command::new(host);
    command.arg("compare").arg(workspace::target().join("bench-host"));
    for mode in ["eager", "compile"] {
        command.args(["--peer", &torch(mode)]);
    }
    command.args(["--products", &format!("torch={python} {} {{folder}}", script("torch_products.py"))]);
    if options.quick {
        command.args(["--rounds", QUICK_ROUNDS, "--model", "s", "--model", "xs"]);
    } else {
        for name in ["burn", "candle"] {
            let program = peer(name)?;
            command.args(["--peer", &format!("{name}={} {{folder}} {{model}}", program.display())]);
        }
    }
    measure(command, options.json)
}

/// Runs a command of the suite, which keeps its numbers in `json` or under `bench/results`.
fn measure(mut command: Command, json: Option<PathBuf>) -> Result<bool, String> {
    match json {
        Some(file) => command.arg("--out").arg(file),
        None => command.arg("--results").arg(workspace::root().join("bench/results")),
    };
    command.args(["--commit", &commit()]);
    let status = command.status().map_err(|e| format!("the suite did not start: {e}"))?;
    Ok(status.success())
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--scaling" => options.scaling = true,
            "--json" => {
                let path = args.next().ok_or("`--json` needs a path")?;
                let here = std::env::current_dir().map_err(|e| format!("no current folder: {e}"))?;
                options.json = Some(here.join(path));
            }
            other => return Err(format!("unknown option `{other}`\n{USAGE}")),
        }
    }
    Ok(options)
}

/// Builds a program in release mode; its path.
fn build(args: &[&str], folder: PathBuf, name: &str) -> Result<PathBuf, String> {
    let target =
        if folder == workspace::root() { workspace::target() } else { workspace::target().join("bench-peers") };
    let mut cargo = workspace::cargo();
    cargo.current_dir(&folder).env("CARGO_TARGET_DIR", &target).args(["build", "--release"]).args(args);
    let status = cargo.status().map_err(|e| format!("cargo did not start: {e}"))?;
    match status.success() {
        true => Ok(target.join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))),
        false => Err(format!("{} does not build", folder.display())),
    }
}

/// A library from crates.io: a package of its own outside of the workspace, whose lock file pins everything.
fn peer(name: &str) -> Result<PathBuf, String> {
    build(&["--locked"], workspace::root().join("bench/peers").join(name), &format!("peer-{name}"))
}
