//! Operations of the user's own, made by `#[op]`: in a body a node `opaque`, on the host the user's reference function.
//!
//! In: the operation's record, which the macro writes as a constant. Out: tensors whose axes follow from the operation's `sig`, such as
//! `b s d, d -> b s d`, where letters are labels bound by position. Never looks into the user's code.
//!
//! **What runs where.** On the host, eagerly and within a plan, the reference runs, forward and backward: in f32, on copies of the
//! operands, one call per node and micro-batch, on one thread. A `#[cube]` kernel is compiled with the user's crate, in a module that sees
//! CubeCL's prelude alone (other items of the crate are named by their path); its arguments are the operands as `&Array<f32>`, the results
//! as `&mut Array<f32>` and the size of each label as `usize`, in order of appearance. Devices that launch
//! kernels do not launch it yet, and [`require_host`] refuses a plan that holds an operation there.
//!
//! ```
//! use kiln::prelude::*;
//!
//! /// y = x², element by element.
//! #[op(sig = "b d -> b d", vjp = square_vjp)]
//! fn square(x: &HostArray) -> HostArray {
//!     HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
//! }
//!
//! /// x̄ = 2·x·ȳ.
//! #[op(sig = "b d, b d -> b d")]
//! fn square_vjp(x: &HostArray, dy: &HostArray) -> HostArray {
//!     HostArray::new(x.dims.clone(), x.data.iter().zip(&dy.data).map(|(x, dy)| 2.0 * x * dy).collect())
//! }
//!
//! let x = Tensor::new(&[1, 3], vec![1.0, -2.0, 3.0]);
//! assert_eq!(square(x).to_vec(), [1.0, 4.0, 9.0]);
//! ```

mod callee;
mod host;
mod sig_check;

pub use callee::{Callee, IsNoOperation, IsOperation, NoOperation, Operand, Operation, Probe, operation};
pub use host::{HostArray, HostIds, HostResults, HostValue};
pub use sig_check::{check_derivative, check_operand, check_result, check_vjp, is_operation, is_poisoned};

use crate::plan::{Plan, Work};
use crate::tensor::{Args, Handle, Returns, record, session};
use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::interp::Array;
use kiln_compiler::ir::{Attr, Attrs, Axis, DType, Func, Type};
use kiln_compiler::ops::{self, TypeError};
use std::collections::BTreeMap;
use std::panic::Location;
use std::rc::Rc;
use std::sync::{LazyLock, Mutex, PoisonError};

/// One operation of the user's own.
#[derive(Clone, Copy, Debug)]
pub struct UserOp {
    /// Path of its function, such as `model::scan`: the name in the IR.
    pub name: &'static str,
    /// Name of its function, for messages.
    pub label: &'static str,
    /// File and line of its declaration.
    pub at: (&'static str, u32),
    /// Labels of the axes of operands and results as written, such as `b s d, d -> b s d`.
    pub sig: &'static str,
    /// Operands in order.
    pub operands: &'static [OperandSig],
    /// Labels of each result; results are numbers.
    pub results: &'static [&'static [&'static str]],
    /// Its value on the host, the truth for its kernel.
    pub reference: fn(&[HostValue]) -> Vec<HostArray>,
    /// The operation from operands and cotangents of the results to cotangents of the operands that are numbers.
    pub vjp: Option<&'static UserOp>,
    /// Whether it comes with a `#[cube]` kernel.
    pub has_kernel: bool,
    /// Whether it can be used.
    pub standing: Standing,
}

/// One operand of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandSig {
    /// What it holds.
    pub kind: OperandKind,
    /// Labels of its axes.
    pub labels: &'static [&'static str],
}

/// What an operand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandKind {
    /// Numbers, with a cotangent.
    Floats,
    /// Ids.
    Ids,
}

impl OperandKind {
    /// For messages.
    pub const fn describe(self) -> &'static str {
        match self {
            OperandKind::Floats => "numbers",
            OperandKind::Ids => "ids",
        }
    }
}

/// Whether an operation can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can.
    Sound,
    /// It has been refused where it is declared: one mistake, one error.
    Poisoned,
    /// A function that is no operation.
    None,
}

