//! A tensor's method: the user's arguments in, checked nodes out. Names, arity and lowering are the compiler's own table.

use super::Lowering;
use super::typing::keeps_type;
use super::value::{Expected, Marker, Ref, Val};
use crate::annotations::position;
use crate::diagnostics::closest;
use crate::signature::axis_of;
use crate::spelling::{describe, text};
use kiln_compiler::ir::{Attr, Attrs, Axis};
use kiln_compiler::methods::{self, Arg, Gives, Kind, Mask, Method};
use kiln_compiler::ops::{Argument, TypeError};
use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, ExprMethodCall, Lit};

/// One argument of a method, the receiver included.
pub(super) struct Operand {
    /// Its value; [`Val::Unit`] where the argument is no value (axes, einsum letters).
    pub val: Val,
    /// Axes, einsum letters: what the compiler's table takes.
    arg: Option<Arg>,
    /// Its tokens.
    pub tokens: TokenStream,
}

impl Operand {
    /// An operand that is a value.
    pub fn new(val: Val, tokens: &impl ToTokens) -> Self {
        Operand { val, arg: None, tokens: tokens.to_token_stream() }
    }

    /// The letters of an einsum.
    pub fn spec(&self) -> Option<String> {
        match &self.arg {
            Some(Arg::Spec(s)) => Some(s.clone()),
            _ => None,
        }
    }
}

