//! One argument: its pattern, type and attributes in, its kind out.

use super::options::{KindAttrs, literal_number};
use super::types::{TensorType, Written, generic_args, last_segment, parse_type, single_ident};
use crate::annotations::ShardAttr;
use crate::diagnostics::Errors;
use crate::spelling::text;
use kiln_compiler::ir::{ConfigType, ConfigValue, DType, Init};
use proc_macro2::Ident;
use syn::{Attribute, Expr, ExprLit, FnArg, GenericArgument, Lit, Pat, PatType, Type};

/// One argument.
pub struct ArgDecl {
    /// Its name.
    pub name: Ident,
    /// What it is.
    pub kind: Kind,
    /// Its type as written.
    pub ty: Type,
    /// Its documentation.
    pub docs: Vec<Attribute>,
}

/// Kinds of arguments.
pub enum Kind {
    /// An activation.
    Input(TensorType),
    /// Rotary positions.
    Rope {
        /// Axis of positions.
        seq: Ident,
        /// Rotated axis.
        head: Ident,
    },
    /// A parameter.
    Param {
        /// Its type.
        ty: TensorType,
        /// How it starts.
        init: Init,
        /// No gradient.
        frozen: bool,
        /// `#[shard(..)]` on it.
        shard: Option<Box<ShardAttr>>,
    },
    /// A child.
    Sub(Box<SubDecl>),
    /// A host scalar.
    Config {
        /// Its type.
        ty: ConfigType,
        /// Its value when none is set.
        default: Option<ConfigValue>,
    },
    /// Wrong, and reported; callers still find it where they expect it.
    Wrong(WrongKind),
}

/// What a wrong argument would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongKind {
    /// An input of `forward`.
    Input,
    /// A parameter.
    Param,
    /// Something else.
    Other,
}

/// A child layer.
pub struct SubDecl {
    /// Its type without `Repeat`.
    pub child: Type,
    /// Name of the type.
    pub layer: Ident,
    /// Axes given to a generic child.
    pub generics: Vec<Ident>,
    /// The axis that counts copies.
    pub repeat: Option<Ident>,
    /// `#[shard(..)]` on it.
    pub shard: Option<ShardAttr>,
}

/// Parses one argument; `None` for a receiver or a pattern, which are reported.
pub fn parse_arg(arg: &FnArg, errors: &Errors) -> Option<ArgDecl> {
    let FnArg::Typed(PatType { attrs, pat, ty, .. }) = arg else {
        errors.push_instead_of_rustc(
            arg,
            "K0201",
            "a layer is a free function; it has no `self`",
            "name its inputs as arguments",
        );
        return None;
    };
    let Pat::Ident(name) = &**pat else {
        errors.push_instead_of_rustc(
            pat,
            "K0202",
            "an argument of a layer is a single name",
            "take the pattern apart in the body",
        );
        return None;
    };
    let attrs = KindAttrs::parse(attrs, errors);
    let docs = attrs.docs.clone();
    let wrong = match (&attrs.param, &attrs.frozen, &attrs.sub, &attrs.config, &attrs.state) {
        (None, None, None, None, None) => WrongKind::Input,
        (Some(_), ..) | (_, Some(_), ..) => WrongKind::Param,
        _ => WrongKind::Other,
    };
    let kind = kind(&name.ident, ty, attrs, errors).unwrap_or(Kind::Wrong(wrong));
    Some(ArgDecl { name: name.ident.clone(), kind, ty: (**ty).clone(), docs })
}

fn kind(name: &Ident, ty: &Type, attrs: KindAttrs, errors: &Errors) -> Option<Kind> {
    check_one_kind(name, &attrs, errors)?;
    if let Some(state) = &attrs.state {
        let message = "`#[state]` is not in force: carried tensors such as running statistics have no slot in the plan";
        errors.push(state, "K0212", message, "pass the tensor as an input and return its next value");
        return None;
    }
    check_shard_place(&attrs, errors);
    if let Some((attr, init)) = attrs.param {
        return param(ty, attr, init, attrs.frozen.is_some(), attrs.shard.map(Box::new), errors);
    }
    if let Some(frozen) = &attrs.frozen {
        errors.push(
            frozen,
            "K0209",
            format!("`#[frozen]` needs `#[param(..)]`: `{name}` is no parameter"),
            "add `#[param(init = ..)]` before it",
        );
        return None;
    }
    if attrs.sub.is_some() {
        return sub(ty, attrs.shard, errors);
    }
    if let Some((_, default)) = attrs.config {
        return config(ty, default.as_ref(), errors);
    }
    match parse_type(ty, errors) {
        Written::Tensor(t) => Some(Kind::Input(t)),
        Written::Rope(seq, head) => Some(Kind::Rope { seq, head }),
        Written::Wrong => None,
        Written::Repeat(..) => {
            errors.push_instead_of_rustc(ty, "K0205", format!("`{name}` is a child layer"), "add `#[sub]` before it");
            None
        }
        Written::Loss | Written::Tuple(_) | Written::Other => {
            let message = format!("`{}` is not the type of a layer's input", text(ty));
            let help = "inputs are `Tensor<..>`, `Ids<..>` and `Rope<..>`; a child layer takes `#[sub]`, a host scalar `#[config]`";
            errors.push_instead_of_rustc(ty, "K0205", message, help);
            None
        }
    }
}