impl UserOp {
    /// What stands for a function that is no operation.
    pub const NONE: UserOp = UserOp {
        name: "",
        label: "",
        at: ("", 0),
        sig: "",
        operands: &[],
        results: &[],
        reference: |_| Vec::new(),
        vjp: None,
        has_kernel: false,
        standing: Standing::None,
    };
}

/// Operations met so far, for what executes a node by its name.
static KNOWN: LazyLock<Mutex<BTreeMap<&'static str, &'static UserOp>>> = LazyLock::new(Mutex::default);

/// The operation called `name`, once a layer that uses it has been recorded or linked.
pub fn find(name: &str) -> Option<&'static UserOp> {
    // A poisoned lock still holds a valid map: operations are only ever added.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
}

/// Makes an operation and its derivatives known by name.
///
/// # Errors
/// If another operation has the name of one of them: two functions of one name inside two functions of one module.
pub fn register(op: &'static UserOp) -> Result<(), Diagnostic> {
    ops::set_reference(reference_of_node);
    let mut next = Some(op);
    while let Some(op) = next {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *known.entry(op.name).or_insert(op);
        if first.at != op.at {
            let [(file, line), (other_file, other_line)] = [op.at, first.at];
            let message =
                format!("two operations are called `{}`: {other_file}:{other_line} and {file}:{line}", op.name);
            return Err(Diagnostic::new("K0602", message).help("rename one, or move it to a module of its own"));
        }
        next = op.vjp;
    }
    Ok(())
}

/// A path in a parsed body and the operation that rustc finds there.
#[derive(Clone, Copy, Debug)]
pub struct OpUse {
    /// The path as the IR of the layer has it.
    pub written: &'static str,
    /// Its operation.
    pub op: &'static UserOp,
}

/// Gives the nodes of a parsed body the names and derivatives of their operations, in place of the paths that the parser has read.
///
/// # Errors
/// As for [`register`].
pub fn resolve(func: &mut Func, uses: &[OpUse]) -> Result<(), Diagnostic> {
    for u in uses {
        register(u.op)?;
    }
    name_nodes(func, uses);
    Ok(())
}

fn name_nodes(func: &mut Func, uses: &[OpUse]) {
    for node in &mut func.nodes {
        if node.op.name == "opaque"
            && let Some(u) = uses.iter().find(|u| u.written == node.attrs.str("name"))
        {
            node.attrs.set("name", u.op.name);
            match u.op.vjp {
                Some(vjp) => node.attrs.set("vjp", vjp.name),
                None => node.attrs.remove("vjp"),
            }
        }
        node.bodies.iter_mut().for_each(|body| name_nodes(body, uses));
    }
}

/// Whether the results of each operation in a body have the axes that its operands give them, now that every axis has its name.
///
/// # Errors
/// What the first operation that does not fit says, with its node's line.
pub fn check(func: &Func) -> Result<(), (u32, Diagnostic)> {
    for node in func.nodes.iter() {
        node.bodies.iter().try_for_each(check)?;
        if node.op.name != "opaque" {
            continue;
        }
        let Some(op) = find(node.attrs.str("name")) else { continue };
        let types: Vec<Type> = node.inputs.iter().map(|&v| func.ty(v).clone()).collect();
        let shapes = result_axes(op, &types).map_err(|e| (node.span.line, e.diagnostic()))?;
        let found: Vec<Vec<Axis>> = node.outputs.iter().map(|&v| func.ty(v).shape.clone()).collect();
        if shapes != found {
            let message = format!("`{}` returns {shapes:?}, but {found:?} is needed here", op.label);
            return Err((node.span.line, Diagnostic::new("K0507", message)));
        }
    }
    Ok(())
}

/// Applies an operation: eagerly runs its reference, while a layer is recorded appends a node.
///
/// # Panics
/// Eagerly, if the operands do not fit the operation's `sig` or its reference returns other sizes.
#[track_caller]
pub fn call<R: Returns>(op: &'static UserOp, args: impl Args) -> R {
    let handles = args.handles();
    let at = Location::caller();
    let results = match session::with(|s| s.recording.is_some()) {
        true => {
            let span = kiln_compiler::ir::Span { line: at.line(), column: at.column() };
            record::opaque(&handles, R::VALUES, span, op, |types| Ok(attrs(op, &result_axes(op, types)?)))
        }
        false => eager(op, &handles),
    };
    R::from_handles(&results)
}

