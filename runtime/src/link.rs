//! Link: a root layer's definition and the session's sizes become a model: layer types compiled once, instances as a tree.
//!
//! In: [`LayerDef`] (with its children), sizes, configuration, inherited precision and checkpoint choice. Out: a [`Model`] whose
//! every axis has a size, every wildcard a name, every annotation a meaning in force – or a typed error. Allocates no tensor.

use crate::layer::{KernelDef, LayerDef};
use crate::user_op;
use kiln_compiler::compile::{self, CompiledLayer};
use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::diff::Activity;
use kiln_compiler::ir::{
    self, ArgKind, Attr, Axis, Checkpoint, ConfigType, ConfigValue, DType, Func, Init, Layer, Output, Sizes, Type,
};
use kiln_compiler::{place, precision, simplify};
use std::collections::BTreeMap;

/// What a layer's backward may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keep {
    /// Everything that backward reads (`#[checkpoint(never)]`).
    Everything,
    /// The layer's inputs; forward runs again before backward (`#[checkpoint]`; Chen et al. 2016, arXiv 1604.06174).
    Inputs,
}

/// What a session sets for the whole model.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Global sizes.
    pub sizes: Sizes,
    /// Values of `#[config]` arguments, by argument name or by `path.name`.
    pub config: BTreeMap<String, ConfigValue>,
    /// Precision that the root inherits.
    pub precision: DType,
    /// Checkpoint choice that the root inherits.
    pub keep: Keep,
    /// Size of mesh axis `tensor`, and this rank's place on it.
    pub tensor: (usize, usize),
}

/// Why a model cannot be linked. Nothing has been allocated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LinkError {
    /// An axis has no size.
    #[error("K0701: axis `{axis}` of layer `{layer}` has no size: add `{axis} = ..` to `sizes!`")]
    Unbound {
        /// Axis.
        axis: String,
        /// Layer.
        layer: String,
    },
    /// A size is zero.
    #[error("K0702: axis `{0}` has size 0; every axis needs at least 1")]
    Zero(String),
    /// A tensor is too large to index.
    #[error("K0703: `{name}` has {elements} elements; a tensor has at most 2^31 - 1")]
    TooLarge {
        /// Tensor.
        name: String,
        /// Its elements.
        elements: u128,
    },
    /// More copies of a child than a model can hold.
    #[error("K0716: `{child}` of layer `{layer}` has `{axis}` = {copies} copies; a `Repeat` has at most {MOST_COPIES}")]
    TooManyCopies {
        /// Argument.
        child: String,
        /// Layer.
        layer: String,
        /// Axis that counts them.
        axis: String,
        /// Their number.
        copies: usize,
    },
    /// Sizes that must fit together do not.
    #[error("K0704: layer `{layer}` ({file}:{line}): {message}")]
    Sizes {
        /// Layer.
        layer: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// What does not fit.
        message: String,
    },
    /// A `sizes!` name that no layer uses.
    #[error("K0705: no layer of the model has an axis `{axis}`; its axes are {known}")]
    UnknownAxis {
        /// Name given.
        axis: String,
        /// Axes of the model.
        known: String,
    },
    /// A `#[config]` argument without a value.
    #[error("K0706: `#[config] {name}` of layer `{layer}` has no value: give it a default or set it in the session")]
    NoConfig {
        /// Argument.
        name: String,
        /// Layer.
        layer: String,
    },
    /// The value of a `#[config]` argument is outside of what an operation takes.
    #[error("K0715: layer `{layer}` ({file}:{line}): {message}")]
    Value {
        /// Layer.
        layer: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// What the operation takes.
        message: String,
    },
    /// An annotation in a form that is not in force yet.
    #[error("K0707: {file}:{line}: `{form}` on layer `{layer}` is not supported yet; {instead}")]
    NotInForce {
        /// The annotation as written.
        form: String,
        /// Layer.
        layer: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// What to write instead.
        instead: String,
    },
    /// Parent and child disagree.
    #[error("K0501: layer `{parent}` calls `{child}`: {message}")]
    Call {
        /// Caller.
        parent: String,
        /// Callee.
        child: String,
        /// What differs.
        message: String,
    },
    /// A gradient path without a derivative.
    #[error("{file}:{line}: {message}")]
    Derivative {
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// Code and words.
        message: String,
    },
    /// The root takes rotary positions.
    #[error(
        "K0710: the root `{layer}` takes a `Rope` as `{argument}`, which a batch cannot give; make it with `Rope::new` in the body, or call the layer from a root"
    )]
    RopeOfRoot {
        /// Root.
        layer: String,
        /// Argument.
        argument: String,
    },
    /// An operation of the user's own that does not fit its call, or has the name of another.
    #[error("{file}:{line}: {message}")]
    Operation {
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// Code and words.
        message: String,
    },
    /// The embedded IR cannot be read: the macro and the runtime are of different versions.
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

