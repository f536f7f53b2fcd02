//! `compile_layer`: place → differentiate → simplify → choose what backward keeps → fuse. The one function behind the macro's
//! kernels and the start-up plan.
//!
//! In: a primal body after the precision pass (and placement). Out: forward and backward as launches over one joint function.
//! Backward always runs the same launches; with `#[checkpoint]` the planner re-runs forward launches first, so a recomputed value has
//! the same bits as the first one.

use crate::diff::{self, Activity, DiffError};
use crate::fuse::{Launch, LaunchKind, Region, launches, partition};
use crate::ir::{Func, ValueId};
use crate::ops::Class;
use crate::simplify;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Forward and backward of one layer (or of the body of a `repeat`).
#[derive(Clone, Debug)]
pub struct CompiledLayer {
    /// The joint function that values refer to.
    pub func: Func,
    /// Primal inputs.
    pub inputs: Vec<ValueId>,
    /// Primal outputs.
    pub outputs: Vec<ValueId>,
    /// Cotangent taken for each output.
    pub d_outputs: Vec<Option<ValueId>>,
    /// Cotangent returned for each input.
    pub d_inputs: Vec<Option<ValueId>>,
    /// Forward launches.
    pub forward: Vec<Launch>,
    /// Backward launches.
    pub backward: Vec<Launch>,
    /// Forward values, inputs excluded, that backward reads: the residuals of "keep everything".
    pub residuals: Vec<ValueId>,
}

impl CompiledLayer {
    /// All fused regions, forward then backward.
    pub fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.forward.iter().chain(&self.backward).filter_map(|l| match &l.kind {
            LaunchKind::Region(r) => Some(r),
            _ => None,
        })
    }

    /// Forward launches that backward must run again when only inputs were kept: those that lead to a residual, or to a child's.
    pub fn replay(&self) -> Vec<usize> {
        let mut live: HashSet<ValueId> = self.residuals.iter().copied().collect();
        let called: HashSet<i64> = self.backward.iter().filter_map(call_id).collect();
        let mut keep = Vec::new();
        for (i, l) in self.forward.iter().enumerate().rev() {
            let child = call_id(l).is_some_and(|id| called.contains(&id));
            if child || l.outputs.iter().any(|o| live.contains(o)) {
                live.extend(&l.inputs);
                keep.push(i);
            }
        }
        keep.reverse();
        keep
    }
}

/// The ordinal that pairs a call with its derivative.
pub fn call_id(launch: &Launch) -> Option<i64> {
    match &launch.kind {
        LaunchKind::Structural(n) => Some(n.attrs.int("id")),
        LaunchKind::Region(_) | LaunchKind::Library { .. } | LaunchKind::Alias | LaunchKind::Collective(_) => None,
    }
}

/// Compiles for training: forward and backward.
pub fn compile_layer(func: &Func, activity: &[Activity], differentiated: &[bool]) -> Result<CompiledLayer, DiffError> {
    let joint = diff::run(func, activity, differentiated)?;
    let f = simplify::run(&joint.func);
    let inputs = f.inputs[..joint.n_inputs].to_vec();
    let mut extra = f.inputs[joint.n_inputs..].iter().copied();
    let d_outputs = joint.output_cotangents.iter().map(|&t| if t { extra.next() } else { None }).collect();
    let outputs = f.outputs[..joint.n_outputs].to_vec();
    let mut returned = f.outputs[joint.n_outputs..].iter().copied();
    let d_inputs: Vec<_> = joint.input_cotangents.iter().map(|&t| if t { returned.next() } else { None }).collect();

    let given: HashSet<ValueId> = f.inputs.iter().copied().collect();
    let forward_nodes = slice(&f, &outputs, &given, &mut Vec::new(), &HashSet::new());
    let mut needed: HashSet<ValueId> = outputs.iter().copied().collect();
    let first = launches(&f, &forward_nodes, &given, &needed);
    let stored: HashSet<ValueId> = first.iter().flat_map(|l| l.outputs.iter().copied()).collect();

    let mut residuals = Vec::new();
    let targets: Vec<ValueId> = d_inputs.iter().flatten().copied().collect();
    let forward_set: HashSet<usize> = forward_nodes.iter().copied().collect();
    let mut cut = Cut { stored, forward: forward_set };
    let backward_nodes = cut.backward(&f, &targets, &given, &mut residuals);
    needed.extend(&residuals);
    let forward = launches(&f, &forward_nodes, &given, &needed);
    let mut available = given;
    available.extend(&residuals);
    let wanted: HashSet<ValueId> = targets.iter().copied().collect();
    let backward = launches(&f, &backward_nodes, &available, &wanted);
    Ok(CompiledLayer { func: f, inputs, outputs, d_outputs, d_inputs, forward, backward, residuals })
}