/// Attributes of the node.
fn attrs(op: &UserOp, shapes: &[Vec<Axis>]) -> Attrs {
    let attrs = Attrs::new().with("name", op.name).with("dtype", DType::F32).with("outs", shapes.len() as i64);
    let attrs = shapes.iter().enumerate().fold(attrs, |a, (i, s)| a.with(&format!("out{i}"), s.clone()));
    match op.vjp {
        Some(vjp) => attrs.with("vjp", vjp.name),
        None => attrs,
    }
}

/// Axes of the results for operands of these types.
fn result_axes(op: &UserOp, types: &[Type]) -> Result<Vec<Vec<Axis>>, TypeError> {
    let label = op.label;
    if op.operands.len() != types.len() {
        let message = format!("`{label}` takes {} operands, {} given", op.operands.len(), types.len());
        return Err(TypeError::new("K0116", message));
    }
    let mut bound: BTreeMap<&str, Axis> = BTreeMap::new();
    for (i, (operand, ty)) in op.operands.iter().zip(types).enumerate() {
        if kind_of(ty.dtype) != Some(operand.kind) {
            let message = format!("`{label}` takes {} as operand {}, which is {ty}", operand.kind.describe(), i + 1);
            return Err(TypeError::at(i, "K0105", message));
        }
        if operand.labels.len() != ty.rank() {
            let message = format!("`{label}` takes `{}` as operand {}, which is {ty}", operand.labels.join(" "), i + 1);
            return Err(TypeError::at(i, "K0106", message));
        }
        for (&word, &axis) in operand.labels.iter().zip(&ty.shape) {
            let first = *bound.entry(word).or_insert(axis);
            if first != axis && !is_unnamed(first) && !is_unnamed(axis) {
                let message = format!("`{label}`: `{word}` is `{first}`, but `{axis}` in operand {}", i + 1);
                return Err(TypeError::at(i, "K0107", message));
            }
            if is_unnamed(first) {
                bound.insert(word, axis);
            }
        }
    }
    // The macro has refused results with labels of no operand.
    let axes_of = |words: &&[&str]| words.iter().filter_map(|w| bound.get(w).copied()).collect();
    Ok(op.results.iter().map(axes_of).collect())
}

/// What a value of this type is as an operand; a mask is none.
fn kind_of(dtype: DType) -> Option<OperandKind> {
    match dtype {
        DType::I32 => Some(OperandKind::Ids),
        DType::Bool => None,
        DType::F32 | DType::Bf16 | DType::F16 | DType::Compute | DType::Sub(_) => Some(OperandKind::Floats),
    }
}

fn is_unnamed(axis: Axis) -> bool {
    axis.name().starts_with('_')
}

#[track_caller]
fn eager(op: &'static UserOp, handles: &[Handle]) -> Vec<Handle> {
    let operands: Vec<session::HostValue> = handles.iter().map(|&h| session::host(h, op.label)).collect();
    let types: Vec<Type> = operands.iter().map(|v| v.ty.clone()).collect();
    let shapes = result_axes(op, &types).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for (operand, value) in op.operands.iter().zip(&operands) {
        for (&word, &n) in operand.labels.iter().zip(&value.array.dims) {
            let before = *sizes.entry(word).or_insert(n);
            assert_eq!(before, n, "K0121: `{}`: `{word}` has two sizes", op.label);
        }
    }
    let dims: Vec<Vec<usize>> = op.results.iter().map(|r| r.iter().map(|w| sizes[w]).collect()).collect();
    let arrays: Vec<(&Type, &Array)> = types.iter().zip(operands.iter().map(|v| &*v.array)).collect();
    run(op, &host_values(&arrays), &dims)
        .into_iter()
        .zip(shapes)
        .map(|(a, shape)| {
            let array = Array::new(a.dims, a.data.into_iter().map(f64::from).collect());
            session::keep(session::HostValue { ty: Type::f32(renumbered(&shape)), array: Rc::new(array) })
        })
        .collect()
}