/// Copies of one `Repeat`. The plan holds every step of every copy; the deepest published networks have about a thousand layers.
const MOST_COPIES: usize = 1 << 14;

/// The mesh axis that `#[shard(tensor)]` splits over.
pub const TENSOR: &str = "tensor";

/// A model: layer types and the tree of instances.
#[derive(Debug)]
pub struct Model {
    /// Layer types, children before parents.
    pub types: Vec<LayerType>,
    /// The root.
    pub root: Instance,
    /// All parameters, in the order of the tree.
    pub params: Vec<Param>,
    /// Global sizes.
    pub sizes: Sizes,
    /// This rank on mesh axis `tensor`.
    pub tensor_rank: usize,
}

/// One layer type: a definition with its axes, configuration and precision.
#[derive(Debug)]
pub struct LayerType {
    /// The layer with all axes bound.
    pub layer: Layer,
    /// Its compute type.
    pub compute: DType,
    /// Compute types of its children.
    pub sub_dtypes: Vec<DType>,
    /// What backward keeps.
    pub keep: Keep,
    /// Its programs.
    pub programs: Programs,
    /// Programs of its `repeat` bodies, by call id.
    pub bodies: BTreeMap<i64, Programs>,
    /// Children's types.
    pub subs: Vec<SubType>,
    /// The axis that `#[shard(tensor)]` splits, and into how many parts; `None` where the mesh axis has size 1.
    pub split: Option<(Axis, usize)>,
    /// Kernels that its macro emitted.
    pub kernels: &'static [KernelDef],
}

/// Training and evaluation programs of one function.
#[derive(Debug)]
pub struct Programs {
    /// With backward.
    pub train: CompiledLayer,
    /// Forward alone.
    pub eval: CompiledLayer,
}

/// A child's type.
#[derive(Clone, Copy, Debug)]
pub struct SubType {
    /// Index into [`Model::types`].
    pub ty: usize,
    /// Number of copies of a `Repeat`.
    pub copies: Option<usize>,
}

impl LayerType {
    /// Sizes as one rank's part of this layer sees them.
    pub fn local_sizes(&self, sizes: &Sizes) -> Sizes {
        let part = |(a, n): (Axis, usize)| match self.split {
            Some((axis, parts)) if axis == a => (a, n / parts),
            _ => (a, n),
        };
        sizes.iter().map(part).collect()
    }

    /// The element type behind a placeholder.
    pub fn dtype(&self, d: DType) -> DType {
        match d {
            DType::Compute => self.compute,
            DType::Sub(i) => self.sub_dtypes[i as usize],
            DType::F32 | DType::Bf16 | DType::F16 | DType::I32 | DType::Bool => d,
        }
    }
}

impl Model {
    /// Every emitted kernel of the model's layers.
    pub fn kernels(&self) -> impl Iterator<Item = &'static KernelDef> {
        self.types.iter().flat_map(|t| t.kernels)
    }

    /// The emitted kernel of a region with this structural hash; any layer's serves, since the hash stands for all of its body.
    pub fn kernel(&self, hash: u64) -> Option<&'static KernelDef> {
        self.kernels().find(|k| k.hash == hash)
    }
}

