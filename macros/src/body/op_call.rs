//! `scan(x, w)`: a call of a function that only rustc knows. If it is an operation of the user's own it becomes a node `opaque`; what else
//! it may be is the constant check's to find out.

use super::value::{Demand, Expected, OpCall, Source, Val};
use super::{Lowering, Ref};
use crate::annotations::position;
use crate::spelling::text;
use kiln_compiler::ir::{Attrs, Axis, DType, Node, Span, ValueId};
use kiln_compiler::ops;
use quote::ToTokens;
use syn::{Expr, ExprCall, ExprPath, PathArguments};

/// Stands in the IR of a parsed body for the derivative of the operation `path`; linking puts in its name.
fn derivative_of(path: &str) -> String {
    format!("{path}.vjp")
}

impl Lowering<'_> {
    /// Whether a callee may be an operation: a path to a function, without generic arguments.
    pub(super) fn may_be_operation(&self, f: &ExprPath) -> bool {
        let plain = f.qself.is_none() && f.path.segments.iter().all(|s| matches!(s.arguments, PathArguments::None));
        // `Vec::new`, `Some`: associated functions and constructors, by Rust's naming.
        let of_types = f.path.segments.iter().any(|s| s.ident.to_string().starts_with(|c: char| c.is_uppercase()));
        let is_variable = f.path.get_ident().is_some_and(|name| self.lookup(&name.to_string()).is_some());
        plain && !of_types && !is_variable
    }

    /// Lowers the call; its type is what its surroundings expect, as for a child's `forward`.
    pub(super) fn op_call(&mut self, f: &ExprPath, c: &ExprCall, whole: &Expr, expected: Option<&Expected>) -> Val {
        let mut args: Vec<Ref> = Vec::new();
        let mut tokens = Vec::new();
        let mut unfit = None;
        let mut ok = true;
        for (i, a) in c.args.iter().enumerate() {
            let val = self.expr(a, None);
            match self.known(&val) {
                Val::Tensor(r) if self.ty(r).dtype == DType::Bool => unfit = unfit.or(Some((i, "a mask"))),
                Val::Tensor(r) => {
                    args.push(r);
                    tokens.push(a.to_token_stream());
                }
                Val::Pending(p) => {
                    self.report_pending(p);
                    ok = false;
                }
                Val::Wrong => ok = false,
                other => unfit = unfit.or(Some((i, other.kind()))),
            }
        }
        if !ok {
            return Val::Wrong;
        }
        let operands = tokens.into_iter().zip(args.iter().map(|&r| self.ty(r).clone())).collect();
        let demand = match unfit {
            Some((i, kind)) => Demand::Unfit(c.args[i].to_token_stream(), kind),
            None => Demand::Untyped,
        };
        let span = position(&f.path);
        self.op_calls.push(OpCall { path: f.path.clone(), span, operands, demand });
        let call = self.op_calls.len() - 1;
        if unfit.is_some() {
            self.errors.leave_body_out();
            return Val::Wrong;
        }
        let frame = self.frames.len() - 1;
        let val = self.pend(Source::Op { frame, call, args, span }, whole.to_token_stream());
        match (&val, expected) {
            (Val::Pending(i), Some(expected)) => self.resolve(*i, expected),
            _ => val,
        }
    }

    /// The node of a call whose type is known; a loss is no result of an operation, which rustc says.
    pub(super) fn op_node(
        &mut self,
        call: usize,
        expected: &Expected,
        inputs: Vec<ValueId>,
        span: Span,
    ) -> Option<Node> {
        let shapes: Vec<Vec<Axis>> = match expected {
            Expected::Tensor(t) => vec![t.shape.clone()],
            Expected::Tuple(ts) => ts.iter().map(|t| t.shape.clone()).collect(),
            Expected::Loss => {
                self.op_calls[call].demand = Demand::Nothing;
                return None;
            }
        };
        self.op_calls[call].demand = Demand::Result(expected.clone());
        let written = text(&self.op_calls[call].path);
        let op = ops::find("opaque").unwrap_or_else(|| panic!("no operation `opaque`: a bug of Kiln's registry"));
        let attrs = Attrs::new().with("vjp", derivative_of(&written)).with("name", written).with("dtype", DType::F32);
        let attrs = attrs.with("outs", shapes.len() as i64);
        let attrs = shapes.into_iter().enumerate().fold(attrs, |a, (i, s)| a.with(&format!("out{i}"), s));
        Some(Node { op, inputs, outputs: Vec::new(), attrs, bodies: Vec::new(), span })
    }
}
