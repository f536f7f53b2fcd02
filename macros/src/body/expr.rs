//! One expression: tokens in, a value out. Anything outside the grammar is an error that names the ways out.

use super::value::{Expected, Marker, Number, Source, Val};
use super::{Foreign, Lowering, first_word, is_unit};
use crate::annotations::position;
use crate::signature::literal_number;
use crate::spelling::{describe, text};
use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{BinOp, Expr, ExprCall, ExprField, ExprLit, ExprPath, Lit, Member, UnOp};

impl Lowering<'_> {
    /// Lowers an expression whose surroundings expect a type.
    pub(super) fn expr(&mut self, e: &Expr, expected: Option<&Expected>) -> Val {
        match e {
            Expr::Paren(p) => self.expr(&p.expr, expected),
            Expr::Group(g) => self.expr(&g.expr, expected),
            Expr::Block(b) if b.label.is_none() => {
                self.scopes.push(Default::default());
                let val = self.statements(&b.block.stmts, expected);
                self.scopes.pop();
                val
            }
            Expr::Path(p) => self.path(p),
            Expr::Lit(lit) => self.literal(e, lit),
            Expr::Unary(u) => match u.op {
                UnOp::Neg(op) => self.negate(&u.expr, &op, e, expected),
                UnOp::Not(_) => match self.expr(&u.expr, None) {
                    Val::Flag(name, negated) => Val::Flag(name, !negated),
                    Val::Wrong => Val::Wrong,
                    _ => self.outside(e),
                },
                _ => self.outside(e),
            },
            Expr::Binary(b) => match binary_op(&b.op) {
                Some(op) => self.operator(op, &b.left, &b.right, &b.op, e, expected),
                // An arm of a choice, for one.
                None if compound_op(&b.op).is_some() => {
                    self.expr_statement(e);
                    Val::Unit
                }
                None => self.outside(e),
            },
            Expr::MethodCall(m) => self.method_call(m, e, expected),
            Expr::Call(c) => self.call(c, e, expected),
            Expr::Field(f) => self.field(f, e),
            Expr::Tuple(t) => {
                let parts = match expected {
                    Some(Expected::Tuple(types)) if types.len() == t.elems.len() => {
                        types.iter().map(|t| Some(Expected::Tensor(t.clone()))).collect()
                    }
                    _ => vec![None; t.elems.len()],
                };
                Val::Tuple(t.elems.iter().zip(parts).map(|(e, x)| self.expr(e, x.as_ref())).collect())
            }
            Expr::If(i) => self.host_if(i, expected),
            Expr::Match(m) => self.host_match(m, expected),
            Expr::Return(r) => {
                let help = "make it the last expression, without `return`; a choice between values is `if` on a `#[config]` flag";
                self.errors.push(r.return_token, "K0328", "a layer's body returns at its end only", help);
                Val::Wrong
            }
            Expr::ForLoop(_) | Expr::Assign(_) => {
                self.expr_statement(e);
                Val::Unit
            }
            // What holds a block is shown by its first word, not by its lines.
            Expr::While(_) | Expr::Loop(_) | Expr::Unsafe(_) | Expr::Async(_) | Expr::Const(_) | Expr::Block(_) => {
                self.outside(&first_word(e))
            }
            Expr::Macro(m) => self.outside(&m.mac.path),
            other => self.outside(other),
        }
    }

    /// Lowers an expression that is a statement of its own.
    pub(super) fn expr_statement(&mut self, e: &Expr) {
        match e {
            Expr::Assign(a) => self.assignment(&a.left, &a.right, e),
            Expr::Binary(b) if compound_op(&b.op).is_some() => {
                let op = compound_op(&b.op).unwrap_or("add");
                let Some(name) = plain_name(&b.left) else {
                    self.outside(e);
                    return;
                };
                let val = self.operator(op, &b.left, &b.right, &b.op, e, None);
                self.name_value(&name, &val);
                self.assign(&name, val);
            }
            Expr::ForLoop(f) => self.for_loop(f),
            Expr::If(i) => {
                self.host_if(i, None);
            }
            Expr::Match(m) => {
                self.host_match(m, None);
            }
            e if is_unit(e) => {}
            e => {
                self.expr(e, None);
            }
        }
    }

    fn assignment(&mut self, left: &Expr, right: &Expr, whole: &Expr) {
        let Some(name) = plain_name(left) else {
            self.outside(whole);
            return;
        };
        let before = self.lookup(&name).cloned().map(|v| self.known(&v));
        let expected = match before {
            Some(Val::Tensor(r)) => Some(Expected::Tensor(self.ty(r).clone())),
            _ => None,
        };
        let val = self.expr(right, expected.as_ref());
        let val = match (val, expected) {
            (Val::Pending(i), Some(expected)) => self.resolve(i, &expected),
            (val, _) => val,
        };
        self.name_value(&name, &val);
        // An unknown name on the left is rustc's error.
        self.assign(&name, val);
    }

    fn path(&mut self, p: &ExprPath) -> Val {
        let Some(ident) = p.path.get_ident() else { return self.outside(p) };
        let name = ident.to_string();
        if let Some(val) = self.lookup(&name) {
            let val = val.clone();
            return self.known(&val);
        }
        match name.as_str() {
            "Causal" => Val::Marker(Marker::Causal),
            "Full" => Val::Marker(Marker::Full),
            _ => {
                // Either rustc knows no such name, and says so, or it is an item that the macro cannot read.
                let variables = self.scopes.iter().flat_map(|s| s.keys().cloned()).collect();
                self.foreign.push(Foreign { name: ident.clone(), variables });
                Val::Wrong
            }
        }
    }

    fn literal(&mut self, e: &Expr, lit: &ExprLit) -> Val {
        match (&lit.lit, literal_number(e)) {
            (_, Some(x)) => Val::Number(Number::Literal(x)),
            (Lit::Bool(_) | Lit::Str(_), None) => self.outside(lit),
            _ => self.outside(lit),
        }
    }

    fn call(&mut self, c: &ExprCall, whole: &Expr, expected: Option<&Expected>) -> Val {
        let Expr::Path(f) = &*c.func else { return self.outside(whole) };
        let segments: Vec<String> = f.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let args: Vec<&Expr> = c.args.iter().collect();
        match (segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), args.as_slice()) {
            ([.., "Rope", "new"], [base]) => self.rope_new(base, &c.func.to_token_stream()),
            ([.., "stop_gradient"], [x]) => {
                let val = self.expr(x, None);
                self.unary("stop_gradient", val, x, f, whole, expected)
            }
            // What it stands for has been reported.
            _ if self.is_wrong(f) => {
                for a in &c.args {
                    self.expr(a, None);
                }
                Val::Wrong
            }
            _ if self.may_be_operation(f) => self.op_call(f, c, whole, expected),
            _ => self.outside(&c.func),
        }
    }

    fn is_wrong(&self, f: &ExprPath) -> bool {
        f.path.get_ident().and_then(|name| self.lookup(&name.to_string())).is_some_and(|v| matches!(v, Val::Wrong))
    }

    fn rope_new(&mut self, base: &Expr, at: &TokenStream) -> Val {
        match self.expr(base, None) {
            Val::Number(n) => {
                self.builder().span = position(at);
                let base = self.materialize(&n, &[]);
                let base = self.here(base);
                Val::Rope { base, axes: None }
            }
            Val::Wrong => Val::Wrong,
            other => {
                let message = format!("`Rope::new` takes the base of the angles, a number; this is {}", other.kind());
                self.errors.push_instead_of_rustc(base, "K0321", message, "such as `Rope::new(10_000.0)`");
                Val::Wrong
            }
        }
    }

    /// `child.param`, `child.grandchild.param`.
    fn field(&mut self, f: &ExprField, whole: &Expr) -> Val {
        let mut names = Vec::new();
        let mut base = f;
        let root = loop {
            let Member::Named(name) = &base.member else { return self.outside(whole) };
            names.push(name.to_string());
            match &*base.base {
                Expr::Field(inner) => base = inner,
                other => break other,
            }
        };
        let sub = match self.expr(root, None) {
            Val::Sub(sub) if self.is_copy(sub) => {
                let message = format!("`{}` would be another parameter in every round of the loop", describe(whole));
                self.errors.push(whole, "K0318", message, OF_COPIES);
                return Val::Wrong;
            }
            Val::Sub(sub) => sub,
            Val::Wrong => return Val::Wrong,
            Val::Copies(_) => {
                let message = format!("`{}` stands for several layers; none of their parameters is meant", text(root));
                self.errors.push_instead_of_rustc(root, "K0318", message, OF_COPIES);
                return Val::Wrong;
            }
            _ => return self.outside(whole),
        };
        names.push(self.sub_name(sub));
        names.reverse();
        let path = names.join(".");
        match self.tied.get(&path) {
            Some((_, r)) => Val::Tensor(*r),
            None => self.pend(Source::Tied { sub, path }, whole.to_token_stream()),
        }
    }

    /// Reports that a tensor was needed.
    pub(super) fn not_a_tensor(&mut self, val: &Val, tokens: &impl ToTokens) -> Val {
        let message = format!("`{}` is {}, where a tensor is needed", describe(tokens), val.kind());
        let help = match val {
            Val::Sub(_) => "call it: `.forward(..)`",
            Val::Copies(_) => "go through them with `for block in blocks { .. }`",
            Val::Loss { .. } => "a loss takes part in `+`, and in `*` and `/` with numbers only",
            Val::Rope { .. } => "it is the argument of `.rope(..)` and of a child's `forward`",
            _ => "pass a tensor",
        };
        self.errors.push_instead_of_rustc(tokens, "K0323", message, help);
        Val::Wrong
    }
}

const OF_COPIES: &str = "use the parameter in the copied layer's own body";

/// A name without a path.
pub(super) fn plain_name(e: &Expr) -> Option<String> {
    match e {
        Expr::Path(p) => p.path.get_ident().map(ToString::to_string),
        _ => None,
    }
}

fn binary_op(op: &BinOp) -> Option<&'static str> {
    match op {
        BinOp::Add(_) => Some("add"),
        BinOp::Sub(_) => Some("sub"),
        BinOp::Mul(_) => Some("mul"),
        BinOp::Div(_) => Some("div"),
        _ => None,
    }
}

fn compound_op(op: &BinOp) -> Option<&'static str> {
    match op {
        BinOp::AddAssign(_) => Some("add"),
        BinOp::SubAssign(_) => Some("sub"),
        BinOp::MulAssign(_) => Some("mul"),
        BinOp::DivAssign(_) => Some("div"),
        _ => None,
    }
}