/// One layer of the model.
#[derive(Debug)]
pub struct Instance {
    /// Index into [`Model::types`].
    pub ty: usize,
    /// Path from the root, such as `trunk.blocks.3.attn`; empty for the root.
    pub path: String,
    /// For each input of the body the parameter it is, if it is one.
    pub params: Vec<Option<usize>>,
    /// Children: one instance, or one per copy.
    pub subs: Vec<Vec<Instance>>,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Path, such as `trunk.blocks.3.mlp.gate`.
    pub path: String,
    /// Axes.
    pub shape: Vec<Axis>,
    /// Sizes of the axes of the whole tensor.
    pub dims: Vec<usize>,
    /// How this rank's part is cut out of it.
    pub split: Option<Split>,
    /// How it starts.
    pub init: Init,
    /// No gradient.
    pub frozen: bool,
}

/// One rank's part of a parameter: elements whose index along `dim` lies in the `part`-th of `parts` equal ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Which axis of the tensor.
    pub dim: usize,
    /// Into how many parts.
    pub parts: usize,
    /// Which is this rank's.
    pub part: usize,
}

impl Param {
    /// Number of elements on this rank.
    pub fn len(&self) -> usize {
        self.dims.iter().product::<usize>() / self.split.map_or(1, |s| s.parts)
    }

    /// Position in the whole tensor of this rank's element `i`.
    pub fn global_index(&self, i: usize) -> usize {
        let Some(s) = self.split else { return i };
        let inner: usize = self.dims[s.dim + 1..].iter().product();
        let local = self.dims[s.dim] / s.parts * inner;
        let (outer, rest) = (i / local, i % local);
        outer * self.dims[s.dim] * inner + s.part * local + rest
    }

    /// Whether it has no element; linking refuses sizes of 0, so never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The divisors of a size, ascending: the legal numbers of parts. `n` is at least 1.
pub fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large: Vec<usize> = small.iter().rev().map(|d| n / d).filter(|d| d * d != n).collect();
    [small, large].concat()
}

/// `path.name`, where the root's own path is empty.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Links the model under `root`.
pub fn link(root: &'static LayerDef, options: &LinkOptions) -> Result<Model, LinkError> {
    if let Some((axis, _)) = options.sizes.iter().find(|&(_, n)| n == 0) {
        return Err(LinkError::Zero(axis.to_string()));
    }
    let mut linker = Linker { options, types: Vec::new(), known: BTreeMap::new() };
    let ty = linker.layer_type(root, &[], options.precision, options.keep)?;
    check_root(&linker.types[ty].layer)?;
    check_all_sizes_used(&linker.types, &options.sizes)?;
    let mut params = Vec::new();
    let mut instance = linker.instance(ty, String::new(), &mut params)?;
    tie(&linker.types, &mut instance, &params)?;
    Ok(Model {
        types: linker.types,
        root: instance,
        params,
        sizes: options.sizes.clone(),
        tensor_rank: options.tensor.1,
    })
}

struct Linker<'a> {
    options: &'a LinkOptions,
    types: Vec<LayerType>,
    known: BTreeMap<String, usize>,
}

