//! The book's error reference, made from the cases: each failing case, its message, the corrected code.

use crate::cases::{Case, Kind};
use crate::check::Diagnostics;
use kiln_compiler::diagnostics::CODES;
use kiln_tests::{folders, snapshot};

/// Compares `book/src/reference/errors.md` with what the cases give now.
pub fn check(cases: &[Case], diagnostics: &Diagnostics) -> Result<(), String> {
    snapshot::check(&folders::root().join("book/src/reference/errors.md"), &page(cases, diagnostics))
}

fn page(cases: &[Case], diagnostics: &Diagnostics) -> String {
    let mut page = String::from(
        "# Errors\n\nEvery code has one meaning. Below each: code that raises it, what rustc prints, and the corrected code. The page is\n\
         made from the ui tests (`BLESS=1 cargo xtask test --tier ui` rewrites it).\n",
    );
    for (code, title) in CODES {
        page.push_str(&format!("\n## {code}: {title}\n"));
        let fails: Vec<&Case> = cases
            .iter()
            .filter(|c| c.kind == Kind::Fail && c.marks().first().is_some_and(|m| m.code == *code))
            .collect();
        if fails.is_empty() {
            page.push_str(&format!("\n{}\n", stage(code)));
        }
        for fail in fails {
            let said = diagnostics.get(&fail.example()).map_or(&[][..], Vec::as_slice);
            let messages: Vec<String> = said.iter().map(|s| message(&s.rendered, &fail.stem)).collect();
            let messages = messages.join("\n");
            page.push_str(&format!("\n```rust,ignore\n{}```\n\n```text\n{messages}```\n", body(&fail.source)));
            if let Some(pass) = cases.iter().find(|c| c.kind == Kind::Pass && c.stem == fail.stem) {
                page.push_str(&format!("\nCorrected:\n\n```rust,ignore\n{}```\n", body(&pass.source)));
            }
        }
    }
    page
}

/// When codes without a ui case are raised.
fn stage(code: &str) -> &'static str {
    match &code[..3] {
        "K06" => "Raised while a layer is differentiated.",
        "K07" => "Raised when a model is linked and planned, before anything is allocated.",
        "K08" => "Raised at run time: state, data, device, numerics.",
        _ => "Raised when a model is linked.",
    }
}

/// A case without its opening doc line and marks.
fn body(source: &str) -> String {
    let kept = |l: &&str| !l.starts_with("//!") && !l.trim_start().starts_with("//~");
    let text: Vec<&str> = source.lines().filter(kept).collect();
    format!("{}\n", text.join("\n").trim())
}

/// rustc's rendering with a short file name and without line numbers, which differ from the shown code by the marks.
fn message(rendered: &str, stem: &str) -> String {
    let mut text = String::new();
    for line in rendered.trim_end().lines().filter(|l| !l.contains("this error originates in")) {
        match line.split_once("--> ") {
            Some((arrow, _)) => text.push_str(&format!("{arrow}--> {stem}.rs\n")),
            None => text.push_str(&format!("{}\n", line.trim_end())),
        }
    }
    text
}
