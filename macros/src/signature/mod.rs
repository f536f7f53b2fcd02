//! The header of a layer: a function's tokens and attributes in, typed arguments with the user's tokens out. Never looks at the body.

mod args;
mod options;
mod types;

pub use args::{ArgDecl, Kind, SubDecl, WrongKind};
pub use options::{ARGUMENT_ATTRS, LayerOptions, literal_number};
pub use types::{ERASED, TensorType, Written, axis_of, parse_type};

use crate::annotations::{KEEP_ONE, LayerAnnotations, is_attr, parse_annotations};
use crate::diagnostics::Errors;
use crate::spelling::text;
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident};
use std::collections::BTreeMap;
use syn::{Attribute, GenericParam, ItemFn, ReturnType, Type, TypeParamBound};

/// What a layer returns.
pub enum OutputDecl {
    /// One tensor.
    Tensor(TensorType),
    /// Several.
    Tuple(Vec<TensorType>),
    /// An unreduced loss.
    Loss,
    /// Wrong, and reported.
    Wrong,
}

/// The header of one layer.
pub struct Signature {
    /// The user's function without its layer annotations; argument attributes are still there.
    pub item: ItemFn,
    /// Path of Kiln in the user's crate.
    pub krate: TokenStream,
    /// The struct's name.
    pub type_name: Ident,
    /// Axis parameters.
    pub generics: Vec<Ident>,
    /// Arguments in source order.
    pub args: Vec<ArgDecl>,
    /// Result.
    pub output: OutputDecl,
    /// `#[checkpoint]`, `#[precision]`, `#[shard]` of the function.
    pub annotations: LayerAnnotations,
    /// `#[layer(trace)]`.
    pub trace: bool,
    /// Every axis of the signature with the token that named it first.
    pub axes: BTreeMap<String, Ident>,
}

impl Signature {
    /// Name of the function.
    pub fn name(&self) -> String {
        self.item.sig.ident.to_string()
    }

    /// Children in argument order.
    pub fn subs(&self) -> impl Iterator<Item = (&ArgDecl, &SubDecl)> {
        self.args.iter().filter_map(|a| match &a.kind {
            Kind::Sub(s) => Some((a, s.as_ref())),
            _ => None,
        })
    }
}

/// Parses the header.
pub fn parse_signature(options: LayerOptions, mut item: ItemFn, errors: &Errors) -> Signature {
    let annotations = parse_annotations(&mut item.attrs, errors);
    refuse_second_door(&mut item.attrs, errors);
    check_plain_function(&item, errors);
    make_plain(&mut item.sig);
    let generics = parse_generics(&item, errors);
    let args: Vec<ArgDecl> = item.sig.inputs.iter().filter_map(|a| args::parse_arg(a, errors)).collect();
    let output = parse_output(&item, errors);
    let type_name = format_ident!("{}", upper_camel(&item.sig.ident.to_string()), span = item.sig.ident.span());
    let mut signature = Signature {
        item,
        krate: options.krate,
        type_name,
        generics,
        args,
        output,
        annotations,
        trace: options.trace,
        axes: BTreeMap::new(),
    };
    signature.axes = collect_axes(&signature);
    signature
}

/// `#[layer]` below `#[layer]` would expand what was expanded.
fn refuse_second_door(attrs: &mut Vec<Attribute>, errors: &Errors) {
    attrs.retain(|attr| {
        let again = is_attr(attr, "layer");
        if again {
            errors.push(attr.path(), "K0405", "`#[layer]` stands twice on this function", KEEP_ONE);
        }
        !again
    });
}

