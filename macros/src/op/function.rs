//! The function under `#[op]`: a host reference over `&HostArray` and `&HostIds`, or a `#[cube]` kernel over arrays, checked against the
//! `sig`. Never looks into its body.

use super::{OpOptions, OpSig};
use crate::diagnostics::Errors;
use crate::spelling::text;
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident};
use syn::{Attribute, FnArg, GenericArgument, ItemFn, Pat, PatType, PathArguments, ReturnType, Type};

/// What the function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The host reference itself.
    Host,
    /// A kernel, with a host reference of its own.
    Kernel,
}

/// What an operand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandKind {
    /// Numbers.
    Floats,
    /// Ids.
    Ids,
}

/// One operand.
pub struct OperandDecl {
    /// Name of the argument.
    pub name: Ident,
    /// What it holds.
    pub kind: OperandKind,
}

/// The function.
pub struct OpFunction {
    /// As written, without `#[cube]`, documentation and `#[cfg]`.
    pub item: ItemFn,
    /// Documentation: stays on the callable function.
    pub docs: Vec<Attribute>,
    /// `#[cfg(..)]`: holds for everything that is emitted.
    pub cfgs: Vec<Attribute>,
    /// Reference or kernel.
    pub form: Form,
    /// The arguments that are operands.
    pub operands: Vec<OperandDecl>,
}

/// Checks the function against the `sig`, if that could be read.
pub fn parse_function(mut item: ItemFn, options: &OpOptions, sig: Option<&OpSig>, errors: &Errors) -> OpFunction {
    check_plain(&item, errors);
    let is = |a: &Attribute, name: &str| a.path().segments.last().is_some_and(|s| s.ident == name);
    let form = if item.attrs.iter().any(|a| is(a, "cube")) { Form::Kernel } else { Form::Host };
    let docs = item.attrs.iter().filter(|a| is(a, "doc")).cloned().collect();
    let cfgs = item.attrs.iter().filter(|a| is(a, "cfg")).cloned().collect();
    item.attrs.retain(|a| !["cube", "doc", "cfg"].iter().any(|name| is(a, name)));
    check_reference(&item, form, options, errors);
    let args: Vec<&PatType> = item.sig.inputs.iter().filter_map(typed).collect();
    if let Some(sig) = sig {
        match form {
            Form::Host => check_host(&item, &args, sig, errors),
            Form::Kernel => check_kernel(&item, &args, sig, errors),
        }
    }
    let count = sig.map_or(args.len(), |s| s.operands.len());
    let operands = (0..count).map(|i| operand(args.get(i).copied(), i, form)).collect();
    OpFunction { item, docs, cfgs, form, operands }
}

fn typed(arg: &FnArg) -> Option<&PatType> {
    match arg {
        FnArg::Typed(arg) => Some(arg),
        FnArg::Receiver(_) => None,
    }
}

/// Argument `i`; one that is missing or wrong has been reported and counts as numbers.
fn operand(arg: Option<&PatType>, i: usize, form: Form) -> OperandDecl {
    let name = match arg.map(|a| &*a.pat) {
        Some(Pat::Ident(p)) => p.ident.clone(),
        _ => format_ident!("x{i}"),
    };
    let kind = arg.and_then(|a| match form {
        Form::Host => host_kind(&a.ty),
        Form::Kernel => kernel_array(&a.ty).map(|(kind, _)| kind),
    });
    OperandDecl { name, kind: kind.unwrap_or(OperandKind::Floats) }
}

fn check_plain(item: &ItemFn, errors: &Errors) {
    let sig = &item.sig;
    let refused: [(Option<TokenStream>, &str); 6] = [
        (sig.asyncness.map(|t| t.to_token_stream()), "`async`"),
        (sig.constness.map(|t| t.to_token_stream()), "`const`"),
        (sig.unsafety.map(|t| t.to_token_stream()), "`unsafe`"),
        (sig.abi.as_ref().map(|t| t.to_token_stream()), "`extern`"),
        (sig.generics.params.first().map(|t| t.to_token_stream()), "generic"),
        (sig.variadic.as_ref().map(|t| t.to_token_stream()), "variadic"),
    ];
    for (tokens, word) in refused.into_iter().filter_map(|(t, w)| Some((t?, w))) {
        let help = "write `fn name(x: &HostArray) -> HostArray`; what differs between uses is another operation";
        errors.push(tokens, "K0243", format!("an operation is a plain function, not {word}"), help);
    }
    for arg in &item.sig.inputs {
        let help = "name each operand: `x: &HostArray`";
        match arg {
            FnArg::Receiver(this) => {
                errors.push(this, "K0243", "an operation is a free function; it has no `self`", help)
            }
            FnArg::Typed(arg) if !matches!(*arg.pat, Pat::Ident(_)) => {
                errors.push(&arg.pat, "K0243", "an argument of an operation is a single name", help);
            }
            FnArg::Typed(_) => {}
        }
    }
}

