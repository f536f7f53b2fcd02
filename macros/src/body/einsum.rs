//! `einsum` and `matmul`: positional contraction in the user's words, `dot_general` with its result's axes in the IR.

use super::value::{Expected, Val};
use super::{Lowering, Ref, describe};
use super::elementwise::tensor_type;
use crate::diagnostics::Errors;
use kiln_compiler::ir::{Attrs, Axis, DType, Type};
use proc_macro2::TokenStream;
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, Lit};

/// `"b s d, v d -> b s v"`.
struct Formula {
    left: Vec<String>,
    right: Vec<String>,
    out: Vec<String>,
}

impl Lowering<'_> {
    /// `left.einsum(right, "..")`.
    pub(super) fn einsum(
        &mut self,
        left: (Val, TokenStream),
        right: (Val, TokenStream),
        formula: &Expr,
        at: &impl Spanned,
        expected: Option<&Expected>,
    ) -> Val {
        let Some(f) = parse_formula(formula, self.errors) else { return Val::Wrong };
        let mut bound: Vec<(String, Axis)> = Vec::new();
        let mut ok = true;
        for ((val, tokens), labels) in [(&left, &f.left), (&right, &f.right)] {
            match self.known(val) {
                Val::Tensor(r) => {
                    let shape = self.shape(r);
                    ok &= self.bind_labels(labels, &shape, tokens, formula, &mut bound);
                }
                Val::Wrong => ok = false,
                _ => {}
            }
        }
        if !ok {
            return self.give_up([&left.0, &right.0]);
        }
        if let Some(ty) = tensor_type(expected).filter(|t| t.rank() == f.out.len()) {
            for (l, &axis) in f.out.iter().zip(&ty.shape) {
                if !bound.iter().any(|(known, a)| known == l || *a == axis) {
                    bound.push((l.clone(), axis));
                }
            }
        }
        for l in f.left.iter().chain(&f.right) {
            if !bound.iter().any(|(known, _)| known == l) {
                let axis = self.wildcard();
                bound.push((l.clone(), axis));
            }
        }
        let axes = |labels: &[String]| -> Vec<Axis> {
            labels.iter().filter_map(|l| bound.iter().find(|(known, _)| known == l).map(|(_, a)| *a)).collect()
        };
        let (left_ty, right_ty) = (Type::f32(axes(&f.left)), Type::f32(axes(&f.right)));
        let a = self.tensor(&left.0, &left.1, Some(&left_ty));
        let b = self.tensor(&right.0, &right.1, Some(&right_ty));
        let (Some(a), Some(b)) = (a, b) else { return Val::Wrong };
        // Binding a letter to an axis that it did not have yet may have named an unknown axis.
        self.unify(&self.shape(a), &left_ty.shape);
        self.unify(&self.shape(b), &right_ty.shape);
        let out: Vec<Axis> = f
            .out
            .iter()
            .filter_map(|l| match f.left.iter().position(|k| k == l) {
                Some(i) => self.ty(a).shape.get(i).copied(),
                None => f.right.iter().position(|k| k == l).and_then(|i| self.ty(b).shape.get(i).copied()),
            })
            .collect();
        let whole = syn_tokens(formula);
        self.apply_one("dot_general", Attrs::new().with("out", out), &[(a, left.1), (b, right.1)], at, &whole)
    }

    /// After an error in one operand, calls that are the other one need no type.
    fn give_up(&mut self, vals: [&Val; 2]) -> Val {
        for v in vals {
            if let Val::Pending(i) = self.known(v) {
                self.pending[i].reported = true;
            }
        }
        Val::Wrong
    }

    fn bind_labels(
        &mut self,
        labels: &[String],
        shape: &[Axis],
        tokens: &TokenStream,
        formula: &Expr,
        bound: &mut Vec<(String, Axis)>,
    ) -> bool {
        let name = describe(tokens);
        if labels.len() != shape.len() {
            let message = format!(
                "`einsum` gives {} letter{} to `{name}`, which has {} axes {shape:?}",
                labels.len(),
                if labels.len() == 1 { "" } else { "s" },
                shape.len()
            );
            self.errors.push(formula, "K0106", message, "one letter for each axis, separated by spaces: `\"b s d, d f -> b s f\"`");
            return false;
        }
        for (label, &axis) in labels.iter().zip(shape) {
            let known = bound.iter().find(|(l, _)| l == label).map(|(_, a)| *a);
            match known {
                Some(other) if other != axis && (other.is_wildcard() || axis.is_wildcard()) => {
                    self.unify(&[other], &[axis]);
                    let named = if other.is_wildcard() { axis } else { other };
                    bound.iter_mut().filter(|(_, a)| *a == other || *a == axis).for_each(|(_, a)| *a = named);
                }
                Some(other) if other != axis => {
                    let message = format!("`einsum` letter `{label}` stands for axis `{other}` and for `{axis}` of `{name}`");
                    let help = format!("use another letter, or `.rename({axis}, {other})` if they mean the same");
                    self.errors.push(formula, "K0107", message, help);
                    return false;
                }
                Some(_) => {}
                None => {
                    if let Some((other, _)) = bound.iter().find(|(_, a)| *a == axis) {
                        let message = format!("`einsum` letters `{other}` and `{label}` both stand for axis `{axis}`");
                        let help = format!("axes of one name are one axis: use `{other}` twice, or `.rename({axis}, ..)` one of them");
                        self.errors.push(formula, "K0107", message, help);
                        return false;
                    }
                    bound.push((label.clone(), axis));
                }
            }
        }
        true
    }

    /// `left.matmul(right)`: the last axis of the left with the first of the right.
    pub(super) fn matmul(
        &mut self,
        left: (Val, TokenStream),
        right: (Val, TokenStream),
        at: &impl Spanned,
        whole: &TokenStream,
        expected: Option<&Expected>,
    ) -> Val {
        let (l, r) = (self.known(&left.0), self.known(&right.0));
        if matches!(l, Val::Wrong) || matches!(r, Val::Wrong) {
            return self.give_up([&l, &r]);
        }
        let left_ty = match (&r, tensor_type(expected)) {
            (Val::Tensor(w), Some(out)) => matmul_left(self.ty(*w), out),
            _ => None,
        };
        let a = self.tensor(&l, &left.1, left_ty.as_ref());
        let right_ty = match (a, tensor_type(expected)) {
            (Some(a), Some(out)) => matmul_right(self.ty(a), out),
            _ => None,
        };
        let b = self.tensor(&r, &right.1, right_ty.as_ref());
        let (Some(a), Some(b)) = (a, b) else { return Val::Wrong };
        let (x, y) = (self.shape(a), self.shape(b));
        let (Some(&last), Some(&first)) = (x.last(), y.first()) else {
            let (tokens, name) = if x.is_empty() { (&left.1, describe(&left.1)) } else { (&right.1, describe(&right.1)) };
            let message = format!("`matmul` needs an axis to contract, but `{name}` is a scalar");
            self.errors.push(tokens, "K0106", message, "multiply by a scalar with `*`");
            return Val::Wrong;
        };
        self.unify(&[last], &[first]);
        let (x, y) = (self.shape(a), self.shape(b));
        let (last, first) = (x[x.len() - 1], y[0]);
        if last != first {
            return self.report_contraction((&left.1, &x), (&right.1, &y));
        }
        if let Some(batch) = y[1..].iter().find(|a| x.contains(a)) {
            let message = format!("`matmul` would give axis `{batch}` twice: both `{}` and `{}` have it", describe(&left.1), describe(&right.1));
            let help = format!("a batch over `{batch}` is `einsum`; otherwise `.rename({batch}, ..)` one of them");
            self.errors.push(&right.1, "K0104", message, help);
            return Val::Wrong;
        }
        let out: Vec<Axis> = x[..x.len() - 1].iter().chain(&y[1..]).copied().collect();
        self.apply_one("dot_general", Attrs::new().with("out", out), &[(a, left.1), (b, right.1)], at, whole)
    }

    fn report_contraction(&mut self, (left, x): (&TokenStream, &[Axis]), (right, y): (&TokenStream, &[Axis])) -> Val {
        let (last, first) = (x[x.len() - 1], y[0]);
        let (l, r) = (describe(left), describe(right));
        let message = format!("`matmul` contracts `{last}` with `{first}`: the last axis of `{l}` is `{last}`, the first of `{r}` is `{first}`");
        let help = if y.contains(&last) {
            format!("`{r}` has `{last}` elsewhere: `einsum` names the axes, `.permute(..)` moves them")
        } else {
            format!("contract with a tensor whose first axis is `{last}`")
        };
        self.errors.push(right, "K0101", message, help);
        Val::Wrong
    }

    /// The type of a tensor whose shape the other operand decides.
    pub(super) fn typed(&mut self, val: &Val, tokens: &TokenStream, shape: Option<Vec<Axis>>) -> Option<Ref> {
        let ty = shape.map(|s| Type::new(DType::F32, s));
        self.tensor(val, tokens, ty.as_ref())
    }
}

