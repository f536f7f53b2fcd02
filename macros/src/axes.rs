//! `axes!` and `sizes!`: unit types for axes, and their sizes in a session.

use crate::crate_path;
use crate::diagnostics::single;
use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, LitStr, Token, Visibility};

/// `/// docs` `pub B: "batch"`.
struct AxisDecl {
    attrs: Vec<Attribute>,
    vis: Visibility,
    name: Ident,
    text: LitStr,
}

impl Parse for AxisDecl {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = match input.parse()? {
            Visibility::Inherited => Visibility::Public(Default::default()),
            vis => vis,
        };
        let name = input.parse()?;
        input.parse::<Token![:]>()?;
        Ok(AxisDecl { attrs, vis, name, text: input.parse()? })
    }
}

/// Expands `axes! { B: "batch", S: "sequence" }`.
///
/// ```text
/// /// Axis `B`: batch.
/// #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
/// pub struct B;
/// impl ::kiln::Axis for B { const NAME: &'static str = "B"; }
/// ```
pub fn axes(input: TokenStream) -> TokenStream {
    let parser = Punctuated::<AxisDecl, Token![,]>::parse_terminated;
    let decls = match parser.parse2(input) {
        Ok(decls) => decls,
        Err(e) => return single(e.span(), "K0223", e.to_string(), "such as `axes! { B: \"batch\", S: \"sequence\" }`"),
    };
    let krate = crate_path::kiln();
    let mut seen: Vec<String> = Vec::new();
    let mut out = TokenStream::new();
    for AxisDecl { attrs, vis, name, text } in &decls {
        let word = name.to_string();
        if seen.contains(&word) {
            let message = format!("axis `{word}` is declared twice");
            out.extend(single(name.span(), "K0224", message, "one name is one axis: remove one, or rename it"));
            continue;
        }
        seen.push(word.clone());
        let doc = format!("Axis `{word}`: {}.", text.value());
        out.extend(quote! {
            #[doc = #doc]
            #(#attrs)*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[allow(dead_code, non_camel_case_types)]
            #vis struct #name;
            impl #krate::__private::Axis for #name {
                const NAME: &'static str = #word;
            }
        });
    }
    out
}

/// `B = 8`.
struct SizeDecl {
    name: Ident,
    value: Expr,
}

impl Parse for SizeDecl {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(SizeDecl { name, value: input.parse()? })
    }
}

/// Expands `sizes! { B = 8, S = 256 }`.
pub fn sizes(input: TokenStream) -> TokenStream {
    let parser = Punctuated::<SizeDecl, Token![,]>::parse_terminated;
    let decls = match parser.parse2(input) {
        Ok(decls) => decls,
        Err(e) => return single(e.span(), "K0225", e.to_string(), "such as `sizes! { B = 8, S = 256 }`"),
    };
    let mut seen: Vec<String> = Vec::new();
    for d in &decls {
        let word = d.name.to_string();
        if seen.contains(&word) {
            let message = format!("axis `{word}` has two sizes");
            return single(d.name.span(), "K0226", message, "keep one of the two");
        }
        seen.push(word);
    }
    let krate = crate_path::kiln();
    let pairs = decls
        .iter()
        .map(|SizeDecl { name, value }| quote!((#krate::__private::AxisName::of(<#name as #krate::__private::Axis>::NAME), #value)));
    quote!(<#krate::__private::Sizes as ::core::iter::FromIterator<_>>::from_iter([#(#pairs),*]))
}
