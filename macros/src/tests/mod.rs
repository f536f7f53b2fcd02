//! In-process tests: layer tokens in, IR text or diagnostics out.

mod models;

use crate::annotations::is_attr;
use crate::layer::{Compiled, compile};
use proc_macro2::TokenStream;
use syn::{ItemFn, Meta};

/// Runs all stages but expansion on the source of one `#[layer]` function.
fn compiled(source: &str) -> Compiled {
    let mut item: ItemFn = syn::parse_str(source).unwrap();
    let at = item.attrs.iter().position(|a| is_attr(a, "layer")).unwrap();
    let args = match item.attrs.remove(at).meta {
        Meta::List(list) => list.tokens,
        _ => TokenStream::new(),
    };
    compile(args, item)
}

/// The mistakes of a layer as `line:column CODE`, and their full text.
#[expect(dead_code, reason = "tests of diagnostics follow")]
fn mistakes(source: &str) -> Vec<(String, String)> {
    let c = compiled(source);
    let place = |r: &crate::diagnostics::Reported| {
        let at = r.span().start();
        format!("{}:{} {}", at.line, at.column + 1, r.diagnostic.code)
    };
    c.diagnosed.list.iter().map(|r| (place(r), r.diagnostic.to_string())).collect()
}

/// The IR of a layer without mistakes.
fn ir(source: &str) -> String {
    let c = compiled(source);
    let errors: Vec<String> = c.diagnosed.list.iter().map(|r| r.diagnostic.to_string()).collect();
    let Some(layer) = c.layer else { panic!("{errors:#?}") };
    kiln_compiler::ir::text::print_layer(&layer)
}
