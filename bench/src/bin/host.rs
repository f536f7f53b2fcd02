//! `host`: whole training steps on the processor beside other libraries.

use clap::{Parser, Subcommand};
use kiln_bench::Result;
use kiln_bench::host::{models, prepare, serve};
use std::io::{stdin, stdout};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "host", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write models.json, weights and tokens for all libraries
    Prepare {
        /// Where to
        folder: PathBuf,
    },
    /// Time every step of the plan
    Kernels {
        /// Model: xs, s or s_odd
        model: String,
    },
    /// Train as the lines of standard input say
    Serve {
        /// Model: xs, s or s_odd
        model: String,
        /// Worker threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
}

/// Batches of the stream of tokens, after which it begins again.
const BATCHES: usize = 64;

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Prepare { folder } => prepare(&folder, BATCHES),
        Command::Kernels { model } => {
            let known = models();
            let model = known.iter().find(|m| m.name == model).ok_or(format!("no model `{model}`"))?;
            kiln_bench::gpu::kernels::run(model, &kiln::device::Target::Host, false)?;
            Ok(())
        }
        Command::Serve { model, threads } => {
            let known = models();
            let model = known.iter().find(|m| m.name == model).ok_or(format!("no model `{model}`"))?;
            serve::serve(model, threads, BATCHES, stdin().lock(), stdout().lock())
        }
    }
}
