//! The body of a layer: statements and expressions in, an IR function out. Every value is typed by the operations' own rules.

mod call;
mod control;
mod elementwise;
mod expr;
mod op_call;
mod pending;
mod tensor_method;
mod typing;
mod value;

pub use value::{Assumed, Assumption, Demand, Expected, OpCall};

use tensor_method::Operand;
use value::{Number, Ref, Val};

use crate::diagnostics::Errors;
use crate::signature::{Kind, OutputDecl, Signature, TensorType, Written, axis_of, parse_type};
use crate::spelling::describe;
use kiln_compiler::ir::{Axis, Builder, DType, Func, Type, ValueId};
use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use syn::{Block, Expr, Item, Local, Pat, Stmt};
use value::Pending;

/// What lowering a body gives.
#[derive(Default)]
pub struct Body {
    /// The computation.
    pub func: Func,
    /// Children's parameters that it reads: child, path, value.
    pub tied: Vec<(usize, String, ValueId)>,
    /// What it assumes about its children.
    pub assumptions: Vec<Assumption>,
    /// Names that only rustc can judge: the layer has no IR if they exist after all.
    pub foreign: Vec<Foreign>,
    /// Calls of functions that may be operations of the user's own.
    pub op_calls: Vec<OpCall>,
    /// Which of them a gradient must pass, by position.
    pub differentiated: Vec<kiln_compiler::ir::Span>,
    /// Axes that the body names, beside those of the signature.
    pub axes: Vec<Ident>,
    /// Names bound by `let` at the top of the body.
    pub bindings: Vec<String>,
    /// Rustc refuses the body for a reason that it says better.
    pub rustc_refuses: bool,
}

impl Body {
    /// Whether something that only rustc can judge keeps the layer from having an IR.
    pub fn is_refused(&self) -> bool {
        let untyped = |c: &OpCall| !matches!(c.demand, Demand::Result(_));
        !self.foreign.is_empty() || self.rustc_refuses || self.op_calls.iter().any(untyped)
    }
}

/// A name that is no variable of the body.
pub struct Foreign {
    /// The name.
    pub name: Ident,
    /// The variables in scope, one of which may be meant.
    pub variables: BTreeSet<String>,
}

/// A function under construction.
struct Frame {
    builder: Builder,
    /// Values of outer functions that it reads, with its own input for each.
    captures: Vec<(Ref, ValueId)>,
}

struct Binding {
    val: Val,
}

/// Lowers one body.
pub struct Lowering<'a> {
    signature: &'a Signature,
    errors: &'a Errors,
    frames: Vec<Frame>,
    scopes: Vec<HashMap<String, Binding>>,
    pending: Vec<Pending>,
    tied: BTreeMap<String, (usize, Ref)>,
    assumptions: Vec<Assumption>,
    wildcards: usize,
    sites: i64,
    foreign: Vec<Foreign>,
    op_calls: Vec<OpCall>,
    axes: Vec<Ident>,
    bindings: Vec<String>,
    rustc_refuses: bool,
}

/// Lowers the body of `signature`.
pub fn lower(signature: &Signature, errors: &Errors) -> Body {
    let mut l = Lowering {
        signature,
        errors,
        frames: vec![Frame { builder: Builder::default(), captures: Vec::new() }],
        scopes: vec![HashMap::new()],
        pending: Vec::new(),
        tied: BTreeMap::new(),
        assumptions: Vec::new(),
        wildcards: 0,
        sites: 0,
        foreign: Vec::new(),
        op_calls: Vec::new(),
        axes: Vec::new(),
        bindings: Vec::new(),
        rustc_refuses: false,
    };
    l.arguments();
    l.function(&signature.item.block);
    l.unresolved_calls();
    let func = std::mem::take(&mut l.frames[0].builder.func);
    let mut tied: Vec<_> = l.tied.into_iter().map(|(path, (sub, r))| (sub, path, r.id)).collect();
    tied.sort_by_key(|(_, _, id)| *id);
    let Lowering { assumptions, foreign, op_calls, axes, bindings, rustc_refuses, .. } = l;
    Body { func, tied, assumptions, foreign, op_calls, axes, bindings, rustc_refuses, differentiated: Vec::new() }
}

/// The inputs of a layer whose body is recorded at start-up instead.
pub fn header(signature: &Signature) -> Func {
    let mut func = Func::default();
    for arg in &signature.args {
        match &arg.kind {
            Kind::Input(t) | Kind::Param { ty: t, .. } => func.add_input(t.to_ir(), &arg.name.to_string()),
            Kind::Rope { .. } => func.add_input(Type::f32(vec![]), &arg.name.to_string()),
            Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong(_) => continue,
        };
    }
    func
}

