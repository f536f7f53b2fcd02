//! The models of the language's first page: their IR, as a golden file.

use super::{compiled, ir};
use std::time::Instant;

const SOURCE: &str = include_str!("models.txt");

/// The functions of the source file, one after the other.
fn layers() -> impl Iterator<Item = &'static str> {
    SOURCE.split("\n\n").filter(|s| s.contains("#[layer"))
}

#[test]
fn ir_of_the_models() {
    let found: String = layers().map(ir).collect::<Vec<_>>().join("\n");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/models.golden");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(path).unwrap(), "BLESS=1 rewrites {path}");
    for layer in layers().map(ir) {
        let read = kiln_compiler::ir::text::parse_layer(&layer).unwrap();
        assert_eq!(kiln_compiler::ir::text::print_layer(&read), layer);
    }
}

/// Prints the median expansion of each layer (`--nocapture`), tokens in, tokens out.
#[test]
fn largest_layer_expands_quickly() {
    // The contract is 10 ms in the profile of `cargo check`, whose macros are optimised; tests run at opt-level 1 beside others.
    const LIMIT_MS: f64 = 50.0;
    const RUNS: usize = 21;
    let mut largest = 0.0f64;
    for source in layers() {
        let mut runs: Vec<f64> = (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                assert!(!crate::expand::expand(&compiled(source)).is_empty());
                1e3 * start.elapsed().as_secs_f64()
            })
            .collect();
        runs.sort_by(f64::total_cmp);
        let name = source.split("fn ").nth(1).and_then(|rest| rest.split('(').next()).unwrap_or_default();
        println!("{name}: median {:.2} ms of {RUNS}", runs[RUNS / 2]);
        largest = largest.max(runs[RUNS / 2]);
    }
    assert!(largest < LIMIT_MS, "the largest layer expands in {largest:.1} ms");
}