impl Linker<'_> {
    fn layer_type(
        &mut self,
        def: &'static LayerDef,
        generics: &[Axis],
        precision: DType,
        keep: Keep,
    ) -> Result<usize, LinkError> {
        let key = format!("{:p} {generics:?} {precision} {keep:?}", def);
        if let Some(&known) = self.known.get(&key) {
            return Ok(known);
        }
        let mut layer = read(def, &self.options.config)?;
        let renamed: BTreeMap<Axis, Axis> = layer.generics.iter().copied().zip(generics.iter().copied()).collect();
        ir::rename_axes(&mut layer, &|a| renamed.get(&a).copied().unwrap_or(a));
        let compute = compute_dtype(&layer, precision)?;
        let keep = keep_choice(&layer, keep)?;
        refuse_shard(&layer)?;

        let mut subs = Vec::new();
        for ((arg, sub), &child) in layer.subs().into_iter().zip(def.subs) {
            let ty = self.layer_type(child, &sub.generics, compute, inherited(keep, &layer))?;
            let copies = match sub.repeat {
                Some(axis) => Some(self.copies(axis, &arg.name, &layer.name)?),
                None => None,
            };
            subs.push(SubType { ty, copies });
        }
        self.resolve_wildcards(&mut layer, &subs)?;
        self.bind_config(&mut layer)?;
        check_values(&layer.body, &layer)?;
        layer.body = simplify::inline_select(&layer.body);
        user_op::check(&layer.body).map_err(|(line, e)| operation(&layer, line, e))?;
        self.check_sizes(&layer)?;

        let sub_dtypes = subs.iter().map(|s| self.types[s.ty].compute).collect();
        let activity = activity(&layer);
        let differentiated = differentiated(&layer);
        let split = self.split_axis(&layer)?;
        let mut body = precision::run(&layer.body, DType::Compute);
        if let Some((axis, _)) = split {
            body = place::run(&body, axis, TENSOR).map_err(|e| LinkError::Derivative {
                file: layer.file.clone(),
                line: e.span.line,
                message: e.diagnostic.to_string(),
            })?;
        }
        let programs = compile_programs(&layer, &body, &activity, &differentiated)?;
        let mut bodies = BTreeMap::new();
        for launch in &programs.train.forward {
            if let compile::Structural::Repeat { id, body } = compile::structural(launch) {
                let active: Vec<Activity> = body.inputs.iter().map(|&v| carried_activity(body.ty(v))).collect();
                bodies.insert(id, compile_programs(&layer, body, &active, &[true])?);
            }
        }
        self.types.push(LayerType {
            layer,
            compute,
            sub_dtypes,
            keep,
            programs,
            bodies,
            subs,
            split,
            kernels: def.kernels,
        });
        self.known.insert(key, self.types.len() - 1);
        Ok(self.types.len() - 1)
    }

    /// The axis that `#[shard(tensor)]` splits, if the mesh has more than one rank on it.
    fn split_axis(&self, layer: &Layer) -> Result<Option<(Axis, usize)>, LinkError> {
        let (parts, _) = self.options.tensor;
        let Some((shard, span)) = &layer.annotations.shard else { return Ok(None) };
        if parts == 1 {
            return Ok(None);
        }
        let refuse = |message: String| LinkError::Sizes {
            layer: layer.name.clone(),
            file: layer.file.clone(),
            line: span.line,
            message,
        };
        let axis = match shard.axis {
            Some(axis) => axis,
            None => place::infer_axis(layer).map_err(|e| refuse(e.diagnostic().to_string()))?,
        };
        let size = self.size(axis, &layer.name)?;
        if !size.is_multiple_of(parts) {
            let legal = divisors(size);
            return Err(refuse(format!(
                "`{axis}` = {size} cannot be split over `tensor = {parts}`; legal sizes of `tensor` are {legal:?}"
            )));
        }
        Ok(Some((axis, parts)))
    }

    fn size(&self, axis: Axis, layer: &str) -> Result<usize, LinkError> {
        let unbound = || LinkError::Unbound { axis: axis.to_string(), layer: layer.to_owned() };
        self.options.sizes.get(axis).ok_or_else(unbound)
    }

    fn copies(&self, axis: Axis, child: &str, layer: &str) -> Result<usize, LinkError> {
        let copies = self.size(axis, layer)?;
        if copies <= MOST_COPIES {
            return Ok(copies);
        }
        let (child, layer, axis) = (child.to_owned(), layer.to_owned(), axis.to_string());
        Err(LinkError::TooManyCopies { child, layer, axis, copies })
    }

    /// Replaces invented axes by those of the children's results and parameters.
    fn resolve_wildcards(&self, layer: &mut Layer, subs: &[SubType]) -> Result<(), LinkError> {
        let mut known: BTreeMap<Axis, Axis> = BTreeMap::new();
        let parent = layer.name.clone();
        let names: Vec<String> = layer.subs().iter().map(|(a, _)| a.name.clone()).collect();
        for arg in &layer.args {
            let ArgKind::Tied { path, ty } = &arg.kind else { continue };
            let mut parts = path.split('.');
            let first = parts.next().unwrap_or_default();
            let position = names.iter().position(|n| n == first);
            let found = position.and_then(|i| self.param_type(subs[i].ty, &parts.collect::<Vec<_>>()));
            let missing = || LinkError::Call {
                parent: parent.clone(),
                child: first.to_owned(),
                message: format!("it has no parameter `{path}`"),
            };
            unify(&ty.shape, &found.ok_or_else(missing)?.shape, &mut known).map_err(|message| LinkError::Call {
                parent: parent.clone(),
                child: path.clone(),
                message,
            })?;
        }
        self.unify_calls(&layer.body, subs, &parent, &mut known)?;
        ir::rename_axes(layer, &|a| known.get(&a).copied().unwrap_or(a));
        Ok(())
    }

    fn unify_calls(
        &self,
        body: &Func,
        subs: &[SubType],
        parent: &str,
        known: &mut BTreeMap<Axis, Axis>,
    ) -> Result<(), LinkError> {
        for node in &body.nodes {
            for inner in &node.bodies {
                self.unify_calls(inner, subs, parent, known)?;
            }
            if node.op.name != "call" {
                continue;
            }
            let child = &self.types[subs[node.attrs.int("sub") as usize].ty].layer;
            let wanted: Vec<&Type> = child
                .args
                .iter()
                .filter_map(|a| match &a.kind {
                    ArgKind::Input(ty) => Some(ty),
                    _ => None,
                })
                .collect();
            let given: Vec<&Type> = node.inputs.iter().map(|&v| body.ty(v)).filter(|t| t.rank() > 0).collect();
            let results = child.body.outputs.iter().map(|&v| child.body.ty(v));
            let outputs = node.outputs.iter().map(|&v| body.ty(v));
            let pairs = given.into_iter().zip(wanted).chain(outputs.zip(results));
            for (here, there) in pairs {
                unify(&here.shape, &there.shape, known).map_err(|message| LinkError::Call {
                    parent: parent.to_owned(),
                    child: child.name.clone(),
                    message,
                })?;
            }
        }
        Ok(())
    }

    fn param_type(&self, ty: usize, path: &[&str]) -> Option<Type> {
        let layer = &self.types[ty].layer;
        match path {
            [name] => layer.args.iter().find(|a| a.name == *name).and_then(|a| match &a.kind {
                ArgKind::Param { ty, .. } => Some(ty.clone()),
                _ => None,
            }),
            [child, rest @ ..] => {
                let i = layer.subs().iter().position(|(a, _)| a.name == *child)?;
                self.param_type(self.types[ty].subs[i].ty, rest)
            }
            [] => None,
        }
    }

    fn bind_config(&self, layer: &mut Layer) -> Result<(), LinkError> {
        let mut values: BTreeMap<String, Attr> = BTreeMap::new();
        for arg in &layer.args {
            let ArgKind::Config { ty, default } = &arg.kind else { continue };
            let qualified = format!("{}.{}", layer.name, arg.name);
            let set = self.options.config.get(&qualified).or_else(|| self.options.config.get(&arg.name));
            let missing = || LinkError::NoConfig { name: arg.name.clone(), layer: layer.name.clone() };
            let value = set.copied().or(*default).ok_or_else(missing)?;
            values.insert(arg.name.clone(), config_attr(*ty, value));
        }
        simplify::bind_config(&mut layer.body, &|name| values.get(name).cloned());
        Ok(())
    }

    /// Every axis has a size, every tensor fits, and derived axes agree with what they are derived from.
    fn check_sizes(&self, layer: &Layer) -> Result<(), LinkError> {
        let sizes = &self.options.sizes;
        for value in &layer.body.values {
            let mut elements: u128 = 1;
            for &axis in &value.ty.shape {
                elements = elements.saturating_mul(self.size(axis, &layer.name)? as u128);
            }
            if elements > i32::MAX as u128 {
                let name = format!("{}.{}", layer.name, value.name.as_deref().unwrap_or("value"));
                return Err(LinkError::TooLarge { name, elements });
            }
        }
        for node in &layer.body.nodes {
            let n = |a: Axis| sizes.of(a);
            let a = &node.attrs;
            let product = |axes: &[Axis]| axes.iter().map(|&x| n(x)).product::<usize>();
            let message = match node.op.name {
                "split" if n(a.axis("axis")) != product(a.axes("into")) => Some(format!(
                    "`{}` = {} cannot be split into {:?} = {}",
                    a.axis("axis"),
                    n(a.axis("axis")),
                    a.axes("into"),
                    product(a.axes("into"))
                )),
                "merge" if n(a.axis("into")) != product(a.axes("axes")) => Some(format!(
                    "{:?} = {} cannot be merged into `{}` = {}",
                    a.axes("axes"),
                    product(a.axes("axes")),
                    a.axis("into"),
                    n(a.axis("into"))
                )),
                "rename" if n(a.axis("from")) != n(a.axis("to")) => Some(format!(
                    "`{}` = {} cannot be renamed to `{}` = {}",
                    a.axis("from"),
                    n(a.axis("from")),
                    a.axis("to"),
                    n(a.axis("to"))
                )),
                "concat" if n(a.axis("axis")) + n(a.axis("other")) != n(a.axis("to")) => {
                    Some(format!("`{}` + `{}` is not `{}`", a.axis("axis"), a.axis("other"), a.axis("to")))
                }
                "rope" if n(a.axis("head")) % 2 == 1 => {
                    Some(format!("`rope` rotates pairs: `{}` = {} must be even", a.axis("head"), n(a.axis("head"))))
                }
                _ => None,
            };
            if let Some(message) = message {
                let (layer_name, file) = (layer.name.clone(), layer.file.clone());
                return Err(LinkError::Sizes { layer: layer_name, file, line: node.span.line, message });
            }
        }
        Ok(())
    }

    fn instance(&self, ty: usize, path: String, params: &mut Vec<Param>) -> Result<Instance, LinkError> {
        let t = &self.types[ty];
        let mut ids = Vec::new();
        for (_, arg) in t.layer.body_args() {
            ids.push(match &arg.kind {
                ArgKind::Param { ty, init, frozen, .. } => {
                    let dims = self.options.sizes.shape(&ty.shape);
                    let path = join(&path, &arg.name);
                    let (parts, part) = self.options.tensor;
                    let dim = t.split.and_then(|(axis, _)| ty.position(axis));
                    let split = dim.map(|dim| Split { dim, parts, part });
                    params.push(Param { path, shape: ty.shape.clone(), dims, split, init: *init, frozen: *frozen });
                    Some(params.len() - 1)
                }
                _ => None,
            });
        }
        let mut subs = Vec::new();
        for ((arg, _), sub) in t.layer.subs().into_iter().zip(&t.subs) {
            let base = join(&path, &arg.name);
            subs.push(match sub.copies {
                None => vec![self.instance(sub.ty, base, params)?],
                Some(n) => (0..n)
                    .map(|i| self.instance(sub.ty, join(&base, &i.to_string()), params))
                    .collect::<Result<_, _>>()?,
            });
        }
        Ok(Instance { ty, path, params: ids, subs })
    }
}

