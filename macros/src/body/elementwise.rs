//! Operators and element-wise methods where an operand is no plain tensor: host numbers, losses, calls that take the partner's type.

use super::value::{Expected, Number, Ref, Val};
use super::{Lowering, Operand};
use crate::annotations::position;
use kiln_compiler::ir::{Attr, Attrs, Axis, Type, ValueId};
use kiln_compiler::methods;
use quote::ToTokens;
use syn::Expr;
use syn::spanned::Spanned;

impl Lowering<'_> {
    /// `a + b` and the other operators; `op` is the name of the method.
    pub(super) fn operator(
        &mut self,
        op: &'static str,
        left: &Expr,
        right: &Expr,
        at: &impl Spanned,
        whole: &Expr,
        expected: Option<&Expected>,
    ) -> Val {
        let l = self.expr(left, expected);
        let l = self.known(&l);
        // What stands beside a typed value has its type, unless it says otherwise.
        let hint = match l {
            Val::Tensor(r) => Some(Expected::Tensor(self.ty(r).clone())),
            _ => expected.cloned(),
        };
        let r = self.expr(right, hint.as_ref());
        let r = self.known(&r);
        match (&l, &r) {
            (Val::Number(a), Val::Number(b)) => return Val::Number(Number::map(op, vec![a.clone(), b.clone()])),
            (Val::Loss { sum, count }, Val::Number(c)) if matches!(op, "mul" | "div") => {
                return self.scale_loss(op, *sum, *count, c, at);
            }
            (Val::Number(c), Val::Loss { sum, count }) if op == "mul" => {
                return self.scale_loss(op, *sum, *count, c, at);
            }
            (Val::Loss { sum: a, count: n }, Val::Loss { sum: b, count: m }) if op == "add" => {
                return self.add_losses((*a, *n), (*b, *m), at);
            }
            _ => {}
        }
        let method = methods::find(op).unwrap_or_else(|| panic!("no method `{op}` behind an operator"));
        let operands = vec![Operand::new(l, left), Operand::new(r, right)];
        self.apply_method(method, operands, at, &whole.to_token_stream(), expected)
    }

    /// `-x`.
    pub(super) fn negate(&mut self, x: &Expr, at: &impl Spanned, whole: &Expr, expected: Option<&Expected>) -> Val {
        let val = self.expr(x, None);
        match self.known(&val) {
            Val::Number(n) => Val::Number(Number::map("neg", vec![n])),
            val => self.unary("neg", val, x, at, whole, expected),
        }
    }

    /// A method without arguments.
    pub(super) fn unary(
        &mut self,
        name: &str,
        val: Val,
        x: &Expr,
        at: &impl Spanned,
        whole: &Expr,
        expected: Option<&Expected>,
    ) -> Val {
        let method = methods::find(name).unwrap_or_else(|| panic!("no method `{name}`"));
        self.apply_method(method, vec![Operand::new(val, x)], at, &whole.to_token_stream(), expected)
    }

    /// Gives pending operands of an element-wise method the type of a typed one, or the expected one.
    pub(super) fn type_element_wise(&mut self, operands: &[Operand], expected: Option<&Expected>) {
        let typed = operands.iter().find_map(|o| match self.known(&o.val) {
            Val::Tensor(r) => Some(self.ty(r).clone()),
            _ => None,
        });
        let expected = typed.as_ref().or(tensor_type(expected)).cloned();
        for o in operands {
            if let Val::Pending(i) = self.known(&o.val) {
                match &expected {
                    Some(ty) => {
                        self.resolve(i, &Expected::Tensor(ty.clone()));
                    }
                    None => self.report_pending(i),
                }
            }
        }
        self.name_axes_of_partners(operands);
    }

    /// Unknown axes take the names of those that they line up with.
    fn name_axes_of_partners(&mut self, operands: &[Operand]) {
        let refs: Vec<Ref> = operands
            .iter()
            .filter_map(|o| match self.known(&o.val) {
                Val::Tensor(r) => Some(r),
                _ => None,
            })
            .collect();
        let Some(&widest) = refs.iter().max_by_key(|r| self.ty(**r).rank()) else { return };
        for r in refs {
            let (have, want) = (self.shape(r), self.shape(widest));
            self.unify(&have, &want[want.len() - have.len()..]);
        }
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
    fn scale_loss(&mut self, op: &str, sum: Ref, count: Ref, c: &Number, at: &impl Spanned) -> Val {
        self.builder().span = position(at);
        let c = self.materialize(c, &[]);
        let sum = self.local(sum);
        let sum = self.builder().binary(op, sum, c);
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
}

/// The expected tensor type, if one tensor is expected.
pub(super) fn tensor_type(expected: Option<&Expected>) -> Option<&Type> {
    match expected {
        Some(Expected::Tensor(t)) => Some(t),
        Some(Expected::Tuple(_) | Expected::Loss) | None => None,
    }
}
