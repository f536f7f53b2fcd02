//! The options of `#[layer(..)]` itself, and the attributes that say what an argument is.

use crate::annotations::{AttrOption, KEEP_ONE, ShardAttr, is_attr, option_list, parse_shard};
use crate::crate_path;
use crate::diagnostics::Errors;
use crate::spelling::{describe, text};
use kiln_compiler::ir::Init;
use proc_macro2::TokenStream;
use quote::ToTokens;
use std::collections::BTreeSet;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, ExprUnary, Ident, Lit, Meta, Path, Token, UnOp};

/// `#[layer(trace, crate = path)]`.
pub struct LayerOptions {
    /// The body is recorded at start-up instead of being parsed.
    pub trace: bool,
    /// Path of Kiln.
    pub krate: TokenStream,
}

impl LayerOptions {
    /// Parses what stands in the parentheses.
    pub fn parse(tokens: TokenStream, errors: &Errors) -> LayerOptions {
        struct Word(Ident, Option<Path>);
        impl Parse for Word {
            fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
                let name = input.call(Ident::parse_any)?;
                let path = if input.parse::<Option<Token![=]>>()?.is_some() {
                    Some(input.call(Path::parse_mod_style)?)
                } else {
                    None
                };
                Ok(Word(name, path))
            }
        }
        const HELP: &str = "the options are `trace` and `crate = path`";
        let mut options = LayerOptions { trace: false, krate: TokenStream::new() };
        match Punctuated::<Word, Token![,]>::parse_terminated.parse2(tokens.clone()) {
            Ok(words) => {
                for Word(name, path) in words {
                    match (name.to_string().as_str(), path) {
                        ("trace", None) => options.trace = true,
                        ("crate", Some(path)) => options.krate = path.to_token_stream(),
                        (other, _) => {
                            let message = format!("`{other}` is not an option of `#[layer]`");
                            errors.push(&name, "K0217", message, HELP);
                        }
                    }
                }
            }
            Err(e) => {
                let message = format!("`#[layer({})]` cannot be read: {e}", text(&tokens));
                errors.push(tokens, "K0217", message, HELP);
            }
        }
        if options.krate.is_empty() {
            options.krate = crate_path::kiln();
        }
        options
    }
}

/// What the attributes of one argument say.
#[derive(Default)]
pub struct KindAttrs {
    /// `#[param(init = ..)]`.
    pub param: Option<(Attribute, Option<Init>)>,
    /// `#[frozen]`.
    pub frozen: Option<Attribute>,
    /// `#[sub]`.
    pub sub: Option<Attribute>,
    /// `#[config]`.
    pub config: Option<(Attribute, Option<Expr>)>,
    /// `#[state]`.
    pub state: Option<Attribute>,
    /// `#[shard(..)]`.
    pub shard: Option<ShardAttr>,
    /// Documentation: becomes the field's.
    pub docs: Vec<Attribute>,
}

/// Attributes that stand on arguments and are removed from the emitted function.
pub const ARGUMENT_ATTRS: [&str; 6] = ["param", "frozen", "sub", "config", "state", "shard"];

impl KindAttrs {
    /// Reads the attributes of an argument.
    pub fn parse(attrs: &[Attribute], errors: &Errors) -> KindAttrs {
        let mut out = KindAttrs::default();
        let mut seen = BTreeSet::new();
        for attr in attrs {
            let Some(name) = attr.path().segments.last().map(|s| s.ident.to_string()) else { continue };
            match name.as_str() {
                "doc" => out.docs.push(attr.clone()),
                word if ARGUMENT_ATTRS.contains(&word) && !seen.insert(name.clone()) => {
                    errors.push(attr.path(), "K0405", format!("`#[{name}]` stands twice on this argument"), KEEP_ONE);
                }
                "param" => out.param = Some((attr.clone(), parse_init(attr, errors))),
                "frozen" => out.frozen = Some(attr.clone()),
                "sub" => out.sub = Some(attr.clone()),
                "config" => out.config = Some((attr.clone(), parse_default(attr, errors))),
                "state" => out.state = Some(attr.clone()),
                "shard" => out.shard = parse_shard(attr, errors),
                "cfg" | "cfg_attr" => {
                    let message = format!("`#[{name}]` on an argument would make two layers under one name");
                    errors.push(attr, "K0216", message, format!("put `#[{name}]` on the whole function"));
                }
                _ if is_attr(attr, "checkpoint") || is_attr(attr, "precision") => {
                    let message = format!("`#[{name}]` annotates a layer, not an argument");
                    errors.push(attr, "K0416", message, "move it above the function");
                }
                _ => {}
            }
        }
        out
    }
}

