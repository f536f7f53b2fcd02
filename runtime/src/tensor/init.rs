//! A layer's struct with initial values on the host: the same numbers with which a trainer of the same seed starts.

use super::record::make_concrete;
use super::session::{self, HostValue};
use super::{ConfigScalar, Parts, Source, Tensor};
use crate::init;
use crate::layer::{KindSig, Layer, LayerDef};
use kiln_compiler::interp::Array;
use kiln_compiler::ir::{self, ArgKind, Axis, ConfigValue, Init, Sizes, Type};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Why a layer cannot be built on the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// An axis has no size.
    #[error("K0701: axis `{axis}` of layer `{layer}` has no size: add `{axis} = ..` to `sizes!`")]
    Unbound {
        /// Axis.
        axis: String,
        /// Layer.
        layer: String,
    },
    /// A `#[config]` argument without a default.
    #[error("K0706: `#[config] {name}` of layer `{layer}` has no value: give it a default, or use `init_with`")]
    NoConfig {
        /// Argument.
        name: String,
        /// Layer.
        layer: String,
    },
    /// The embedded IR cannot be read.
    #[error(
        "K0709: the IR of layer `{layer}` cannot be read ({message}); build the crate again with one version of Kiln"
    )]
    Ir {
        /// Layer.
        layer: String,
        /// Parser's words.
        message: String,
    },
}

/// Builds a layer with initial values on the host, for eager runs. The layer is the root: paths of its parameters start at it.
pub fn init<L: Layer + Parts>(sizes: &Sizes, seed: u64) -> Result<L, InitError> {
    init_with(sizes, seed, &BTreeMap::new())
}

/// As [`init()`], with values of `#[config]` arguments by `name` or `layer.name`, as a trainer takes them.
pub fn init_with<L: Layer + Parts>(
    sizes: &Sizes,
    seed: u64,
    config: &BTreeMap<String, ConfigValue>,
) -> Result<L, InitError> {
    let scope = Scope::new(L::DEF, &Given { sizes, config }, seed)?;
    Ok(L::build(&mut Source::host(Rc::new(scope), String::new())))
}

/// What the caller gives for the whole model.
struct Given<'a> {
    sizes: &'a Sizes,
    config: &'a BTreeMap<String, ConfigValue>,
}

/// What initial values of one layer's struct come from; everything that can fail has been checked.
#[derive(Debug)]
pub(super) struct Scope {
    seed: u64,
    params: Vec<Param>,
    configs: Vec<(String, ConfigValue)>,
    children: Vec<Child>,
}

#[derive(Debug)]
struct Param {
    name: &'static str,
    shape: Vec<Axis>,
    dims: Vec<usize>,
    init: Init,
}

#[derive(Debug)]
struct Child {
    name: String,
    /// Number of copies of a `Repeat`.
    copies: usize,
    scope: Rc<Scope>,
}

impl Scope {
    fn new(def: &'static LayerDef, given: &Given<'_>, seed: u64) -> Result<Scope, InitError> {
        let layer = || def.name.to_owned();
        let unreadable = |e: ir::text::ParseError| InitError::Ir { layer: layer(), message: e.to_string() };
        let mut header = ir::text::parse_layer(def.ir).map_err(unreadable)?;
        make_concrete(&mut header, def.sig);
        let size =
            |a: Axis| given.sizes.get(a).ok_or_else(|| InitError::Unbound { axis: a.to_string(), layer: layer() });
        let mut scope = Scope { seed, params: Vec::new(), configs: Vec::new(), children: Vec::new() };
        let mut child_defs = def.subs.iter();
        for arg in &header.args {
            match &arg.kind {
                ArgKind::Param { init, .. } => {
                    let Some(sig) = def.sig.params.iter().find(|p| p.name == arg.name) else { continue };
                    let KindSig::Tensor(axes) = sig.kind else { continue };
                    let shape: Vec<Axis> = axes.iter().map(|a| Axis::new(a)).collect();
                    let dims = shape.iter().map(|&a| size(a)).collect::<Result<_, _>>()?;
                    scope.params.push(Param { name: sig.name, shape, dims, init: *init });
                }
                ArgKind::Config { default, .. } => {
                    let missing = || InitError::NoConfig { name: arg.name.clone(), layer: layer() };
                    let set = given.config.get(&format!("{}.{}", def.name, arg.name)).or(given.config.get(&arg.name));
                    scope.configs.push((arg.name.clone(), set.copied().or(*default).ok_or_else(missing)?));
                }
                ArgKind::Sub(sub) => {
                    let Some(child) = child_defs.next() else { continue };
                    let copies = sub.repeat.map_or(Ok(1), size)?;
                    let child = Rc::new(Scope::new(child, given, seed)?);
                    scope.children.push(Child { name: arg.name.clone(), copies, scope: child });
                }
                ArgKind::Input(_) | ArgKind::Rope { .. } | ArgKind::Tied { .. } => {}
            }
        }
        Ok(scope)
    }

    /// The initial values of a parameter; `path` is that of its layer, ending in `.` unless it is empty.
    pub(super) fn param(&self, name: &str, path: &str) -> Tensor {
        let p = self.params.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no parameter `{name}`"));
        let mut values = vec![0.0f32; p.dims.iter().product()];
        init::fill(&mut values, p.init, &p.dims, init::key(self.seed, &format!("{path}{name}")));
        let array = Array::new(p.dims.clone(), values.into_iter().map(f64::from).collect());
        Tensor(session::keep(HostValue { ty: Type::f32(p.shape.clone()), array: Rc::new(array) }))
    }

    /// A child and the number of its copies.
    pub(super) fn child(&self, name: &str) -> (Rc<Scope>, usize) {
        let child = self.children.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no child `{name}`"));
        (child.scope.clone(), child.copies)
    }

    /// The default of a `#[config]` argument.
    pub(super) fn config<T: ConfigScalar>(&self, name: &str) -> T {
        let found = self.configs.iter().find(|(n, _)| n == name).and_then(|(_, v)| T::from_value(*v));
        found.unwrap_or_else(|| panic!("`#[config] {name}` has a value of another kind"))
    }
}
