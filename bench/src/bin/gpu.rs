//! Checks and times Kiln on one device; `cargo xtask gpu` packs it for machines with an NVIDIA card.

use clap::Parser;
use kiln_bench::gpu::suite::{Options, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}
