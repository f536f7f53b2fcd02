//! Loops over a `Repeat`, and host choices on `#[config]` flags.

use super::value::{Expected, Ref, Val};
use super::{Frame, Lowering, written};
use crate::annotations::position;
use crate::signature::axis_of;
use crate::spelling::describe;
use kiln_compiler::ir::{Attr, Attrs, Axis, Builder, DType, Func, Type, ValueId};
use kiln_compiler::ops;
use proc_macro2::TokenStream;
use quote::ToTokens;
use std::collections::HashMap;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Arm, Block, Expr, ExprAssign, ExprBinary, ExprForLoop, ExprIf, ExprLit, ExprMatch, Lit, Pat, Stmt};

const CARRY_ONE: &str = "assign one `let mut` variable from outside the loop: `x = block.forward(x);`";

/// One branch of a host choice.
struct Branch {
    func: Func,
    captures: Vec<(Ref, ValueId)>,
    outputs: Vec<ValueId>,
}

impl Lowering<'_> {
    /// `for block in blocks { x = block.forward(x, ..); }`.
    pub(super) fn for_loop(&mut self, f: &ExprForLoop) {
        let copies = self.expr(&f.expr, None);
        let sub = match self.known(&copies) {
            Val::Copies(sub) => sub,
            Val::Wrong => return,
            _ => {
                self.outside(&f.expr);
                return;
            }
        };
        let assigned = self.outer_assignments(&f.body);
        let [name] = assigned.as_slice() else {
            let message = match assigned.as_slice() {
                [] => "this loop carries no tensor: no variable from outside is assigned".to_owned(),
                more => format!("this loop carries {} tensors ({}); it can carry one", more.len(), more.join(", ")),
            };
            self.errors.push(f.for_token, "K0309", message, CARRY_ONE);
            return self.round_for_its_mistakes(sub, f, &assigned);
        };
        let carried = match self.lookup(name).cloned().map_or(Val::Wrong, |v| self.known(&v)) {
            Val::Tensor(r) => r,
            Val::Pending(i) => {
                self.report_pending(i);
                return self.round_for_its_mistakes(sub, f, &assigned);
            }
            Val::Wrong => return self.round_for_its_mistakes(sub, f, &assigned),
            other => {
                let message = format!("this loop carries `{name}`, which is {}; it can carry one tensor", other.kind());
                self.errors.push(f.for_token, "K0309", message, CARRY_ONE);
                return self.round_for_its_mistakes(sub, f, &assigned);
            }
        };
        let ty = self.ty(carried).clone();
        let mut builder = Builder::default();
        let inner = builder.func.add_input(ty.clone(), name);
        self.enter_round(sub, f, builder);
        let inner = self.here(inner);
        self.assign(name, Val::Tensor(inner));
        self.statements(&f.body.stmts, None);
        let last = self.lookup(name).cloned().unwrap_or(Val::Wrong);
        self.scopes.pop();
        let fits = self.carried_result(&last, &ty, name, &f.body);
        let Some(output) = fits.map(|r| self.local(r)) else {
            self.frames.pop();
            // A loop that was right would give what it took.
            self.assign(name, Val::Tensor(carried));
            return;
        };
        let Some(Frame { builder, captures }) = self.frames.pop() else { return };
        let mut func = builder.func;
        func.outputs = vec![output];
        let axis = self.signature.subs().nth(sub).and_then(|(_, s)| s.repeat.as_ref()).map(axis_of);
        let attrs = Attrs::new().with("sub", sub as i64).with("axis", axis.unwrap_or(Axis::of("?")));
        let mut inputs = vec![self.local(carried)];
        inputs.extend(captures.into_iter().map(|(outer, _)| self.local(outer)));
        let outs = self.structural("repeat", attrs, &inputs, vec![func], &f.for_token);
        let val = outs.first().map_or(Val::Wrong, |r| Val::Tensor(*r));
        self.name_value(name, &val);
        self.assign(name, val);
    }

    fn enter_round(&mut self, sub: usize, f: &ExprForLoop, builder: Builder) {
        self.frames.push(Frame { builder, captures: Vec::new() });
        self.scopes.push(HashMap::new());
        if let Pat::Ident(p) = &*f.pat {
            self.bind(&p.ident.to_string(), Val::Sub(sub));
        }
    }

    /// Lowers the body of a loop that is wrong as a whole for the mistakes in it.
    fn round_for_its_mistakes(&mut self, sub: usize, f: &ExprForLoop, assigned: &[String]) {
        let before: Vec<Val> = assigned.iter().filter_map(|n| self.lookup(n).cloned()).collect();
        self.enter_round(sub, f, Builder::default());
        for name in assigned {
            self.assign(name, Val::Wrong);
        }
        self.statements(&f.body.stmts, None);
        self.scopes.pop();
        self.frames.pop();
        for (name, val) in assigned.iter().zip(before) {
            self.assign(name, val);
        }
    }

    fn carried_result(&mut self, last: &Val, ty: &Type, name: &str, body: &Block) -> Option<Ref> {
        let last = match self.known(last) {
            Val::Pending(i) => self.resolve(i, &Expected::Tensor(ty.clone())),
            other => other,
        };
        let Val::Tensor(r) = last else { return None };
        if self.fit_tensor(r, ty) {
            return Some(r);
        }
        let (entry, end) = (written(ty), written(self.ty(r)));
        let message = format!("`{name}` is {entry} at the loop's entry and {end} at its end");
        let help = "what a loop over copies carries keeps its axes: every copy takes what the one before gave";
        let at = last_assignment(body, name).unwrap_or_else(|| body.to_token_stream());
        self.errors.push(at, "K0306", message, help);
        None
    }

    /// `if flag { .. } else { .. }` on a `#[config]` flag.
    pub(super) fn host_if(&mut self, i: &ExprIf, expected: Option<&Expected>) -> Val {
        let Some((name, negated)) = self.condition(&i.cond) else { return Val::Wrong };
        let empty = Expr::Tuple(syn::ExprTuple {
            attrs: Vec::new(),
            paren_token: Default::default(),
            elems: Default::default(),
        });
        let otherwise = i.else_branch.as_ref().map_or(&empty, |(_, e)| e);
        let then = Expr::Block(syn::ExprBlock { attrs: Vec::new(), label: None, block: i.then_branch.clone() });
        let (yes, no) = if negated { (otherwise, &then) } else { (&then, otherwise) };
        self.choice(&name, yes, no, &i.if_token, expected)
    }

    /// `match flag { true => .., false => .. }`.
    pub(super) fn host_match(&mut self, m: &ExprMatch, expected: Option<&Expected>) -> Val {
        let Some((name, negated)) = self.condition(&m.expr) else { return Val::Wrong };
        let arm = |flag: bool| m.arms.iter().find(|a| a.guard.is_none() && arm_covers(a, flag));
        let (Some(yes), Some(no)) = (arm(true), arm(false)) else { return self.outside(m) };
        let (yes, no) = if negated { (no, yes) } else { (yes, no) };
        self.choice(&name, &yes.body, &no.body, &m.match_token, expected)
    }

    fn condition(&mut self, e: &Expr) -> Option<(String, bool)> {
        let val = match e {
            Expr::Path(_) | Expr::Unary(_) | Expr::Paren(_) => self.expr(e, None),
            _ => Val::Unit,
        };
        match val {
            Val::Flag(name, negated) => Some((name, negated)),
            Val::Wrong => None,
            _ => {
                let message = format!("`{}` is not a `#[config]` flag", describe(e));
                let help = "a choice on the host needs an argument `#[config] flag: bool`; a choice by element is `mask.select(a, b)`";
                self.errors.push_instead_of_rustc(e, "K0310", message, help);
                None
            }
        }
    }

    fn choice(&mut self, flag: &str, yes: &Expr, no: &Expr, at: &impl Spanned, expected: Option<&Expected>) -> Val {
        let mut assigned = self.outer_assignments(yes);
        for name in self.outer_assignments(no) {
            if !assigned.contains(&name) {
                assigned.push(name);
            }
        }
        let before: Vec<Val> = assigned.iter().filter_map(|n| self.lookup(n).cloned()).collect();
        let restore = |l: &mut Self| {
            for (name, val) in assigned.iter().zip(&before) {
                l.assign(name, val.clone());
            }
        };
        let (first, first_types) = self.branch(yes, &assigned, expected);
        restore(self);
        let (second, second_types) = self.branch(no, &assigned, expected);
        restore(self);
        let (Some((a, value)), Some((b, _))) = (first, second) else {
            for name in &assigned {
                self.assign(name, Val::Wrong);
            }
            return Val::Wrong;
        };
        let fits = first_types.len() == second_types.len();
        let differs = first_types.iter().zip(&second_types).position(|(a, b)| a != b);
        if !fits || differs.is_some() {
            match differs.filter(|_| fits) {
                // The values of the branches come first, then the variables that they assign.
                Some(i) => {
                    let name = (i + assigned.len()).checked_sub(first_types.len()).map(|i| assigned[i].as_str());
                    self.report_branches([yes, no], name, [&first_types[i], &second_types[i]]);
                }
                // A tensor here and nothing, a loss or a tuple there.
                None => self.rustc_refuses = true,
            }
            for name in &assigned {
                self.assign(name, Val::Wrong);
            }
            return Val::Wrong;
        }
        let outs = self.select_host(flag, a, b, &first_types, at);
        let n_values = outs.len() - assigned.len();
        for (name, r) in assigned.iter().zip(&outs[n_values..]) {
            self.name_value(name, &Val::Tensor(*r));
            self.assign(name, Val::Tensor(*r));
        }
        rebuild(&value, &outs[..n_values])
    }

    /// The two branches differ: in the value of `name`, or in their own.
    fn report_branches(&self, branches: [&Expr; 2], name: Option<&str>, types: [&Type; 2]) {
        let [yes, no] = types.map(written);
        let (message, at) = match name {
            // Where the second branch leaves the variable alone, the first one changes it.
            Some(name) => (
                format!("`{name}` is {yes} after one branch and {no} after the other"),
                last_assigned(branches[1], name).or_else(|| last_assigned(branches[0], name)),
            ),
            None => (format!("the branches give {yes} and {no}"), None),
        };
        let at = at.unwrap_or_else(|| result_of(branches[1]));
        let help = "both branches of a host choice give the same axes";
        match (types[0].dtype == DType::I32) == (types[1].dtype == DType::I32) {
            true => self.errors.push(at, "K0311", message, help),
            false => self.errors.push_instead_of_rustc(at, "K0311", message, help),
        }
    }

    /// Lowers one branch as a function of what it captures: its value's tensors, then the assigned variables.
    #[allow(clippy::type_complexity)]
    fn branch(
        &mut self,
        e: &Expr,
        assigned: &[String],
        expected: Option<&Expected>,
    ) -> (Option<(Branch, Val)>, Vec<Type>) {
        self.frames.push(Frame { builder: Builder::default(), captures: Vec::new() });
        let value = if super::is_unit(e) { Val::Unit } else { self.expr(e, expected) };
        let value = match (self.known(&value), expected) {
            (Val::Pending(i), Some(expected)) => self.resolve(i, expected),
            (Val::Pending(i), None) => {
                self.report_pending(i);
                Val::Wrong
            }
            (other, _) => other,
        };
        let mut refs = Vec::new();
        let mut ok = self.tensors_of(&value, &result_of(e), &mut refs);
        for name in assigned {
            let val = self.lookup(name).cloned().unwrap_or(Val::Wrong);
            ok &= self.tensors_of(&val, &e.to_token_stream(), &mut refs);
        }
        let types: Vec<Type> = refs.iter().map(|&r| self.ty(r).clone()).collect();
        let outputs: Vec<ValueId> = refs.into_iter().map(|r| self.local(r)).collect();
        let branch = self.frames.pop().filter(|_| ok).map(|f| {
            let branch = Branch { func: f.builder.func, captures: f.captures, outputs };
            (branch, value)
        });
        (branch, types)
    }

    fn tensors_of(&mut self, val: &Val, tokens: &TokenStream, refs: &mut Vec<Ref>) -> bool {
        match self.known(val) {
            Val::Tensor(r) => refs.push(r),
            Val::Loss { sum, count } => refs.extend([sum, count]),
            Val::Tuple(parts) => return parts.iter().all(|p| self.tensors_of(p, tokens, refs)),
            Val::Unit => {}
            Val::Wrong => return false,
            Val::Pending(i) => {
                self.report_pending(i);
                return false;
            }
            other => {
                self.not_a_tensor(&other, tokens);
                return false;
            }
        }
        true
    }

    /// Both branches over the union of what they capture.
    fn select_host(&mut self, flag: &str, a: Branch, b: Branch, types: &[Type], at: &impl Spanned) -> Vec<Ref> {
        let mut captured: Vec<Ref> = Vec::new();
        for (outer, _) in a.captures.iter().chain(&b.captures) {
            if !captured.contains(outer) {
                captured.push(*outer);
            }
        }
        let bodies = [a, b]
            .into_iter()
            .map(|branch| {
                let mut func = branch.func;
                func.inputs = captured
                    .iter()
                    .map(|outer| match branch.captures.iter().find(|(o, _)| o == outer) {
                        Some((_, id)) => *id,
                        None => {
                            let value = &self.frames[outer.frame].builder.func.values[outer.id.index()];
                            func.add_value(value.ty.clone(), value.name.clone())
                        }
                    })
                    .collect();
                func.outputs = branch.outputs;
                func
            })
            .collect();
        let mut attrs = Attrs::new().with("cond", Attr::Config(flag.to_owned())).with("dtype", DType::F32);
        attrs.set("outs", types.len() as i64);
        for (i, t) in types.iter().enumerate() {
            attrs.set(&format!("out{i}"), t.shape.clone());
        }
        let inputs: Vec<ValueId> = captured.into_iter().map(|r| self.local(r)).collect();
        self.structural("select_host", attrs, &inputs, bodies, at)
    }

    fn structural(
        &mut self,
        op: &str,
        attrs: Attrs,
        inputs: &[ValueId],
        bodies: Vec<Func>,
        at: &impl Spanned,
    ) -> Vec<Ref> {
        let op = ops::find(op).unwrap_or_else(|| panic!("no operation `{op}`: a bug of Kiln's registry"));
        let builder = self.builder();
        builder.span = position(at);
        let outs = builder
            .try_op(op, attrs, inputs)
            .unwrap_or_else(|e| panic!("`{}` refuses what the parser made: {}", op.name, e.message));
        if let Some(node) = builder.func.nodes.last_mut() {
            node.bodies = bodies;
        }
        outs.into_iter().map(|id| self.here(id)).collect()
    }

    /// Variables from outside that a block assigns.
    fn outer_assignments(&self, body: &impl ToVisit) -> Vec<String> {
        let mut found = Assignments::default();
        body.walk(&mut found);
        found.names.retain(|n| !found.declared.contains(n) && self.lookup(n).is_some());
        found.names
    }
}