/// Gives parameters that are read as `child.param` the child's identity.
fn tie(types: &[LayerType], instance: &mut Instance, params: &[Param]) -> Result<(), LinkError> {
    let layer = &types[instance.ty].layer;
    for (slot, (_, arg)) in instance.params.iter_mut().zip(layer.body_args()) {
        if let ArgKind::Tied { path, .. } = &arg.kind {
            let full = join(&instance.path, path);
            let missing = || LinkError::Call {
                parent: layer.name.clone(),
                child: path.clone(),
                message: format!("there is no parameter `{full}`"),
            };
            *slot = Some(params.iter().position(|p| p.path == full).ok_or_else(missing)?);
        }
    }
    instance.subs.iter_mut().flatten().try_for_each(|sub| tie(types, sub, params))
}

fn operation(layer: &Layer, line: u32, diagnostic: Diagnostic) -> LinkError {
    LinkError::Operation { file: layer.file.clone(), line, message: diagnostic.to_string() }
}

fn read(def: &'static LayerDef, config: &BTreeMap<String, ConfigValue>) -> Result<Layer, LinkError> {
    let unreadable = |message: String| LinkError::Ir { layer: def.name.to_owned(), message };
    let mut layer = ir::text::parse_layer(def.ir).map_err(|e| unreadable(e.to_string()))?;
    match def.record {
        Some(body) if layer.annotations.trace => {
            crate::tensor::record(def, body, config).map_err(|e| unreadable(e.to_string()))
        }
        _ => {
            user_op::resolve(&mut layer.body, def.ops).map_err(|e| operation(&layer, 0, e))?;
            Ok(layer)
        }
    }
}

