//! The methods and operators of a layer's body as data: from a name and its arguments to nodes. The macro's parser, the eager
//! `Tensor` and the tracing one all call [`apply`], so the three agree node by node. It never reads values or Rust tokens.

use crate::ir::{Attr, Attrs, Axis, Builder, ValueId};
use crate::ops::{self, TypeError, einsum_axes, matmul_axes};

/// One argument of a method, the receiver included.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A tensor, ids, a mask or a rope's base.
    Value(ValueId),
    /// `x.over(S)`: a tensor that repeats over these axes wherever its partner has them.
    Over(ValueId, Vec<Axis>),
    /// A literal or a `#[config]` value.
    Number(Attr),
    /// One axis.
    Axis(Axis),
    /// Several axes; a single one is accepted where several are.
    Axes(Vec<Axis>),
    /// The text of an einsum.
    Spec(String),
    /// `Causal` or `Full`.
    Mask(Mask),
}

/// Which keys a query of `attend` sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Those up to its own position.
    Causal,
    /// All.
    Full,
}

/// Kinds of arguments, for arity and for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tensor.
    Tensor,
    /// A tensor, a tensor marked by `.over(..)`, or a number.
    Operand,
    /// Token ids.
    Ids,
    /// Rotary positions.
    Rope,
    /// A number.
    Number,
    /// A number of elements, written as an integer literal.
    Count,
    /// One axis.
    Axis,
    /// One axis or several.
    Axes,
    /// An einsum literal.
    Spec,
    /// `Causal` or `Full`.
    Mask,
}

impl Kind {
    /// For messages: "needs {} here".
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Tensor => "a tensor",
            Kind::Operand => "a tensor or a number",
            Kind::Ids => "ids",
            Kind::Rope => "a `Rope`",
            Kind::Number => "a number",
            Kind::Count => "an integer",
            Kind::Axis => "an axis",
            Kind::Axes => "an axis or several in brackets",
            Kind::Spec => "a text such as \"b s d, d f -> b s f\"",
            Kind::Mask => "`Causal` or `Full`",
        }
    }
}

/// What a method gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// One tensor.
    Tensor,
    /// A mask, for `select`.
    Mask,
    /// An unreduced loss: two values, sum and count.
    Loss,
    /// [`Arg::Over`], which only element-wise methods accept; `apply` refuses to make it.
    Over,
}

/// One method.
pub struct Method {
    /// As the user writes it; operators have the names of their traits' methods (`add`, `neg`).
    pub name: &'static str,
    /// The receiver.
    pub receiver: Kind,
    /// Its arguments.
    pub args: &'static [Kind],
    /// Its result.
    pub gives: Gives,
    /// Whether it draws random numbers: then [`apply`] takes the number of its site as one more argument.
    pub random: bool,
    lower: Lower,
}

type Lower = fn(&mut Builder, &Method, &[Arg]) -> Result<Vec<ValueId>, TypeError>;

use Kind::{Axes as AXES, Axis as AXIS, Count, Ids, Mask as MASK, Number, Operand, Rope, Spec, Tensor};

const fn method(name: &'static str, args: &'static [Kind], lower: Lower) -> Method {
    Method { name, receiver: Tensor, args, gives: Gives::Tensor, random: false, lower }
}

const fn element_wise(name: &'static str, lower: Lower) -> Method {
    Method { receiver: Operand, ..method(name, &[Operand], lower) }
}

const fn comparison(name: &'static str) -> Method {
    Method { gives: Gives::Mask, ..element_wise(name, |b, m, args| binary(b, m.name, m, args)) }
}

