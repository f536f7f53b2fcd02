//! The struct beside the function: parameters and children as fields, and the inherent `forward` with the layer's typed arguments.

use super::axes_text;
use super::function::erased;
use crate::signature::{ArgDecl, Kind, OutputDecl, Signature, WrongKind};
use crate::spelling::text;
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::{Generics, ReturnType};

/// Generic parameters of the struct, bounded by the trait's full path.
pub fn struct_generics(signature: &Signature) -> Generics {
    let (krate, generics) = (&signature.krate, &signature.generics);
    syn::parse_quote!(<#(#generics: #krate::__private::Axis),*>)
}

/// The struct, its inherent `forward`, and how it is built while a caller is recorded.
///
/// ```text
/// pub struct Swiglu { pub gate: Tensor, .. }
/// impl Swiglu {
///     pub fn forward(&self, x: Tensor) -> Tensor {
///         ::kiln::__private::call(self, (x,), |(x,)| swiglu(x, self.gate, ..))
///     }
/// }
/// ```
pub fn expand_struct(signature: &Signature, poisoned: bool) -> TokenStream {
    let (vis, name, function) = (&signature.item.vis, &signature.type_name, &signature.item.sig.ident);
    let generics = struct_generics(signature);
    let (impl_generics, ty_generics, _) = generics.split_for_impl();
    let fields: Vec<TokenStream> = signature.args.iter().filter_map(|a| field(signature, a)).collect();
    let axes = phantom(signature);
    let doc = format!("Parameters and children of layer [`{function}`].");
    let forward = expand_forward(signature, poisoned);
    let parts = expand_parts(signature);
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug)]
        #vis struct #name #generics {
            #(#fields,)*
            #axes
        }
        impl #impl_generics #name #ty_generics {
            #forward
        }
        #parts
    }
}

