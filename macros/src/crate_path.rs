//! The path under which the user's crate knows Kiln.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

/// `::kiln`, or the name that the user's manifest gives to the package `kiln`.
///
/// Inside Kiln's own package it is `::kiln` too, which `extern crate self as kiln` makes valid in the library itself.
pub fn kiln() -> TokenStream {
    // Outside Cargo (rust-analyzer without a manifest, in-process tests) only the plain name can be right.
    match crate_name("kiln") {
        Ok(FoundCrate::Name(name)) => {
            let name = Ident::new(&name, Span::call_site());
            quote!(::#name)
        }
        Ok(FoundCrate::Itself) | Err(_) => quote!(::kiln),
    }
}