impl Lowering<'_> {
    fn arguments(&mut self) {
        let mut subs = 0;
        for arg in &self.signature.args {
            let name = arg.name.to_string();
            let func = &mut self.frames[0].builder.func;
            let mut input = |ty| Ref { frame: 0, id: func.add_input(ty, &name) };
            let val = match &arg.kind {
                Kind::Input(t) | Kind::Param { ty: t, .. } => Val::Tensor(input(t.to_ir())),
                Kind::Rope { seq, head } => {
                    Val::Rope { base: input(Type::f32(vec![])), axes: Some((axis_of(seq), axis_of(head))) }
                }
                Kind::Sub(s) => {
                    subs += 1;
                    if s.repeat.is_some() { Val::Copies(subs - 1) } else { Val::Sub(subs - 1) }
                }
                Kind::Config { ty, .. } => match ty {
                    kiln_compiler::ir::ConfigType::Bool => Val::Flag(name.clone(), false),
                    _ => Val::Number(Number::Config(name.clone())),
                },
                Kind::Wrong(_) => Val::Wrong,
            };
            self.bind(&name, val);
        }
    }

    fn function(&mut self, block: &Block) {
        let expected = match &self.signature.output {
            OutputDecl::Tensor(t) => Some(Expected::Tensor(t.to_ir())),
            OutputDecl::Tuple(ts) => Some(Expected::Tuple(ts.iter().map(TensorType::to_ir).collect())),
            OutputDecl::Loss => Some(Expected::Loss),
            OutputDecl::Wrong => None,
        };
        let val = self.statements(&block.stmts, expected.as_ref());
        let Some(expected) = expected else { return };
        let tokens = match block.stmts.last() {
            Some(Stmt::Expr(e, None)) => control::result_of(e),
            _ => self.signature.item.sig.output.to_token_stream(),
        };
        let Some(outputs) = self.fit(val, &expected, &tokens, "K0308", "the layer returns") else { return };
        let outputs = outputs.into_iter().map(|r| self.local(r)).collect();
        self.frames[0].builder.func.outputs = outputs;
    }

    /// Lowers statements; the value is that of a final expression.
    fn statements(&mut self, stmts: &[Stmt], expected: Option<&Expected>) -> Val {
        for (i, stmt) in stmts.iter().enumerate() {
            let last = i + 1 == stmts.len();
            match stmt {
                Stmt::Local(local) => self.local_statement(local),
                Stmt::Expr(e, None) if last => return self.expr(e, expected),
                Stmt::Expr(e, _) => {
                    self.expr_statement(e);
                }
                Stmt::Item(item) => {
                    self.outside(&first_word(item));
                    // Its uses are not reported again.
                    if let Some(name) = name_of(item) {
                        self.bind(&name.to_string(), Val::Wrong);
                    }
                }
                Stmt::Macro(m) => {
                    self.outside(&m.mac.path);
                }
            }
        }
        Val::Unit
    }

    fn local_statement(&mut self, local: &Local) {
        let no_fuse = local.attrs.iter().find(|a| a.path().is_ident("no_fuse"));
        let (pat, annotated) = match &local.pat {
            Pat::Type(p) => (&*p.pat, Some(&*p.ty)),
            other => (other, None),
        };
        let expected = annotated.and_then(|ty| self.written_type(ty));
        let Some(init) = &local.init else {
            let help = "give the name its value in the same `let`";
            self.errors.push(local, "K0301", "a `let` without a value is outside the grammar of a layer's body", help);
            return self.bind_pattern(pat, Val::Wrong);
        };
        if let Some((_, diverge)) = &init.diverge {
            self.outside(diverge);
        }
        let mut val = self.expr(&init.expr, expected.as_ref());
        if let Some(expected) = &expected {
            val = match self.fit(val, expected, &init.expr.to_token_stream(), "K0307", "the `let` says") {
                None => Val::Wrong,
                Some(refs) => refs_to_val(expected, &refs),
            };
        }
        if let Some(attr) = no_fuse {
            self.mark_no_fuse(attr, &val);
        }
        self.bind_pattern(pat, val);
    }

    /// The type written after a `let` name.
    fn written_type(&mut self, ty: &syn::Type) -> Option<Expected> {
        match parse_type(ty, self.errors) {
            Written::Tensor(t) => {
                self.axes.extend(t.axes.iter().cloned());
                Some(Expected::Tensor(t.to_ir()))
            }
            Written::Loss => Some(Expected::Loss),
            Written::Tuple(types) => {
                let mut out = Vec::new();
                for ty in &types {
                    match self.written_type(ty)? {
                        Expected::Tensor(t) => out.push(t),
                        Expected::Tuple(_) | Expected::Loss => return None,
                    }
                }
                Some(Expected::Tuple(out))
            }
            Written::Rope(..) | Written::Repeat(..) | Written::Other | Written::Wrong => None,
        }
    }

    fn mark_no_fuse(&mut self, attr: &syn::Attribute, val: &Val) {
        let val = self.known(val);
        let frame = self.frames.len() - 1;
        if let Val::Tensor(r) = val
            && r.frame == frame
            && let Some(node) = self.frames[frame].builder.func.nodes.iter_mut().find(|n| n.outputs.contains(&r.id))
        {
            return node.attrs.set("no_fuse", true);
        }
        if !matches!(val, Val::Wrong) {
            let help = "put it on the `let` of the operation whose result must be stored";
            self.errors.push(attr.path(), "K0324", "`#[no_fuse]` stands on a `let` that computes one tensor", help);
        }
    }

    fn bind_pattern(&mut self, pat: &Pat, val: Val) {
        match pat {
            Pat::Ident(p) if p.subpat.is_none() && p.by_ref.is_none() => {
                let name = p.ident.to_string();
                self.name_value(&name, &val);
                if self.frames.len() == 1 && self.scopes.len() == 1 {
                    self.bindings.push(name.clone());
                }
                self.bind(&name, val);
            }
            Pat::Wild(_) => {}
            Pat::Paren(p) => self.bind_pattern(&p.pat, val),
            Pat::Tuple(t) => {
                let parts = match val {
                    Val::Tuple(parts) if parts.len() == t.elems.len() => parts,
                    // A wrong number of names is rustc's error; here it only must not spread.
                    _ => {
                        if let Val::Pending(i) = val {
                            self.report_pending(i);
                        }
                        vec![Val::Wrong; t.elems.len()]
                    }
                };
                for (p, v) in t.elems.iter().zip(parts) {
                    self.bind_pattern(p, v);
                }
            }
            Pat::Type(t) => self.bind_pattern(&t.pat, val),
            other => {
                self.outside(other);
            }
        }
    }

    /// Gives a value the user's name, unless it has one.
    fn name_value(&mut self, name: &str, val: &Val) {
        if let Val::Tensor(r) = self.known(val) {
            let value = &mut self.frames[r.frame].builder.func.values[r.id.index()];
            value.name.get_or_insert_with(|| name.to_owned());
        }
    }

    fn bind(&mut self, name: &str, val: Val) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), Binding { val });
        }
    }

    fn lookup(&self, name: &str) -> Option<&Val> {
        self.scopes.iter().rev().find_map(|s| s.get(name)).map(|b| &b.val)
    }

    /// Gives the innermost variable called `name` another value; false if there is none.
    fn assign(&mut self, name: &str, val: Val) -> bool {
        match self.scopes.iter_mut().rev().find_map(|s| s.get_mut(name)) {
            Some(b) => {
                b.val = val;
                true
            }
            None => false,
        }
    }

    /// An expression outside the grammar.
    fn outside(&self, tokens: &impl ToTokens) -> Val {
        let help =
            "`#[layer(trace)]` takes any Rust and records the body at start-up; `#[op]` wraps a kernel of your own";
        let message = format!("`{}` is outside the grammar of a layer's body", describe(tokens));
        self.errors.push(tokens, "K0301", message, help);
        Val::Wrong
    }

    /// The frame of new nodes.
    fn builder(&mut self) -> &mut Builder {
        let last = self.frames.len() - 1;
        &mut self.frames[last].builder
    }

    fn here(&self, id: ValueId) -> Ref {
        Ref { frame: self.frames.len() - 1, id }
    }

    fn ty(&self, r: Ref) -> &Type {
        self.frames[r.frame].builder.func.ty(r.id)
    }

    fn shape(&self, r: Ref) -> Vec<Axis> {
        self.ty(r).shape.clone()
    }

    /// The value in the innermost function, captured through every function between.
    fn local(&mut self, r: Ref) -> ValueId {
        self.local_at(r, self.frames.len() - 1)
    }

    fn local_at(&mut self, r: Ref, frame: usize) -> ValueId {
        if r.frame >= frame {
            return r.id;
        }
        if let Some((_, id)) = self.frames[frame].captures.iter().find(|(outer, _)| *outer == r) {
            return *id;
        }
        if frame - r.frame > 1 {
            self.local_at(r, frame - 1);
        }
        let value = self.frames[r.frame].builder.func.values[r.id.index()].clone();
        let id = self.frames[frame].builder.func.add_input(value.ty, value.name.as_deref().unwrap_or("captured"));
        self.frames[frame].captures.push((r, id));
        id
    }

    /// Checks a value against what is written about it and gives its tensors (a loss: sum and count).
    fn fit(
        &mut self,
        val: Val,
        expected: &Expected,
        tokens: &TokenStream,
        code: &'static str,
        says: &str,
    ) -> Option<Vec<Ref>> {
        let val = match val {
            Val::Pending(i) => self.resolve(i, expected),
            other => other,
        };
        let found = match (&val, expected) {
            (Val::Wrong, _) => return None,
            (Val::Unit, _) => {
                // A missing value or a spare semicolon.
                self.rustc_refuses = true;
                return None;
            }
            (Val::Tensor(r), Expected::Tensor(t)) => match self.fit_tensor(*r, t) {
                true => return Some(vec![*r]),
                false => written(self.ty(*r)),
            },
            (Val::Loss { sum, count }, Expected::Loss) => return Some(vec![*sum, *count]),
            (Val::Tuple(parts), Expected::Tuple(types)) if parts.len() == types.len() => {
                let mut refs = Vec::new();
                for (p, t) in parts.clone().into_iter().zip(types) {
                    refs.extend(self.fit(p, &Expected::Tensor(t.clone()), tokens, code, says)?);
                }
                return Some(refs);
            }
            (other, _) => other.kind().to_owned(),
        };
        let wanted = match expected {
            Expected::Tensor(t) => written(t),
            Expected::Tuple(ts) => format!("({})", ts.iter().map(written).collect::<Vec<_>>().join(", ")),
            Expected::Loss => "a loss".to_owned(),
        };
        let help = "permute, rename or reduce the value, or change the type";
        let message = format!("{says} {wanted}, but this is {found}");
        match (&val, expected) {
            (Val::Tensor(_), Expected::Tensor(_)) => self.errors.push(tokens, code, message, help),
            _ => self.errors.push_instead_of_rustc(tokens, code, message, help),
        }
        None
    }

    /// Whether a value has the type, after giving names to unknown axes.
    fn fit_tensor(&mut self, r: Ref, ty: &Type) -> bool {
        let have = self.ty(r).clone();
        if have.rank() != ty.rank() || (have.dtype == DType::I32) != (ty.dtype == DType::I32) {
            return false;
        }
        self.unify(&have.shape, &ty.shape);
        self.ty(r).shape == ty.shape
    }
}

