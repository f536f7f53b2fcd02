//! `host`: whole training steps, and cached generation, on the processor beside other libraries.

use clap::{Args, Parser, Subcommand};
use kiln_bench::Result;
use kiln_bench::host::compare::{Peer, Plan, THREADS, run};
use kiln_bench::host::{BATCHES, decode, models, named, prepare, scaling, serve, show};
use kiln_bench::models::Model;
use serde::Serialize;
use std::fs;
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
        #[arg(long, default_value_t = THREADS)]
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
        #[arg(long, default_value_t = THREADS)]
        threads: usize,
    },
    /// Measure how the cost of a step grows with batch, sequence, layers and threads
    Scaling {
        /// Worker threads
        #[arg(long, default_value_t = THREADS)]
        threads: usize,
        /// Turns of each size
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        #[command(flatten)]
        kept: Kept,
    },
    /// Measure Kiln beside other libraries
    Compare {
        /// Where models, weights and tokens are written
        folder: PathBuf,
        /// NAME=PROGRAM ARGUMENTS of a library, with {folder} and {model} in its arguments
        #[arg(long = "peer", value_parser = peer)]
        peers: Vec<Peer>,
        /// NAME=PROGRAM ARGUMENTS that gives the rates of another library's products
        #[arg(long, value_parser = peer)]
        products: Option<Peer>,
        /// Models
        #[arg(long = "model", default_values = ["s", "xs", "s_odd"])]
        models: Vec<String>,
        /// Turns of each library
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        #[command(flatten)]
        kept: Kept,
    },
}

/// What is measured, and where the results are kept.
#[derive(Args)]
struct Kept {
    /// The commit that is measured
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Folder that keeps the numbers, the table and the picture, under the processor and the day
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// File of the numbers instead; table and picture lie beside it
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Kept {
    /// Writes numbers, table and picture side by side, and shows the table.
    fn keep(&self, name: &str, numbers: &impl Serialize, table: &str, picture: &str) -> Result<()> {
        println!("\n{table}");
        let out = self.out.clone().unwrap_or_else(|| self.results.join(format!("{name}.json")));
        fs::write(&out, serde_json::to_string_pretty(numbers)?)?;
        fs::write(out.with_extension("md"), table)?;
        fs::write(out.with_extension("svg"), picture)?;
        println!("{}", out.display());
        Ok(())
    }
}

/// `NAME=PROGRAM ARGUMENTS`, separated by blanks.
fn peer(text: &str) -> std::result::Result<Peer, String> {
    let (name, command) = text.split_once('=').ok_or("a peer is NAME=PROGRAM ARGUMENTS")?;
    let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    match command.is_empty() {
        true => Err(format!("`{name}` has no program")),
        false => Ok(Peer { name: name.to_owned(), command }),
    }
}

fn model(name: &str) -> Result<Model> {
    Ok(models().into_iter().find(|m| m.name == name).ok_or(format!("no model `{name}`"))?)
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Prepare { folder } => prepare(&folder, BATCHES),
        Command::Serve { model: name, threads } => {
            serve::serve(&model(&name)?, threads, BATCHES, stdin().lock(), stdout().lock())
        }
        Command::Decode { model: name, tokens, threads } => {
            decode::decode(&model(&name)?, threads, tokens, stdout().lock())
        }
        Command::Compare { folder, peers, products, models, rounds, kept } => {
            let own = std::env::current_exe()?.display().to_string();
            let kiln = Peer { name: "kiln".to_owned(), command: [&own, "serve", "{model}"].map(str::to_owned).into() };
            let peers = std::iter::once(kiln).chain(peers).collect();
            let commit = kept.commit.clone();
            let results = run(&Plan { peers, products, models, rounds, commit }, &folder)?;
            kept.keep(&results.name(), &results, &show::table(&results), &show::chart(&results))
        }
        Command::Scaling { threads, rounds, kept } => {
            let scaling = scaling::run(threads, rounds, &kept.commit)?;
            let name = format!("{}-scaling", named(&scaling.cpu, &scaling.date));
            kept.keep(&name, &scaling, &scaling::table(&scaling), &scaling::chart(&scaling))
        }
    }
}
