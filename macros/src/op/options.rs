//! The options of `#[op(sig = "..", vjp = .., reference = ..)]`.

use crate::crate_path;
use crate::diagnostics::Errors;
use proc_macro2::{Ident, TokenStream};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, Lit, LitStr, Path, Token};

/// What stands in the parentheses.
pub struct OpOptions {
    /// Labels of the axes of operands and results.
    pub sig: Option<LitStr>,
    /// The derivative, an operation.
    pub vjp: Option<Path>,
    /// The host reference of a kernel, a function.
    pub reference: Option<Path>,
    /// Path of Kiln.
    pub krate: TokenStream,
}

const HELP: &str = "such as `#[op(sig = \"b s d, d -> b s d\", vjp = scan_vjp)]`; the options are `sig`, `vjp`, `reference` and `crate`";

/// `name = value`.
struct OpOption {
    name: Ident,
    value: Expr,
}

impl Parse for OpOption {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.call(Ident::parse_any)?;
        input.parse::<Token![=]>()?;
        Ok(OpOption { name, value: input.parse()? })
    }
}

/// Parses the options; a missing `sig` is reported on the function's name.
pub fn parse_options(tokens: TokenStream, function: &Ident, errors: &Errors) -> OpOptions {
    let mut options = OpOptions { sig: None, vjp: None, reference: None, krate: TokenStream::new() };
    let list = match Punctuated::<OpOption, Token![,]>::parse_terminated.parse2(tokens.clone()) {
        Ok(list) => list,
        Err(e) => {
            errors.push(tokens, "K0240", format!("the options of `#[op]` cannot be read: {e}"), HELP);
            options.krate = crate_path::kiln();
            return options;
        }
    };
    let mut seen: Vec<String> = Vec::new();
    for OpOption { name, value } in &list {
        let word = name.to_string();
        if seen.contains(&word) {
            errors.push(name, "K0240", format!("`{word}` stands twice in `#[op]`"), "keep one of the two");
            continue;
        }
        read(&mut options, name, value, errors);
        seen.push(word);
    }
    // A wrong option may be a misspelled `sig`.
    if !seen.iter().any(|w| w == "sig") && errors.is_empty() {
        errors.push(function, "K0240", format!("operation `{function}` needs its `sig`"), HELP);
    }
    if options.krate.is_empty() {
        options.krate = crate_path::kiln();
    }
    options
}

fn read(options: &mut OpOptions, name: &Ident, value: &Expr, errors: &Errors) {
    let path = match value {
        Expr::Path(p) if p.qself.is_none() && p.attrs.is_empty() => Some(p.path.clone()),
        _ => None,
    };
    match (name.to_string().as_str(), path, value) {
        ("sig", _, Expr::Lit(ExprLit { lit: Lit::Str(s), .. })) => options.sig = Some(s.clone()),
        ("vjp", Some(path), _) => options.vjp = Some(path),
        ("reference", Some(path), _) => options.reference = Some(path),
        ("crate", Some(path), _) => options.krate = path.to_token_stream(),
        ("sig", ..) => errors.push(value, "K0240", "`sig` is a string of labels", HELP),
        ("vjp", ..) => errors.push(value, "K0240", "`vjp` is the name of an operation", HELP),
        ("reference", ..) => errors.push(value, "K0240", "`reference` is the name of a function", HELP),
        ("crate", ..) => errors.push(value, "K0240", "`crate` is the path of Kiln", HELP),
        (other, ..) => errors.push(name, "K0240", format!("`{other}` is not an option of `#[op]`"), HELP),
    }
}