/// A value with the same structure over new tensors.
fn rebuild(value: &Val, refs: &[Ref]) -> Val {
    match (value, refs) {
        (Val::Loss { .. }, [sum, count]) => Val::Loss { sum: *sum, count: *count },
        (Val::Tuple(parts), refs) if parts.len() == refs.len() => {
            Val::Tuple(refs.iter().map(|r| Val::Tensor(*r)).collect())
        }
        (_, [r]) => Val::Tensor(*r),
        _ => Val::Unit,
    }
}

fn arm_covers(arm: &Arm, flag: bool) -> bool {
    match &arm.pat {
        Pat::Wild(_) => true,
        Pat::Lit(ExprLit { lit: Lit::Bool(b), .. }) => b.value == flag,
        _ => false,
    }
}

/// What a variable was assigned last.
fn last_assigned(branch: &Expr, name: &str) -> Option<TokenStream> {
    match branch {
        Expr::Block(b) => last_assignment(&b.block, name),
        Expr::Assign(a) if super::expr::plain_name(&a.left).as_deref() == Some(name) => Some(a.right.to_token_stream()),
        _ => None,
    }
}

fn last_assignment(body: &Block, name: &str) -> Option<TokenStream> {
    body.stmts.iter().rev().find_map(|s| match s {
        Stmt::Expr(e @ Expr::Assign(_), _) => last_assigned(e, name),
        _ => None,
    })
}