fn matmul_left(w: &Type, out: &Type) -> Option<Type> {
    let (first, rest) = w.shape.split_first()?;
    let prefix = out.shape.strip_suffix(rest)?;
    let mut shape = prefix.to_vec();
    shape.push(*first);
    Some(Type::f32(shape))
}

fn matmul_right(x: &Type, out: &Type) -> Option<Type> {
    let (last, prefix) = x.shape.split_last()?;
    let rest = out.shape.strip_prefix(prefix)?;
    let mut shape = vec![*last];
    shape.extend(rest);
    Some(Type::f32(shape))
}

fn syn_tokens(e: &Expr) -> TokenStream {
    quote::ToTokens::to_token_stream(e)
}

fn parse_formula(e: &Expr, errors: &Errors) -> Option<Formula> {
    const HELP: &str = "such as `\"b s d, d f -> b s f\"`: letters separated by spaces, two operands, an arrow";
    let wrong = |message: &str| {
        errors.push(e, "K0108", message, HELP);
        None
    };
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = e else {
        return wrong("`einsum` takes its letters as a string literal");
    };
    let text = text.value();
    let Some((inputs, out)) = text.split_once("->") else { return wrong("this `einsum` has no `->`") };
    let operands: Vec<&str> = inputs.split(',').collect();
    let [left, right] = operands.as_slice() else { return wrong("`einsum` has two operands, separated by one comma") };
    let words = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let f = Formula { left: words(left), right: words(right), out: words(out) };
    for l in f.left.iter().chain(&f.right).chain(&f.out) {
        if !l.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return wrong(&format!("`{l}` is not a letter of `einsum`"));
        }
    }
    for list in [&f.left, &f.right, &f.out] {
        if let Some((i, l)) = list.iter().enumerate().find(|(i, l)| list[..*i].contains(l)) {
            return wrong(&format!("`einsum` letter `{l}` stands twice in one tensor (position {})", i + 1));
        }
    }
    match f.out.iter().find(|l| !f.left.contains(l) && !f.right.contains(l)) {
        Some(l) => wrong(&format!("`einsum` letter `{l}` of the result is in no operand")),
        None => Some(f),
    }
}
