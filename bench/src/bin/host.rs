//! `host`: whole training steps, and cached generation, on the processor beside other libraries.

use clap::{Parser, Subcommand};
use kiln_bench::Result;
use kiln_bench::host::{decode, models, prepare, serve};
use kiln_bench::models::Model;
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
    /// Train as the lines of standard input say
    Serve {
        /// Model: xs, s or s_odd
        model: String,
        /// Worker threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Time cached generation of one row: {"tokens": n, "seconds": t}
    Decode {
        /// Model: xs, s or s_odd
        model: String,
        /// Tokens to generate
        #[arg(default_value_t = 256)]
        tokens: usize,
        /// Worker threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
}

/// The model of that name.
fn known(name: &str) -> Result<Model> {
    let found = models().into_iter().find(|m| m.name == name);
    Ok(found.ok_or(format!("no model `{name}`"))?)
}

/// Batches of the stream of tokens, after which it begins again.
const BATCHES: usize = 64;

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Prepare { folder } => prepare(&folder, BATCHES),
        Command::Serve { model, threads } => {
            serve::serve(&known(&model)?, threads, BATCHES, stdin().lock(), stdout().lock())
        }
        Command::Decode { model, tokens, threads } => decode::decode(&known(&model)?, threads, tokens, stdout().lock()),
    }
}