/// Axes without a name under names that differ.
fn renumbered(shape: &[Axis]) -> Vec<Axis> {
    let name = |i: usize, a: Axis| if is_unnamed(a) { Axis::new(&format!("_{i}")) } else { a };
    shape.iter().enumerate().map(|(i, &a)| name(i, a)).collect()
}

/// Runs the reference.
///
/// # Panics
/// If it returns other sizes than the operation's `sig` says: the mistake is in the user's function, which returns no error.
#[track_caller]
pub(crate) fn run(op: &UserOp, args: &[HostValue], dims: &[Vec<usize>]) -> Vec<HostArray> {
    let found = (op.reference)(args);
    let fits = found.len() == dims.len()
        && found.iter().zip(dims).all(|(a, d)| a.dims == *d && a.data.len() == d.iter().product::<usize>());
    if !fits {
        let given: Vec<(&Vec<usize>, usize)> = found.iter().map(|a| (&a.dims, a.data.len())).collect();
        panic!(
            "K0124: the reference of `{}` returns (sizes, elements) {given:?}, but its `sig`, `{}`, says {dims:?}",
            op.name, op.sig
        );
    }
    found
}

/// Operands as a reference reads them.
fn host_values(operands: &[(&Type, &Array)]) -> Vec<HostValue> {
    let value = |(ty, array): &(&Type, &Array)| match ty.dtype {
        DType::I32 => {
            HostValue::Ids(HostIds { dims: array.dims.clone(), data: array.data.iter().map(|&x| x as i32).collect() })
        }
        _ => HostValue::Floats(HostArray {
            dims: array.dims.clone(),
            data: array.data.iter().map(|&x| x as f32).collect(),
        }),
    };
    operands.iter().map(value).collect()
}

/// The reference of a node for the f64 interpreter: its numbers are rounded to f32 on the way in.
fn reference_of_node(name: &str, operands: &[(&Type, &Array)], dims: &[Vec<usize>]) -> Vec<Array> {
    let op = find(name).unwrap_or_else(|| panic!("`{name}` is in a function, but not registered: a bug of Kiln"));
    let results = run(op, &host_values(operands), dims);
    results.into_iter().map(|a| Array::new(a.dims, a.data.into_iter().map(f64::from).collect())).collect()
}

/// A plan that a device cannot run because an operation of the user's own has no kernel there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "K0804: {file}:{line}: `{op}`, an operation of your own, runs its reference on the host; device `{device}` does not launch \
     kernels of such operations yet: use the host (layer `{path}`)"
)]
pub struct HostOnly {
    /// The operation.
    pub op: String,
    /// Device asked for.
    pub device: String,
    /// Layer instance.
    pub path: String,
    /// File.
    pub file: String,
    /// Line.
    pub line: u32,
}

/// Refuses a plan with an operation of the user's own for a device other than the host.
///
/// # Errors
/// [`HostOnly`] names the first such operation.
pub fn require_host(plan: &Plan, device: &str) -> Result<(), HostOnly> {
    let name = |work: &Work| match work {
        Work::Library { op, attrs, .. } if op.name == "opaque" => match attrs.get("name") {
            Some(Attr::Str(name)) => Some(name.clone()),
            _ => None,
        },
        _ => None,
    };
    match plan.steps.iter().find_map(|s| Some((s, name(&s.work)?))) {
        None => Ok(()),
        Some((s, op)) => Err(HostOnly {
            op,
            device: device.to_owned(),
            path: s.path.to_string(),
            file: s.file.to_string(),
            line: s.line,
        }),
    }
}

/// Registers an operation for tools; emitted by `#[op]`.
pub struct UserOpEntry(pub &'static UserOp);

inventory::collect!(UserOpEntry);

/// Operations of all linked crates, for tools that check or list every one of them.
pub fn user_ops() -> impl Iterator<Item = &'static UserOp> {
    inventory::iter::<UserOpEntry>.into_iter().map(|entry| entry.0)
}

#[cfg(test)]
mod tests;
