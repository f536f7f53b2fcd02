//! `#[layer]`: parse the header, lower the body, check, expand. Each stage reports into one bag of errors.

use crate::annotations::position;
use crate::body::{self, Body};
use crate::checks;
use crate::diagnostics::{Diagnosed, Errors};
use crate::expand;
use crate::ir_layer::ir_layer;
use crate::signature::{self, LayerOptions, Signature};
use kiln_compiler::ir::{self, verify};
use kiln_compiler::variants::{self, Named};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::ItemFn;

/// A layer after all stages but expansion.
pub struct Compiled {
    /// Its header.
    pub signature: Signature,
    /// Its body.
    pub body: Body,
    /// Its IR, if there is no mistake.
    pub layer: Option<ir::Layer>,
    /// The regions of its canonical variants.
    pub regions: Vec<Named>,
    /// Its mistakes.
    pub diagnosed: Diagnosed,
}

/// Expands `#[layer(args)] item`.
pub fn layer(args: TokenStream, item: TokenStream) -> TokenStream {
    // Wrong syntax is rustc's to report: it sees the same tokens.
    let Ok(item_fn) = syn::parse2::<ItemFn>(item.clone()) else { return not_a_function(item) };
    let c = compile(args, item_fn);
    expand::expand(&c)
}

fn not_a_function(item: TokenStream) -> TokenStream {
    match syn::parse2::<syn::Item>(item.clone()) {
        Ok(other) => {
            let errors = Errors::new();
            errors.push(
                first_token(&other),
                "K0201",
                "`#[layer]` stands on a function",
                "write the layer as `fn name(inputs, #[param(..)] parameters) -> Tensor<..> { .. }`; the struct is made from it",
            );
            let list = errors.finish().list;
            [item, crate::diagnostics::compile_errors(&list)].into_iter().collect()
        }
        Err(_) => item,
    }
}

/// The keyword of an item.
pub fn first_token(item: &syn::Item) -> TokenStream {
    quote::ToTokens::to_token_stream(item)
        .into_iter()
        .find(|t| matches!(t, TokenTree::Ident(word) if word != "pub"))
        .into_iter()
        .collect()
}

/// Runs the stages.
pub fn compile(args: TokenStream, item: ItemFn) -> Compiled {
    let errors = Errors::new();
    let options = LayerOptions::parse(args, &errors);
    let mut signature = signature::parse_signature(options, item, &errors);
    let mut body = match signature.trace {
        true => Body { func: body::header(&signature), ..Body::default() },
        false => body::lower(&signature, &errors),
    };
    checks::run(&mut signature, &body, &errors);
    let sound = errors.is_empty() && !body.is_refused();
    let layer = sound.then(|| verified(ir_layer(&signature, &body)));
    let regions = match layer.as_ref().filter(|l| !l.annotations.trace).map(variants::regions) {
        Some(Ok(regions)) => regions,
        Some(Err(e)) => {
            errors.report(token_at(&signature, e.span), e.diagnostic);
            Vec::new()
        }
        None => Vec::new(),
    };
    let layer = layer.filter(|_| errors.is_empty());
    if let Some(layer) = layer.as_ref().filter(|_| !body.op_calls.is_empty()) {
        body.differentiated = differentiated_calls(layer);
    }
    Compiled { signature, body, layer, regions, diagnosed: errors.finish() }
}

/// Positions of the user's own operations whose derivative the layer's gradient needs.
fn differentiated_calls(layer: &ir::Layer) -> Vec<ir::Span> {
    let is_derivative = |n: &ir::Node| n.op.name == "opaque" && n.attrs.get("vjp").is_none();
    // A path without a derivative has been reported with the regions.
    variants::backward_nodes(layer, is_derivative).unwrap_or_default()
}

/// The token at a position of the IR; the layer's name if it is none of the body's.
pub fn token_at(signature: &Signature, at: ir::Span) -> TokenStream {
    fn find(tokens: TokenStream, at: ir::Span) -> Option<TokenStream> {
        tokens.into_iter().find_map(|t| match t {
            TokenTree::Group(g) => find(g.stream(), at),
            other => (position(&other) == at).then(|| other.into()),
        })
    }
    find(signature.item.block.to_token_stream(), at).unwrap_or_else(|| signature.item.sig.ident.to_token_stream())
}

fn verified(layer: ir::Layer) -> ir::Layer {
    match verify::layer(layer) {
        Ok(layer) => layer.into_inner(),
        Err(e) => panic!("the parser made a function that the verifier refuses: {e}"),
    }
}