/// The tokens that give an expression its value: the last one of a block, that of the first branch of a choice.
pub(super) fn result_of(e: &Expr) -> TokenStream {
    match e {
        Expr::Block(b) => match b.block.stmts.last() {
            Some(Stmt::Expr(last, None)) => result_of(last),
            _ => e.to_token_stream(),
        },
        Expr::If(i) => match i.then_branch.stmts.last() {
            Some(Stmt::Expr(last, None)) => result_of(last),
            _ => i.if_token.to_token_stream(),
        },
        Expr::Match(m) => m.arms.first().map_or_else(|| m.match_token.to_token_stream(), |a| result_of(&a.body)),
        other => other.to_token_stream(),
    }
}

#[derive(Default)]
struct Assignments {
    names: Vec<String>,
    declared: Vec<String>,
}

impl Assignments {
    fn add(&mut self, target: &Expr) {
        if let Some(name) = super::expr::plain_name(target)
            && !self.names.contains(&name)
        {
            self.names.push(name);
        }
    }
}

impl<'a> Visit<'a> for Assignments {
    fn visit_expr_assign(&mut self, e: &'a ExprAssign) {
        self.add(&e.left);
        visit::visit_expr_assign(self, e);
    }

    fn visit_expr_binary(&mut self, e: &'a ExprBinary) {
        use syn::BinOp::{AddAssign, DivAssign, MulAssign, SubAssign};
        if matches!(e.op, AddAssign(_) | SubAssign(_) | MulAssign(_) | DivAssign(_)) {
            self.add(&e.left);
        }
        visit::visit_expr_binary(self, e);
    }

    fn visit_pat_ident(&mut self, p: &'a syn::PatIdent) {
        // Shadowed before it is assigned: then the assignment stays inside. The other order is not told apart.
        let name = p.ident.to_string();
        if !self.names.contains(&name) {
            self.declared.push(name);
        }
    }
}

trait ToVisit {
    fn walk(&self, v: &mut Assignments);
}

impl ToVisit for Block {
    fn walk(&self, v: &mut Assignments) {
        v.visit_block(self);
    }
}

impl ToVisit for Expr {
    fn walk(&self, v: &mut Assignments) {
        v.visit_expr(self);
    }
}
