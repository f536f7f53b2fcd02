//! Checks that type rules share; each gives the error of one rule of the language.

use super::{Argument, TypeError};
use crate::ir::{Attr, Attrs, Axis, DType, Node, Sizes, Type};

type Check<T = ()> = Result<T, TypeError>;

/// `[B, S, D]`, for messages.
pub(super) fn list(axes: &[Axis]) -> String {
    let names: Vec<&str> = axes.iter().map(|a| a.name()).collect();
    format!("[{}]", names.join(", "))
}

/// Exactly `N` operands.
pub(super) fn operands<'a, const N: usize>(op: &str, types: &[&'a Type]) -> Check<[&'a Type; N]> {
    <[&Type; N]>::try_from(types).map_err(|_| {
        let s = if N == 1 { "" } else { "s" };
        TypeError::new("K0116", format!("`{op}` takes {N} operand{s}, {} given", are(types.len())))
    })
}

fn are(n: usize) -> String {
    format!("{n} {}", if n == 1 { "is" } else { "are" })
}

/// At least `n` operands.
pub(super) fn at_least(op: &str, types: &[&Type], n: usize) -> Check {
    match types.len() >= n {
        true => Ok(()),
        false => Err(TypeError::new("K0116", format!("`{op}` takes {n} or more operands, {} given", are(types.len())))),
    }
}

/// Operand `i` holds real numbers.
pub(super) fn float(op: &str, i: usize, ty: &Type) -> Check {
    if ty.dtype.is_float() {
        return Ok(());
    }
    let what = if ty.dtype == DType::Bool { "is a mask" } else { "holds ids" };
    Err(TypeError::at(i, "K0105", format!("`{op}` needs real numbers, but `{{{i}}}` {what} ({ty})")))
}

/// Operand `i` holds ids.
pub(super) fn ids(op: &str, i: usize, ty: &Type) -> Check {
    match ty.dtype {
        DType::I32 => Ok(()),
        _ => Err(TypeError::at(i, "K0105", format!("`{op}` needs ids here, but `{{{i}}}` is {ty}"))
            .help(format!("declare it as `Ids<{}>`", list(&ty.shape).trim_matches(['[', ']'])))),
    }
}

/// Operand `i` has `axis`; gives its position.
pub(super) fn has(op: &str, i: usize, ty: &Type, axis: Axis) -> Check<usize> {
    ty.position(axis).ok_or_else(|| {
        let message = match ty.rank() {
            0 => format!("`{op}` needs axis `{axis}`, but `{{{i}}}` is a scalar"),
            _ => format!("`{op}` needs axis `{axis}`; the axes of `{{{i}}}` are {}", list(&ty.shape)),
        };
        TypeError::at(i, "K0103", message).argument(Argument::Axis(axis))
    })
}

/// No axis of a result's shape appears twice.
pub(super) fn distinct(op: &str, shape: &[Axis]) -> Check {
    match shape.iter().enumerate().find(|(i, a)| shape[..*i].contains(a)) {
        None => Ok(()),
        Some((_, a)) => Err(TypeError::new("K0104", format!("`{op}` would give {}, with `{a}` twice", list(shape)))
            .argument(Argument::Axis(*a))
            .help(format!("rename one of the two, such as `.rename({a}, ..)`"))),
    }
}

/// No axis that the user lists appears twice.
pub(super) fn no_repeats(op: &str, axes: &[Axis]) -> Check {
    match axes.iter().enumerate().find(|(i, a)| axes[..*i].contains(a)) {
        None => Ok(()),
        Some((_, a)) => {
            Err(TypeError::new("K0104", format!("`{op}` names `{a}` twice: {}", list(axes)))
                .argument(Argument::Axis(*a)))
        }
    }
}

/// Operands from `first` on have the same axes in the same order.
pub(super) fn same_axes(op: &str, types: &[&Type], first: usize) -> Check {
    let a = types[first];
    let Some(j) = (first + 1..types.len()).find(|&j| types[j].shape != a.shape) else { return Ok(()) };
    let b = types[j];
    let message = format!(
        "`{op}` needs equal axes: `{{{first}}}` has {}, `{{{j}}}` has {}",
        if a.rank() == 0 { "none".to_owned() } else { list(&a.shape) },
        if b.rank() == 0 { "none".to_owned() } else { list(&b.shape) },
    );
    let lacks = |x: &Type, y: &Type| super::without(y, &x.shape);
    let (a_lacks, b_lacks) = (lacks(a, b), lacks(b, a));
    let error = TypeError::at(j, "K0102", message);
    Err(match (a_lacks.as_slice(), b_lacks.as_slice()) {
        ([], []) => error.help(format!("permute `{{{j}}}` to {}", list(&a.shape))),
        ([], missing) => error.help(format!("`{{{j}}}` lacks {}: broadcast it to {}", list(missing), list(&a.shape))),
        (missing, []) => {
            error.help(format!("`{{{first}}}` lacks {}: broadcast it to {}", list(missing), list(&b.shape)))
        }
        ([theirs], [ours]) => error.help(format!(
            "if `{ours}` and `{theirs}` mean the same, `.rename({theirs}, {ours})` on `{{{j}}}` says so"
        )),
        _ => error,
    })
}