fn refs_to_val(expected: &Expected, refs: &[Ref]) -> Val {
    match (expected, refs) {
        (Expected::Loss, [sum, count]) => Val::Loss { sum: *sum, count: *count },
        (Expected::Tensor(_), [r]) => Val::Tensor(*r),
        _ => Val::Tuple(refs.iter().map(|r| Val::Tensor(*r)).collect()),
    }
}

/// A type as the user writes it.
fn written(ty: &Type) -> String {
    let axes: Vec<&str> = ty.shape.iter().map(|a| if a.is_wildcard() { "_" } else { a.name() }).collect();
    match (ty.dtype, axes.join(", ")) {
        (DType::I32, axes) => format!("`Ids<{axes}>`"),
        (DType::Bool, axes) => format!("a mask over [{axes}]"),
        (_, axes) if axes.is_empty() => "a scalar".to_owned(),
        (_, axes) => format!("`Tensor<{axes}>`"),
    }
}

/// The first word of an item or of an expression in several parts: `fn`, `while`.
fn first_word(tokens: &impl ToTokens) -> Option<Ident> {
    tokens.to_token_stream().into_iter().find_map(|t| match t {
        TokenTree::Ident(word) => Some(word),
        TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => None,
    })
}

/// The value that an item declares.
fn name_of(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(i) => Some(&i.ident),
        Item::Static(i) => Some(&i.ident),
        Item::Fn(i) => Some(&i.sig.ident),
        _ => None,
    }
}

/// Whether an expression is one that rustc checks alone.
fn is_unit(e: &Expr) -> bool {
    matches!(e, Expr::Tuple(t) if t.elems.is_empty())
}
