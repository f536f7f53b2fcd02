//! Recording: a layer's body runs once on tensors without values, and what it does becomes the layer's IR.
//!
//! In: a [`LayerDef`] whose text holds the arguments, and the function that runs the body. Out: the [`Layer`] that the macro's parser
//! would have made, or every mistake with its position. Never computes a value.

use super::apply::{In, Rule};
use super::session::{self, Handle};
use super::{Ids, Parts, Repeat, Returns, Rope, Source, Tensor, loops};
use crate::layer::{KindSig, LayerDef, Sig};
use crate::user_op::{self, UserOp};
use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::ir::{
    self, Arg, ArgKind, Attr, Attrs, Axis, Builder, ConfigValue, DType, Func, Layer, Span, Type, Value, ValueId,
};
use kiln_compiler::methods::{self, Gives, Method};
use kiln_compiler::ops::{self, TypeError};
use std::collections::{BTreeMap, HashMap};

/// Why a body cannot be recorded: every mistake with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Name of the layer.
    pub layer: String,
    /// Source file.
    pub file: String,
    /// Mistakes in the order of the run.
    pub mistakes: Vec<(Span, Diagnostic)>,
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the body of `{}` cannot be recorded", self.layer)?;
        for (at, mistake) in &self.mistakes {
            write!(f, "\n{}:{}:{}: {mistake}", self.file, at.line, at.column)?;
        }
        Ok(())
    }
}

impl std::error::Error for RecordError {}

/// The layer being recorded, as its generated function sees it: hands out arguments, takes the result.
#[derive(Debug)]
pub struct Recorder {
    _only_from_record: (),
}

/// Host scalars of `#[config]` arguments.
pub trait ConfigScalar: Default {
    /// From the session's value, if the kinds agree.
    fn from_value(value: ConfigValue) -> Option<Self>;
}

/// State of the layer being recorded.
pub struct Recording {
    session: u32,
    def: &'static LayerDef,
    header: Layer,
    pub(super) builder: Builder,
    inputs: BTreeMap<String, ValueId>,
    config: BTreeMap<String, ConfigValue>,
    pub(super) sites: i64,
    mistakes: Vec<(Span, Diagnostic)>,
    /// Parameters of children: number of the child, path from this layer.
    placeholders: Vec<(usize, String)>,
    tied: Vec<Arg>,
    pub(super) loops: Vec<loops::Loop>,
    /// What a loop has replaced.
    pub(super) replaced: HashMap<ValueId, Replaced>,
}

/// What stands for a value of a loop's rounds after the loop.
#[derive(Clone, Copy, Debug)]
pub enum Replaced {
    /// The loop's result.
    By(ValueId),
    /// Nothing: the value belongs to one round.
    Lost,
}

/// A `Repeat` argument of the layer being recorded.
#[derive(Clone, Copy, Debug)]
pub struct RepeatPart {
    /// Number of the child.
    pub sub: usize,
    /// It belongs to a child, which alone may loop over it.
    pub nested: bool,
}

/// Handles from here on are parameters of children.
const PLACEHOLDERS: u32 = 1 << 30;
/// A value that a mistake has left without a type; what uses it is not reported again.
const POISON: u32 = u32::MAX;

/// Runs `body` on recording tensors and gives the layer's IR. `config` holds the session's values by `layer.name` or `name`.
pub fn record(
    def: &'static LayerDef,
    body: fn(&mut Recorder),
    config: &BTreeMap<String, ConfigValue>,
) -> Result<Layer, RecordError> {
    let fail = |file: &str, mistakes| RecordError { layer: def.name.to_owned(), file: file.to_owned(), mistakes };
    let mut header = ir::text::parse_layer(def.ir).map_err(|e| {
        let words = format!("the IR of the arguments cannot be read ({e}); build with one version of Kiln");
        fail("", vec![(Span::default(), Diagnostic::new("K0709", words))])
    })?;
    header.args.retain(|a| !matches!(a.kind, ArgKind::Tied { .. }));
    header.body = Func::default();
    make_concrete(&mut header, def.sig);
    let file = header.file.clone();
    let guard = Guard::start(def, header, config);
    body(&mut Recorder { _only_from_record: () });
    let recording = guard.finish();
    if recording.mistakes.is_empty() {
        return Ok(recording.into_layer());
    }
    Err(fail(&file, recording.mistakes))
}

