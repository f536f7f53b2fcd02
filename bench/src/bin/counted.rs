//! `counted`: one fixed piece of work of the host device, for callgrind to count its instructions; the tier `counts` runs it.

use clap::Parser;
use kiln_bench::Result;
use kiln_bench::host::counted;

#[derive(Parser)]
#[command(name = "counted", version)]
struct Cli {
    /// Print the names of all cases
    #[arg(long)]
    list: bool,
    /// The case to run
    #[arg(required_unless_present = "list")]
    name: Option<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.list {
        counted::names().for_each(|name| println!("{name}"));
    }
    cli.name.map_or(Ok(()), |name| counted::run(&name))
}
