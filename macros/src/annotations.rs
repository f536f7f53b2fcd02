//! `#[checkpoint]`, `#[precision]` and `#[shard]` in their full grammar: attribute tokens in, plain annotations out.

use crate::diagnostics::{Errors, closest, listed};
use crate::spelling::text;
use kiln_compiler::ir::{Axis, Checkpoint, Precision, Shard, Span};
use proc_macro2::Ident;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Expr, ExprLit, Lit, Meta, Token};

/// The annotations that may stand on a layer.
pub const NAMES: [&str; 3] = ["checkpoint", "precision", "shard"];

/// `#[checkpoint]` with the tokens that later checks may underline.
pub struct CheckpointAttr {
    /// What backward may keep.
    pub value: Checkpoint,
    /// The names in `save = [..]`.
    pub saved: Vec<Ident>,
    /// The attribute.
    pub attr: Attribute,
}

/// `#[precision]` with its tokens.
pub struct PrecisionAttr {
    /// How the layer computes.
    pub value: Precision,
    /// The compute type's word.
    pub word: Ident,
    /// The attribute.
    pub attr: Attribute,
}

/// `#[shard]` with its tokens.
pub struct ShardAttr {
    /// Mesh axis and tensor axis.
    pub value: Shard,
    /// The mesh axis' word.
    pub mesh: Ident,
    /// The tensor axis' word.
    pub axis: Option<Ident>,
    /// The attribute.
    pub attr: Attribute,
}

/// All annotations of a layer.
#[derive(Default)]
pub struct LayerAnnotations {
    /// `#[checkpoint]`.
    pub checkpoint: Option<CheckpointAttr>,
    /// `#[precision]`.
    pub precision: Option<PrecisionAttr>,
    /// `#[shard]`.
    pub shard: Option<ShardAttr>,
}

impl LayerAnnotations {
    /// As the compiler wants them.
    pub fn to_ir(&self, trace: bool) -> kiln_compiler::ir::Annotations {
        kiln_compiler::ir::Annotations {
            checkpoint: self.checkpoint.as_ref().map(|c| (c.value.clone(), position(&c.attr))),
            precision: self.precision.as_ref().map(|p| (p.value.clone(), position(&p.attr))),
            shard: self.shard.as_ref().map(|s| (s.value.clone(), position(&s.attr))),
            trace,
        }
    }
}

/// Position of some tokens in the user's file.
pub fn position(tokens: &impl Spanned) -> Span {
    let start = tokens.span().start();
    Span { line: start.line as u32, column: start.column as u32 + 1 }
}

/// Whether an attribute is the one called `name`, written plainly or with a path such as `kiln::checkpoint`.
pub fn is_attr(attr: &Attribute, name: &str) -> bool {
    attr.path().segments.last().is_some_and(|s| s.ident == name)
}

/// Reads the annotations among the attributes of a function and removes them.
pub fn parse_annotations(attrs: &mut Vec<Attribute>, errors: &Errors) -> LayerAnnotations {
    let mut found = LayerAnnotations::default();
    attrs.retain(|attr| {
        let Some(name) = NAMES.into_iter().find(|n| is_attr(attr, n)) else { return true };
        let first = match name {
            "checkpoint" => set_once(&mut found.checkpoint, || parse_checkpoint(attr, errors)),
            "precision" => set_once(&mut found.precision, || parse_precision(attr, errors)),
            _ => set_once(&mut found.shard, || parse_shard(attr, errors)),
        };
        if !first {
            errors.push(attr.path(), "K0405", format!("`#[{name}]` stands twice on this layer"), KEEP_ONE);
        }
        false
    });
    found
}

/// What to do about an annotation twice.
pub const KEEP_ONE: &str = "keep one of the two";

fn set_once<T>(slot: &mut Option<T>, parse: impl FnOnce() -> Option<T>) -> bool {
    if slot.is_some() {
        return false;
    }
    *slot = parse();
    true
}

const CHECKPOINT_FORMS: &str = "write `#[checkpoint]`, or one of `selective`, `lean`, `offload`, `never`, `save = [names]`, `budget = \"2GiB\"` in parentheses";

