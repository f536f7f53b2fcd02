//! `gpt`: trains a small GPT on text, writes with it, explains its plan, lists its kernels.

use std::process::ExitCode;

use clap::Parser;
use kiln::progress::print_line;
use kiln_examples::cli::{Cli, Command};
use kiln_examples::failure::report;
use kiln_examples::{generate, train};

fn main() -> ExitCode {
    let cli = Cli::parse();
    report(match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => train::train(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Explain(args) => train::print_plan(&args),
        Command::Kernels => {
            print_kernels();
            Ok(ExitCode::SUCCESS)
        }
    })
}

/// Every kernel of every layer that is linked in, dependencies' too.
fn print_kernels() {
    for layer in kiln::layers() {
        for kernel in layer.kernels {
            print_line(&format!("{:016x}  {}::{}  {}", kernel.hash, layer.module, layer.name, kernel.name));
        }
    }
}