/// Every method, in the order of the book.
pub static METHODS: &[Method] = &[
    method("matmul", &[Tensor], matmul),
    method("einsum", &[Tensor, Spec], einsum),
    element_wise("add", |b, m, args| binary(b, "add", m, args)),
    element_wise("sub", |b, m, args| binary(b, "sub", m, args)),
    element_wise("mul", |b, m, args| binary(b, "mul", m, args)),
    element_wise("div", |b, m, args| binary(b, "div", m, args)),
    element_wise("maximum", |b, m, args| binary(b, "max", m, args)),
    element_wise("minimum", |b, m, args| binary(b, "min", m, args)),
    comparison("lt"),
    comparison("le"),
    comparison("gt"),
    comparison("ge"),
    comparison("eq"),
    comparison("ne"),
    method("select", &[Operand, Operand], select),
    method("neg", &[], |b, m, args| unary(b, m.name, args)),
    method("exp", &[], |b, m, args| unary(b, m.name, args)),
    method("ln", &[], |b, _, args| unary(b, "log", args)),
    method("sqrt", &[], |b, m, args| unary(b, m.name, args)),
    method("rsqrt", &[], |b, m, args| unary(b, m.name, args)),
    method("recip", &[], |b, m, args| unary(b, m.name, args)),
    method("sin", &[], |b, m, args| unary(b, m.name, args)),
    method("cos", &[], |b, m, args| unary(b, m.name, args)),
    method("tanh", &[], |b, m, args| unary(b, m.name, args)),
    method("erf", &[], |b, m, args| unary(b, m.name, args)),
    method("sigmoid", &[], |b, _, args| unary(b, "logistic", args)),
    method("abs", &[], |b, m, args| unary(b, m.name, args)),
    method("sign", &[], |b, m, args| unary(b, m.name, args)),
    method("silu", &[], |b, m, args| unary(b, m.name, args)),
    method("gelu", &[], |b, m, args| unary(b, m.name, args)),
    method("gelu_tanh", &[], |b, m, args| unary(b, m.name, args)),
    method("relu", &[], |b, m, args| unary(b, m.name, args)),
    method("f32", &[], |b, m, args| unary(b, m.name, args)),
    method("stop_gradient", &[], |b, m, args| unary(b, m.name, args)),
    method("rms_norm", &[Tensor, Number], |b, m, args| {
        node(b, m.name, Attrs::new().with("eps", number(m, args, 2)?), &[value(m, args, 0)?, value(m, args, 1)?])
    }),
    method("layer_norm", &[Tensor, Tensor, Number], |b, m, args| {
        let operands = [value(m, args, 0)?, value(m, args, 1)?, value(m, args, 2)?];
        node(b, m.name, Attrs::new().with("eps", number(m, args, 3)?), &operands)
    }),
    method("softmax", &[AXIS], along),
    method("log_softmax", &[AXIS], along),
    method("sum", &[AXES], |b, m, args| over_axes(b, "reduce_sum", m, args)),
    method("mean", &[AXES], |b, m, args| over_axes(b, "mean", m, args)),
    method("max", &[AXES], |b, m, args| over_axes(b, "reduce_max", m, args)),
    method("rename", &[AXIS, AXIS], |b, m, args| {
        let attrs = Attrs::new().with("from", axis(m, args, 1)?).with("to", axis(m, args, 2)?);
        node(b, m.name, attrs, &[value(m, args, 0)?])
    }),
    method("split", &[AXIS, AXES], |b, m, args| {
        let attrs = Attrs::new().with("axis", axis(m, args, 1)?).with("into", axes(m, args, 2)?);
        node(b, m.name, attrs, &[value(m, args, 0)?])
    }),
    method("merge", &[AXES, AXIS], |b, m, args| {
        let attrs = Attrs::new().with("axes", axes(m, args, 1)?).with("into", axis(m, args, 2)?);
        node(b, m.name, attrs, &[value(m, args, 0)?])
    }),
    method("permute", &[AXES], |b, m, args| {
        node(b, m.name, Attrs::new().with("to", axes(m, args, 1)?), &[value(m, args, 0)?])
    }),
    Method {
        gives: Gives::Over,
        ..method("over", &[AXES], |_, _, _| {
            let message = "`over` marks an operand of an element-wise operation and computes nothing by itself";
            Err(TypeError::new("K0120", message).help("use it as an operand, such as `x - m.over(S)`"))
        })
    },
    method("slice", &[AXIS, Count, AXIS], |b, m, args| window(b, "start", m, args)),
    method("pad", &[AXIS, Count, AXIS], |b, m, args| window(b, "before", m, args)),
    method("concat", &[Tensor, AXIS, AXIS, AXIS], |b, m, args| {
        let attrs = Attrs::new().with("axis", axis(m, args, 2)?).with("other", axis(m, args, 3)?);
        let operands = [value(m, args, 0)?, value(m, args, 1)?];
        node(b, m.name, attrs.with("to", axis(m, args, 4)?), &operands)
    }),
    method("rope", &[Rope], rope),
    method("attend", &[Tensor, Tensor, MASK], attend),
    method("gather", &[Ids], |b, m, args| node(b, m.name, Attrs::new(), &[value(m, args, 0)?, value(m, args, 1)?])),
    Method {
        gives: Gives::Loss,
        ..method("linear_cross_entropy", &[Tensor, Ids], |b, m, args| {
            let operands = [value(m, args, 0)?, value(m, args, 1)?, value(m, args, 2)?];
            let mut outputs = node(b, m.name, Attrs::new(), &operands)?;
            outputs.truncate(2);
            Ok(outputs)
        })
    },
    Method {
        gives: Gives::Loss,
        ..method("cross_entropy", &[Ids], |b, m, args| {
            node(b, m.name, Attrs::new(), &[value(m, args, 0)?, value(m, args, 1)?])
        })
    },
    Method {
        random: true,
        ..method("dropout", &[Number], |b, m, args| {
            let attrs = Attrs::new().with("rate", number(m, args, 1)?).with("site", number(m, args, 2)?);
            node(b, m.name, attrs, &[value(m, args, 0)?])
        })
    },
];

