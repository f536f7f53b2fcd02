//! `impl Layer`: the signature that parents check in constants, and the definition that linking reads.

use super::function::{axis_name, axis_names};
use super::structure::struct_generics;
use super::{cross_checks, op_checks};
use crate::body::Body;
use crate::signature::{Kind, OutputDecl, Signature, TensorType};
use kiln_compiler::ir::{self, DType, text::print_layer};
use proc_macro2::TokenStream;
use quote::quote;

/// The implementation, and the line that lists the layer for tools.
///
/// ```text
/// impl ::kiln::Layer for Swiglu {
///     const SIG: Sig = Sig { name: "swiglu", poisoned: false, inputs: &[..], .. };
///     const DEF: &'static LayerDef = &LayerDef { ir: "layer swiglu ..", .. };
/// }
/// ```
pub fn expand_impl(
    signature: &Signature,
    body: &Body,
    layer: Option<&ir::Layer>,
    kernels: &TokenStream,
) -> TokenStream {
    let (krate, name) = (&signature.krate, &signature.type_name);
    let (function, type_name) = (signature.name(), signature.type_name.to_string());
    let generics = struct_generics(signature);
    let (impl_generics, ty_generics, _) = generics.split_for_impl();
    let sig = expand_sig(signature, layer.is_none());
    let ir = layer.map(print_layer).unwrap_or_default();
    let children: Vec<_> = signature.subs().map(|(_, s)| &s.child).collect();
    let record = record(signature, layer.is_some());
    let deferred = cross_checks::expand_deferred_checks(signature, body);
    let (ops, deferred_ops) =
        (op_checks::expand_op_table(signature, body), op_checks::expand_deferred_op_checks(signature, body));
    let register = signature.generics.is_empty().then(|| {
        quote! {
            #krate::__private::inventory::submit! { #krate::__private::LayerEntry(<#name as #krate::__private::Layer>::DEF) }
        }
    });
    quote! {
        impl #impl_generics #krate::__private::Layer for #name #ty_generics {
            const SIG: #krate::__private::Sig = #sig;
            const DEF: &'static #krate::__private::LayerDef = {
                #deferred
                #deferred_ops
                &#krate::__private::LayerDef {
                    name: #function,
                    type_name: #type_name,
                    module: ::core::module_path!(),
                    ir: #ir,
                    sig: &Self::SIG,
                    subs: &[#(<#children as #krate::__private::Layer>::DEF),*],
                    ops: #ops,
                    kernels: #kernels,
                    record: #record,
                }
            };
        }
        #register
    }
}

/// How the body runs on recording tensors.
fn record(signature: &Signature, sound: bool) -> TokenStream {
    let (krate, function) = (&signature.krate, &signature.item.sig.ident);
    if !sound {
        return quote!(::core::option::Option::None);
    }
    let args = signature.args.iter().filter_map(|a| {
        let name = a.name.to_string();
        let make = match &a.kind {
            Kind::Input(t) if t.dtype == DType::I32 => quote!(ids),
            Kind::Input(_) => quote!(tensor),
            Kind::Rope { .. } => quote!(rope),
            Kind::Param { .. } => quote!(param),
            Kind::Sub(s) if s.repeat.is_some() => quote!(repeat),
            Kind::Sub(_) => quote!(sub),
            Kind::Config { .. } => quote!(config),
            Kind::Wrong(_) => return None,
        };
        Some(quote!(recorder.#make(#name)))
    });
    let generics = &signature.generics;
    let turbofish = (!generics.is_empty()).then(|| quote!(::<#(#generics),*>));
    quote! {
        ::core::option::Option::Some(|recorder: &mut #krate::__private::Recorder| {
            let result = #function #turbofish(#(#args),*);
            recorder.output(result);
        })
    }
}

fn expand_sig(signature: &Signature, poisoned: bool) -> TokenStream {
    let krate = &signature.krate;
    let name = signature.name();
    let arg = |name: String, kind: TokenStream| quote!(#krate::__private::ArgSig { name: #name, kind: #kind });
    let inputs = signature.args.iter().filter_map(|a| {
        let kind = match &a.kind {
            Kind::Input(t) => tensor_kind(signature, t),
            Kind::Rope { seq, head } => {
                let (seq, head) = (axis_name(signature, seq), axis_name(signature, head));
                quote!(#krate::__private::KindSig::Rope(#seq, #head))
            }
            Kind::Param { .. } | Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong(_) => return None,
        };
        Some(arg(a.name.to_string(), kind))
    });
    let params = signature.args.iter().filter_map(|a| match &a.kind {
        Kind::Param { ty, .. } => Some(arg(a.name.to_string(), tensor_kind(signature, ty))),
        _ => None,
    });
    let config = signature.args.iter().filter(|a| matches!(a.kind, Kind::Config { .. })).map(|a| a.name.to_string());
    let output = match &signature.output {
        OutputDecl::Tensor(t) => tensor_kind(signature, t),
        OutputDecl::Loss | OutputDecl::Wrong => quote!(#krate::__private::KindSig::Loss),
        OutputDecl::Tuple(ts) => {
            let parts = ts.iter().map(|t| {
                let axes = axis_names(signature, &t.axes);
                quote!(&[#(#axes),*])
            });
            quote!(#krate::__private::KindSig::Tuple(&[#(#parts),*]))
        }
    };
    let subs = signature.subs().map(|(a, s)| {
        let (name, child) = (a.name.to_string(), &s.child);
        quote!((#name, &<#child as #krate::__private::Layer>::SIG))
    });
    quote! {
        #krate::__private::Sig {
            name: #name,
            poisoned: #poisoned,
            inputs: &[#(#inputs),*],
            output: #output,
            params: &[#(#params),*],
            config: &[#(#config),*],
            subs: &[#(#subs),*],
        }
    }
}

fn tensor_kind(signature: &Signature, ty: &TensorType) -> TokenStream {
    let krate = &signature.krate;
    let axes = axis_names(signature, &ty.axes);
    match ty.dtype {
        DType::I32 => quote!(#krate::__private::KindSig::Ids(&[#(#axes),*])),
        _ => quote!(#krate::__private::KindSig::Tensor(&[#(#axes),*])),
    }
}
