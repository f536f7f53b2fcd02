//! Reverse-mode differentiation of a pure SSA function (Griewank & Walther 2008, ch. 3).
//!
//! In: a function after the precision pass, which inputs are active, which outputs get a cotangent. Out: one *joint* function
//! that first computes the outputs, then the cotangents of the active inputs. The cotangent of a value has the value's own
//! element type; contributions are summed in f32 and rounded once. Cotangents of parameters are not rounded: gradients are f32.
//! A node on a gradient path without a derivative is an error, never a silent zero.

use crate::diagnostics::Diagnostic;
use crate::ir::{Builder, DType, Func, Node, Span, ValueId};
use crate::ops::{self, Vjp, VjpNode};

/// What an input of the function is to differentiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// No cotangent is wanted: ids, rotary bases, frozen parameters.
    Inactive,
    /// An activation: its cotangent has its element type.
    Activation,
    /// A parameter: its cotangent is f32.
    Parameter,
}

/// A function that computes outputs and cotangents.
#[derive(Clone, Debug)]
pub struct Joint {
    /// Inputs: the primal inputs, then one cotangent per differentiated output. Outputs: the primal outputs, then the
    /// cotangents of the inputs, in the order of `input_cotangents`.
    pub func: Func,
    /// Number of primal inputs.
    pub n_inputs: usize,
    /// Number of primal outputs.
    pub n_outputs: usize,
    /// For each primal output, whether the function takes its cotangent.
    pub output_cotangents: Vec<bool>,
    /// For each primal input, whether the function returns its cotangent.
    pub input_cotangents: Vec<bool>,
}

/// A gradient path without a derivative.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffError {
    /// The operation's position.
    pub span: Span,
    /// What to tell the user.
    pub diagnostic: Diagnostic,
}

/// Differentiates `func`. `differentiated[i]` says whether output `i` has a cotangent (a loss' count has none).
pub fn run(func: &Func, activity: &[Activity], differentiated: &[bool]) -> Result<Joint, DiffError> {
    let mut func = func.clone();
    number_calls(&mut func);
    let active = active_values(&func, activity);
    let primal_nodes = func.nodes.clone();
    let inputs = func.inputs.clone();
    let n_outputs = func.outputs.len();
    let outputs = func.outputs.clone();

    let mut b = Builder::on(func);
    let mut pending: Vec<Vec<ValueId>> = vec![Vec::new(); b.func.values.len()];
    let mut output_cotangents = Vec::new();
    for (&v, &wanted) in outputs.iter().zip(differentiated) {
        let takes = wanted && active[v.index()] && b.ty(v).dtype.is_float();
        output_cotangents.push(takes);
        if takes {
            let name = format!("d_{}", b.func.values[v.index()].name.as_deref().unwrap_or("out"));
            let ty = b.ty(v).clone();
            let d = b.func.add_input(ty, &name);
            pending[v.index()].push(d);
        }
    }
    let mut sums: Vec<Option<ValueId>> = vec![None; pending.len()];
    for node in primal_nodes.iter().rev() {
        b.span = node.span;
        // What ranks contribute to a cotangent is summed over them before it is rounded.
        let round = node.op.name != "pbroadcast";
        let cotangents: Vec<Option<ValueId>> =
            node.outputs.iter().map(|v| total(&mut b, &mut pending, &mut sums, *v, round)).collect();
        let wants = node.inputs.iter().any(|v| active[v.index()]);
        let runs = cotangents.iter().any(Option::is_some) && (wants || holds_parameters(node));
        if !runs {
            continue;
        }
        let contributions = contributions(&mut b, node, &cotangents, &active)?;
        for (&v, d) in node.inputs.iter().zip(contributions) {
            if let Some(d) = d
                && active[v.index()]
            {
                assert_eq!(b.ty(d).shape, b.ty(v).shape, "derivative of `{}` has another shape", node.op.name);
                pending[v.index()].push(d);
            }
        }
    }
    let mut input_cotangents = Vec::new();
    for (&activity, &v) in activity.iter().zip(&inputs) {
        b.span = span_of_last(&b.func, &pending[v.index()]);
        let wanted = activity != Activity::Inactive && active[v.index()];
        let d = total(&mut b, &mut pending, &mut sums, v, activity != Activity::Parameter);
        let dtype = if activity == Activity::Parameter { DType::F32 } else { b.ty(v).dtype };
        let d = match d {
            _ if !wanted => None,
            // An input that the outputs do not depend on: its gradient is zero, and says so in the IR.
            None => Some(b.constant_like(0.0, v)),
            Some(d) => Some(d),
        };
        let d = d.map(|d| b.cast(d, dtype));
        input_cotangents.push(d.is_some());
        b.func.outputs.extend(d);
    }
    Ok(Joint { func: b.func, n_inputs: inputs.len(), n_outputs, output_cotangents, input_cotangents })
}

/// Where the last contribution to a cotangent comes from: the first operation that read the value.
fn span_of_last(func: &Func, contributions: &[ValueId]) -> Span {
    let last = contributions.last().and_then(|d| func.nodes.iter().rev().find(|n| n.outputs.contains(d)));
    last.map_or(Span::default(), |n| n.span)
}

