//! The user's spellings of a contraction, `matmul` and `einsum`: from operand types to the axes of the result, with their errors.

use crate::ir::{Axis, Type};
use crate::ops::{Argument, TypeError, rules};

/// Axes of `a.matmul(b)`: the last axis of `a` is contracted with the first of `b`, which must be the same.
pub fn matmul_axes(a: &Type, b: &Type) -> Result<Vec<Axis>, TypeError> {
    let op = "matmul";
    rules::float(op, 0, a)?;
    rules::float(op, 1, b)?;
    let missing =
        |i: usize| TypeError::at(i, "K0106", format!("`matmul` contracts an axis, but `{{{i}}}` is a scalar"));
    let (&last, &first) = (a.shape.last().ok_or_else(|| missing(0))?, b.shape.first().ok_or_else(|| missing(1))?);
    if last != first {
        let message = format!(
            "`matmul` contracts `{last}` with `{first}`: the last axis of `{{0}}` is `{last}`, the first of `{{1}}` is `{first}`"
        );
        let error = TypeError::at(1, "K0101", message);
        return Err(match (b.position(last), a.position(first)) {
            (Some(_), _) | (_, Some(_)) => error.help("`einsum` contracts axes in any position"),
            _ => error,
        });
    }
    let out: Vec<Axis> = a.shape[..a.rank() - 1].iter().chain(&b.shape[1..]).copied().collect();
    if let Some(&shared) = b.shape[1..].iter().find(|x| a.position(**x).is_some()) {
        let message = format!("`matmul` would give {}: both `{{0}}` and `{{1}}` have `{shared}`", rules::list(&out));
        let help = format!("if `{shared}` is a batch axis, write an `einsum`; if not, rename one of the two");
        return Err(TypeError::at(1, "K0104", message).help(help));
    }
    Ok(out)
}

/// Axes of `a.einsum(b, spec)` for a spec such as `b s d, d f -> b s f`. Letters are labels bound by position.
pub fn einsum_axes(spec: &str, a: &Type, b: &Type) -> Result<Vec<Axis>, TypeError> {
    rules::float("einsum", 0, a)?;
    rules::float("einsum", 1, b)?;
    labelled_axes(spec, a, b).map_err(|e| e.argument(Argument::Spec))
}

fn labelled_axes(spec: &str, a: &Type, b: &Type) -> Result<Vec<Axis>, TypeError> {
    let malformed = |what: String| {
        TypeError::new("K0108", format!("`einsum`: {what}")).help("write it as \"b s d, d f -> b s f\"".to_owned())
    };
    let Some((inputs, out)) = spec.split_once("->") else { return Err(malformed(format!("`{spec}` has no `->`"))) };
    let parts: Vec<&str> = inputs.split(',').collect();
    let [left, right] = parts.as_slice() else {
        return Err(malformed(format!(
            "`{spec}` names {} operand{}, it takes 2",
            parts.len(),
            if parts.len() == 1 { "" } else { "s" }
        )));
    };
    let mut labels: Vec<(&str, Axis, usize)> = Vec::new();
    for (i, (part, ty)) in [(left, a), (right, b)].into_iter().enumerate() {
        let words: Vec<&str> = part.split_whitespace().collect();
        if words.len() != ty.rank() {
            let message = format!(
                "`einsum`: `{}` has {} labels, but `{{{i}}}` has {} axes {}",
                part.trim(),
                words.len(),
                ty.rank(),
                rules::list(&ty.shape)
            );
            return Err(TypeError::at(i, "K0106", message));
        }
        bind(&mut labels, i, &words, ty)?;
    }
    let out: Vec<Axis> = out
        .split_whitespace()
        .map(|w| match labels.iter().find(|(label, ..)| *label == w) {
            Some((_, axis, _)) => Ok(*axis),
            None => Err(malformed(format!("`{w}` is in the result, but in no operand"))),
        })
        .collect::<Result<_, _>>()?;
    rules::no_repeats("einsum", &out)?;
    check_contraction("`einsum`", a, b, &out)?;
    Ok(out)
}

/// Binds the labels of operand `i` to its axes.
fn bind<'a>(labels: &mut Vec<(&'a str, Axis, usize)>, i: usize, words: &[&'a str], ty: &Type) -> Result<(), TypeError> {
    for (k, (&word, &axis)) in words.iter().zip(&ty.shape).enumerate() {
        if words[..k].contains(&word) {
            let message = format!("`einsum`: label `{word}` stands twice for axes of `{{{i}}}`");
            return Err(TypeError::at(i, "K0108", message).help("give every axis of an operand its own label"));
        }
        match labels.iter().find(|(label, bound, _)| (*label == word) != (*bound == axis)) {
            None => labels.push((word, axis, i)),
            Some(&(label, bound, j)) if label == word => {
                let message = format!("`einsum`: `{word}` is `{bound}` in `{{{j}}}` and `{axis}` in `{{{i}}}`");
                let help =
                    format!("if they mean the same, `.rename({axis}, {bound})` says so; if not, use two letters");
                return Err(TypeError::at(i, "K0107", message).help(help));
            }
            Some(&(label, _, j)) => {
                let message = format!("`einsum`: `{axis}` is `{label}` in `{{{j}}}` and `{word}` in `{{{i}}}`");
                let help = format!("use one letter for `{axis}`, or rename one of the two axes");
                return Err(TypeError::at(i, "K0107", message).help(help));
            }
        }
    }
    Ok(())
}

/// Every axis of `out` is in an operand, and every axis of one operand only is in `out`.
pub(super) fn check_contraction(op: &str, a: &Type, b: &Type, out: &[Axis]) -> Result<(), TypeError> {
    if let Some(x) = out.iter().find(|x| a.position(**x).is_none() && b.position(**x).is_none()) {
        return Err(TypeError::new("K0103", format!("{op} gives `{x}`, which neither `{{0}}` nor `{{1}}` has")));
    }
    let lost = |x: &Type, y: &Type| x.shape.iter().copied().find(|s| y.position(*s).is_none() && !out.contains(s));
    match (lost(a, b), lost(b, a)) {
        (Some(x), Some(y)) => {
            let message = format!("{op} contracts `{x}` with `{y}`: `{x}` is only in `{{0}}`, `{y}` only in `{{1}}`");
            Err(TypeError::at(1, "K0101", message))
        }
        (Some(x), None) => Err(one_sided(op, 0, x)),
        (None, Some(y)) => Err(one_sided(op, 1, y)),
        (None, None) => Ok(()),
    }
}

fn one_sided(op: &str, i: usize, axis: Axis) -> TypeError {
    let message = format!("{op} drops `{axis}`, which only `{{{i}}}` has");
    TypeError::at(i, "K0109", message).help(format!("keep `{axis}` in the result, or sum over it first"))
}
