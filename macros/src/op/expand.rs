//! An operation as tokens: the function that bodies call, its marker type, its record, the check of its derivative, its kernel.

use super::{CompiledOp, Form, OpFunction, OperandKind};
use crate::diagnostics::compile_errors;
use crate::expand::panic_under;
use kiln_compiler::emit;
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

/// Everything that `#[op]` emits. With a mistake the operation is poisoned: it exists, and every call of it is accepted.
///
/// ```text
/// #[track_caller]
/// pub fn scan(x: impl Operand<__KilnOp_scan>, w: impl Operand<__KilnOp_scan>) -> Tensor {
///     ::kiln::__private::call_op(<__KilnOp_scan as Operation>::OP, (x, w))
/// }
/// pub struct __KilnOp_scan;
/// impl Operation for __KilnOp_scan { const OP: &'static UserOp = &UserOp { name: "model::scan", .. }; }
/// ```
pub fn expand(c: &CompiledOp) -> TokenStream {
    let krate = &c.options.krate;
    let cfgs = &c.function.cfgs;
    let marker = marker(&c.function.item.sig.ident);
    let errors = compile_errors(&c.diagnosed.list);
    let function = callable(c, &marker);
    let record = record(c);
    let vis = &c.function.item.vis;
    let sound = c.diagnosed.list.is_empty();
    let check = c.options.vjp.as_ref().filter(|_| sound).map(|_| check_vjp(c, &marker));
    let kernel = (sound && c.function.form == Form::Kernel).then(|| kernel(c));
    quote! {
        #function
        #(#cfgs)*
        #[doc(hidden)]
        #[derive(Clone, Copy, Debug)]
        #[allow(non_camel_case_types, dead_code, unreachable_pub)]
        #vis struct #marker;
        #(#cfgs)*
        impl #krate::__private::Operation for #marker {
            const OP: &'static #krate::__private::UserOp = #record;
        }
        #(#cfgs)*
        const _: () = {
            #krate::__private::inventory::submit! {
                #krate::__private::UserOpEntry(<#marker as #krate::__private::Operation>::OP)
            }
        };
        #check
        #kernel
        #errors
    }
}

fn marker(function: &Ident) -> Ident {
    format_ident!("__KilnOp_{}", function)
}

