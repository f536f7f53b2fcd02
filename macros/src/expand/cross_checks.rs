//! Checks that need another item: a child's `SIG`, an axis' `NAME`, a name that only rustc knows. One constant each, with the user's span.

use super::function::axis_name;
use crate::body::{Assumed, Assumption, Body, Expected, Foreign};
use crate::signature::{Signature, SubDecl};
use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::ir::{Axis, DType, Type};
use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use std::collections::BTreeMap;

/// Checks at module level: they fire under `cargo check`.
///
/// ```text
/// const _: () = match ::kiln::__private::check_input(&<Attention as ::kiln::Layer>::SIG, "attn", 0usize, kind) {
///     Some(message) => panic!("{}", message.as_str()),
///     None => (),
/// };
/// ```
pub fn expand_checks(signature: &Signature, body: &Body) -> TokenStream {
    let here = body.assumptions.iter().filter(|a| !depends_on_generics(signature, a));
    let children = here.map(|a| as_item(&check_assumption(signature, a)));
    let axes = used_axes(signature, body).into_iter().filter(|a| !signature.generics.contains(a));
    let axes = axes.map(|a| as_item(&check_axis(signature, &a)));
    let foreign = body.foreign.iter().map(refuse_foreign);
    quote!(#(#children)* #(#axes)* #(#foreign)*)
}

/// Checks of a generic layer that depend on its axes: they fire where the layer is used.
pub fn expand_deferred_checks(signature: &Signature, body: &Body) -> TokenStream {
    let checks = body.assumptions.iter().filter(|a| depends_on_generics(signature, a));
    checks.map(|a| check_assumption(signature, a)).collect()
}

fn depends_on_generics(signature: &Signature, a: &Assumption) -> bool {
    child(signature, a.sub).is_some_and(|s| s.generics.iter().any(|g| signature.generics.contains(g)))
        || shapes(&a.what).iter().flatten().any(|x| signature.generics.iter().any(|g| g == x.name()))
}

fn shapes(what: &Assumed) -> Vec<Vec<Axis>> {
    match what {
        Assumed::Input(_, t) | Assumed::Param(_, t) | Assumed::Output(Expected::Tensor(t)) => vec![t.shape.clone()],
        Assumed::Rope(_, Some((s, k))) => vec![vec![*s, *k]],
        Assumed::Output(Expected::Tuple(ts)) => ts.iter().map(|t| t.shape.clone()).collect(),
        Assumed::Rope(_, None) | Assumed::Output(Expected::Loss) => Vec::new(),
    }
}

fn child(signature: &Signature, sub: usize) -> Option<&SubDecl> {
    signature.subs().nth(sub).map(|(_, s)| s)
}

/// `panic!` with the text, shown under all of the tokens: a macro call reaches from its first token to its last.
pub fn panic_under(tokens: &TokenStream, text: &TokenStream) -> TokenStream {
    // The user's own spans: rustc then shows the tokens alone, without the attribute that emitted the check.
    let at = |t: Option<TokenTree>| t.map_or_else(Span::call_site, |t| t.span());
    let (first, last) = (at(tokens.clone().into_iter().next()), at(tokens.clone().into_iter().last()));
    let mut arguments = Group::new(Delimiter::Parenthesis, quote!("{}", #text));
    arguments.set_span(last);
    quote_spanned! { first => ::core::panic! #arguments }
}

fn as_item(check: &TokenStream) -> TokenStream {
    quote!(const _: () = { #check };)
}

fn check_assumption(signature: &Signature, a: &Assumption) -> TokenStream {
    let krate = &signature.krate;
    let Some(SubDecl { child, .. }) = child(signature, a.sub) else { return TokenStream::new() };
    let name = &a.name;
    let sig = quote!(&<#child as #krate::__private::Layer>::SIG);
    let call = match &a.what {
        Assumed::Input(i, ty) => {
            let kind = kind(signature, ty);
            quote!(#krate::__private::check_input(#sig, #name, #i, #kind))
        }
        Assumed::Rope(i, axes) => {
            let (s, k) = axes.unwrap_or((Axis::of("?"), Axis::of("?")));
            let (s, k) = (name_of(signature, s), name_of(signature, k));
            quote!(#krate::__private::check_input(#sig, #name, #i, #krate::__private::KindSig::Rope(#s, #k)))
        }
        Assumed::Output(expected) => {
            let kind = match expected {
                Expected::Tensor(t) => kind(signature, t),
                Expected::Loss => quote!(#krate::__private::KindSig::Loss),
                Expected::Tuple(ts) => {
                    let parts = ts.iter().map(|t| {
                        let axes = names(signature, t);
                        quote!(&[#(#axes),*])
                    });
                    quote!(#krate::__private::KindSig::Tuple(&[#(#parts),*]))
                }
            };
            quote!(#krate::__private::check_output(#sig, #name, #kind))
        }
        Assumed::Param(path, ty) => {
            let kind = kind(signature, ty);
            quote!(#krate::__private::check_param(#sig, #name, #path, #kind))
        }
    };
    let refuse = panic_under(&a.tokens, &quote!(message.as_str()));
    quote! {
        match #call {
            ::core::option::Option::Some(message) => #refuse,
            ::core::option::Option::None => (),
        }
    }
}

pub fn kind(signature: &Signature, ty: &Type) -> TokenStream {
    let krate = &signature.krate;
    let axes = names(signature, ty);
    match ty.dtype {
        DType::I32 => quote!(#krate::__private::KindSig::Ids(&[#(#axes),*])),
        _ => quote!(#krate::__private::KindSig::Tensor(&[#(#axes),*])),
    }
}

pub fn names(signature: &Signature, ty: &Type) -> Vec<TokenStream> {
    ty.shape.iter().map(|a| name_of(signature, *a)).collect()
}

fn name_of(signature: &Signature, axis: Axis) -> TokenStream {
    match signature.generics.iter().find(|g| *g == axis.name()) {
        Some(g) => axis_name(signature, g),
        None => axis.name().to_token_stream(),
    }
}

/// Every axis that the layer names, by its first token.
fn used_axes(signature: &Signature, body: &Body) -> Vec<Ident> {
    let mut axes: BTreeMap<String, Ident> = signature.axes.clone();
    for a in &body.axes {
        axes.entry(a.to_string()).or_insert_with(|| a.clone());
    }
    axes.into_values().collect()
}

/// Erased axes stay named, so that rustc reports unknown ones, and an import under another name is found.
fn check_axis(signature: &Signature, axis: &Ident) -> TokenStream {
    let krate = &signature.krate;
    let name = axis.to_string();
    let refuse = panic_under(&axis.to_token_stream(), &quote!(message.as_str()));
    quote_spanned! { axis.span() =>
        match #krate::__private::check_axis(<#axis as #krate::__private::Axis>::NAME, #name) {
            ::core::option::Option::Some(message) => #refuse,
            ::core::option::Option::None => (),
        }
    }
}

/// A name in the body that is no variable: rustc reports it if it does not exist; if it does, it is outside the grammar. The variables
/// are there for rustc to suggest; the body itself, which would be refused again, is left out.
fn refuse_foreign(Foreign { name, variables }: &Foreign) -> TokenStream {
    let message = format!("`{name}` is an item, and the macro cannot see its value");
    let help = "write the literal, or make it a `#[config]` argument; `#[layer(trace)]` takes any Rust";
    let text = Diagnostic::new("K0331", message).help(help).to_string();
    let refuse = panic_under(&name.to_token_stream(), &text.to_token_stream());
    let variables = variables.iter().filter(|v| !v.starts_with("r#")).map(|v| Ident::new(v, Span::call_site()));
    quote! {
        #[allow(unused_variables)]
        const _: () = {
            #(let #variables = ();)*
            let _ = &#name;
            #refuse
        };
    }
}