/// The method called `name`.
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|m| m.name == name)
}

/// Appends the nodes of `method` on `args`: the receiver, then the arguments in the order written, then the site of a random
/// method. Gives one value, or sum and count for a loss.
pub fn apply(b: &mut Builder, method: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let given = args.len().saturating_sub(1 + usize::from(method.random));
    let wanted = method.args.len();
    if given != wanted {
        let s = if wanted == 1 { "" } else { "s" };
        let are = if given == 1 { "is" } else { "are" };
        let error =
            TypeError::new("K0116", format!("`{}` takes {wanted} argument{s}, {given} {are} given", method.name));
        let kinds: Vec<&str> = method.args.iter().map(|k| k.describe()).collect();
        return Err(if kinds.is_empty() { error } else { error.help(format!("write {}", kinds.join(", then "))) });
    }
    (method.lower)(b, method, args)
}

/// A number as a tensor without axes: the base of `Rope::new`.
pub fn scalar(b: &mut Builder, value: Attr) -> Result<ValueId, TypeError> {
    constant(b, value, &[])
}

/// `loss * c` or `loss / c` (`op` is `mul` or `div`): scales the sum, so the ratio at the root is scaled.
pub fn scale_loss(b: &mut Builder, op: &str, sum: ValueId, factor: Attr) -> Result<ValueId, TypeError> {
    let factor = scalar(b, factor)?;
    Ok(node(b, op, Attrs::new(), &[sum, factor])?[0])
}

/// The sum of two losses, each (sum, count): a/n + b/m = (a + b·n/m)/n, so the count is the first one's.
pub fn add_losses(b: &mut Builder, x: [ValueId; 2], y: [ValueId; 2]) -> Result<ValueId, TypeError> {
    let ratio = node(b, "div", Attrs::new(), &[x[1], y[1]])?[0];
    let scaled = node(b, "mul", Attrs::new(), &[y[0], ratio])?[0];
    Ok(node(b, "add", Attrs::new(), &[x[0], scaled])?[0])
}

fn node(b: &mut Builder, op: &str, attrs: Attrs, operands: &[ValueId]) -> Result<Vec<ValueId>, TypeError> {
    let op = ops::find(op).unwrap_or_else(|| panic!("no operation `{op}` behind a method"));
    b.try_op(op, attrs, operands)
}

fn unfit(m: &Method, i: usize) -> TypeError {
    let kind = if i == 0 { m.receiver } else { m.args.get(i - 1).copied().unwrap_or(Number) };
    TypeError::at(i, "K0120", format!("`{}` needs {} here", m.name, kind.describe()))
}

