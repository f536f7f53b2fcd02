//! The user's function with axes and attributes erased; its body is the user's, behind a prologue that tells tensors their axes.

use super::under_rust_analyzer;
use crate::annotations::NAMES;
use crate::body::Body;
use crate::signature::{ARGUMENT_ATTRS, ArgDecl, ERASED, Kind, Signature};
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Expr, ExprCall, ExprParen, FnArg, GenericArgument, Local, Pat, PathArguments, PathSegment, Stmt, Type,
    parse_quote,
};

/// The emitted function.
///
/// ```text
/// pub fn swiglu(x: Tensor, gate: Tensor) -> Tensor {
///     let __frame = ::kiln::__private::Frame::enter("swiglu");
///     let x = __frame.argument(x, "x", &["B", "S", "D"]);
///     ..the user's statements..
/// }
/// ```
pub fn expand_function(signature: &Signature, body: &Body, poisoned: bool, rustc_repeats: bool) -> TokenStream {
    let mut item = signature.item.clone();
    let (krate, layer) = (&signature.krate, signature.name());
    let mut prologue: Vec<Stmt> = vec![parse_quote!(let __frame = #krate::__private::Frame::enter(#layer);)];
    for arg in &mut item.sig.inputs {
        let FnArg::Typed(arg) = arg else { continue };
        arg.attrs.retain(|a| !is_argument_attr(a));
        let Pat::Ident(name) = &mut *arg.pat else { continue };
        let decl = signature.args.iter().find(|d| d.name == name.ident);
        if let Some(entered) = decl.and_then(|d| entered(signature, d)) {
            let (ident, mutability) = (&name.ident, name.mutability.take());
            prologue.push(parse_quote!(let #mutability #ident = __frame.#entered;));
        }
    }
    Erase.visit_item_fn_mut(&mut item);
    if !body.op_calls.is_empty() {
        SetApart(body).visit_item_fn_mut(&mut item);
        item.attrs.push(parse_quote!(#[allow(unused_parens)]));
    }
    if poisoned {
        item.attrs.push(parse_quote!(#[allow(dead_code, unused)]));
    }
    if rustc_repeats && !under_rust_analyzer() {
        make_plain(&mut item);
    } else {
        prologue.append(&mut item.block.stmts);
        item.block.stmts = prologue;
    }
    item.attrs.push(parse_quote!(#[allow(clippy::too_many_arguments, clippy::let_and_return)]));
    item.into_token_stream()
}

/// Without what is reported already: patterns, receivers, the body.
fn make_plain(item: &mut syn::ItemFn) {
    item.sig.inputs = std::mem::take(&mut item.sig.inputs)
        .into_iter()
        .filter_map(|arg| match arg {
            FnArg::Typed(mut arg) => {
                if !matches!(*arg.pat, Pat::Ident(_)) {
                    *arg.pat = parse_quote!(_);
                }
                Some(FnArg::Typed(arg))
            }
            FnArg::Receiver(_) => None,
        })
        .collect();
    item.block = parse_quote!({ ::core::unreachable!("this layer does not compile") });
}

/// A function with erased types and without the attributes of arguments.
pub fn erased_function(mut item: syn::ItemFn) -> syn::ItemFn {
    for arg in &mut item.sig.inputs {
        if let FnArg::Typed(arg) = arg {
            arg.attrs.retain(|a| !is_argument_attr(a));
        }
    }
    Erase.visit_item_fn_mut(&mut item);
    item
}

fn is_argument_attr(attr: &Attribute) -> bool {
    let name = attr.path().segments.last().map(|s| s.ident.to_string());
    // Documentation is not allowed on arguments; it moves to the struct's fields.
    name.is_some_and(|n| {
        n == "doc"
            || n == "cfg"
            || n == "cfg_attr"
            || ARGUMENT_ATTRS.contains(&n.as_str())
            || NAMES.contains(&n.as_str())
    })
}

/// The call that tells the frame an argument's axes.
fn entered(signature: &Signature, arg: &ArgDecl) -> Option<TokenStream> {
    let (ident, name) = (&arg.name, arg.name.to_string());
    match &arg.kind {
        Kind::Input(t) | Kind::Param { ty: t, .. } => {
            let axes = axis_names(signature, &t.axes);
            Some(quote!(argument(#ident, #name, &[#(#axes),*])))
        }
        // Positions have no size of their own.
        Kind::Rope { .. } | Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong(_) => None,
    }
}

/// The names of axes as constant expressions.
pub fn axis_names(signature: &Signature, axes: &[Ident]) -> Vec<TokenStream> {
    axes.iter().map(|a| axis_name(signature, a)).collect()
}

/// The name of an axis: known text, or that of an axis parameter.
pub fn axis_name(signature: &Signature, axis: &Ident) -> TokenStream {
    let krate = &signature.krate;
    match signature.generics.contains(axis) {
        true => quote!(<#axis as #krate::__private::Axis>::NAME),
        false => axis.to_string().to_token_stream(),
    }
}

/// A type with its axes erased.
pub fn erased(ty: &Type) -> Type {
    let mut ty = ty.clone();
    Erase.visit_type_mut(&mut ty);
    ty
}

/// Puts callees that only rustc knows into parentheses: they are then named as values, as in the constant checks, and a name that does
/// not exist is one error.
struct SetApart<'a>(&'a Body);

impl VisitMut for SetApart<'_> {
    fn visit_expr_call_mut(&mut self, call: &mut ExprCall) {
        if let Expr::Path(f) = &*call.func
            && self.0.op_calls.iter().any(|c| c.path == f.path)
        {
            let callee = call.func.clone();
            *call.func = Expr::Paren(ExprParen { attrs: Vec::new(), paren_token: Default::default(), expr: callee });
        }
        visit_mut::visit_expr_call_mut(self, call);
    }
}

struct Erase;

impl VisitMut for Erase {
    fn visit_path_segment_mut(&mut self, segment: &mut PathSegment) {
        if ERASED.iter().any(|name| segment.ident == name) {
            segment.arguments = PathArguments::None;
        }
        if segment.ident == "Repeat"
            && let PathArguments::AngleBracketed(args) = &mut segment.arguments
            && args.args.len() == 2
            && let Some(GenericArgument::Type(child)) = args.args.first().cloned()
        {
            args.args = [GenericArgument::Type(child)].into_iter().collect();
        }
        visit_mut::visit_path_segment_mut(self, segment);
    }

    fn visit_local_mut(&mut self, local: &mut Local) {
        local.attrs.retain(|a| !a.path().is_ident("no_fuse"));
        visit_mut::visit_local_mut(self, local);
    }
}