/// Parses `#[checkpoint(..)]`.
pub fn parse_checkpoint(attr: &Attribute, errors: &Errors) -> Option<CheckpointAttr> {
    let made = |value, saved| Some(CheckpointAttr { value, saved, attr: attr.clone() });
    if let Meta::Path(_) = attr.meta {
        return made(Checkpoint::Inputs, Vec::new());
    }
    let word = sole_option(attr, "K0402", CHECKPOINT_FORMS, errors)?;
    match (word.name.to_string().as_str(), &word.value) {
        ("selective", None) => made(Checkpoint::Selective, Vec::new()),
        ("lean", None) => made(Checkpoint::Lean, Vec::new()),
        ("offload", None) => made(Checkpoint::Offload, Vec::new()),
        ("never", None) => made(Checkpoint::Never, Vec::new()),
        ("save", Some(Expr::Array(list))) => {
            let mut saved = Vec::new();
            for e in &list.elems {
                match e {
                    Expr::Path(p) if p.path.get_ident().is_some() => saved.extend(p.path.get_ident().cloned()),
                    other => errors.push(other, "K0402", "`save` lists names of `let` bindings", CHECKPOINT_FORMS),
                }
            }
            made(Checkpoint::Save(saved.iter().map(Ident::to_string).collect()), saved)
        }
        ("budget", Some(value)) => {
            let text = string_literal(value);
            match text.as_deref().and_then(parse_bytes) {
                Some(bytes) => made(Checkpoint::Budget(bytes), Vec::new()),
                None => {
                    let message = "`budget` is a number of bytes with a unit, as a string";
                    errors.push(value, "K0404", message, "such as `budget = \"2GiB\"`, `\"512MiB\"` or `\"1.5GB\"`");
                    None
                }
            }
        }
        (name, _) => {
            let forms = ["selective", "lean", "offload", "never", "save", "budget"];
            let help = match closest(name, forms) {
                Some(form) if form != name => format!("did you mean `{form}`? {CHECKPOINT_FORMS}"),
                _ => CHECKPOINT_FORMS.to_owned(),
            };
            errors.push(&word.name, "K0402", format!("`{name}` is not a form of `#[checkpoint]`"), help);
            None
        }
    }
}

/// Bytes of `2GiB`, `512 MiB`, `1.5GB`, `4096`.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * scale as f64;
    (bytes >= 1.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

const COMPUTE_TYPES: [&str; 6] = ["f32", "bf16", "f16", "fp8", "int8", "int4"];
const PRECISION_OPTIONS: [&str; 3] = ["master", "grad", "reduce"];
const OPTION_TYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// Parses `#[precision(bf16, master = f32)]`.
pub fn parse_precision(attr: &Attribute, errors: &Errors) -> Option<PrecisionAttr> {
    let help = format!("write `#[precision({})]`, the type in which the layer computes", COMPUTE_TYPES.join(" | "));
    let words = option_list(attr, "K0406", &help, errors)?;
    let Some(first) = words.first() else {
        errors.push(attr.path(), "K0406", "`#[precision]` names no type", help);
        return None;
    };
    let compute = first.name.to_string();
    if !COMPUTE_TYPES.contains(&compute.as_str()) || first.value.is_some() {
        let message = format!("`{compute}` is not a type in which a layer computes");
        errors.push(&first.name, "K0406", message, help);
        return None;
    }
    let mut options: Vec<(String, String)> = Vec::new();
    for w in &words[1..] {
        let name = w.name.to_string();
        if options.iter().any(|(n, _)| *n == name) {
            errors.push(&w.name, "K0405", format!("`{name}` stands twice in this annotation"), KEEP_ONE);
            continue;
        }
        let Some(value) = w.value.as_ref().filter(|_| PRECISION_OPTIONS.contains(&name.as_str())) else {
            let message = format!("`{name}` is not an option of `#[precision]`");
            errors.push(&w.name, "K0407", message, "the options are `master = f32`, `grad = f32` and `reduce = f32`");
            continue;
        };
        let ty = text(value);
        if !OPTION_TYPES.contains(&ty.as_str()) {
            let message = format!("`{name} = {ty}` is not a storage type");
            errors.push(value, "K0407", message, format!("it is one of {}", listed(OPTION_TYPES)));
            continue;
        }
        if compute == "f16" && name == "master" && ty != "f32" {
            let message =
                "an `f16` layer needs `f32` master weights: an update below 2⁻¹¹ of a weight would round to nothing";
            errors.push(value, "K0408", message, "write `master = f32`, or leave the option out");
            continue;
        }
        options.push((name, ty));
    }
    let value = Precision { compute, options };
    Some(PrecisionAttr { value, word: first.name.clone(), attr: attr.clone() })
}

const MESH_AXES: [&str; 4] = ["data", "tensor", "pipeline", "sequence"];

/// Parses `#[shard(tensor = F)]`.
pub fn parse_shard(attr: &Attribute, errors: &Errors) -> Option<ShardAttr> {
    let help = "write `#[shard(tensor)]`, `#[shard(tensor = F)]` or `#[shard(sequence)]` on a layer, `#[shard(data)]` on a parameter, `#[shard(pipeline)]` on a `Repeat`";
    let word = sole_option(attr, "K0409", help, errors)?;
    let mesh = word.name.to_string();
    if !MESH_AXES.contains(&mesh.as_str()) {
        let message = format!("`{mesh}` is not a mesh axis; they are {}", listed(MESH_AXES));
        errors.push(&word.name, "K0409", message, help);
        return None;
    }
    let axis = match &word.value {
        None => None,
        Some(Expr::Path(p)) if p.path.get_ident().is_some() => p.path.get_ident().cloned(),
        Some(other) => {
            errors.push(
                other,
                "K0409",
                format!("`#[shard({mesh} = ..)]` takes the name of an axis, not `{}`", text(other)),
                help,
            );
            return None;
        }
    };
    let value = Shard { mesh, axis: axis.as_ref().map(|a| Axis::new(&a.to_string())) };
    Some(ShardAttr { value, mesh: word.name, axis, attr: attr.clone() })
}

/// `name` or `name = value`.
pub struct AttrOption {
    /// The word.
    pub name: Ident,
    /// What it is given.
    pub value: Option<Expr>,
}

impl Parse for AttrOption {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse()?;
        let value = if input.parse::<Option<Token![=]>>()?.is_some() { Some(input.parse()?) } else { None };
        Ok(AttrOption { name, value })
    }
}

