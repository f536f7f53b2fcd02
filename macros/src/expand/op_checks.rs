//! Calls of functions that only rustc knows: one constant each finds out whether it is an operation, and checks it against its `sig`.

use super::cross_checks::{kind, names, panic_under};
use crate::body::{Body, Demand, Expected, OpCall};
use crate::op::found;
use crate::signature::Signature;
use crate::spelling::text;
use kiln_compiler::diagnostics::Diagnostic;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};

/// Checks at module level: they fire under `cargo check`.
///
/// ```text
/// const _: () = {
///     let op = { ..the record behind `scan`.. };
///     if !is_operation(op) { panic!("K0301: ..") }
///     match check_operand(op, 0usize, &[kind, kind]) { Some(message) => panic!("{}", message.as_str()), None => () }
///     ..
/// };
/// ```
pub fn expand_op_checks(signature: &Signature, body: &Body) -> TokenStream {
    let here = body.op_calls.iter().filter(|c| !depends_on_generics(signature, c));
    here.map(|c| {
        let check = check(signature, body, c);
        quote!(const _: () = { #check };)
    })
    .collect()
}

/// Checks of a generic layer that depend on its axes: they fire where the layer is used.
pub fn expand_deferred_op_checks(signature: &Signature, body: &Body) -> TokenStream {
    body.op_calls.iter().filter(|c| depends_on_generics(signature, c)).map(|c| check(signature, body, c)).collect()
}

/// The table of a layer's definition: paths of the IR and their operations.
pub fn expand_op_table(signature: &Signature, body: &Body) -> TokenStream {
    let krate = &signature.krate;
    let mut seen: Vec<String> = Vec::new();
    let mut rows = TokenStream::new();
    for call in &body.op_calls {
        let written = text(&call.path);
        if seen.contains(&written) {
            continue;
        }
        let found = found(krate, &call.path.to_token_stream());
        rows.extend(quote!(#krate::__private::OpUse { written: #written, op: { #found } },));
        seen.push(written);
    }
    quote!(&[#rows])
}

fn depends_on_generics(signature: &Signature, call: &OpCall) -> bool {
    let results = match &call.demand {
        Demand::Result(Expected::Tensor(t)) => std::slice::from_ref(t),
        Demand::Result(Expected::Tuple(ts)) => ts.as_slice(),
        Demand::Result(Expected::Loss) | Demand::Untyped | Demand::Unfit(..) | Demand::Nothing => &[],
    };
    let types = call.operands.iter().map(|(_, t)| t).chain(results);
    types.flat_map(|t| &t.shape).any(|a| signature.generics.iter().any(|g| g == a.name()))
}

fn check(signature: &Signature, body: &Body, call: &OpCall) -> TokenStream {
    let krate = &signature.krate;
    let path = call.path.to_token_stream();
    let name = text(&path);
    let found = found(krate, &path);
    let message = format!("`{name}` is outside the grammar of a layer's body: it is no operation");
    let help = "a child layer is an argument with `#[sub]`; `#[layer(trace)]` takes any Rust and records the body at start-up; `#[op]` \
                makes an operation of a function of your own";
    let no_operation = refuse(&path, Diagnostic::new("K0301", message).help(help));
    let demand = match &call.demand {
        Demand::Nothing => TokenStream::new(),
        Demand::Untyped => {
            let message = format!("the type of what `{name}` returns does not follow from this line");
            let help = "write it: `let y: Tensor<B, S, D> = ..;`";
            unless_poisoned(signature, refuse(&path, Diagnostic::new("K0305", message).help(help)))
        }
        Demand::Unfit(tokens, found) => {
            let message =
                format!("`{}` is {found}; an operation takes tensors and ids", crate::spelling::describe(tokens));
            let help = "a host value reaches an operation as a tensor: multiply one by it first";
            unless_poisoned(signature, refuse(tokens, Diagnostic::new("K0323", message).help(help)))
        }
        Demand::Result(expected) => check_call(signature, body, call, expected),
    };
    quote! {
        {
            let op = { #found };
            if !#krate::__private::is_operation(op) {
                #no_operation
            }
            #demand
        }
    }
}

fn check_call(signature: &Signature, body: &Body, call: &OpCall, expected: &Expected) -> TokenStream {
    let krate = &signature.krate;
    let kinds: Vec<TokenStream> = call.operands.iter().map(|(_, ty)| kind(signature, ty)).collect();
    let operands =
        call.operands.iter().enumerate().map(|(i, (tokens, _))| {
            refuse_if(tokens, &quote!(#krate::__private::check_operand(op, #i, &[#(#kinds),*])))
        });
    let result = match expected {
        Expected::Tensor(t) => kind(signature, t),
        Expected::Tuple(ts) => {
            let parts = ts.iter().map(|t| {
                let axes = names(signature, t);
                quote!(&[#(#axes),*])
            });
            quote!(#krate::__private::KindSig::Tuple(&[#(#parts),*]))
        }
        Expected::Loss => quote!(#krate::__private::KindSig::Loss),
    };
    let path = call.path.to_token_stream();
    let result = refuse_if(&path, &quote!(#krate::__private::check_result(op, &[#(#kinds),*], #result)));
    let derivative = body.differentiated.contains(&call.span);
    let derivative = derivative.then(|| refuse_if(&path, &quote!(#krate::__private::check_derivative(op))));
    quote!(#(#operands)* #result #derivative)
}

fn refuse_if(tokens: &TokenStream, check: &TokenStream) -> TokenStream {
    let refuse = panic_under(tokens, &quote!(message.as_str()));
    quote! {
        match #check {
            ::core::option::Option::Some(message) => #refuse,
            ::core::option::Option::None => (),
        }
    }
}

fn refuse(tokens: &TokenStream, diagnostic: Diagnostic) -> TokenStream {
    panic_under(tokens, &diagnostic.to_string().to_token_stream())
}

fn unless_poisoned(signature: &Signature, refuse: TokenStream) -> TokenStream {
    let krate = &signature.krate;
    quote! {
        if !#krate::__private::is_poisoned(op) {
            #refuse
        }
    }
}