fn value(m: &Method, args: &[Arg], i: usize) -> Result<ValueId, TypeError> {
    match &args[i] {
        Arg::Value(v) => Ok(*v),
        _ => Err(unfit(m, i)),
    }
}

fn number(m: &Method, args: &[Arg], i: usize) -> Result<Attr, TypeError> {
    match &args[i] {
        Arg::Number(a) => Ok(a.clone()),
        _ => Err(unfit(m, i)),
    }
}

fn axis(m: &Method, args: &[Arg], i: usize) -> Result<Axis, TypeError> {
    match &args[i] {
        Arg::Axis(a) => Ok(*a),
        Arg::Axes(list) if list.len() == 1 => Ok(list[0]),
        _ => Err(unfit(m, i)),
    }
}

fn axes(m: &Method, args: &[Arg], i: usize) -> Result<Vec<Axis>, TypeError> {
    match &args[i] {
        Arg::Axis(a) => Ok(vec![*a]),
        Arg::Axes(list) => Ok(list.clone()),
        _ => Err(unfit(m, i)),
    }
}

fn unary(b: &mut Builder, op: &str, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    match &args[0] {
        Arg::Value(x) => node(b, op, Attrs::new(), &[*x]),
        _ => Err(TypeError::at(0, "K0120", format!("`{op}` needs a tensor here"))),
    }
}

fn matmul(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let (x, w) = (value(m, args, 0)?, value(m, args, 1)?);
    let out = matmul_axes(b.ty(x), b.ty(w))?;
    node(b, "dot_general", Attrs::new().with("out", out), &[x, w])
}

fn einsum(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let (x, w) = (value(m, args, 0)?, value(m, args, 1)?);
    let Arg::Spec(spec) = &args[2] else { return Err(unfit(m, 2)) };
    let out = einsum_axes(spec, b.ty(x), b.ty(w))?;
    node(b, "dot_general", Attrs::new().with("out", out), &[x, w])
}

fn along(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    node(b, m.name, Attrs::new().with("axis", axis(m, args, 1)?), &[value(m, args, 0)?])
}

fn over_axes(b: &mut Builder, op: &str, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    node(b, op, Attrs::new().with("axes", axes(m, args, 1)?), &[value(m, args, 0)?])
}

fn window(b: &mut Builder, offset: &str, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let attrs = Attrs::new().with("axis", axis(m, args, 1)?).with(offset, number(m, args, 2)?);
    node(b, m.name, attrs.with("to", axis(m, args, 3)?), &[value(m, args, 0)?])
}

/// The last two axes are the positions and the head.
fn rope(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let (x, base) = (value(m, args, 0)?, value(m, args, 1)?);
    let [.., seq, head] = b.ty(x).shape[..] else {
        let message =
            format!("`rope` turns the last axis by the position on the one before, but `{{0}}` is {}", b.ty(x));
        return Err(TypeError::at(0, "K0106", message));
    };
    node(b, m.name, Attrs::new().with("seq", seq).with("head", head), &[x, base])
}

fn attend(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let Arg::Mask(mask) = &args[3] else { return Err(unfit(m, 3)) };
    let operands = [value(m, args, 0)?, value(m, args, 1)?, value(m, args, 2)?];
    let mut outputs = node(b, "attention", Attrs::new().with("causal", *mask == Mask::Causal), &operands)?;
    outputs.truncate(1);
    Ok(outputs)
}

fn binary(b: &mut Builder, op: &str, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let to = common_axes(b, shown(m), args, 0)?;
    let (x, y) = (operand(b, &args[0], &to)?, operand(b, &args[1], &to)?);
    node(b, op, Attrs::new(), &[x, y])
}

/// As the user writes it: operators have the names of their traits' methods.
fn shown(method: &Method) -> &'static str {
    match method.name {
        "add" => "+",
        "sub" => "-",
        "mul" => "*",
        "div" => "/",
        name => name,
    }
}

