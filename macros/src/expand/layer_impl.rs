//! `impl Layer`: the signature that parents check in constants, and the definition that linking reads.

use super::cross_checks;
use super::function::{axis_name, axis_names};
use super::structure::struct_generics;
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
pub fn expand_impl(signature: &Signature, body: &Body, layer: Option<&ir::Layer>) -> TokenStream {
    let (krate, name) = (&signature.krate, &signature.type_name);
    let (function, type_name) = (signature.name(), signature.type_name.to_string());
    let generics = struct_generics(signature);
    let (impl_generics, ty_generics, _) = generics.split_for_impl();
    let sig = expand_sig(signature, layer.is_none());
    let ir = layer.map(print_layer).unwrap_or_default();
    let children: Vec<_> = signature.subs().map(|(_, s)| &s.child).collect();
    let record = record(signature, layer.is_some());
    let deferred = cross_checks::expand_deferred_checks(signature, body);
    let register = signature.generics.is_empty().then(|| {
        quote! {
            #krate::__private::inventory::submit! { #krate::__private::LayerEntry(<#name as #krate::Layer>::DEF) }
        }
    });
    quote! {
        impl #impl_generics #krate::Layer for #name #ty_generics {
            const SIG: #krate::Sig = #sig;
            const DEF: &'static #krate::LayerDef = {
                #deferred
                &#krate::LayerDef {
                    name: #function,
                    type_name: #type_name,
                    module: ::core::module_path!(),
                    ir: #ir,
                    subs: &[#(<#children as #krate::Layer>::DEF),*],
                    kernels: &[],
                    record: #record,
                }
            };
        }
        #register
    }
}

fn record(signature: &Signature, sound: bool) -> TokenStream {
    let _ = (signature, sound);
    quote!(::core::option::Option::None)
}

fn expand_sig(signature: &Signature, poisoned: bool) -> TokenStream {
    let krate = &signature.krate;
    let name = signature.name();
    let arg = |name: String, kind: TokenStream| quote!(#krate::ArgSig { name: #name, kind: #kind });
    let inputs = signature.args.iter().filter_map(|a| {
        let kind = match &a.kind {
            Kind::Input(t) => tensor_kind(signature, t),
            Kind::Rope { seq, head } => {
                let (seq, head) = (axis_name(signature, seq), axis_name(signature, head));
                quote!(#krate::KindSig::Rope(#seq, #head))
            }
            Kind::Param { .. } | Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong => return None,
        };
        Some(arg(a.name.to_string(), kind))
    });
    let params = signature.args.iter().filter_map(|a| match &a.kind {
        Kind::Param { ty, .. } => Some(arg(a.name.to_string(), tensor_kind(signature, ty))),
        _ => None,
    });
    let output = match &signature.output {
        OutputDecl::Tensor(t) => tensor_kind(signature, t),
        OutputDecl::Loss | OutputDecl::Wrong => quote!(#krate::KindSig::Loss),
        OutputDecl::Tuple(ts) => {
            let parts = ts.iter().map(|t| {
                let axes = axis_names(signature, &t.axes);
                quote!(&[#(#axes),*])
            });
            quote!(#krate::KindSig::Tuple(&[#(#parts),*]))
        }
    };
    let subs = signature.subs().map(|(a, s)| {
        let (name, child) = (a.name.to_string(), &s.child);
        quote!((#name, &<#child as #krate::Layer>::SIG))
    });
    quote! {
        #krate::Sig {
            name: #name,
            poisoned: #poisoned,
            inputs: &[#(#inputs),*],
            output: #output,
            params: &[#(#params),*],
            subs: &[#(#subs),*],
        }
    }
}

fn tensor_kind(signature: &Signature, ty: &TensorType) -> TokenStream {
    let krate = &signature.krate;
    let axes = axis_names(signature, &ty.axes);
    match ty.dtype {
        DType::I32 => quote!(#krate::KindSig::Ids(&[#(#axes),*])),
        _ => quote!(#krate::KindSig::Tensor(&[#(#axes),*])),
    }
}