fn unify(here: &[Axis], there: &[Axis], known: &mut BTreeMap<Axis, Axis>) -> Result<(), String> {
    let differ = || format!("expected {there:?}, found {here:?}");
    if here.len() != there.len() {
        return Err(differ());
    }
    for (&h, &t) in here.iter().zip(there) {
        let bound = if h.is_wildcard() { *known.entry(h).or_insert(t) } else { h };
        if bound != t {
            return Err(differ());
        }
    }
    Ok(())
}

/// Once configuration is bound, operations check the ranges of their constants.
fn check_values(func: &Func, layer: &Layer) -> Result<(), LinkError> {
    for n in &func.nodes {
        let types: Vec<&Type> = n.inputs.iter().map(|&v| func.ty(v)).collect();
        (n.op.infer)(&n.attrs, &types).map_err(|e| LinkError::Value {
            layer: layer.name.clone(),
            file: layer.file.clone(),
            line: n.span.line,
            message: e.to_string(),
        })?;
        n.bodies.iter().try_for_each(|body| check_values(body, layer))?;
    }
    Ok(())
}

fn config_attr(ty: ConfigType, value: ConfigValue) -> Attr {
    match (ty, value) {
        (_, ConfigValue::Bool(b)) => Attr::Bool(b),
        (ConfigType::Float, ConfigValue::Int(i)) => Attr::Float(i as f64),
        (_, ConfigValue::Int(i)) => Attr::Int(i),
        (_, ConfigValue::Float(x)) => Attr::Float(x),
    }
}