impl Lowering<'_> {
    /// A method of a tensor.
    pub(super) fn tensor_method(&mut self, receiver: Val, m: &ExprMethodCall, expected: Option<&Expected>) -> Val {
        let name = m.method.to_string();
        let Some(method) = methods::find(&name) else {
            let meant = match receiver {
                Val::Wrong => None,
                _ => self.report_unknown_method(&m.method),
            };
            if let Val::Pending(i) = receiver {
                self.pending[i].reported = true;
            }
            self.arguments_of(m);
            return meant.map_or(Val::Wrong, |method| self.recovered(method, &receiver));
        };
        let mut operands = vec![Operand::new(receiver, &m.receiver)];
        for (i, e) in m.args.iter().enumerate() {
            // An argument too many is lowered for its own mistakes; its number is reported below.
            let kind = method.args.get(i).copied().unwrap_or(Kind::Operand);
            operands.push(self.argument(method, kind, e));
        }
        self.apply_method(method, operands, &m.method, &m.method.to_token_stream(), expected)
    }

    /// Reports the name, and gives the method that was most likely meant.
    fn report_unknown_method(&mut self, name: &Ident) -> Option<&'static Method> {
        let message = format!("`{name}` is not a method of tensors in a layer's body");
        let word = name.to_string();
        let near = closest(&word, methods::METHODS.iter().map(|m| m.name));
        let help = match near {
            _ if word == "clone" => "a tensor is an index and `Copy`: leave `.clone()` out".to_owned(),
            _ if word == "transpose" || word == "t" => "`.permute((B, D, S))` names the order of the axes".to_owned(),
            _ if word == "reshape" || word == "view" => {
                "`.split(D, (G, K))` and `.merge((G, K), D)` name the axes".to_owned()
            }
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                "`#[layer(trace)]` takes any Rust and records the body at start-up; `#[op]` wraps a kernel of your own"
                    .to_owned()
            }
        };
        self.errors.push_instead_of_rustc(name, "K0302", message, help);
        // A clone has its receiver's type, as the value without a gradient has.
        methods::find(if word == "clone" { "stop_gradient" } else { near? })
    }

    /// After a mistake in its arguments: a value of the receiver's type where that is the method's type for certain, so that
    /// mistakes further down are found in the same run.
    fn recovered(&mut self, method: &Method, receiver: &Val) -> Val {
        match self.known(receiver) {
            Val::Tensor(r) if keeps_type(method) && self.ty(r).dtype.is_float() => self.like(r),
            _ => Val::Wrong,
        }
    }

    /// A value of the same type.
    fn like(&mut self, r: Ref) -> Val {
        let x = self.local(r);
        let y = self.builder().op("stop_gradient", Attrs::new(), &[x]);
        Val::Tensor(self.here(y))
    }

    /// A narrower operand that does not line up leaves the type of the widest.
    fn widest(&mut self, method: &Method, operands: &[Operand]) -> Option<Val> {
        let refs = operands.iter().filter_map(|o| match self.known(&o.val) {
            Val::Tensor(r) => Some(r),
            _ => None,
        });
        let mut refs: Vec<Ref> = refs.collect();
        refs.sort_by_key(|r| std::cmp::Reverse(self.ty(*r).rank()));
        let [first, second, ..] = refs[..] else { return None };
        let certain = method.gives == Gives::Tensor && self.ty(first).rank() > self.ty(second).rank();
        (certain && self.ty(first).dtype.is_float()).then(|| self.like(first))
    }

    /// Reads one argument as the kind that the method wants.
    fn argument(&mut self, method: &Method, kind: Kind, e: &Expr) -> Operand {
        let arg = match kind {
            Kind::Axis | Kind::Axes => match self.axes_argument(e) {
                Some(arg) => arg,
                None => return self.wrong_argument(method, kind, e),
            },
            Kind::Spec => match e {
                Expr::Lit(ExprLit { lit: Lit::Str(s), .. }) => Arg::Spec(s.value()),
                _ => return self.wrong_argument(method, kind, e),
            },
            Kind::Count => match e {
                Expr::Lit(ExprLit { lit: Lit::Int(n), .. }) => match n.base10_parse() {
                    Ok(n) => Arg::Number(Attr::Int(n)),
                    Err(_) => return self.wrong_argument(method, kind, e),
                },
                _ => return self.wrong_argument(method, kind, e),
            },
            _ if matches!(e, Expr::Lit(ExprLit { lit: Lit::Bool(_) | Lit::Str(_), .. })) => {
                return self.wrong_argument(method, kind, e);
            }
            Kind::Number => {
                let val = self.expr(e, None);
                return match val {
                    Val::Number(ref n) if n.attr().is_some() => Operand::new(val, e),
                    Val::Wrong => Operand::new(Val::Wrong, e),
                    _ => self.wrong_argument(method, kind, e),
                };
            }
            Kind::Tensor | Kind::Operand | Kind::Ids | Kind::Rope | Kind::Mask => {
                let val = self.expr(e, None);
                let val = self.known(&val);
                let fits = matches!(
                    (&val, kind),
                    (Val::Wrong, _)
                        | (Val::Tensor(_) | Val::Pending(_), Kind::Tensor | Kind::Operand | Kind::Ids)
                        | (Val::Number(_) | Val::Over(..), Kind::Operand)
                        | (Val::Rope { .. }, Kind::Rope)
                        | (Val::Marker(_), Kind::Mask)
                );
                return if fits { Operand::new(val, e) } else { self.wrong_argument(method, kind, e) };
            }
        };
        Operand { val: Val::Unit, arg: Some(arg), tokens: e.to_token_stream() }
    }

    fn wrong_argument(&mut self, method: &Method, kind: Kind, e: &Expr) -> Operand {
        let help = match kind {
            Kind::Axis => "such as `D`",
            Kind::Axes => "such as `D`, or `(S, D)`",
            Kind::Count => "such as `0`; the number of elements that remain is the size of the new axis",
            Kind::Number => "a literal such as `1e-5`, or a `#[config]` argument",
            Kind::Spec => "a string literal such as `\"b s d, d f -> b s f\"`",
            Kind::Mask => "`Causal`: a query sees keys up to its position; `Full`: all keys",
            Kind::Rope => "`Rope::new(10_000.0)`, or an argument `rope: Rope<S, K>`",
            Kind::Tensor | Kind::Operand | Kind::Ids => "pass a tensor",
        };
        let message = format!("`{}` needs {} here, not `{}`", method.name, kind.describe(), describe(e));
        self.errors.push_instead_of_rustc(e, "K0120", message, help);
        Operand::new(Val::Wrong, e)
    }

    /// `S`, `(S, D)` or `[S, D]`.
    fn axes_argument(&mut self, e: &Expr) -> Option<Arg> {
        let single = |e: &Expr| match e {
            Expr::Path(p) => p.path.get_ident().cloned(),
            _ => None,
        };
        let list: Vec<Ident> = match e {
            Expr::Tuple(t) => t.elems.iter().map(single).collect::<Option<_>>()?,
            Expr::Array(a) => a.elems.iter().map(single).collect::<Option<_>>()?,
            Expr::Paren(p) => return self.axes_argument(&p.expr),
            other => {
                let ident = single(other)?;
                if self.lookup(&ident.to_string()).is_some() {
                    return None;
                }
                let axis = axis_of(&ident);
                self.axes.push(ident);
                return Some(Arg::Axis(axis));
            }
        };
        let axes: Vec<Axis> = list.iter().map(axis_of).collect();
        self.axes.extend(list);
        Some(Arg::Axes(axes))
    }

    /// Types what is untyped, then appends the nodes of a method; its complaint goes to the operand at fault.
    pub(super) fn apply_method(
        &mut self,
        method: &'static Method,
        operands: Vec<Operand>,
        at: &impl Spanned,
        tokens: &TokenStream,
        expected: Option<&Expected>,
    ) -> Val {
        if operands.iter().any(|o| matches!(self.known(&o.val), Val::Wrong)) {
            // The type of a call would have come from the operand that is wrong: one mistake, one error.
            for o in &operands {
                if let Val::Pending(i) = self.known(&o.val) {
                    self.pending[i].reported = true;
                }
            }
            return self.recovered(method, &operands[0].val);
        }
        if operands.len() == method.args.len() + 1 {
            self.type_operands(method, &operands, expected);
        }
        let Some(mut args) = self.method_args(&operands) else { return Val::Wrong };
        if method.gives == Gives::Over {
            return over(&args, self).unwrap_or(Val::Wrong);
        }
        if method.random {
            args.push(Arg::Number(Attr::Int(self.sites)));
            self.sites += 1;
        }
        if method.name == "rope" && !self.check_rope(&operands) {
            return self.recovered(method, &operands[0].val);
        }
        let span = position(at);
        let builder = self.builder();
        builder.span = span;
        match methods::apply(builder, method, &args).as_deref() {
            Ok(&[sum, count]) if method.gives == Gives::Loss => {
                Val::Loss { sum: self.here(sum), count: self.here(count) }
            }
            Ok(&[v, ..]) => Val::Tensor(self.here(v)),
            Ok([]) => Val::Wrong,
            Err(error) => {
                let code = error.code;
                self.report_type_error(error.clone(), &operands, tokens);
                match code {
                    "K0102" => self.widest(method, &operands).unwrap_or(Val::Wrong),
                    _ => self.recovered(method, &operands[0].val),
                }
            }
        }
    }

    fn report_type_error(&mut self, mut error: TypeError, operands: &[Operand], tokens: &TokenStream) {
        for (i, o) in operands.iter().enumerate() {
            let name = describe(&o.tokens);
            error.message = error.message.replace(&format!("{{{i}}}"), &name);
            error.help = error.help.map(|h| h.replace(&format!("{{{i}}}"), &name));
        }
        let at = error.argument.and_then(|a| argument_tokens(a, operands)).unwrap_or_else(|| match error.operand {
            // A receiver may be a long chain: the method's name is then the smaller thing to change.
            Some(0) if is_name(tokens) && !is_path(&operands[0].tokens) => tokens.clone(),
            Some(i) => operands.get(i).map_or(tokens, |o| &o.tokens).clone(),
            None => tokens.clone(),
        });
        // Wrong numbers and kinds of arguments are what rustc refuses as well.
        match error.code {
            "K0105" | "K0116" | "K0117" | "K0120" => self.errors.type_error_instead_of_rustc(at, &error),
            _ => self.errors.type_error(at, &error),
        }
    }

    fn method_args(&mut self, operands: &[Operand]) -> Option<Vec<Arg>> {
        let partner = operands.iter().find_map(|o| match self.known(&o.val) {
            Val::Tensor(r) => Some(self.shape(r)),
            _ => None,
        });
        let mut args = Vec::new();
        for o in operands {
            if let Some(arg) = &o.arg {
                args.push(arg.clone());
                continue;
            }
            args.push(match self.known(&o.val) {
                Val::Tensor(r) | Val::Rope { base: r, .. } => Arg::Value(self.local(r)),
                Val::Over(r, axes) => Arg::Over(self.local(r), axes),
                Val::Number(n) => match (n.attr(), &partner) {
                    (Some(attr), _) => Arg::Number(attr),
                    (None, Some(shape)) => Arg::Value(self.materialize(&n, &shape.clone())),
                    (None, None) => Arg::Value(self.materialize(&n, &[])),
                },
                Val::Marker(Marker::Causal) => Arg::Mask(Mask::Causal),
                Val::Marker(Marker::Full) => Arg::Mask(Mask::Full),
                Val::Pending(i) => {
                    self.report_pending(i);
                    return None;
                }
                Val::Wrong => return None,
                other => {
                    self.not_a_tensor(&other, &o.tokens);
                    return None;
                }
            });
        }
        Some(args)
    }

    /// A `Rope<S, K>` argument turns a tensor over [.., S, K] only.
    fn check_rope(&mut self, operands: &[Operand]) -> bool {
        let [x, rope] = operands else { return true };
        let (Val::Tensor(r), Val::Rope { axes: Some((seq, head)), .. }) = (self.known(&x.val), self.known(&rope.val))
        else {
            return true;
        };
        let shape = self.shape(r);
        let [.., s, k] = shape[..] else { return true };
        self.unify(&[s, k], &[seq, head]);
        let shape = self.shape(r);
        if shape.ends_with(&[seq, head]) {
            return true;
        }
        let (x, rope) = (describe(&x.tokens), &rope.tokens);
        let message =
            format!("`{}` is a `Rope<{seq}, {head}>`, but the last axes of `{x}` are `{s}` and `{k}`", text(rope));
        self.errors.push(rope, "K0330", message, format!("permute `{x}` so that it ends in {seq}, {head}"));
        false
    }
}