fn check_one_kind(name: &Ident, attrs: &KindAttrs, errors: &Errors) -> Option<()> {
    let present: Vec<(&str, &Attribute)> = [
        ("param", attrs.param.as_ref().map(|p| &p.0)),
        ("sub", attrs.sub.as_ref()),
        ("config", attrs.config.as_ref().map(|c| &c.0)),
        ("state", attrs.state.as_ref()),
    ]
    .into_iter()
    .filter_map(|(n, a)| Some((n, a?)))
    .collect();
    let [(first, _), (second, attr), ..] = present.as_slice() else { return Some(()) };
    let message = format!("`{name}` cannot be both `#[{first}]` and `#[{second}]`");
    errors.push(attr, "K0210", message, "keep one of the two");
    None
}

fn check_shard_place(attrs: &KindAttrs, errors: &Errors) {
    let Some(shard) = &attrs.shard else { return };
    let help = "`#[shard(data)]` stands on a parameter, `#[shard(pipeline)]` on a `Repeat`, `#[shard(tensor = F)]` on the layer";
    let fits = match shard.value.mesh.as_str() {
        "data" => attrs.param.is_some(),
        "pipeline" => attrs.sub.is_some(),
        _ => false,
    };
    if !fits {
        let message = format!("`#[shard({})]` cannot stand on this argument", shard.value.mesh);
        errors.push(&shard.mesh, "K0413", message, help);
    }
}

fn param(
    ty: &Type,
    attr: Attribute,
    init: Option<Init>,
    frozen: bool,
    shard: Option<Box<ShardAttr>>,
    errors: &Errors,
) -> Option<Kind> {
    match parse_type(ty, errors) {
        Written::Tensor(t) if t.dtype == DType::F32 => Some(Kind::Param { ty: t, init: init?, frozen, shard }),
        Written::Wrong => None,
        _ => {
            let message = format!("a parameter is a `Tensor<..>`, not `{}`", text(ty));
            let help = format!("write `Tensor<..>`, or remove `{}`", text(&attr));
            errors.push_instead_of_rustc(ty, "K0218", message, help);
            None
        }
    }
}

fn sub(ty: &Type, shard: Option<ShardAttr>, errors: &Errors) -> Option<Kind> {
    let (child, repeat) = match parse_type(ty, errors) {
        Written::Repeat(child, axis) => (*child, Some(axis)),
        Written::Other => (ty.clone(), None),
        Written::Wrong => return None,
        Written::Tensor(_) | Written::Rope(..) | Written::Loss | Written::Tuple(_) => {
            return wrong_child(ty, errors);
        }
    };
    if let Some(shard) = shard.as_ref().filter(|s| s.value.mesh == "pipeline" && repeat.is_none()) {
        let message = "`#[shard(pipeline)]` splits the copies of a `Repeat`, and this child is a single layer";
        errors.push(&shard.mesh, "K0412", message, "write `Repeat<Child, L>`, or remove the annotation");
    }
    let Some(segment) = last_segment(&child) else { return wrong_child(&child, errors) };
    let layer = segment.ident.clone();
    let mut generics = Vec::new();
    for a in generic_args(segment).into_iter().flatten() {
        match a {
            GenericArgument::Type(t) if single_ident(t).is_some() => generics.extend(single_ident(t)),
            other => {
                let message = format!("`{}` is not the name of an axis", text(other));
                errors.push(other, "K0222", message, "a generic layer takes axes, such as `Linear<D, V>`");
                return None;
            }
        }
    }
    Some(Kind::Sub(Box::new(SubDecl { child, layer, generics, repeat, shard })))
}

fn wrong_child(ty: &Type, errors: &Errors) -> Option<Kind> {
    let message = format!("`{}` is not a layer", text(ty));
    let help = "`#[sub]` takes a layer's type, such as `Attention` or `Repeat<Block, L>`";
    errors.push_instead_of_rustc(ty, "K0211", message, help);
    None
}

fn config(ty: &Type, default: Option<&Expr>, errors: &Errors) -> Option<Kind> {
    let name = text(ty);
    let config = match name.as_str() {
        "bool" => ConfigType::Bool,
        "f32" | "f64" => ConfigType::Float,
        "i32" | "i64" | "u32" | "u64" | "usize" | "isize" => ConfigType::Int,
        _ => {
            let message = format!("`#[config]` is a host scalar, not `{name}`");
            errors.push_instead_of_rustc(ty, "K0213", message, "use `bool`, an integer type, `f32` or `f64`");
            return None;
        }
    };
    let value = match default {
        None => None,
        Some(e) => match config_value(config, e) {
            Some(v) => Some(v),
            None => {
                let message = format!("`{}` is not a literal of type `{name}`", text(e));
                errors.push_instead_of_rustc(e, "K0213", message, "write `#[config]` or `#[config(default = 0.1)]`");
                return None;
            }
        },
    };
    Some(Kind::Config { ty: config, default: value })
}

fn config_value(ty: ConfigType, e: &Expr) -> Option<ConfigValue> {
    match (ty, e) {
        (ConfigType::Bool, Expr::Lit(ExprLit { lit: Lit::Bool(b), .. })) => Some(ConfigValue::Bool(b.value)),
        (ConfigType::Bool, _) => None,
        (ConfigType::Int, e) => literal_number(e).filter(|x| x.fract() == 0.0).map(|x| ConfigValue::Int(x as i64)),
        (ConfigType::Float, e) => literal_number(e).map(ConfigValue::Float),
    }
}
