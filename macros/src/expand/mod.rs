//! A checked layer as tokens: the function that stays, the struct with `forward`, `impl Layer`, and the checks that only constants can make.

mod cross_checks;
mod function;
mod kernels;
mod layer_impl;
mod op_checks;
mod structure;

use crate::diagnostics::compile_errors;
use crate::layer::Compiled;
use crate::spelling::text;
use kernels::Kernels;

pub use cross_checks::panic_under;
pub use function::erased_function;
use proc_macro2::TokenStream;
use quote::quote;

/// Everything that `#[layer]` emits. Without an IR the layer is poisoned: it exists, its `SIG` fits every caller.
pub fn expand(c: &Compiled) -> TokenStream {
    let Compiled { signature, body, layer, regions, diagnosed } = c;
    let errors = compile_errors(&diagnosed.list);
    let repeats = diagnosed.rustc_repeats || !body.foreign.is_empty();
    let function = function::expand_function(signature, body, layer.is_none(), repeats);
    let structure = structure::expand_struct(signature, layer.is_none());
    let Kernels { module, table } = kernels::expand_kernels(signature, regions);
    let implementation = layer_impl::expand_impl(signature, body, layer.as_ref(), &table);
    let checks = cross_checks::expand_checks(signature, body);
    let op_checks = op_checks::expand_op_checks(signature, body);
    quote! { #function #structure #implementation #checks #op_checks #module #errors }
}

/// Completion needs the body that the user is writing, wrong as it is, and no kernels.
fn under_rust_analyzer() -> bool {
    std::env::current_exe().is_ok_and(|p| p.to_string_lossy().contains("rust-analyzer"))
}

/// The axes of a list of identifiers, for documentation: `B, S, D`.
fn axes_text(axes: &[proc_macro2::Ident]) -> String {
    axes.iter().map(text).collect::<Vec<_>>().join(", ")
}