const INIT_HELP: &str = "write `#[param(init = normal(0.02))]`; inits are `zeros`, `ones`, `normal(std)`, `uniform(a, b)`, `xavier`, `kaiming`";

fn parse_init(attr: &Attribute, errors: &Errors) -> Option<Init> {
    if !matches!(attr.meta, Meta::List(_)) {
        errors.push(&attr.meta, "K0207", "a parameter needs its initial value", INIT_HELP);
        return None;
    }
    let options = option_list(attr, "K0207", INIT_HELP, errors)?;
    if options.is_empty() {
        errors.push(&attr.meta, "K0207", "a parameter needs its initial value", INIT_HELP);
    }
    let mut init = None;
    for AttrOption { name, value } in options {
        match (name.to_string().as_str(), value) {
            ("init", Some(_)) if init.is_some() => {
                errors.push(&name, "K0405", "`init` stands twice in this attribute", KEEP_ONE);
            }
            ("init", Some(value)) => init = Some(value),
            ("init", None) => errors.push(&name, "K0207", "`init` needs a value", INIT_HELP),
            ("frozen", None) => {
                let help = "write `#[frozen]` beside `#[param(..)]`";
                errors.push(&name, "K0207", "`frozen` is an attribute of its own", help);
            }
            (word, _) => {
                errors.push(&name, "K0207", format!("`{word}` is not an option of `#[param]`"), INIT_HELP);
            }
        }
    }
    parse_init_value(&init?, errors)
}

fn parse_init_value(value: &Expr, errors: &Errors) -> Option<Init> {
    let (name, args) = match value {
        Expr::Call(c) => (text(&c.func), c.args.iter().cloned().collect()),
        other => (text(other), Vec::new()),
    };
    let numbers: Option<Vec<f64>> = args.iter().map(literal_number).collect();
    let takes = match (name.as_str(), numbers.as_deref()) {
        ("zeros", Some([])) => return Some(Init::Zeros),
        ("ones", Some([])) => return Some(Init::Ones),
        ("normal", Some([std])) if *std >= 0.0 => return Some(Init::Normal(*std)),
        ("uniform", Some([a, b])) if a < b => return Some(Init::Uniform(*a, *b)),
        ("xavier", Some([])) => return Some(Init::Xavier),
        ("kaiming", Some([])) => return Some(Init::Kaiming),
        ("normal", _) => "`normal` takes the standard deviation, a literal of 0 or more",
        ("uniform", _) => "`uniform` takes its bounds, two literals of which the first is smaller",
        ("zeros" | "ones" | "xavier" | "kaiming", _) => "this init takes no numbers",
        _ => {
            errors.push(value, "K0208", format!("`{}` is not an init", describe(value)), INIT_HELP);
            return None;
        }
    };
    errors.push(value, "K0208", format!("`{}` is not an init: {takes}", describe(value)), INIT_HELP);
    None
}

fn parse_default(attr: &Attribute, errors: &Errors) -> Option<Expr> {
    const HELP: &str = "write `#[config]` or `#[config(default = 0.1)]`";
    if !matches!(attr.meta, Meta::List(_)) {
        return None;
    }
    let mut default = None;
    for AttrOption { name, value } in option_list(attr, "K0213", HELP, errors)? {
        match value {
            Some(value) if name == "default" => default = Some(value),
            _ => errors.push(&name, "K0213", format!("`{name}` is not an option of `#[config]`"), HELP),
        }
    }
    default
}

/// A number literal, with its sign.
pub fn literal_number(e: &Expr) -> Option<f64> {
    match e {
        Expr::Lit(ExprLit { lit: Lit::Float(x), .. }) => x.base10_parse().ok(),
        Expr::Lit(ExprLit { lit: Lit::Int(x), .. }) => x.base10_parse().ok(),
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => literal_number(expr).map(|x| -x),
        Expr::Paren(p) => literal_number(&p.expr),
        Expr::Group(g) => literal_number(&g.expr),
        _ => None,
    }
}
