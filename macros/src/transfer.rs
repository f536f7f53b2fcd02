//! `#[checkpoint]`, `#[precision]` and `#[shard]` above `#[layer]`: they move themselves below it, or say that it is missing.

use crate::annotations::is_attr;
use crate::diagnostics::single;
use crate::expand::erased_function;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Attribute, ItemFn, parse_quote};

/// Expands one of the annotations.
pub fn transfer(name: &str, args: TokenStream, item: TokenStream) -> TokenStream {
    let word = Ident::new(name, Span::call_site());
    let Ok(mut function) = syn::parse2::<ItemFn>(item.clone()) else {
        let error = single(Span::call_site(), "K0401", format!("`#[{name}]` annotates a layer, not this item"), HELP);
        return quote!(#item #error);
    };
    let Some(at) = function.attrs.iter().position(|a| is_attr(a, "layer")) else {
        let error =
            single(Span::call_site(), "K0401", format!("`#[{name}]` stands on a function without `#[layer]`"), HELP);
        // Axes and argument attributes mean nothing without the layer: rustc would repeat that for each of them.
        let function = erased_function(function).to_token_stream();
        return quote!(#function #error);
    };
    let attr: Attribute = if args.is_empty() { parse_quote!(#[#word]) } else { parse_quote!(#[#word(#args)]) };
    function.attrs.insert(at + 1, attr);
    function.into_token_stream()
}

const HELP: &str = "write `#[layer]` above it";
