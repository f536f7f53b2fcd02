//! Tasks of the project: `cargo xtask test`, `mutants`, `bench`, `gpu`, `arm`, `book`. Calls cargo and reads its output; never builds by itself.

mod apt;
mod arm;
mod bench;
mod book;
mod gpu;
mod gxx;
mod mutants;
mod nvrtc;
mod peers;
mod report;
mod tiers;
mod valgrind;
mod vulkan;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask test [--tier NAME]... [--list] [--fresh]   every tier of tests, or the named ones
    --list    print per tier its cases, how many would be skipped and why; run none
    --fresh   recompute the PyTorch values of the tier `peers` instead of reading the kept ones
cargo xtask mutants [NAME]... [--list]                  break the code one line at a time; each break must be caught
cargo xtask bench [--quick | --scaling] [--json PATH]   training steps on the processor beside PyTorch, burn and candle
    --quick   PyTorch alone, the two presets, few turns
    --scaling the cost of a step against batch, sequence, layers and threads, Kiln alone
    --json    where the numbers go, instead of bench/results
cargo xtask gpu [--pack-only]                           pack the GPU suite; where there is an NVIDIA card, run it beside PyTorch
cargo xtask arm                                         the host device's tests on AArch64, under an emulator if need be
cargo xtask book                                        build the guide with mdbook";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((task, rest)) if task == "test" => test(rest),
        Some((task, rest)) if task == "mutants" => mutants::run(rest),
        Some((task, rest)) if task == "bench" => bench::run(rest),
        Some((task, rest)) if task == "gpu" => gpu::run(rest),
        Some((task, [])) if task == "arm" => arm::run(),
        Some((task, [])) if task == "book" => book::build(),
        Some((flag, _)) if flag == "--help" || flag == "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn test(args: &[String]) -> Result<bool, String> {
    let mut options = tiers::Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--fresh" => options.fresh = true,
            "--tier" => {
                let name = args.next().ok_or("`--tier` needs a name")?;
                options.only.push(tiers::find(name)?.name);
            }
            other => return Err(format!("unknown option `{other}`\n{USAGE}")),
        }
    }
    tiers::run(&options)
}
