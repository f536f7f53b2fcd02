//! Kernels of a layer's canonical variants.

use crate::signature::Signature;
use kiln_compiler::ir;
use proc_macro2::TokenStream;

/// The kernels that the layer's regions need.
pub fn expand_kernels(_: &Signature, _: Option<&ir::Layer>) -> TokenStream {
    TokenStream::new()
}