fn select(b: &mut Builder, m: &Method, args: &[Arg]) -> Result<Vec<ValueId>, TypeError> {
    let to = common_axes(b, m.name, args, 0)?;
    let operands = [operand(b, &args[0], &to)?, operand(b, &args[1], &to)?, operand(b, &args[2], &to)?];
    node(b, "select", Attrs::new(), &operands)
}

/// Axes of an element-wise result: those of the operand with most, with which each other one must line up from the right.
fn common_axes(b: &Builder, op: &str, args: &[Arg], first: usize) -> Result<Vec<Axis>, TypeError> {
    let shape = |i: usize| match &args[i] {
        Arg::Value(v) => Some(b.ty(*v).shape.as_slice()),
        _ => None,
    };
    let widest = (first..args.len())
        .filter_map(|i| shape(i).map(|s| (i, s)))
        .reduce(|a, b| if b.1.len() > a.1.len() { b } else { a });
    let Some((at, to)) = widest else {
        let message = format!("`{op}` needs an operand that is neither a number nor marked by `.over(..)`");
        return Err(TypeError::at(first, "K0120", message));
    };
    for (i, arg) in args.iter().enumerate().skip(first) {
        match arg {
            Arg::Value(v) => lines_up(op, i, &b.ty(*v).shape, at, to)?,
            Arg::Over(v, over) => repeats_into(op, i, &b.ty(*v).shape, over, to)?,
            Arg::Number(_) => {}
            _ => return Err(TypeError::at(i, "K0120", format!("`{op}` needs a tensor or a number here"))),
        }
    }
    Ok(to.to_vec())
}

fn list(axes: &[Axis]) -> String {
    let names: Vec<&str> = axes.iter().map(|a| a.name()).collect();
    format!("[{}]", names.join(", "))
}

/// Axes of operand `i` are the last ones of operand `at`.
fn lines_up(op: &str, i: usize, shape: &[Axis], at: usize, to: &[Axis]) -> Result<(), TypeError> {
    let tail = &to[to.len() - shape.len()..];
    let Some((&x, &y)) = shape.iter().zip(tail).rev().find(|(x, y)| x != y) else { return Ok(()) };
    let message = format!("`{op}` lines up axes from the right and meets `{x}` of `{{{i}}}` and `{y}` of `{{{at}}}`");
    let error = TypeError::at(i, "K0102", message);
    let missing: Vec<Axis> = to.iter().copied().filter(|a| !shape.contains(a)).collect();
    let kept: Vec<Axis> = to.iter().copied().filter(|a| shape.contains(a)).collect();
    Err(if kept == shape {
        error.help(format!(
            "`.over({})` on `{{{i}}}` repeats it over the missing axes",
            list(&missing).trim_matches(['[', ']'])
        ))
    } else {
        error.help(format!("if `{x}` and `{y}` mean the same, `.rename({x}, {y})` says so"))
    })
}

/// Axes of operand `i` and those of its `.over(..)` are the axes of the result, and its own keep their order.
fn repeats_into(op: &str, i: usize, shape: &[Axis], over: &[Axis], to: &[Axis]) -> Result<(), TypeError> {
    if let Some(a) = over.iter().find(|a| shape.contains(a)) {
        return Err(TypeError::at(i, "K0104", format!("`.over({a})`: `{{{i}}}` already has `{a}`")));
    }
    let kept: Vec<Axis> = to.iter().copied().filter(|a| !over.contains(a)).collect();
    if kept.ends_with(shape) && over.iter().all(|a| to.contains(a)) {
        return Ok(());
    }
    let message =
        format!("`{op}`: `{{{i}}}` has {} and repeats over {}, its partner has {}", list(shape), list(over), list(to));
    Err(TypeError::at(i, "K0102", message))
}

fn operand(b: &mut Builder, arg: &Arg, to: &[Axis]) -> Result<ValueId, TypeError> {
    match arg {
        Arg::Value(v) | Arg::Over(v, _) if b.ty(*v).shape == to => Ok(*v),
        Arg::Value(v) | Arg::Over(v, _) => Ok(node(b, "broadcast", Attrs::new().with("to", to), &[*v])?[0]),
        Arg::Number(n) => constant(b, n.clone(), to),
        Arg::Axis(_) | Arg::Axes(_) | Arg::Spec(_) | Arg::Mask(_) => {
            Err(TypeError::new("K0120", "an element-wise operation needs tensors or numbers"))
        }
    }
}

