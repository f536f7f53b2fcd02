//! Operations of the user's own, made by `#[op]`: in a body a node `opaque`, on the host the user's reference function.
//!
//! In: the operation's record, which the macro writes as a static. Out: tensors whose axes follow from the operation's `sig`, such as
//! `b s d, d -> b s d`, where letters are labels bound by position. Never looks into the user's code.

use crate::tensor::{Args, Handle, Returns, record, session};
use kiln_compiler::interp::Array;
use kiln_compiler::ir::{Attrs, Axis, DType, Type};
use kiln_compiler::ops::TypeError;
use std::collections::BTreeMap;
use std::panic::Location;
use std::rc::Rc;
use std::sync::{LazyLock, Mutex};

/// A dense row-major array, as a reference function reads and makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct HostArray {
    /// Sizes, slowest axis first.
    pub dims: Vec<usize>,
    /// Elements; ids are whole numbers.
    pub data: Vec<f32>,
}

/// What a reference function returns: one array, or several in a tuple.
pub trait HostResults {
    /// The arrays in order.
    fn into_arrays(self) -> Vec<HostArray>;
}

/// One operation of the user's own.
pub struct UserOp {
    /// Path of its function, such as `model::scan`: the name in the IR.
    pub name: &'static str,
    /// Labels of the axes of operands and results, such as `b s d, d -> b s d`.
    pub sig: &'static str,
    /// Its value on the host, the truth for its kernel.
    pub reference: fn(&[HostArray]) -> Vec<HostArray>,
    /// The operation from operands and cotangents of the results to cotangents of the float operands.
    pub vjp: Option<&'static UserOp>,
}

/// Operations met so far, for devices that execute a node by its name.
static KNOWN: LazyLock<Mutex<BTreeMap<&'static str, &'static UserOp>>> = LazyLock::new(Mutex::default);

/// The operation called `name`, once a layer that uses it has been recorded or linked.
pub fn find(name: &str) -> Option<&'static UserOp> {
    // A poisoned lock still holds a valid map: operations are only ever added.
    KNOWN.lock().unwrap_or_else(|e| e.into_inner()).get(name).copied()
}

