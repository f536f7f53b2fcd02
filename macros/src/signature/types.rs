//! Types at a layer's boundary: `Tensor<B, S, D>`, `Ids<B, S>`, `Rope<S, K>`, `Loss`, `Repeat<Block, L>`.

use crate::diagnostics::Errors;
use crate::spelling::text;
use kiln_compiler::ir::{Axis, DType, Type as IrType};
use proc_macro2::Ident;
use quote::ToTokens;
use syn::punctuated::Punctuated;
use syn::{GenericArgument, PathArguments, PathSegment, Token, Type};

/// Types whose axes are erased in the emitted function.
pub const ERASED: [&str; 3] = ["Tensor", "Ids", "Rope"];

/// A tensor type as written.
#[derive(Clone)]
pub struct TensorType {
    /// `f32` for `Tensor`, `i32` for `Ids`.
    pub dtype: DType,
    /// Its axes, as the user's tokens.
    pub axes: Vec<Ident>,
}

impl TensorType {
    /// As the IR's type.
    pub fn to_ir(&self) -> IrType {
        IrType::new(self.dtype, self.axes.iter().map(axis_of).collect::<Vec<_>>())
    }
}

/// The axis that an identifier names.
pub fn axis_of(ident: &Ident) -> Axis {
    Axis::new(&ident.to_string())
}

/// What a written type stands for.
pub enum Written {
    /// `Tensor<..>` or `Ids<..>`.
    Tensor(TensorType),
    /// `Rope<S, K>`.
    Rope(Ident, Ident),
    /// `Loss`.
    Loss,
    /// `Repeat<Child, L>`.
    Repeat(Box<Type>, Ident),
    /// A tuple.
    Tuple(Vec<Type>),
    /// Anything else.
    Other,
    /// Wrong, and reported.
    Wrong,
}

/// The last segment of a plain path type.
pub fn last_segment(ty: &Type) -> Option<&PathSegment> {
    match ty {
        Type::Path(p) if p.qself.is_none() => p.path.segments.last(),
        Type::Group(g) => last_segment(&g.elem),
        Type::Paren(p) => last_segment(&p.elem),
        _ => None,
    }
}

/// Generic arguments of a path segment.
pub fn generic_args(segment: &PathSegment) -> Option<&Punctuated<GenericArgument, Token![,]>> {
    match &segment.arguments {
        PathArguments::AngleBracketed(a) => Some(&a.args),
        PathArguments::None | PathArguments::Parenthesized(_) => None,
    }
}

/// Reads a type.
pub fn parse_type(ty: &Type, errors: &Errors) -> Written {
    if let Type::Tuple(t) = ty {
        return Written::Tuple(t.elems.iter().cloned().collect());
    }
    let Some(segment) = last_segment(ty) else { return Written::Other };
    match segment.ident.to_string().as_str() {
        name @ ("Tensor" | "Ids") => {
            let Some(axes) = parse_axes(segment, errors) else { return Written::Wrong };
            let dtype = if name == "Ids" { DType::I32 } else { DType::F32 };
            Written::Tensor(TensorType { dtype, axes })
        }
        "Rope" => match parse_axes(segment, errors).as_deref() {
            None => Written::Wrong,
            Some([seq, head]) => Written::Rope(seq.clone(), head.clone()),
            Some(_) => {
                let help = "such as `Rope<S, K>`: the axis of positions, then the axis that is rotated";
                errors.push(ty, "K0219", "`Rope` takes two axes", help);
                Written::Wrong
            }
        },
        "Loss" => Written::Loss,
        "Repeat" => match generic_args(segment).map(|a| a.iter().collect::<Vec<_>>()).as_deref() {
            Some([GenericArgument::Type(child), GenericArgument::Type(axis)]) => match single_ident(axis) {
                Some(axis) => Written::Repeat(Box::new(child.clone()), axis),
                None => wrong_axis(axis, errors),
            },
            _ => {
                let help = "such as `Repeat<Block, L>`, where `L` counts the copies";
                errors.push_instead_of_rustc(
                    ty,
                    "K0211",
                    "`Repeat` takes the child layer and the axis of its copies",
                    help,
                );
                Written::Wrong
            }
        },
        _ => Written::Other,
    }
}

fn parse_axes(segment: &PathSegment, errors: &Errors) -> Option<Vec<Ident>> {
    let Some(args) = generic_args(segment).filter(|a| !a.is_empty()) else {
        let message = format!("`{}` needs its axes", segment.ident);
        errors.push(segment, "K0219", message, format!("such as `{}<B, S>`", segment.ident));
        return None;
    };
    let mut axes: Vec<Ident> = Vec::new();
    let mut ok = true;
    for a in args {
        let axis = match a {
            GenericArgument::Type(t) => single_ident(t),
            _ => None,
        };
        match axis {
            Some(axis) if axes.contains(&axis) => {
                let message = format!("axis `{axis}` stands twice in one tensor");
                errors.push(&axis, "K0204", message, "declare a second axis in `axes!`, such as `T` beside `S`");
                ok = false;
            }
            Some(axis) => axes.push(axis),
            None => {
                wrong_axis(a, errors);
                ok = false;
            }
        }
    }
    ok.then_some(axes)
}

fn wrong_axis(tokens: &impl ToTokens, errors: &Errors) -> Written {
    let message = format!("`{}` is not the name of an axis", text(tokens));
    errors.push(
        tokens,
        "K0222",
        message,
        "declare a name for it in `axes!`; `.merge((H, K), D)` makes one axis of two",
    );
    Written::Wrong
}

/// The identifier that is the whole type.
pub fn single_ident(ty: &Type) -> Option<Ident> {
    match ty {
        Type::Path(p) if p.qself.is_none() => p.path.get_ident().cloned(),
        Type::Group(g) => single_ident(&g.elem),
        _ => None,
    }
}
