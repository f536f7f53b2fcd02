//! A checked layer as tokens: the function that stays, the struct with `forward`, `impl Layer`, and the checks that only constants can make.

mod cross_checks;
mod function;
mod kernels;
mod layer_impl;
mod structure;

use crate::body::{Body, text};
use crate::diagnostics::{Diagnosed, compile_errors};
use crate::signature::Signature;
use kiln_compiler::ir;
use proc_macro2::TokenStream;
use quote::quote;

/// Everything that `#[layer]` emits. Without an IR the layer is poisoned: it exists, its `SIG` fits every caller.
pub fn expand(signature: &Signature, body: &Body, layer: Option<&ir::Layer>, diagnosed: &Diagnosed) -> TokenStream {
    let errors = compile_errors(&diagnosed.list);
    let function = function::expand_function(signature, diagnosed.rustc_repeats);
    let structure = structure::expand_struct(signature);
    let implementation = layer_impl::expand_impl(signature, body, layer);
    let checks = cross_checks::expand_checks(signature, body);
    let kernels = kernels::expand_kernels(signature, layer);
    quote! { #function #structure #implementation #checks #kernels #errors }
}

/// The axes of a list of identifiers, for documentation: `B, S, D`.
fn axes_text(axes: &[proc_macro2::Ident]) -> String {
    axes.iter().map(text).collect::<Vec<_>>().join(", ")
}