/// Makes an operation and its derivative known by name.
pub fn register(op: &'static UserOp) {
    KNOWN.lock().unwrap_or_else(|e| e.into_inner()).insert(op.name, op);
    if let Some(vjp) = op.vjp {
        KNOWN.lock().unwrap_or_else(|e| e.into_inner()).insert(vjp.name, vjp);
    }
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
            register(op);
            let span = kiln_compiler::ir::Span { line: at.line(), column: at.column() };
            record::opaque(&handles, R::VALUES, span, |types| {
                let shapes = result_axes(op, types)?;
                Ok(attrs(op, &shapes))
            })
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

/// Labels of operands and of results.
fn labels(op: &UserOp) -> Result<[Vec<Vec<&'static str>>; 2], TypeError> {
    let list = |part: &'static str| part.split(',').map(|p| p.split_whitespace().collect()).collect();
    match op.sig.split_once("->") {
        Some((operands, results)) => Ok([list(operands), list(results)]),
        None => Err(TypeError::new("K0108", format!("the `sig` of `{}`, `{}`, has no `->`", op.name, op.sig))),
    }
}

/// Axes of the results for operands of these types.
fn result_axes(op: &UserOp, types: &[Type]) -> Result<Vec<Vec<Axis>>, TypeError> {
    let [operands, results] = labels(op)?;
    if operands.len() != types.len() {
        let message = format!("`{}` takes {} operands, {} given", op.name, operands.len(), types.len());
        return Err(TypeError::new("K0116", message));
    }
    let mut bound: BTreeMap<&str, Axis> = BTreeMap::new();
    for (i, (words, ty)) in operands.iter().zip(types).enumerate() {
        if words.len() != ty.rank() {
            let message = format!("`{}` takes `{}` as operand {}, which is {ty}", op.name, words.join(" "), i + 1);
            return Err(TypeError::at(i, "K0106", message));
        }
        for (&word, &axis) in words.iter().zip(&ty.shape) {
            let first = *bound.entry(word).or_insert(axis);
            if first != axis && !is_unnamed(first) && !is_unnamed(axis) {
                let message = format!("`{}`: `{word}` is `{first}`, but `{axis}` in operand {}", op.name, i + 1);
                return Err(TypeError::at(i, "K0107", message));
            }
            if is_unnamed(first) {
                bound.insert(word, axis);
            }
        }
    }
    let axes_of = |words: &Vec<&'static str>| words.iter().map(|w| bound.get(w).copied().ok_or(*w)).collect();
    let shapes: Result<Vec<Vec<Axis>>, &str> = results.iter().map(axes_of).collect();
    shapes.map_err(|w| TypeError::new("K0108", format!("`{}`: `{w}` is in a result, but in no operand", op.name)))
}

fn is_unnamed(axis: Axis) -> bool {
    axis.name().starts_with('_')
}

#[track_caller]
fn eager(op: &'static UserOp, handles: &[Handle]) -> Vec<Handle> {
    let operands: Vec<session::HostValue> = handles.iter().map(|&h| session::host(h, op.name)).collect();
    let types: Vec<Type> = operands.iter().map(|v| v.ty.clone()).collect();
    let shapes = result_axes(op, &types).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
    let [words, results] = labels(op).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for (words, value) in words.iter().zip(&operands) {
        for (&word, &n) in words.iter().zip(&value.array.dims) {
            let before = *sizes.entry(word).or_insert(n);
            assert_eq!(before, n, "K0121: `{}`: `{word}` has two sizes", op.name);
        }
    }
    let arrays: Vec<HostArray> = operands.iter().map(|v| host_array(&v.array)).collect();
    let found = (op.reference)(&arrays);
    let dims: Vec<Vec<usize>> = results.iter().map(|r| r.iter().map(|w| sizes[w]).collect()).collect();
    let given: Vec<Vec<usize>> = found.iter().map(|a| a.dims.clone()).collect();
    assert_eq!(given, dims, "K0124: sizes that the reference of `{}` returns, and those that its `sig` says", op.name);
    found
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

fn host_array(array: &Array) -> HostArray {
    HostArray { dims: array.dims.clone(), data: array.data.iter().map(|&x| x as f32).collect() }
}

impl HostResults for HostArray {
    fn into_arrays(self) -> Vec<HostArray> {
        vec![self]
    }
}

impl HostResults for (HostArray, HostArray) {
    fn into_arrays(self) -> Vec<HostArray> {
        vec![self.0, self.1]
    }
}

impl HostResults for (HostArray, HostArray, HostArray) {
    fn into_arrays(self) -> Vec<HostArray> {
        vec![self.0, self.1, self.2]
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
mod tests {
    use super::*;
    use crate::prelude::*;

    /// A decaying sum along the second axis: yₛ = xₛ + w·yₛ₋₁.
    static SCAN: UserOp = UserOp {
        name: "tests::scan",
        sig: "b s d, d -> b s d",
        reference: |args| scan(&args[0], &args[1]).into_arrays(),
        vjp: None,
    };

    fn scan(x: &HostArray, w: &HostArray) -> HostArray {
        let [_, s, d] = x.dims[..] else { panic!("three axes") };
        let mut y = x.clone();
        for i in 0..y.data.len() {
            if i / d % s > 0 {
                y.data[i] += w.data[i % d] * y.data[i - d];
            }
        }
        y
    }

    #[test]
    fn an_operation_of_the_users_runs_its_reference() {
        let x = Tensor::new(&[1, 3, 2], vec![1.0; 6]).named(&["B", "S", "D"][..]);
        let y: Tensor = call(&SCAN, (x, Tensor::new(&[2], vec![0.5, 2.0])));
        assert_eq!(y.to_vec(), [1.0, 1.0, 1.5, 3.0, 1.75, 7.0]);
        assert_eq!((y + x).dims(), [1, 3, 2]);
    }

    #[test]
    fn axes_without_a_name_stay_apart() {
        static OUTER: UserOp = UserOp {
            name: "tests::outer",
            sig: "a, b -> a b",
            reference: |args| {
                let (x, y) = (&args[0], &args[1]);
                let data = x.data.iter().flat_map(|x| y.data.iter().map(move |y| x * y)).collect();
                HostArray { dims: vec![x.dims[0], y.dims[0]], data }.into_arrays()
            },
            vjp: None,
        };
        let x = Tensor::new(&[2], vec![1.0, 2.0]);
        let y: Tensor = call(&OUTER, (x, x));
        assert_eq!(y.matmul(y).to_vec(), [5.0, 10.0, 10.0, 20.0]);
    }

    #[test]
    #[should_panic(expected = "K0106: `tests::scan` takes `d` as operand 2, which is f32[_0, _1]")]
    fn operands_fit_the_sig() {
        let x = Tensor::new(&[1, 3, 2], vec![1.0; 6]);
        let _: Tensor = call(&SCAN, (x, Tensor::ones(&[2, 2])));
    }
}