/// `rms_norm` → `RmsNorm`.
pub fn upper_camel(name: &str) -> String {
    let mut out = String::new();
    for word in name.trim_start_matches("r#").split('_') {
        let mut letters = word.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

fn check_plain_function(item: &ItemFn, errors: &Errors) {
    let sig = &item.sig;
    let refused: [(Option<TokenStream>, &str); 4] = [
        (sig.asyncness.map(|t| t.to_token_stream()), "async"),
        (sig.constness.map(|t| t.to_token_stream()), "const"),
        (sig.unsafety.map(|t| t.to_token_stream()), "unsafe"),
        (sig.abi.as_ref().map(|t| t.to_token_stream()), "extern"),
    ];
    for (tokens, word) in refused.into_iter().filter_map(|(t, w)| Some((t?, w))) {
        errors.push_instead_of_rustc(
            tokens,
            "K0201",
            format!("a layer is a plain function, not `{word}`"),
            format!("remove `{word}`"),
        );
    }
    if let Some(v) = &sig.variadic {
        errors.push_instead_of_rustc(
            v,
            "K0201",
            "a layer takes a fixed number of arguments",
            "name every input as an argument",
        );
    }
    if let Some(w) = &sig.generics.where_clause {
        errors.push_instead_of_rustc(
            w,
            "K0215",
            "a layer's generic parameters are axes only",
            "write `<In: Axis>` without `where`",
        );
    }
}

/// What was refused is left out of the emitted function, so that rustc does not refuse it again.
fn make_plain(sig: &mut syn::Signature) {
    (sig.asyncness, sig.constness, sig.unsafety, sig.abi, sig.variadic) = (None, None, None, None, None);
}

fn parse_generics(item: &ItemFn, errors: &Errors) -> Vec<Ident> {
    let mut out = Vec::new();
    for p in &item.sig.generics.params {
        match p {
            GenericParam::Type(t) if t.bounds.iter().any(is_axis_bound) => out.push(t.ident.clone()),
            other => {
                let message = format!("`{}` is not an axis parameter", text(other));
                errors.push_instead_of_rustc(
                    other,
                    "K0215",
                    message,
                    "a layer is generic over axes only: `<In: Axis, Out: Axis>`",
                );
            }
        }
    }
    out
}

fn is_axis_bound(bound: &TypeParamBound) -> bool {
    matches!(bound, TypeParamBound::Trait(t) if t.path.segments.last().is_some_and(|s| s.ident == "Axis"))
}

fn parse_output(item: &ItemFn, errors: &Errors) -> OutputDecl {
    let help = "a layer returns `Tensor<..>`, a tuple of tensors, or `Loss`";
    let ReturnType::Type(_, ty) = &item.sig.output else {
        errors.push_instead_of_rustc(&item.sig.ident, "K0206", format!("`{}` returns nothing", item.sig.ident), help);
        return OutputDecl::Wrong;
    };
    match parse_type(ty, errors) {
        Written::Tensor(t) => OutputDecl::Tensor(t),
        Written::Loss => OutputDecl::Loss,
        Written::Tuple(types) => parse_output_tuple(&types, help, errors),
        Written::Wrong => OutputDecl::Wrong,
        Written::Rope(..) | Written::Repeat(..) | Written::Other => wrong_output(ty, help, errors),
    }
}

fn parse_output_tuple(types: &[Type], help: &str, errors: &Errors) -> OutputDecl {
    let mut tensors = Vec::new();
    for ty in types {
        match parse_type(ty, errors) {
            Written::Tensor(t) => tensors.push(t),
            Written::Wrong => return OutputDecl::Wrong,
            _ => return wrong_output(ty, help, errors),
        }
    }
    OutputDecl::Tuple(tensors)
}

fn wrong_output(ty: &Type, help: &str, errors: &Errors) -> OutputDecl {
    errors.push_instead_of_rustc(ty, "K0206", format!("a layer cannot return `{}`", text(ty)), help);
    OutputDecl::Wrong
}

fn collect_axes(s: &Signature) -> BTreeMap<String, Ident> {
    let mut axes = BTreeMap::new();
    let mut add = |list: &[Ident]| {
        for a in list {
            axes.entry(a.to_string()).or_insert_with(|| a.clone());
        }
    };
    for arg in &s.args {
        match &arg.kind {
            Kind::Input(t) | Kind::Param { ty: t, .. } => add(&t.axes),
            Kind::Rope { seq, head } => add(&[seq.clone(), head.clone()]),
            Kind::Sub(sub) => {
                add(&sub.generics);
                add(sub.repeat.as_slice());
            }
            Kind::Config { .. } | Kind::Wrong(_) => {}
        }
    }
    match &s.output {
        OutputDecl::Tensor(t) => add(&t.axes),
        OutputDecl::Tuple(list) => list.iter().for_each(|t| add(&t.axes)),
        OutputDecl::Loss | OutputDecl::Wrong => {}
    }
    axes
}

#[cfg(test)]
mod tests {
    use super::upper_camel;

    #[test]
    fn struct_names() {
        assert_eq!(upper_camel("swiglu"), "Swiglu");
        assert_eq!(upper_camel("gpt_logits"), "GptLogits");
        assert_eq!(upper_camel("conv2d_block"), "Conv2dBlock");
    }
}