/// A host function is its own reference; a kernel needs one.
fn check_reference(item: &ItemFn, form: Form, options: &OpOptions, errors: &Errors) {
    let name = &item.sig.ident;
    match (form, &options.reference) {
        (Form::Host, Some(path)) => {
            let message = format!("`{name}` is a host function, which is its own reference");
            errors.push(path, "K0244", message, "remove `reference`, or put `#[cube]` on a kernel");
        }
        (Form::Kernel, None) => {
            let message =
                format!("kernel `{name}` needs a host reference: its value on the host, and the truth for the kernel");
            let help = "add `reference = scan_ref`, where `fn scan_ref(x: &HostArray, ..) -> HostArray`";
            errors.push(name, "K0244", message, help);
        }
        (Form::Host, None) | (Form::Kernel, Some(_)) => {}
    }
}

fn check_host(item: &ItemFn, args: &[&PatType], sig: &OpSig, errors: &Errors) {
    for (arg, labels) in args.iter().zip(&sig.operands) {
        if host_kind(&arg.ty).is_none() {
            let message =
                format!("operand `{}` is `&HostArray` or `&HostIds`, not `{}`", labels.join(" "), text(&arg.ty));
            errors.push(&arg.ty, "K0242", message, "numbers come as `&HostArray`, ids as `&HostIds`");
        }
    }
    check_count(item, args, sig.operands.len(), "one for each operand of its `sig`", errors);
    let found = match &item.sig.output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => match &**ty {
            Type::Tuple(t) => Some((ty, t.elems.len())),
            _ => Some((ty, 1)),
        },
    };
    let wanted = sig.results.len();
    let types = if wanted == 1 { "`HostArray`".to_owned() } else { format!("a tuple of {wanted} `HostArray`") };
    let message =
        format!("the `sig` of `{}` has {wanted} result{}", item.sig.ident, if wanted == 1 { "" } else { "s" });
    match found {
        Some((_, n)) if n == wanted => {}
        Some((ty, _)) => errors.push(ty, "K0242", message, format!("return {types}")),
        None => errors.push(&item.sig.ident, "K0242", message, format!("return {types}")),
    }
}

/// A kernel takes the operands, then the results, then the size of each label.
fn check_kernel(item: &ItemFn, args: &[&PatType], sig: &OpSig, errors: &Errors) {
    let (n, m, labels) = (sig.operands.len(), sig.results.len(), sig.labels());
    for (i, arg) in args.iter().enumerate() {
        let (fits, wanted) = match i {
            i if i < n => {
                (matches!(kernel_array(&arg.ty), Some((_, false))), format!("operand {} as `&Array<f32>`", i + 1))
            }
            i if i < n + m => {
                (matches!(kernel_array(&arg.ty), Some((_, true))), format!("result {} as `&mut Array<f32>`", i + 1 - n))
            }
            i => match labels.get(i - n - m) {
                Some(label) => (is_size(&arg.ty), format!("the size of `{label}` as `usize`")),
                None => continue,
            },
        };
        if !fits {
            let message = format!("the kernel takes {wanted} here, not `{}`", text(&arg.ty));
            let help = "its arguments are the operands, the results, and the size of each label in order of appearance";
            errors.push(&arg.ty, "K0242", message, help);
        }
    }
    let what = "the operands, the results and a size for each label of its `sig`";
    check_count(item, args, n + m + labels.len(), what, errors);
}

fn check_count(item: &ItemFn, args: &[&PatType], wanted: usize, what: &str, errors: &Errors) {
    let message = format!("`{}` takes {wanted} arguments, {what}; it has {}", item.sig.ident, args.len());
    let help = "let the arguments follow the `sig`, or change the `sig`";
    match args.get(wanted) {
        Some(extra) => errors.push(&extra.pat, "K0242", message, help),
        None if args.len() < wanted => errors.push(&item.sig.ident, "K0242", message, help),
        None => {}
    }
}

/// `&HostArray`, `&HostIds`.
fn host_kind(ty: &Type) -> Option<OperandKind> {
    let Type::Reference(r) = ty else { return None };
    match (r.mutability, last_name(&r.elem)?.as_str()) {
        (None, "HostArray") => Some(OperandKind::Floats),
        (None, "HostIds") => Some(OperandKind::Ids),
        _ => None,
    }
}

/// `&Array<f32>` and `&mut Array<f32>`; whether it is the latter.
fn kernel_array(ty: &Type) -> Option<(OperandKind, bool)> {
    let Type::Reference(r) = ty else { return None };
    let Type::Path(p) = &*r.elem else { return None };
    let array = p.path.segments.last().filter(|s| s.ident == "Array")?;
    let PathArguments::AngleBracketed(args) = &array.arguments else { return None };
    let element = args.args.first().and_then(|a| match a {
        GenericArgument::Type(t) => last_name(t),
        _ => None,
    })?;
    let kind = if element == "i32" { OperandKind::Ids } else { OperandKind::Floats };
    Some((kind, r.mutability.is_some()))
}

fn is_size(ty: &Type) -> bool {
    matches!(last_name(ty).as_deref(), Some("u32" | "usize"))
}

fn last_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(p) => p.path.segments.last().map(|s| s.ident.to_string()),
        Type::Group(g) => last_name(&g.elem),
        _ => None,
    }
}
