//! `#[op]`: options, `sig` and function in, the callable function, its marker type and its record out. Each stage reports into one bag.

mod expand;
mod function;
mod options;
mod sig;

pub use expand::found;
pub use function::{Form, OpFunction, OperandKind};
pub use options::OpOptions;
pub use sig::OpSig;

use crate::diagnostics::{Diagnosed, Errors, compile_errors};
use proc_macro2::TokenStream;
use syn::ItemFn;

/// An operation after all stages but expansion.
pub struct CompiledOp {
    /// What stands in the parentheses.
    pub options: OpOptions,
    /// Its `sig`; absent if it is wrong.
    pub sig: Option<OpSig>,
    /// Its function.
    pub function: OpFunction,
    /// Its mistakes.
    pub diagnosed: Diagnosed,
}

/// Expands `#[op(args)] item`.
pub fn op(args: TokenStream, item: TokenStream) -> TokenStream {
    // Wrong syntax is rustc's to report: it sees the same tokens.
    let Ok(item_fn) = syn::parse2::<ItemFn>(item.clone()) else { return not_a_function(item) };
    expand::expand(&compile(args, item_fn))
}

/// Runs the stages.
pub fn compile(args: TokenStream, item: ItemFn) -> CompiledOp {
    let errors = Errors::new();
    let options = options::parse_options(args, &item.sig.ident, &errors);
    let sig = options.sig.as_ref().and_then(|literal| sig::parse_sig(literal, &errors));
    let function = function::parse_function(item, &options, sig.as_ref(), &errors);
    CompiledOp { options, sig, function, diagnosed: errors.finish() }
}

fn not_a_function(item: TokenStream) -> TokenStream {
    let Ok(other) = syn::parse2::<syn::Item>(item.clone()) else { return item };
    let errors = Errors::new();
    let help = "write the host reference as `fn name(x: &HostArray) -> HostArray { .. }`, or the kernel as a `#[cube]` function";
    errors.push(crate::layer::first_token(&other), "K0243", "`#[op]` stands on a function", help);
    let list = errors.finish().list;
    [item, compile_errors(&list)].into_iter().collect()
}