/// The options in an attribute's parentheses.
pub fn option_list(attr: &Attribute, code: &'static str, help: &str, errors: &Errors) -> Option<Vec<AttrOption>> {
    let Meta::List(list) = &attr.meta else {
        errors.push(&attr.meta, code, format!("`#[{}]` needs its parentheses", text(attr.path())), help);
        return None;
    };
    match list.parse_args_with(Punctuated::<AttrOption, Token![,]>::parse_terminated) {
        Ok(words) => Some(words.into_iter().collect()),
        Err(e) => {
            let tokens = if list.tokens.is_empty() { attr.meta.to_token_stream() } else { list.tokens.clone() };
            errors.push(tokens, code, format!("`{}` cannot be read: {e}", text(&attr.meta)), help);
            None
        }
    }
}

fn sole_option(attr: &Attribute, code: &'static str, help: &str, errors: &Errors) -> Option<AttrOption> {
    let mut words = option_list(attr, code, help, errors)?.into_iter();
    match (words.next(), words.next()) {
        (Some(word), None) => Some(word),
        (None, _) => {
            errors.push(&attr.meta, code, "the parentheses are empty", help);
            None
        }
        (Some(_), Some(second)) => {
            errors.push(&second.name, code, "only one form can stand here", help);
            None
        }
    }
}

fn string_literal(e: &Expr) -> Option<String> {
    match e {
        Expr::Lit(ExprLit { lit: Lit::Str(s), .. }) => Some(s.value()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    #[test]
    fn sizes_of_budgets() {
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes("1.5 GB"), Some(1_500_000_000));
        assert_eq!(parse_bytes("two"), None);
        assert_eq!(parse_bytes("2GIB"), None);
        assert_eq!(parse_bytes(""), None);
    }

    #[test]
    fn every_form_of_the_grammar_parses() {
        let errors = Errors::new();
        let form = |a: Attribute| parse_checkpoint(&a, &errors).map(|c| c.value);
        assert_eq!(form(parse_quote!(#[checkpoint])), Some(Checkpoint::Inputs));
        assert_eq!(form(parse_quote!(#[checkpoint(selective)])), Some(Checkpoint::Selective));
        assert_eq!(form(parse_quote!(#[checkpoint(lean)])), Some(Checkpoint::Lean));
        assert_eq!(form(parse_quote!(#[checkpoint(offload)])), Some(Checkpoint::Offload));
        assert_eq!(form(parse_quote!(#[checkpoint(never)])), Some(Checkpoint::Never));
        assert_eq!(form(parse_quote!(#[checkpoint(budget = "1KiB")])), Some(Checkpoint::Budget(1024)));
        let saved = Checkpoint::Save(vec!["q".into(), "h".into()]);
        assert_eq!(form(parse_quote!(#[checkpoint(save = [q, h])])), Some(saved));
        let p = parse_precision(&parse_quote!(#[precision(bf16, master = f32)]), &errors).map(|p| p.value);
        let want = Precision { compute: "bf16".into(), options: vec![("master".into(), "f32".into())] };
        assert_eq!(p, Some(want));
        let s = parse_shard(&parse_quote!(#[shard(tensor = F)]), &errors).map(|s| s.value);
        assert_eq!(s, Some(Shard { mesh: "tensor".into(), axis: Some(Axis::new("F")) }));
        assert!(errors.finish().list.is_empty());
    }
}
