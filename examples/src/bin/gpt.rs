//! `gpt`: trains a small GPT on text, writes with it, explains its plan, lists its kernels.

use std::process::ExitCode;

use clap::Parser;
use kiln_examples::cli::{Cli, Command};
use kiln_examples::failure::report;
use kiln_examples::{generate, kernels, train};

fn main() -> ExitCode {
    let cli = Cli::parse();
    report(match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => train::train(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Explain(args) => train::print_plan(&args),
        Command::Kernels(args) => kernels::kernels(&args),
    })
}