fn constant(b: &mut Builder, value: Attr, shape: &[Axis]) -> Result<ValueId, TypeError> {
    Ok(node(b, "const", Attrs::new().with("value", value).with("shape", shape), &[])?[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Type;

    fn builder(shapes: &[&[&str]]) -> (Builder, Vec<Arg>) {
        let mut b = Builder::default();
        let mut args = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            let ty = Type::f32(shape.iter().map(|a| Axis::new(a)).collect::<Vec<_>>());
            args.push(Arg::Value(b.func.add_input(ty, &format!("x{i}"))));
        }
        (b, args)
    }

    fn shape_of(name: &str, shapes: &[&[&str]], more: &[Arg]) -> Result<String, TypeError> {
        let (mut b, mut args) = builder(shapes);
        args.extend(more.iter().cloned());
        let method = find(name).unwrap_or_else(|| panic!("no method `{name}`"));
        apply(&mut b, method, &args).map(|v| b.ty(v[0]).to_string())
    }

    #[test]
    fn operands_line_up_from_the_right() {
        assert_eq!(shape_of("add", &[&["B", "S", "D"], &["D"]], &[]).unwrap(), "f32[B, S, D]");
        assert_eq!(shape_of("sub", &[&["D"], &["B", "D"]], &[]).unwrap(), "f32[B, D]");
        let e = shape_of("mul", &[&["B", "S", "D"], &["B", "D"]], &[]).unwrap_err();
        assert_eq!((e.code, e.operand), ("K0102", Some(1)));
        assert!(e.help.unwrap().contains("`.over(S)`"));
    }

    #[test]
    fn over_repeats_where_the_partner_has_the_axis() {
        let (mut b, args) = builder(&[&["B", "S", "D"], &["B", "D"]]);
        let Arg::Value(m) = args[1] else { panic!("a value") };
        let args = [args[0].clone(), Arg::Over(m, vec![Axis::new("S")])];
        let y = apply(&mut b, find("sub").unwrap(), &args).unwrap()[0];
        assert_eq!(b.ty(y).to_string(), "f32[B, S, D]");
        assert_eq!(b.func.nodes[0].op.name, "broadcast");
    }

    #[test]
    fn numbers_take_the_axes_of_their_partner() {
        let half = Arg::Number(Attr::Float(0.5));
        assert_eq!(shape_of("maximum", &[&["B", "S"]], std::slice::from_ref(&half)).unwrap(), "f32[B, S]");
        assert_eq!(shape_of("lt", &[&["B", "S"]], &[half]).unwrap(), "bool[B, S]");
    }

    #[test]
    fn every_method_names_known_operations() {
        let unknown = ["over"];
        for m in METHODS.iter().filter(|m| !unknown.contains(&m.name)) {
            let (mut b, args) = builder(&[&["S", "K"], &["S", "K"], &["S", "K"], &["S", "K"]]);
            let mut given = vec![args[0].clone()];
            let axis = Axis::new("K");
            for (i, kind) in m.args.iter().enumerate() {
                given.push(match kind {
                    Kind::Tensor | Kind::Operand | Kind::Ids | Kind::Rope => args[i + 1].clone(),
                    Kind::Number => Arg::Number(Attr::Float(0.5)),
                    Kind::Count => Arg::Number(Attr::Int(0)),
                    Kind::Axis => Arg::Axis(axis),
                    Kind::Axes => Arg::Axes(vec![axis]),
                    Kind::Spec => Arg::Spec("s k, s k -> s".to_owned()),
                    Kind::Mask => Arg::Mask(Mask::Full),
                });
            }
            if m.random {
                given.push(Arg::Number(Attr::Int(0)));
            }
            // Operands that do not fit are fine here; an operation that does not exist panics.
            let _: Result<Vec<ValueId>, TypeError> = apply(&mut b, m, &given);
        }
    }
}