fn expand_forward(signature: &Signature, poisoned: bool) -> TokenStream {
    let (krate, function) = (&signature.krate, &signature.item.sig.ident);
    let (inputs, types): (Vec<&Ident>, Vec<syn::Type>) = signature
        .args
        .iter()
        .filter(|a| matches!(a.kind, Kind::Input(_) | Kind::Rope { .. } | Kind::Wrong(WrongKind::Input)))
        .map(|a| (&a.name, input_type(a)))
        .unzip();
    let args = signature.args.iter().map(|a| {
        let name = &a.name;
        match &a.kind {
            Kind::Input(_) | Kind::Rope { .. } => quote!(#name),
            Kind::Param { .. } | Kind::Config { .. } => quote!(self.#name),
            Kind::Sub(_) => quote!(self.#name.clone()),
            // A poisoned layer does not run.
            Kind::Wrong(_) => TokenStream::new(),
        }
    });
    let output = match (&signature.output, &signature.item.sig.output) {
        // Refused: callers most likely want a tensor.
        (OutputDecl::Wrong, _) | (_, ReturnType::Default) => quote!(-> #krate::__private::Tensor),
        (_, ReturnType::Type(arrow, ty)) => {
            let ty = erased(ty);
            quote!(#arrow #ty)
        }
    };
    let turbofish = (!signature.generics.is_empty()).then(|| {
        let generics = &signature.generics;
        quote!(::<#(#generics),*>)
    });
    let doc = format!("Applies [`{function}`] with these parameters; while a caller is recorded, records a call.");
    let run = quote!(#function #turbofish(#(#args),*));
    let body = match poisoned {
        true => quote!(::core::unreachable!("this layer does not compile")),
        false => quote!(#krate::__private::call(self, (#(#inputs,)*), |(#(#inputs,)*)| #run)),
    };
    quote! {
        #[doc = #doc]
        #[track_caller]
        #[allow(unused_variables, clippy::too_many_arguments)]
        pub fn forward(&self, #(#inputs: #types),*) #output {
            #body
        }
    }
}

/// The type of an argument of `forward`. Where it was refused, every caller fits: one mistake, one error.
fn input_type(arg: &ArgDecl) -> syn::Type {
    match arg.kind {
        Kind::Wrong(_) => syn::parse_quote!(impl ::core::marker::Sized),
        _ => erased(&arg.ty),
    }
}

fn expand_parts(signature: &Signature) -> TokenStream {
    let (krate, name) = (&signature.krate, &signature.type_name);
    let generics = struct_generics(signature);
    let (impl_generics, ty_generics, _) = generics.split_for_impl();
    let fields = signature.args.iter().filter_map(|a| {
        let (name, text) = (&a.name, a.name.to_string());
        let make = match &a.kind {
            Kind::Param { .. } => quote!(param),
            Kind::Sub(s) if s.repeat.is_some() => quote!(repeat),
            Kind::Sub(_) => quote!(sub),
            Kind::Config { .. } => quote!(config),
            Kind::Wrong(WrongKind::Param) => return Some(quote!(#name: from.param(#text))),
            Kind::Input(_) | Kind::Rope { .. } | Kind::Wrong(_) => return None,
        };
        Some(quote!(#name: from.#make(#text)))
    });
    let markers = signature.args.iter().filter_map(|a| {
        let name = &a.name;
        match &a.kind {
            Kind::Param { .. } => Some(quote!(::core::option::Option::Some(self.#name))),
            Kind::Sub(s) if s.repeat.is_some() => Some(quote!(self.#name.marker())),
            Kind::Sub(_) => Some(quote!(#krate::__private::Parts::marker(&self.#name))),
            Kind::Input(_) | Kind::Rope { .. } | Kind::Config { .. } | Kind::Wrong(_) => None,
        }
    });
    let phantom = (!signature.generics.is_empty()).then(|| {
        let field = phantom_field();
        quote!(#field: ::core::marker::PhantomData,)
    });
    quote! {
        #[doc(hidden)]
        #[allow(unused_variables)]
        impl #impl_generics #krate::__private::Parts for #name #ty_generics {
            fn build(from: &mut #krate::__private::Source) -> Self {
                Self { #(#fields,)* #phantom }
            }
            fn marker(&self) -> ::core::option::Option<#krate::__private::Tensor> {
                ::core::option::Option::None #(.or_else(|| #markers))*
            }
        }
    }
}

/// Name of the field that mentions the axis parameters.
pub fn phantom_field() -> Ident {
    format_ident!("__axes")
}

fn phantom(signature: &Signature) -> Option<TokenStream> {
    let (field, generics) = (phantom_field(), &signature.generics);
    (!generics.is_empty()).then(|| {
        quote! {
            #[doc(hidden)]
            pub #field: ::core::marker::PhantomData<(#(#generics,)*)>
        }
    })
}

fn field(signature: &Signature, arg: &ArgDecl) -> Option<TokenStream> {
    let doc = match &arg.kind {
        Kind::Param { ty, frozen: false, .. } => format!("Parameter over `[{}]`.", axes_text(&ty.axes)),
        Kind::Param { ty, frozen: true, .. } => format!("Frozen parameter over `[{}]`.", axes_text(&ty.axes)),
        Kind::Sub(s) => match &s.repeat {
            Some(axis) => format!("Child layers [`{}`], one for each of `{axis}`.", text(&s.child)),
            None => format!("Child layer [`{}`].", text(&s.child)),
        },
        Kind::Config { .. } => "Host value, fixed when the model is built.".to_owned(),
        Kind::Input(_) | Kind::Rope { .. } => return None,
        Kind::Wrong(WrongKind::Param) => {
            let (krate, name) = (&signature.krate, &arg.name);
            return Some(quote!(#[doc = "Wrong parameter."] pub #name: #krate::__private::Tensor));
        }
        Kind::Wrong(_) => return None,
    };
    let (name, ty, docs) = (&arg.name, erased(&arg.ty), &arg.docs);
    Some(quote! {
        #(#docs)*
        #[doc = #doc]
        pub #name: #ty
    })
}
