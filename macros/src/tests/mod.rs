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

/// The IR of a layer without mistakes.
fn ir(source: &str) -> String {
    let c = compiled(source);
    let errors: Vec<String> = c.diagnosed.list.iter().map(|r| r.diagnostic.to_string()).collect();
    let Some(layer) = c.layer else { panic!("{errors:#?}") };
    kiln_compiler::ir::text::print_layer(&layer)
}
