//! Kernels of a layer's canonical variants, in a hidden module that is compiled only where a GPU feature is on.

use super::under_rust_analyzer;
use crate::signature::Signature;
use kiln_compiler::emit;
use kiln_compiler::variants::Named;
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};

/// What the layer emits for its regions.
pub struct Kernels {
    /// The module of kernels.
    pub module: TokenStream,
    /// The table of the layer's definition.
    pub table: TokenStream,
}

/// Emits the kernels of the regions. A region that no kernel template takes runs from its program instead.
///
/// ```text
/// ::kiln::__private::kernels! { mod __kiln_swiglu { pub fn swiglu_fwd_0(..) .. pub fn define_swiglu_fwd_0(..) .. } }
/// ::kiln::__private::kernel_table! { 0x1f.., "swiglu_fwd_0", __kiln_swiglu::define_swiglu_fwd_0; }
/// ```
pub fn expand_kernels(signature: &Signature, regions: &[Named]) -> Kernels {
    let krate = &signature.krate;
    let module: Ident = format_ident!("__kiln_{}", signature.name().trim_start_matches("r#"));
    let mut functions = TokenStream::new();
    let mut rows = TokenStream::new();
    // Completion and hovering need no kernels.
    let regions = if under_rust_analyzer() { &[] } else { regions };
    for Named { name, region } in regions {
        let Ok(tokens) = emit::kernel(region, name) else { continue };
        functions.extend(tokens);
        let (hash, define) = (region.hash(), emit::define_name(name));
        rows.extend(quote!(#hash, #name, #module::#define;));
    }
    if rows.is_empty() {
        return Kernels { module: TokenStream::new(), table: quote!(&[]) };
    }
    let body = emit::module(krate, &module, &functions);
    Kernels {
        module: quote!(#krate::__private::kernels! { #body }),
        table: quote!(#krate::__private::kernel_table! { #rows }),
    }
}