/// The last axis of operand `i`.
pub(super) fn last_axis(op: &str, i: usize, ty: &Type) -> Check<Axis> {
    ty.shape.last().copied().ok_or_else(|| {
        TypeError::at(i, "K0106", format!("`{op}` works along the last axis, but `{{{i}}}` is a scalar"))
    })
}

/// Operand `i` has no axes.
pub(super) fn scalar(op: &str, i: usize, ty: &Type) -> Check {
    match ty.rank() {
        0 => Ok(()),
        _ => Err(TypeError::at(i, "K0106", format!("`{op}` needs a scalar here, but `{{{i}}}` is {ty}"))),
    }
}

fn unfit(op: &str, name: &str, what: &str, found: Option<&Attr>) -> TypeError {
    let found = match found {
        Some(a) => format!("it is {a:?}"),
        None => "it is missing".to_owned(),
    };
    TypeError::new("K0117", format!("`{op}` needs {what} as `{name}`; {found}"))
}

/// An attribute that is one axis.
pub(super) fn axis(op: &str, attrs: &Attrs, name: &str) -> Check<Axis> {
    match attrs.get(name) {
        Some(Attr::Axis(a)) => Ok(*a),
        other => Err(unfit(op, name, "an axis", other)),
    }
}

/// An attribute that is a list of different axes.
pub(super) fn axes<'a>(op: &str, attrs: &'a Attrs, name: &str) -> Check<&'a [Axis]> {
    match attrs.get(name) {
        Some(Attr::Axes(a)) => no_repeats(op, a).map(|()| a.as_slice()),
        other => Err(unfit(op, name, "a list of axes", other)),
    }
}

/// An attribute that is an integer, not negative.
pub(super) fn count(op: &str, attrs: &Attrs, name: &str) -> Check<usize> {
    match attrs.get(name) {
        Some(Attr::Int(i)) => {
            usize::try_from(*i).map_err(|_| unfit(op, name, "an integer, not negative,", attrs.get(name)))
        }
        other => Err(unfit(op, name, "an integer", other)),
    }
}

/// An attribute that is a number of elements: an integer, or an axis that stands for its size.
pub(super) fn extent(op: &str, attrs: &Attrs, name: &str) -> Check {
    match attrs.get(name) {
        Some(Attr::Axis(_)) => Ok(()),
        _ => count(op, attrs, name).map(|_| ()),
    }
}

/// An attribute that is a number, or a `#[config]` value until linking; a number must satisfy `fits`, which `range` describes.
pub(super) fn number(op: &str, attrs: &Attrs, name: &str, fits: fn(f64) -> bool, range: &str) -> Check {
    let x = match attrs.get(name) {
        Some(Attr::Float(x)) => *x,
        Some(Attr::Int(i)) => *i as f64,
        Some(Attr::Config(_)) => return Ok(()),
        other => return Err(unfit(op, name, "a number", other)),
    };
    match fits(x) {
        true => Ok(()),
        false => {
            Err(TypeError::new("K0118", format!("`{op}`: `{name}` must be {range}, is {x}")).argument(Argument::Number))
        }
    }
}

/// An attribute that is an element type.
pub(super) fn dtype(op: &str, attrs: &Attrs, name: &str) -> Check<DType> {
    match attrs.get(name) {
        Some(Attr::DType(d)) => Ok(*d),
        other => Err(unfit(op, name, "an element type", other)),
    }
}

/// An attribute that is a word.
pub(super) fn word<'a>(op: &str, attrs: &'a Attrs, name: &str) -> Check<&'a str> {
    match attrs.get(name) {
        Some(Attr::Str(s)) => Ok(s),
        other => Err(unfit(op, name, "a word", other)),
    }
}

/// Result types from the attributes `outs`, `out0`, `out1`, .. and `dtype`.
pub(super) fn declared_outputs(op: &str, attrs: &Attrs) -> Check<Vec<Type>> {
    let dtype = dtype(op, attrs, "dtype")?;
    let outs = count(op, attrs, "outs")?;
    (0..outs).map(|i| Ok(Type::new(dtype, axes(op, attrs, &format!("out{i}"))?))).collect()
}

/// Cost of operations that move elements and compute nothing.
pub(super) fn free(_: &Sizes, _: &Node, _: &[&Type], _: &[&Type]) -> u64 {
    0
}

/// Cost of one operation per element of the first result.
pub(super) fn per_result(sizes: &Sizes, _: &Node, _: &[&Type], outs: &[&Type]) -> u64 {
    sizes.elements(&outs[0].shape) as u64
}

/// Cost of one operation per element of the first operand.
pub(super) fn per_operand(sizes: &Sizes, _: &Node, args: &[&Type], _: &[&Type]) -> u64 {
    sizes.elements(&args[0].shape) as u64
}
