//! Kiln's procedural macros: the doors. Each door parses tokens with a module of its own and never knows a device.

mod annotations;
mod axes;
mod body;
mod checks;
mod crate_path;
mod diagnostics;
mod expand;
mod ir_layer;
mod layer;
mod op;
mod signature;
mod spelling;
mod transfer;

#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// One function is one layer: its arguments are inputs, parameters, children and host values, its body is the computation.
///
/// `#[layer(trace)]` records the body at start-up instead of parsing it; `#[layer(crate = path)]` names Kiln's path.
#[proc_macro_attribute]
pub fn layer(args: TokenStream, item: TokenStream) -> TokenStream {
    layer::layer(args.into(), item.into()).into()
}

/// An operation of the user's own: its host reference, or a `#[cube]` kernel with a `reference`, becomes a function that bodies call.
///
/// `sig = "b s d, d -> b s d"` labels the axes of operands and results; `vjp = name` is the operation from operands and cotangents of
/// the results to cotangents of the operands; `crate = path` names Kiln's path. See the runtime's `user_op` for what runs where.
#[proc_macro_attribute]
pub fn op(args: TokenStream, item: TokenStream) -> TokenStream {
    op::op(args.into(), item.into()).into()
}

/// Declares axes: `axes! { B: "batch", S: "sequence" }`.
#[proc_macro]
pub fn axes(input: TokenStream) -> TokenStream {
    axes::axes(input.into()).into()
}

/// Sizes of axes: `sizes! { B = 8, S = 256 }`.
#[proc_macro]
pub fn sizes(input: TokenStream) -> TokenStream {
    axes::sizes(input.into()).into()
}

/// What a layer's backward may keep; stands on a `#[layer]` function.
#[proc_macro_attribute]
pub fn checkpoint(args: TokenStream, item: TokenStream) -> TokenStream {
    transfer::transfer("checkpoint", args.into(), item.into()).into()
}

/// How a layer computes; stands on a `#[layer]` function.
#[proc_macro_attribute]
pub fn precision(args: TokenStream, item: TokenStream) -> TokenStream {
    transfer::transfer("precision", args.into(), item.into()).into()
}

/// How a layer's axes are laid on the mesh; stands on a `#[layer]` function.
#[proc_macro_attribute]
pub fn shard(args: TokenStream, item: TokenStream) -> TokenStream {
    transfer::transfer("shard", args.into(), item.into()).into()
}