fn named(axes: &[&str]) -> Vec<Axis> {
    axes.iter().map(|a| Axis::new(a)).collect()
}

/// Gives the axis parameters of a generic layer the axes of this instance, as its signature has them.
pub(crate) fn make_concrete(header: &mut Layer, sig: &Sig) {
    let mut given: HashMap<Axis, Axis> = HashMap::new();
    for arg in &header.args {
        let found = sig.inputs.iter().chain(sig.params).find(|s| s.name == arg.name).map(|s| s.kind);
        match (&arg.kind, found) {
            (ArgKind::Input(ty) | ArgKind::Param { ty, .. }, Some(KindSig::Tensor(axes) | KindSig::Ids(axes))) => {
                given.extend(ty.shape.iter().copied().zip(named(axes)));
            }
            (ArgKind::Rope { seq, head }, Some(KindSig::Rope(s, k))) => {
                given.extend([(*seq, Axis::new(s)), (*head, Axis::new(k))]);
            }
            _ => {}
        }
    }
    let generics = std::mem::take(&mut header.generics);
    ir::rename_axes(header, &|a| given.get(&a).copied().filter(|_| generics.contains(&a)).unwrap_or(a));
}

/// Puts the enclosing recording back, also when the body panics.
struct Guard {
    outer: Option<Recording>,
}

impl Guard {
    fn start(def: &'static LayerDef, header: Layer, config: &BTreeMap<String, ConfigValue>) -> Guard {
        let mut builder = Builder::default();
        let mut inputs = BTreeMap::new();
        for (_, arg) in header.body_args() {
            let ty = match &arg.kind {
                ArgKind::Input(ty) | ArgKind::Param { ty, .. } => ty.clone(),
                _ => Type::f32([]),
            };
            inputs.insert(arg.name.clone(), builder.func.add_input(ty, &arg.name));
        }
        let outer = session::with(|s| {
            s.recordings += 1;
            s.recording.replace(Recording {
                session: s.recordings,
                def,
                header,
                builder,
                inputs,
                config: config.clone(),
                sites: 0,
                mistakes: Vec::new(),
                placeholders: Vec::new(),
                tied: Vec::new(),
                loops: Vec::new(),
                replaced: HashMap::new(),
            })
        });
        Guard { outer }
    }

