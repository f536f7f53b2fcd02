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

#[test]
fn largest_layer_expands_quickly() {
    // The contract is 10 ms of an optimised macro; tests run at opt-level 1 beside others.
    const LIMIT_MS: u128 = 100;
    let start = Instant::now();
    for source in layers() {
        let c = compiled(source);
        let tokens = crate::expand::expand(&c);
        assert!(!tokens.is_empty());
    }
    assert!(start.elapsed().as_millis() < LIMIT_MS, "{:?} for all models", start.elapsed());
}