fn compute_dtype(layer: &Layer, inherited: DType) -> Result<DType, LinkError> {
    let Some((p, span)) = &layer.annotations.precision else { return Ok(inherited) };
    let form = format!("#[{p}]");
    let instead = "write `f32`, `bf16` or `f16` without options".to_owned();
    let refused = || LinkError::NotInForce {
        form: form.clone(),
        layer: layer.name.clone(),
        file: layer.file.clone(),
        line: span.line,
        instead: instead.clone(),
    };
    let plain = p.options.iter().all(|(_, v)| v == "f32");
    p.dtype().filter(|_| plain).ok_or_else(refused)
}

fn keep_choice(layer: &Layer, inherited: Keep) -> Result<Keep, LinkError> {
    match &layer.annotations.checkpoint {
        None => Ok(inherited),
        Some((Checkpoint::Inputs, _)) => Ok(Keep::Inputs),
        Some((Checkpoint::Never, _)) => Ok(Keep::Everything),
        Some((form, span)) => Err(LinkError::NotInForce {
            form: format!("#[{form}]"),
            layer: layer.name.clone(),
            file: layer.file.clone(),
            line: span.line,
            instead: "write `#[checkpoint]` or `#[checkpoint(never)]`".to_owned(),
        }),
    }
}

/// A layer that keeps its inputs replays its children as they would run on their own: only an explicit annotation of the
/// layer itself stops the session's default from reaching them.
fn inherited(keep: Keep, layer: &Layer) -> Keep {
    if layer.annotations.checkpoint.is_some() { Keep::Everything } else { keep }
}