    fn finish(mut self) -> Recording {
        let outer = self.outer.take();
        let done = session::with(|s| std::mem::replace(&mut s.recording, outer));
        std::mem::forget(self);
        done.unwrap_or_else(|| panic!("a recording ended before its function returned"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let outer = self.outer.take();
        session::with(|s| s.recording = outer);
    }
}

/// Runs `f` on the layer being recorded.
///
/// # Panics
/// If there is none: callers have asked.
pub(super) fn with<T>(f: impl FnOnce(&mut Recording) -> T) -> T {
    session::with(|s| match &mut s.recording {
        Some(recording) => f(recording),
        None => panic!("K0347: a child of a recorded layer is used after the recording"),
    })
}

/// Appends a method.
pub fn apply(method: &Method, args: &[In], span: Span) -> Vec<Handle> {
    with(|r| {
        r.builder.span = span;
        let results = if method.gives == Gives::Loss { 2 } else { 1 };
        let operands: Option<Vec<ValueId>> = args.iter().filter_map(In::handle).map(|h| r.resolve(h)).collect();
        let Some(operands) = operands else { return r.poison(results) };
        let mut operands = operands.into_iter();
        let mut next =
            |_| operands.next().unwrap_or_else(|| panic!("an operand of `{}` was not resolved", method.name));
        let mut lowered: Vec<methods::Arg> = args.iter().map(|a| a.lower(&mut next)).collect();
        if method.random {
            lowered.push(methods::Arg::Number(Attr::Int(r.sites)));
            r.sites += 1;
        }
        let outputs = methods::apply(&mut r.builder, method, &lowered);
        r.keep(outputs, results)
    })
}

/// Appends a rule.
pub fn apply_rule(rule: Rule, operands: &[Handle], span: Span) -> Handle {
    with(|r| {
        r.builder.span = span;
        let operands: Option<Vec<ValueId>> = operands.iter().map(|&h| r.resolve(h)).collect();
        let Some(operands) = operands else { return r.poison(1)[0] };
        let result = rule.lower(&mut r.builder, &operands);
        r.keep(result.map(|v| vec![v]), 1)[0]
    })
}

/// A parameter of child `sub`, which becomes an argument of this layer when it is read.
pub fn placeholder(sub: usize, path: String) -> Handle {
    with(|r| {
        r.placeholders.push((sub, path));
        Handle::new(r.session, PLACEHOLDERS + r.placeholders.len() as u32 - 1)
    })
}

/// The value of a child's `#[config]` argument, by its path.
pub fn config<T: ConfigScalar>(path: &str) -> T {
    let name = path.rsplit('.').next().unwrap_or(path);
    with(|r| r.config.get(path).or_else(|| r.config.get(name)).copied()).and_then(T::from_value).unwrap_or_default()
}

/// Appends a call of the child that `marker` belongs to; a child without parameters is found by its type.
pub fn call(def: &'static LayerDef, sig: &Sig, marker: Option<Tensor>, args: &[Handle], span: Span) -> Vec<Handle> {
    with(|r| {
        r.builder.span = span;
        let results = match sig.output {
            KindSig::Loss => 2,
            KindSig::Tuple(parts) => parts.len(),
            KindSig::Tensor(_) | KindSig::Ids(_) | KindSig::Rope(..) => 1,
        };
        let operands: Option<Vec<ValueId>> = args.iter().map(|&h| r.resolve(h)).collect();
        let Some(operands) = operands else { return r.poison(results) };
        let Some(sub) = r.child(def, marker) else {
            let message = format!("`{}` is no child of `{}`", def.name, r.header.name);
            let help = format!("take it as an argument: `#[sub] {}: {}`", def.name, def.type_name);
            r.mistakes.push((span, Diagnostic::new("K0347", message).help(help)));
            return r.poison(results);
        };
        let attrs = Attrs::new().with("sub", sub as i64).with("dtype", DType::F32);
        let attrs = match sig.output {
            KindSig::Loss => attrs.with("outs", 2).with("out0", named(&[])).with("out1", named(&[])).with("loss", true),
            KindSig::Tuple(parts) => parts
                .iter()
                .enumerate()
                .fold(attrs.with("outs", parts.len() as i64), |a, (i, p)| a.with(&format!("out{i}"), named(p))),
            KindSig::Tensor(axes) | KindSig::Ids(axes) => attrs.with("outs", 1).with("out0", named(axes)),
            KindSig::Rope(..) => attrs.with("outs", 1).with("out0", named(&[])),
        };
        let op = ops::find("call").unwrap_or_else(|| panic!("no operation `call`"));
        let outputs = r.builder.try_op(op, attrs, &operands);
        r.keep(outputs, results)
    })
}

/// Appends an operation of the user's own, whose attributes follow from the types of its operands.
pub(crate) fn opaque(
    operands: &[Handle],
    results: usize,
    span: Span,
    op: &'static UserOp,
    attrs: impl FnOnce(&[Type]) -> Result<Attrs, TypeError>,
) -> Vec<Handle> {
    with(|r| {
        r.builder.span = span;
        let operands: Option<Vec<ValueId>> = operands.iter().map(|&h| r.resolve(h)).collect();
        let Some(operands) = operands else { return r.poison(results) };
        if let Err(mistake) = user_op::register(op) {
            r.mistake(mistake);
            return r.poison(results);
        }
        let types: Vec<Type> = operands.iter().map(|&v| r.builder.ty(v).clone()).collect();
        let op = ops::find("opaque").unwrap_or_else(|| panic!("no operation `opaque`"));
        let outputs = attrs(&types).and_then(|attrs| r.builder.try_op(op, attrs, &operands));
        r.keep(outputs, results)
    })
}

impl Recorder {
    fn input(&self, name: &str) -> Handle {
        with(|r| match r.inputs.get(name) {
            Some(v) => Handle::new(r.session, v.0),
            None => panic!("`{}` has no argument `{name}`: its IR and its function differ", r.header.name),
        })
    }

    /// The activation or parameter `name`.
    pub fn tensor(&mut self, name: &str) -> Tensor {
        Tensor(self.input(name))
    }

    /// The parameter `name`.
    pub fn param(&mut self, name: &str) -> Tensor {
        Tensor(self.input(name))
    }

    /// The ids `name`.
    pub fn ids(&mut self, name: &str) -> Ids {
        Ids(self.input(name))
    }

    /// The rotary positions `name`.
    pub fn rope(&mut self, name: &str) -> Rope {
        Rope { base: Tensor(self.input(name)) }
    }

    /// The child `name`.
    pub fn sub<T: Parts>(&mut self, name: &str) -> T {
        T::build(&mut Source::recorded(self.child(name), name))
    }

    /// The copies of the child `name`.
    pub fn repeat<T: Parts>(&mut self, name: &str) -> Repeat<T> {
        Repeat::recorded(self.sub(name), RepeatPart { sub: self.child(name), nested: false })
    }

    /// The `#[config]` value `name`.
    pub fn config<T: ConfigScalar>(&mut self, name: &str) -> T {
        let value = with(|r| {
            let default = r.header.args.iter().find_map(|a| match &a.kind {
                ArgKind::Config { default, .. } if a.name == name => *default,
                _ => None,
            });
            let qualified = format!("{}.{name}", r.header.name);
            r.config.get(&qualified).or_else(|| r.config.get(name)).copied().or(default)
        });
        value.and_then(T::from_value).unwrap_or_default()
    }

    /// The result of the body.
    #[track_caller]
    pub fn output<R: Returns>(&mut self, result: R) {
        let span = super::apply::here();
        with(|r| {
            let outputs: Option<Vec<ValueId>> = result.handles().into_iter().map(|h| r.resolve(h)).collect();
            r.builder.func.outputs = outputs.unwrap_or_default();
            r.check_output(span);
        });
    }

    fn child(&self, name: &str) -> usize {
        with(|r| {
            let found = r.header.subs().iter().position(|(arg, _)| arg.name == name);
            found.unwrap_or_else(|| panic!("`{}` has no child `{name}`: its IR and its function differ", r.header.name))
        })
    }
}

impl Recording {
    /// Reports a mistake at the current position.
    pub(super) fn mistake(&mut self, diagnostic: Diagnostic) {
        self.mistakes.push((self.builder.span, diagnostic));
    }

    fn poison(&self, results: usize) -> Vec<Handle> {
        vec![Handle::new(self.session, POISON); results]
    }

    fn keep(&mut self, outputs: Result<Vec<ValueId>, TypeError>, results: usize) -> Vec<Handle> {
        match outputs {
            Ok(outputs) => outputs.into_iter().map(|v| Handle::new(self.session, v.0)).collect(),
            Err(error) => {
                self.mistake(error.diagnostic());
                self.poison(results)
            }
        }
    }

    /// The value behind a handle, or none where a mistake has been reported.
    fn resolve(&mut self, handle: Handle) -> Option<ValueId> {
        if handle.session != self.session {
            let message = "a recorded body reads a tensor that does not come from its arguments";
            let help = "pass it as an input, a `#[param]` or a `#[state]`";
            self.mistake(Diagnostic::new("K0345", message).help(help));
            return None;
        }
        match handle.index {
            POISON => None,
            i if i >= PLACEHOLDERS => self.tied((i - PLACEHOLDERS) as usize),
            i => match self.replaced.get(&ValueId(i)) {
                None => Some(ValueId(i)),
                Some(Replaced::By(v)) => Some(*v),
                Some(Replaced::Lost) => {
                    let message = "a value of a loop's body is read after the loop, which keeps the carried value only";
                    self.mistake(Diagnostic::new("K0343", message));
                    None
                }
            },
        }
    }

    /// A child's parameter as an argument of this layer.
    fn tied(&mut self, placeholder: usize) -> Option<ValueId> {
        let (sub, path) = self.placeholders[placeholder].clone();
        if let Some(v) = self.inputs.get(&path) {
            return Some(*v);
        }
        let Some(shape) = self.child_param(sub, &path) else {
            let message = format!("`{path}` is no single parameter of a child of `{}`", self.header.name);
            self.mistake(Diagnostic::new("K0347", message).help("a copy of a `Repeat` is called as a whole"));
            return None;
        };
        let ty = Type::f32(shape);
        let v = self.builder.func.add_input(ty.clone(), &path);
        self.inputs.insert(path.clone(), v);
        self.tied.push(Arg { name: path.clone(), kind: ArgKind::Tied { path, ty }, span: self.builder.span });
        Some(v)
    }

    /// Axes of the parameter at `path`, by the signature of child `sub`.
    fn child_param(&self, sub: usize, path: &str) -> Option<Vec<Axis>> {
        let repeated = self.header.subs().get(sub).is_some_and(|(_, s)| s.repeat.is_some());
        let mut sig = self.def.subs.get(sub).map(|d| d.sig).filter(|_| !repeated)?;
        let mut steps: Vec<&str> = path.split('.').skip(1).collect();
        let name = steps.pop()?;
        for step in steps {
            sig = sig.subs.iter().find(|(n, _)| *n == step).map(|(_, s)| *s)?;
        }
        sig.params.iter().find(|p| p.name == name).and_then(|p| match p.kind {
            KindSig::Tensor(axes) => Some(named(axes)),
            _ => None,
        })
    }

    fn child(&self, def: &LayerDef, marker: Option<Tensor>) -> Option<usize> {
        let is = |d: &&LayerDef| d.name == def.name && d.module == def.module;
        match marker {
            Some(Tensor(h)) if h.session == self.session && (PLACEHOLDERS..POISON).contains(&h.index) => {
                let sub = self.placeholders[(h.index - PLACEHOLDERS) as usize].0;
                self.def.subs.get(sub).filter(|d| is(d)).map(|_| sub)
            }
            Some(_) => None,
            None => self.def.subs.iter().position(is),
        }
    }

    /// The axis of a `Repeat` argument.
    pub(super) fn repeat_axis(&self, sub: usize) -> Option<Axis> {
        self.header.subs().get(sub).and_then(|(_, s)| s.repeat)
    }

    fn check_output(&mut self, span: Span) {
        let found: Vec<String> = self.builder.func.outputs.iter().map(|&v| self.builder.ty(v).to_string()).collect();
        let axes = |axes: &[&str]| Type::f32(named(axes)).to_string();
        let declared = match self.def.sig.output {
            KindSig::Tensor(a) => vec![axes(a)],
            KindSig::Tuple(parts) => parts.iter().map(|p| axes(p)).collect(),
            KindSig::Loss => vec![axes(&[]), axes(&[])],
            KindSig::Ids(_) | KindSig::Rope(..) => return,
        };
        if self.mistakes.is_empty() && found != declared {
            let (found, declared) = (found.join(", "), declared.join(", "));
            let message = format!("`{}` returns {found}, its signature says {declared}", self.header.name);
            self.mistakes.push((span, Diagnostic::new("K0308", message)));
        }
    }

    fn into_layer(self) -> Layer {
        let mut layer = self.header;
        layer.args.extend(self.tied);
        layer.body = compact(&self.builder.func);
        layer
    }
}

/// The same function without values that no node defines, numbered in the order of their definitions.
pub(super) fn compact(func: &Func) -> Func {
    let mut out = Func::default();
    let mut new: HashMap<ValueId, ValueId> = HashMap::new();
    let mut define = |out: &mut Func, v: ValueId| {
        let Value { ty, name } = func.values[v.index()].clone();
        let id = out.add_value(ty, name);
        new.insert(v, id);
        id
    };
    out.inputs = func.inputs.iter().map(|&v| define(&mut out, v)).collect();
    let mut nodes = func.nodes.clone();
    for node in &mut nodes {
        node.outputs.iter_mut().for_each(|v| *v = define(&mut out, *v));
    }
    for node in &mut nodes {
        node.inputs.iter_mut().for_each(|v| *v = new[v]);
    }
    out.nodes = nodes;
    out.outputs = func.outputs.iter().map(|v| new[v]).collect();
    out
}

macro_rules! config_number {
    ($($ty:ty),+) => {
        $(impl ConfigScalar for $ty {
            fn from_value(value: ConfigValue) -> Option<Self> {
                match value {
                    ConfigValue::Float(x) => Some(x as $ty),
                    ConfigValue::Int(i) => Some(i as $ty),
                    ConfigValue::Bool(_) => None,
                }
            }
        })+
    };
}
config_number!(f32, f64, i32, i64, u32, u64, usize);

impl ConfigScalar for bool {
    fn from_value(value: ConfigValue) -> Option<Self> {
        match value {
            ConfigValue::Bool(b) => Some(b),
            ConfigValue::Int(_) | ConfigValue::Float(_) => None,
        }
    }
}