/// Compiles forward alone, for evaluation and inference: nothing is dropped out.
pub fn compile_forward(func: &Func) -> CompiledLayer {
    let mut numbered = simplify::without_dropout(func);
    diff::number_calls(&mut numbered);
    let f = simplify::run(&numbered);
    let given: HashSet<ValueId> = f.inputs.iter().copied().collect();
    let nodes = slice(&f, &f.outputs, &given, &mut Vec::new(), &HashSet::new());
    let needed: HashSet<ValueId> = f.outputs.iter().copied().collect();
    let forward = launches(&f, &nodes, &given, &needed);
    CompiledLayer {
        inputs: f.inputs.clone(),
        outputs: f.outputs.clone(),
        d_outputs: vec![None; f.outputs.len()],
        d_inputs: vec![None; f.inputs.len()],
        func: f,
        forward,
        backward: Vec::new(),
        residuals: Vec::new(),
    }
}

/// Nodes that `targets` depend on, ascending; stops at `given` values and, with a note in `met`, at `stop` values.
fn slice(
    f: &Func,
    targets: &[ValueId],
    given: &HashSet<ValueId>,
    met: &mut Vec<ValueId>,
    stop: &HashSet<ValueId>,
) -> Vec<usize> {
    let def = f.definitions();
    let mut nodes = BTreeSet::new();
    let mut stack: Vec<ValueId> = targets.to_vec();
    let mut seen = HashSet::new();
    while let Some(v) = stack.pop() {
        if given.contains(&v) || !seen.insert(v) {
            continue;
        }
        if stop.contains(&v) {
            met.push(v);
            continue;
        }
        let i = def[v.index()].unwrap_or_else(|| panic!("%{} is undefined", v.0));
        if nodes.insert(i) {
            stack.extend(&f.nodes[i].inputs);
        }
    }
    nodes.into_iter().collect()
}

/// The border between what forward keeps and what backward computes again inside its own regions.
struct Cut {
    stored: HashSet<ValueId>,
    forward: HashSet<usize>,
}

impl Cut {
    /// Backward's nodes. A forward value that is stored anyway is a residual; a map inside a region is evaluated again, bit by
    /// bit the same; a reduction inside a region becomes one more output of it, so that its tree is evaluated once.
    fn backward(
        &mut self,
        f: &Func,
        targets: &[ValueId],
        given: &HashSet<ValueId>,
        residuals: &mut Vec<ValueId>,
    ) -> Vec<usize> {
        let recomputes = |i: usize| {
            let n = &f.nodes[i];
            partition::fuses(n) && n.op.class != Class::Reduce && !matches!(n.op.name, "gather" | "rotate_half")
        };
        for &i in &self.forward {
            if !recomputes(i) {
                self.stored.extend(&f.nodes[i].outputs);
            }
        }
        let sources =
            |v: &ValueId| self.forward.iter().any(|&i| f.nodes[i].inputs.is_empty() && f.nodes[i].outputs.contains(v));
        let stop: HashSet<ValueId> = self.stored.iter().copied().filter(|v| !sources(v)).collect();
        let effects: BTreeSet<usize> = (0..f.nodes.len()).filter(|&i| f.nodes[i].op.writes_gradients()).collect();
        let mut targets = targets.to_vec();
        targets.extend(effects.iter().flat_map(|&i| f.nodes[i].inputs.iter().copied()));
        let mut nodes = slice(f, &targets, given, residuals, &stop);
        nodes.extend(effects);
        nodes.sort_unstable();
        nodes.dedup();
        residuals.sort();
        nodes
    }
}

/// A structural launch, taken apart.
pub enum Structural<'a> {
    /// A call of child number `sub`.
    Call {
        /// Pairs it with its derivative.
        id: i64,
        /// Child.
        sub: usize,
    },
    /// A loop over the copies of a child.
    Repeat {
        /// Pairs it with its derivative.
        id: i64,
        /// One iteration, over the carried value and the captured ones.
        body: &'a Func,
    },
    /// Something else.
    None,
}

/// What a forward launch calls.
pub fn structural(launch: &Launch) -> Structural<'_> {
    let LaunchKind::Structural(n) = &launch.kind else { return Structural::None };
    let id = n.attrs.int("id");
    match n.op.name {
        "call" => Structural::Call { id, sub: n.attrs.int("sub") as usize },
        "repeat" => Structural::Repeat { id, body: &n.bodies[0] },
        _ => Structural::None,
    }
}