/// The function that bodies and tests call.
fn callable(c: &CompiledOp, marker: &Ident) -> TokenStream {
    let krate = &c.options.krate;
    let OpFunction { item, docs, cfgs, operands, .. } = &c.function;
    let (vis, name) = (&item.vis, &item.sig.ident);
    let args: Vec<&Ident> = operands.iter().map(|o| &o.name).collect();
    let tensor = quote!(#krate::__private::Tensor);
    let results = match c.sig.as_ref().map_or(1, |s| s.results.len()) {
        1 => tensor,
        n => {
            let tensors = vec![tensor; n];
            quote!((#(#tensors),*))
        }
    };
    let body = match c.diagnosed.list.is_empty() {
        true => quote!(#krate::__private::call_op(<#marker as #krate::__private::Operation>::OP, (#(#args,)*))),
        false => quote!(::core::unreachable!("this operation does not compile")),
    };
    let doc = match &c.sig {
        Some(_) => format!(
            "\nOperation `{}`; on the host its reference runs.",
            c.options.sig.as_ref().map_or_else(String::new, syn::LitStr::value)
        ),
        None => String::new(),
    };
    quote! {
        #(#docs)*
        #[doc = #doc]
        #(#cfgs)*
        #[track_caller]
        #[allow(unused_variables, clippy::too_many_arguments)]
        #vis fn #name(#(#args: impl #krate::__private::Operand<#marker>),*) -> #results {
            #body
        }
    }
}

fn record(c: &CompiledOp) -> TokenStream {
    let krate = &c.options.krate;
    let label = c.function.item.sig.ident.to_string();
    let Some(sig) = c.sig.as_ref().filter(|_| c.diagnosed.list.is_empty()) else {
        return quote! {
            &#krate::__private::UserOp {
                label: #label,
                standing: #krate::__private::Standing::Poisoned,
                ..#krate::__private::UserOp::NONE
            }
        };
    };
    let written = &c.options.sig;
    let operands = sig.operands.iter().zip(&c.function.operands).map(|(labels, o)| {
        let kind = match o.kind {
            OperandKind::Floats => quote!(Floats),
            OperandKind::Ids => quote!(Ids),
        };
        quote!(#krate::__private::OperandSig { kind: #krate::__private::OperandKind::#kind, labels: &[#(#labels),*] })
    });
    let results = sig.results.iter().map(|labels| quote!(&[#(#labels),*]));
    let reference = reference(c);
    let has_kernel = c.function.form == Form::Kernel;
    let vjp = match &c.options.vjp {
        None => quote!(::core::option::Option::None),
        Some(path) => {
            let found = found(krate, &path.to_token_stream());
            quote!(::core::option::Option::Some({ #found }))
        }
    };
    quote! {
        &#krate::__private::UserOp {
            name: ::core::concat!(::core::module_path!(), "::", #label),
            label: #label,
            at: (::core::file!(), ::core::line!()),
            sig: #written,
            operands: &[#(#operands),*],
            results: &[#(#results),*],
            reference: #reference,
            vjp: #vjp,
            has_kernel: #has_kernel,
            standing: #krate::__private::Standing::Sound,
        }
    }
}

/// The reference over values whose kinds have been checked.
fn reference(c: &CompiledOp) -> TokenStream {
    let krate = &c.options.krate;
    let operands = c.function.operands.iter().enumerate().map(|(i, o)| match o.kind {
        OperandKind::Floats => quote!(__values[#i].floats()),
        OperandKind::Ids => quote!(__values[#i].ids()),
    });
    let (item, callee) = match &c.options.reference {
        None => (Some(&c.function.item), c.function.item.sig.ident.to_token_stream()),
        Some(path) => (None, path.to_token_stream()),
    };
    let item = item.map(|item| {
        let mut item = item.clone();
        item.vis = syn::Visibility::Inherited;
        item
    });
    let call = quote_spanned!(callee.span() => #callee(#(#operands),*));
    quote! {{
        #item
        |__values| #krate::__private::HostResults::into_arrays(#call)
    }}
}

/// The record of the operation that a path leads to; see `user_op::callee` in the runtime.
pub fn found(krate: &TokenStream, path: &TokenStream) -> TokenStream {
    quote! {
        #[allow(unused_imports)]
        use #krate::__private::{IsNoOperation as _, IsOperation as _};
        let __callee = || (&#krate::__private::Callee(#path)).operation();
        #krate::__private::operation(&__callee)
    }
}

/// A derivative must be an operation, and take and return what its operation asks for.
fn check_vjp(c: &CompiledOp, marker: &Ident) -> TokenStream {
    let krate = &c.options.krate;
    let (cfgs, path) = (&c.function.cfgs, c.options.vjp.to_token_stream());
    let written = crate::spelling::text(&path);
    let found = found(krate, &path);
    let refuse = panic_under(&path, &quote!(message.as_str()));
    quote! {
        #(#cfgs)*
        const _: () = {
            let vjp = { #found };
            match #krate::__private::check_vjp(<#marker as #krate::__private::Operation>::OP, vjp, #written) {
                ::core::option::Option::Some(message) => #refuse,
                ::core::option::Option::None => (),
            }
        };
    }
}

/// The kernel, where a GPU feature is compiled in. It sees CubeCL's prelude; what else it needs it names by its path.
fn kernel(c: &CompiledOp) -> TokenStream {
    let krate = &c.options.krate;
    let OpFunction { item, cfgs, .. } = &c.function;
    let module = format_ident!("__kiln_op_{}", item.sig.ident);
    let mut item = item.clone();
    item.vis = syn::parse_quote!(pub);
    let module = emit::module(krate, &module, &quote!(#[cube] #item));
    quote!(#krate::__private::kernels! { #(#cfgs)* #module })
}