fn zero(b: &mut Builder, like: ValueId) -> ValueId {
    let dtype = b.ty(like).dtype;
    let z = b.constant_like(0.0, like);
    b.cast(z, dtype)
}

/// Calls hold parameters of their own, so they are differentiated even if no argument is active.
fn holds_parameters(node: &Node) -> bool {
    matches!(node.op.name, "call" | "repeat")
}

/// Gives each call and repeat its ordinal, by which its derivative finds its residuals.
pub fn number_calls(func: &mut Func) {
    for (id, n) in func.nodes.iter_mut().filter(|n| holds_parameters(n)).enumerate() {
        n.attrs.set("id", id as i64);
    }
}

fn active_values(func: &Func, activity: &[Activity]) -> Vec<bool> {
    let mut active = vec![false; func.values.len()];
    for (&v, &a) in func.inputs.iter().zip(activity) {
        active[v.index()] = a != Activity::Inactive;
    }
    for n in &func.nodes {
        let through = n.inputs.iter().any(|v| active[v.index()]) || holds_parameters(n);
        let passes = through && !matches!(n.op.vjp, Vjp::Zero);
        for &o in &n.outputs {
            active[o.index()] = passes && func.ty(o).dtype.is_float();
        }
    }
    active
}

/// The cotangent of `v`: the f32 sum of its contributions, rounded to the value's type if `round`.
fn total(
    b: &mut Builder,
    pending: &mut [Vec<ValueId>],
    sums: &mut [Option<ValueId>],
    v: ValueId,
    round: bool,
) -> Option<ValueId> {
    if let Some(done) = sums[v.index()] {
        return Some(done);
    }
    let list = std::mem::take(&mut pending[v.index()]);
    let (&first, rest) = list.split_first()?;
    let mut sum = first;
    for &d in rest {
        sum = b.add(sum, d);
    }
    let dtype = b.ty(v).dtype;
    // An f32 value's cotangent may stay in the narrower type of its only contribution: widening changes no bit.
    if round && dtype != DType::F32 {
        sum = b.cast(sum, dtype);
    }
    sums[v.index()] = Some(sum);
    Some(sum)
}

fn contributions(
    b: &mut Builder,
    node: &Node,
    cotangents: &[Option<ValueId>],
    active: &[bool],
) -> Result<Vec<Option<ValueId>>, DiffError> {
    match node.op.vjp {
        Vjp::Rule(rule) => Ok(rule(b, &VjpNode { node: &as_read(&b.func, node), cotangents })),
        Vjp::Declared(rule) if node.attrs.get("vjp").is_some() => {
            Ok(rule(b, &VjpNode { node: &as_read(&b.func, node), cotangents }))
        }
        Vjp::Zero => Ok(vec![None; node.inputs.len()]),
        Vjp::Structural => Ok(structural(b, node, cotangents, active)),
        Vjp::Declared(_) | Vjp::Missing => Err(DiffError {
            span: node.span,
            diagnostic: Diagnostic::new(
                "K0601",
                format!("`{}` has no derivative, and a gradient must pass it", ops::word(node.op, &node.attrs)),
            )
            .help("give it a `vjp`, or cut the path with `stop_gradient`"),
        }),
    }
}

/// The node with its results as later operations read them: rounded, where a cast follows. Rules such as `y·ȳ` then use the
/// value that the model computed with, and the unrounded one need not be kept.
fn as_read(func: &Func, node: &Node) -> Node {
    let mut seen = node.clone();
    for o in &mut seen.outputs {
        let cast = func.nodes.iter().find(|n| n.op.name == "cast" && n.inputs[0] == *o);
        if let Some(cast) = cast {
            *o = cast.outputs[0];
        }
    }
    seen
}

/// `call` and `repeat`: one node that runs the child's backward; it returns a cotangent for each active float operand.
fn structural(b: &mut Builder, node: &Node, cotangents: &[Option<ValueId>], active: &[bool]) -> Vec<Option<ValueId>> {
    let mask: Vec<bool> = node.inputs.iter().map(|v| active[v.index()] && b.ty(*v).rank() > 0).collect();
    let mut inputs = node.inputs.clone();
    let loss = node.attrs.flag("loss");
    for (k, d) in cotangents.iter().enumerate() {
        // The count of a loss has no cotangent; any other absent one is zero.
        if loss && k == 1 {
            continue;
        }
        inputs.push(d.unwrap_or_else(|| zero(b, node.outputs[k])));
    }
    let text: String = mask.iter().map(|&m| if m { '1' } else { '0' }).collect();
    let name = if node.op.name == "call" { "call_vjp" } else { "repeat_vjp" };
    let attrs = node.attrs.clone().with("n_inputs", node.inputs.len() as i64).with("mask", text);
    let outputs = b.ops(name, attrs, &inputs);
    if let Some(last) = b.func.nodes.last_mut() {
        last.bodies.clone_from(&node.bodies);
    }
    let mut next = outputs.into_iter();
    mask.into_iter().map(|m| if m { next.next() } else { None }).collect()
}
