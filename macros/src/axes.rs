//! `axes!` and `sizes!`: unit types for axes, and their sizes in a session.

use crate::crate_path;
use crate::diagnostics::{single, single_under};
use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, LitStr, Token, Visibility};

/// `/// docs` `pub B: "batch"`.
struct AxisDecl {
    attrs: Vec<Attribute>,
    vis: Visibility,
    name: Ident,
    /// Its description; where there is none, what stands in its place. The axis exists all the same: one mistake, one error.
    text: Result<LitStr, TokenStream>,
}

impl Parse for AxisDecl {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = match input.parse()? {
            Visibility::Inherited => Visibility::Public(Default::default()),
            vis => vis,
        };
        let name: Ident = input.parse()?;
        let colon = input.parse::<Option<Token![:]>>()?.is_some();
        let text = match input.parse::<LitStr>() {
            Ok(text) if colon => Ok(text),
            _ => Err(rest_of_declaration(input, &name)),
        };
        Ok(AxisDecl { attrs, vis, name, text })
    }
}

/// Reads to the next comma; gives the first token, or the name where nothing follows it.
fn rest_of_declaration(input: ParseStream<'_>, name: &Ident) -> TokenStream {
    let mut first = None;
    while !input.is_empty() && !input.peek(Token![,]) {
        let Ok(token) = input.parse::<TokenTree>() else { break };
        first.get_or_insert(token);
    }
    first.map_or_else(|| name.into_token_stream(), TokenStream::from)
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
        let text = match text {
            Ok(text) => text.value(),
            Err(tokens) => {
                let message = format!("axis `{word}` needs a colon and a description");
                out.extend(single_under(tokens, "K0223", message, format!("such as `{word}: \"batch\"`")));
                String::new()
            }
        };
        if seen.contains(&word) {
            let message = format!("axis `{word}` is declared twice");
            out.extend(single(name.span(), "K0224", message, "one name is one axis: remove one, or rename it"));
            continue;
        }
        seen.push(word.clone());
        let doc = format!("Axis `{word}`: {text}.");
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
    /// What stands in the place of the size's `=`, where that is wrong.
    wrong: Option<TokenStream>,
    value: Option<Expr>,
}

impl Parse for SizeDecl {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name: Ident = input.parse()?;
        if input.parse::<Option<Token![=]>>()?.is_none() {
            let wrong = Some(rest_of_declaration(input, &name));
            return Ok(SizeDecl { name, wrong, value: None });
        }
        Ok(SizeDecl { name, wrong: None, value: Some(input.parse()?) })
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
        if let Some(wrong) = &d.wrong {
            let message = format!("the size of axis `{word}` follows after `=`");
            return single_under(wrong, "K0225", message, format!("such as `{word} = 8`"));
        }
        if seen.contains(&word) {
            let message = format!("axis `{word}` has two sizes");
            return single(d.name.span(), "K0226", message, "keep one of the two");
        }
        seen.push(word);
    }
    let krate = crate_path::kiln();
    let pairs = decls
        .iter()
        .map(|SizeDecl { name, value, .. }| quote!((#krate::__private::AxisName::of(<#name as #krate::__private::Axis>::NAME), #value)));
    quote!(<#krate::__private::Sizes as ::core::iter::FromIterator<_>>::from_iter([#(#pairs),*]))
}