fn refuse_shard(layer: &Layer) -> Result<(), LinkError> {
    let on_args = layer.args.iter().find_map(|a| match &a.kind {
        ArgKind::Param { shard: Some(s), .. } => Some((s, a.span)),
        ArgKind::Sub(sub) => sub.shard.as_ref().map(|s| (s, a.span)),
        _ => None,
    });
    let on_layer = layer.annotations.shard.as_ref().map(|(s, span)| (s, *span)).filter(|(s, _)| s.mesh != "tensor");
    match on_args.or(on_layer) {
        None => Ok(()),
        Some((s, span)) => Err(LinkError::NotInForce {
            form: format!("#[{s}]"),
            layer: layer.name.clone(),
            file: layer.file.clone(),
            line: span.line,
            instead: "write `#[shard(tensor)]` or `#[shard(tensor = AXIS)]` on the layer".to_owned(),
        }),
    }
}

fn activity(layer: &Layer) -> Vec<Activity> {
    layer
        .body_args()
        .map(|(_, arg)| match &arg.kind {
            ArgKind::Input(ty) if ty.dtype.is_float() => Activity::Activation,
            ArgKind::Param { frozen: false, .. } | ArgKind::Tied { .. } => Activity::Parameter,
            _ => Activity::Inactive,
        })
        .collect()
}

fn differentiated(layer: &Layer) -> Vec<bool> {
    match layer.output {
        Output::Loss => vec![true, false],
        Output::Tensors => vec![true; layer.body.outputs.len()],
    }
}

fn carried_activity(ty: &Type) -> Activity {
    if ty.dtype.is_float() && ty.rank() > 0 { Activity::Activation } else { Activity::Inactive }
}

fn compile_programs(
    layer: &Layer,
    body: &Func,
    activity: &[Activity],
    differentiated: &[bool],
) -> Result<Programs, LinkError> {
    let train = compile::compile_layer(body, activity, differentiated).map_err(|e| LinkError::Derivative {
        file: layer.file.clone(),
        line: e.span.line,
        message: e.diagnostic.to_string(),
    })?;
    Ok(Programs { train, eval: compile::compile_forward(body) })
}

/// A batch gives tensors and ids; rotary positions come from a caller.
fn check_root(root: &Layer) -> Result<(), LinkError> {
    match root.args.iter().find(|a| matches!(a.kind, ArgKind::Rope { .. })) {
        None => Ok(()),
        Some(arg) => Err(LinkError::RopeOfRoot { layer: root.name.clone(), argument: arg.name.clone() }),
    }
}

fn check_all_sizes_used(types: &[LayerType], sizes: &Sizes) -> Result<(), LinkError> {
    let mut used: Vec<Axis> =
        types.iter().flat_map(|t| t.layer.body.values.iter().flat_map(|v| v.ty.shape.clone())).collect();
    used.extend(types.iter().flat_map(|t| t.layer.subs().into_iter().filter_map(|(_, s)| s.repeat)));
    used.sort();
    used.dedup();
    match sizes.iter().find(|(a, _)| !used.contains(a)) {
        None => Ok(()),
        Some((axis, _)) => {
            let known = used.iter().map(Axis::to_string).collect::<Vec<_>>().join(", ");
            Err(LinkError::UnknownAxis { axis: axis.to_string(), known })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_ascend() {
        assert_eq!(divisors(1), [1]);
        assert_eq!(divisors(28), [1, 2, 4, 7, 14, 28]);
        assert_eq!(divisors(36), [1, 2, 3, 4, 6, 9, 12, 18, 36]);
    }
}