fn is_name(tokens: &TokenStream) -> bool {
    let mut tokens = tokens.clone().into_iter();
    matches!((tokens.next(), tokens.next()), (Some(TokenTree::Ident(_)), None))
}

/// A name, or a path of fields such as `trunk.emb`.
fn is_path(tokens: &TokenStream) -> bool {
    tokens.clone().into_iter().all(|t| match t {
        TokenTree::Ident(_) => true,
        TokenTree::Punct(p) => p.as_char() == '.',
        TokenTree::Group(_) | TokenTree::Literal(_) => false,
    })
}

/// The tokens of an argument that is no operand; `None` where the user's method has no such argument.
fn argument_tokens(argument: Argument, operands: &[Operand]) -> Option<TokenStream> {
    let is_axes = |o: &&Operand| matches!(o.arg, Some(Arg::Axis(_) | Arg::Axes(_)));
    let tokens = |o: &Operand| o.tokens.clone();
    match argument {
        Argument::Axis(axis) => {
            operands.iter().rev().filter(is_axes).find_map(|o| last_name(o.tokens.clone(), axis.name()))
        }
        Argument::Axes => {
            let list = operands.iter().find(|o| matches!(o.arg, Some(Arg::Axes(_))));
            list.or_else(|| operands.iter().find(is_axes)).map(tokens)
        }
        Argument::Number => operands.iter().find(|o| matches!(o.val, Val::Number(_))).map(tokens),
        Argument::Spec => operands.iter().find(|o| matches!(o.arg, Some(Arg::Spec(_)))).map(tokens),
    }
}

/// The last of some tokens that is this name.
fn last_name(tokens: TokenStream, name: &str) -> Option<TokenStream> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens.into_iter().rev().find_map(|t| match t {
        TokenTree::Group(g) => last_name(g.stream(), name),
        TokenTree::Ident(i) => (i == name).then(|| i.into_token_stream()),
        TokenTree::Punct(_) | TokenTree::Literal(_) => None,
    })
}

fn over(args: &[Arg], l: &Lowering<'_>) -> Option<Val> {
    let (Arg::Value(v), axes) = (args.first()?, args.get(1)?) else { return None };
    let axes = match axes {
        Arg::Axis(a) => vec![*a],
        Arg::Axes(list) => list.clone(),
        _ => return None,
    };
    Some(Val::Over(Ref { frame: l.frames.len() - 1, id: *v }, axes))
}
