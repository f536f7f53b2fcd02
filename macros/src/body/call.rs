//! `child.forward(..)`: operands in, a pending value out, and one assumption per argument for the cross-layer check.

use super::value::{Assumed, Assumption, Expected, Source, Val};
use super::{Lowering, Ref};
use crate::annotations::position;
use crate::spelling::{describe, text};
use kiln_compiler::ir::DType;
use quote::ToTokens;
use syn::{Expr, ExprMethodCall};

impl Lowering<'_> {
    /// Any method call: a child's `forward`, or a tensor's method.
    pub(super) fn method_call(&mut self, m: &ExprMethodCall, whole: &Expr, expected: Option<&Expected>) -> Val {
        let receiver = self.expr(&m.receiver, None);
        match self.known(&receiver) {
            Val::Sub(sub) => self.forward(sub, m, whole, expected),
            Val::Copies(_) => {
                let message = format!("`{}` stands for several layers; call each of them", text(&m.receiver));
                let help = format!("`for block in {} {{ x = block.forward(x); }}`", text(&m.receiver));
                self.errors.push_instead_of_rustc(&m.receiver, "K0318", message, help);
                self.arguments_of(m);
                Val::Wrong
            }
            val @ (Val::Tensor(_) | Val::Pending(_) | Val::Wrong) => self.tensor_method(val, m, expected),
            other => {
                self.not_a_tensor(&other, &m.receiver);
                self.arguments_of(m);
                Val::Wrong
            }
        }
    }

    /// Lowers arguments for their own mistakes only.
    pub(super) fn arguments_of(&mut self, m: &ExprMethodCall) {
        for a in &m.args {
            if let Val::Pending(i) = self.expr(a, None) {
                self.pending[i].reported = true;
            }
        }
    }

    fn forward(&mut self, sub: usize, m: &ExprMethodCall, whole: &Expr, expected: Option<&Expected>) -> Val {
        if m.method != "forward" {
            let message = format!("`{}` is a child layer; `{}` is none of its methods", text(&m.receiver), m.method);
            let help = format!("call `{0}.forward(..)`, or read a parameter as `{0}.name`", text(&m.receiver));
            self.errors.push_instead_of_rustc(&m.method, "K0317", message, help);
            self.arguments_of(m);
            return Val::Wrong;
        }
        let mut args: Vec<Ref> = Vec::new();
        let mut ok = true;
        for (i, a) in m.args.iter().enumerate() {
            let tokens = a.to_token_stream();
            let val = self.expr(a, None);
            let (operand, what) = match self.known(&val) {
                Val::Tensor(r) if self.ty(r).dtype == DType::Bool => {
                    let message = format!("`{}` is a mask; a child takes tensors, ids and `Rope`", describe(a));
                    let help = "compare inside the child, or pass numbers: `mask.select(1.0, 0.0)`";
                    self.errors.push(a, "K0329", message, help);
                    ok = false;
                    continue;
                }
                Val::Tensor(r) => (r, Assumed::Input(i, self.ty(r).clone())),
                Val::Rope { base, axes } => (base, Assumed::Rope(i, axes)),
                Val::Pending(p) => {
                    self.report_pending(p);
                    ok = false;
                    continue;
                }
                Val::Wrong => {
                    ok = false;
                    continue;
                }
                other => {
                    let message =
                        format!("`{}` is {}; a child takes tensors, ids and `Rope`", describe(a), other.kind());
                    let help = "a `#[config]` value is set when the model is built, not passed to `forward`";
                    self.errors.push_instead_of_rustc(a, "K0329", message, help);
                    ok = false;
                    continue;
                }
            };
            self.assumptions.push(Assumption { sub, name: text(&m.receiver), tokens, what });
            args.push(operand);
        }
        if !ok {
            return Val::Wrong;
        }
        let frame = self.frames.len() - 1;
        let span = position(&m.method);
        let val = self.pend(Source::Call { frame, sub, name: text(&m.receiver), args, span }, whole.to_token_stream());
        match (&val, expected) {
            (Val::Pending(i), Some(expected)) => self.resolve(*i, expected),
            _ => val,
        }
    }
}
