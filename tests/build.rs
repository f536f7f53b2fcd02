//! The book as code, before the tests are compiled: the reader's library of Part I, and one documented item for each page, whose
//! Rust blocks rustdoc runs.

#[path = "src/markdown.rs"]
mod markdown;

use std::path::Path;
use std::{env, fs};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let source = Path::new(&manifest).join("../book/src");
    println!("cargo::rerun-if-changed={}", source.display());
    let read = |page: &str| fs::read_to_string(source.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
    let pages = markdown::links(&read("SUMMARY.md"));
    let start: Vec<String> = pages.iter().filter(|page| page.starts_with("start/")).map(|page| read(page)).collect();
    let library = markdown::files(&start).remove("src/lib.rs").unwrap_or_default();
    fs::write(Path::new(&out).join("moons.rs"), library).expect("the folder is there");

    let mut items = String::new();
    // The blocks of the error reference are the cases of the tier `ui`, which runs them.
    for page in pages.iter().filter(|page| *page != "reference/errors.md") {
        let name: String =
            page.trim_end_matches(".md").chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let path = fs::canonicalize(source.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        items.push_str(&format!("#[doc = include_str!({path:?})]\npub mod {name} {{}}\n"));
    }
    fs::write(Path::new(&out).join("pages.rs"), items).expect("the folder is there");
}
