//! Element-wise operations: trailing broadcast as in numpy, host numbers, losses, and calls that take the other operand's type.

use super::value::{Expected, Number, Val};
use super::{Lowering, Ref, describe};
use crate::annotations::position;
use kiln_compiler::ir::{Attr, Attrs, Axis, Type, ValueId};
use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::Expr;
use syn::spanned::Spanned;

impl Lowering<'_> {
    /// `a + b` and the other operators.
    pub(super) fn operator(
        &mut self,
        op: &'static str,
        left: &Expr,
        right: &Expr,
        at: &impl Spanned,
        whole: &Expr,
        expected: Option<&Expected>,
    ) -> Val {
        let (l, r) = (self.expr(left, None), self.expr(right, None));
        self.binary(op, (l, left.to_token_stream()), (r, right.to_token_stream()), at, &whole.to_token_stream(), expected)
    }

    /// A two-operand map on any values.
    pub(super) fn binary(
        &mut self,
        op: &'static str,
        left: (Val, TokenStream),
        right: (Val, TokenStream),
        at: &impl Spanned,
        whole: &TokenStream,
        expected: Option<&Expected>,
    ) -> Val {
        let (l, r) = (self.known(&left.0), self.known(&right.0));
        match (l, r) {
            (Val::Wrong, Val::Pending(i)) | (Val::Pending(i), Val::Wrong) => {
                // The type would have come from the operand that is wrong: one mistake, one error.
                self.pending[i].reported = true;
                Val::Wrong
            }
            (Val::Wrong, _) | (_, Val::Wrong) => Val::Wrong,
            (Val::Number(a), Val::Number(b)) => Val::Number(Number::map(op, vec![a, b])),
            (Val::Loss { sum, count }, Val::Number(c)) if matches!(op, "mul" | "div") => {
                self.scale_loss(op, sum, count, &c, at)
            }
            (Val::Number(c), Val::Loss { sum, count }) if op == "mul" => self.scale_loss(op, sum, count, &c, at),
            (Val::Loss { sum: a, count: n }, Val::Loss { sum: b, count: m }) if op == "add" => {
                self.add_losses((a, n), (b, m), at)
            }
            (Val::Tensor(a), Val::Number(c)) => {
                let b = self.number_like(&c, a, at);
                self.apply_one(op, Attrs::new(), &[(a, left.1), (b, right.1)], at, whole)
            }
            (Val::Number(c), Val::Tensor(b)) => {
                let a = self.number_like(&c, b, at);
                self.apply_one(op, Attrs::new(), &[(a, left.1), (b, right.1)], at, whole)
            }
            (Val::Tensor(a), Val::Tensor(b)) => self.binary_tensors(op, (a, left.1), (b, right.1), at, whole),
            (Val::Pending(_), Val::Tensor(_) | Val::Pending(_) | Val::Number(_)) | (Val::Tensor(_), Val::Pending(_)) | (Val::Number(_), Val::Pending(_)) => {
                let known = [&left.0, &right.0].into_iter().find_map(|v| match self.known(v) {
                    Val::Tensor(r) => Some(Expected::Tensor(self.ty(r).clone())),
                    _ => None,
                });
                self.binary_pending(op, left, right, at, whole, known.as_ref().or(expected))
            }
            (l @ (Val::Tensor(_) | Val::Pending(_) | Val::Number(_) | Val::Loss { .. }), r) => {
                if let (Val::Loss { .. }, _) = (&l, &r) { self.not_a_tensor(&l, &left.1) } else { self.not_a_tensor(&r, &right.1) }
            }
            (l, _) => self.not_a_tensor(&l, &left.1),
        }
    }

    fn binary_pending(
        &mut self,
        op: &'static str,
        left: (Val, TokenStream),
        right: (Val, TokenStream),
        at: &impl Spanned,
        whole: &TokenStream,
        expected: Option<&Expected>,
    ) -> Val {
        for v in [&left.0, &right.0] {
            if let Val::Pending(i) = self.known(v) {
                match expected {
                    Some(expected) => {
                        self.resolve(i, expected);
                    }
                    None => self.report_pending(i),
                }
            }
        }
        self.binary(op, left, right, at, whole, expected)
    }

    fn binary_tensors(
        &mut self,
        op: &'static str,
        left: (Ref, TokenStream),
        right: (Ref, TokenStream),
        at: &impl Spanned,
        whole: &TokenStream,
    ) -> Val {
        let Some((a, b)) = self.aligned(op, (left.0, &left.1), (right.0, &right.1), at) else { return Val::Wrong };
        self.apply_one(op, Attrs::new(), &[(a, left.1), (b, right.1)], at, whole)
    }

    /// Both tensors over the longer one's axes: the shorter one's must be its last axes.
    pub(super) fn aligned(
        &mut self,
        op: &str,
        left: (Ref, &TokenStream),
        right: (Ref, &TokenStream),
        at: &impl Spanned,
    ) -> Option<(Ref, Ref)> {
        let (ra, rb) = (self.ty(left.0).rank(), self.ty(right.0).rank());
        let (short, long) = if ra <= rb { (left, right) } else { (right, left) };
        let skip = ra.abs_diff(rb);
        let (have, want) = (self.shape(short.0), self.shape(long.0));
        self.unify(&have, &want[skip..]);
        let (have, want) = (self.shape(short.0), self.shape(long.0));
        if have != want[skip..] && (skip > 0 || !have.iter().all(|a| want.contains(a))) {
            self.report_misaligned(op, short.1, &have, long.1, &want);
            return None;
        }
        let short_full = if skip == 0 { short.0 } else { self.broadcast_to(short.0, &want, at) };
        Some(if ra <= rb { (short_full, long.0) } else { (long.0, short_full) })
    }

    fn report_misaligned(&mut self, op: &str, short: &TokenStream, have: &[Axis], long: &TokenStream, want: &[Axis]) {
        let (s, l) = (describe(short), describe(long));
        let message = format!("`{op}` of `{l}` over {want:?} and `{s}` over {have:?}: the axes of `{s}` must be the last of `{l}`");
        let strange: Vec<&Axis> = have.iter().filter(|a| !want.contains(a)).collect();
        let help = match strange.as_slice() {
            [] => {
                let axes: Vec<&str> = want.iter().map(|a| a.name()).collect();
                format!("say how it is repeated: `{s}.over(({}))`", axes.join(", "))
            }
            [x] => match want.iter().find(|a| !have.contains(a)) {
                Some(y) => format!("if `{x}` and `{y}` mean the same, `.rename({x}, {y})` says so"),
                None => format!("`{l}` has no axis `{x}`"),
            },
            more => format!("`{l}` has none of {more:?}"),
        };
        self.errors.push(short, "K0102", message, help);
    }

    pub(super) fn broadcast_to(&mut self, x: Ref, to: &[Axis], at: &impl Spanned) -> Ref {
        let id = self.local(x);
        let builder = self.builder();
        builder.span = position(at);
        let id = builder.broadcast(id, to);
        self.here(id)
    }

    fn number_like(&mut self, n: &Number, like: Ref, at: &impl Spanned) -> Ref {
        let shape = self.shape(like);
        self.builder().span = position(at);
        let id = self.materialize(n, &shape);
        self.here(id)
    }

    /// A host number over a shape.
    pub(super) fn materialize(&mut self, n: &Number, shape: &[Axis]) -> ValueId {
        let constant = |value: Attr| Attrs::new().with("value", value).with("shape", shape);
        match n {
            Number::Literal(x) => self.builder().op("const", constant(Attr::Float(*x)), &[]),
            Number::Config(name) => self.builder().op("const", constant(Attr::Config(name.clone())), &[]),
            Number::Map(op, args) => {
                let args: Vec<ValueId> = args.iter().map(|a| self.materialize(a, shape)).collect();
                self.builder().op(op, Attrs::new(), &args)
            }
        }
    }

    /// c · loss: the ratio is scaled, so the sum is.
    fn scale_loss(&mut self, op: &'static str, sum: Ref, count: Ref, c: &Number, at: &impl Spanned) -> Val {
        let c = self.number_like(c, sum, at);
        let ids = [self.local(sum), self.local(c)];
        let sum = self.builder().op(op, Attrs::new(), &ids);
        Val::Loss { sum: self.here(sum), count }
    }

    /// a/n + b/m = (a + b·n/m)/n.
    fn add_losses(&mut self, (a, n): (Ref, Ref), (b, m): (Ref, Ref), at: &impl Spanned) -> Val {
        let [a, n_id, b, m] = [a, n, b, m].map(|r| self.local(r));
        let builder = self.builder();
        builder.span = position(at);
        let ratio = builder.div(n_id, m);
        let b = builder.mul(b, ratio);
        let sum = builder.add(a, b);
        Val::Loss { sum: self.here(sum), count: n }
    }

    /// A one-operand operation that keeps the shape.
    pub(super) fn unary(
        &mut self,
        op: &'static str,
        val: Val,
        tokens: &TokenStream,
        at: &impl Spanned,
        whole: &impl ToTokens,
        expected: Option<&Expected>,
    ) -> Val {
        match self.tensor(&val, tokens, tensor_type(expected)) {
            Some(r) => self.apply_one(op, Attrs::new(), &[(r, tokens.clone())], at, &whole.to_token_stream()),
            None => Val::Wrong,
        }
    }
}

/// The expected tensor type, if one tensor is expected.
pub(super) fn tensor_type(expected: Option<&Expected>) -> Option<&Type> {
    match expected {
        Some(Expected::Tensor(t)) => Some(t),
        Some(Expected::Tuple(_) | Expected::Loss) | None => None,
    }
}
