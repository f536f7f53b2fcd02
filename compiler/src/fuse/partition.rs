//! Grouping: which nodes share a launch.
//!
//! In: a function without composites, the nodes to execute, the values that exist already and those that must exist afterwards.
//! Out: groups in execution order. Maps and reductions over compatible domains join the region of a producer or a sibling as
//! long as the region stays convex; everything else is a launch of its own. Decides, never computes.

use crate::ir::{Axis, Func, Node, ValueId};
use crate::ops::Class;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Nodes of one launch.
#[derive(Clone, Debug)]
pub struct Group {
    /// Indices into [`Func::nodes`], ascending.
    pub nodes: Vec<usize>,
    /// `Some` for fused regions.
    pub shape: Option<RegionShape>,
}

/// The iteration domain of a region under construction.
#[derive(Clone, Debug, Default)]
pub struct RegionShape {
    /// All axes.
    pub domain: BTreeSet<Axis>,
    /// Axes that row reductions sum over; `None` while there is no reduction.
    pub interior: Option<BTreeSet<Axis>>,
    /// Values that are sums over rows: they may not be used inside the region.
    pub columns: BTreeSet<ValueId>,
}

/// Axes of a value as a set.
fn axes(func: &Func, v: ValueId) -> BTreeSet<Axis> {
    func.ty(v).shape.iter().copied().collect()
}

/// Whether regions execute this node; otherwise it is a launch (or an alias) of its own.
pub fn fuses(node: &Node) -> bool {
    match node.op.class {
        Class::Map => true,
        Class::Reduce => true,
        Class::View => matches!(node.op.name, "broadcast" | "permute" | "rotate_half" | "stop_gradient"),
        Class::Library | Class::Loss | Class::Composite | Class::Structural | Class::Collective => false,
    }
}

/// Whether a node has no operands: it joins whoever uses it.
fn is_source(node: &Node) -> bool {
    node.inputs.is_empty()
}

/// Groups `wanted` nodes. `available` values exist before; they are never recomputed.
pub fn run(func: &Func, wanted: &[usize], available: &HashSet<ValueId>) -> Vec<Group> {
    let mut p = Partition { func, groups: Vec::new(), of_value: HashMap::new(), available };
    for &i in wanted {
        p.place(i);
    }
    p.ordered()
}

struct Partition<'a> {
    func: &'a Func,
    groups: Vec<Group>,
    /// Group that defines a value.
    of_value: HashMap<ValueId, usize>,
    available: &'a HashSet<ValueId>,
}

impl Partition<'_> {
    fn place(&mut self, i: usize) {
        let func = self.func;
        let node = &func.nodes[i];
        let chosen = if fuses(node) && !is_source(node) { self.best_group(node) } else { None };
        let group = match chosen {
            Some((g, shape)) => {
                self.groups[g].shape = Some(shape);
                self.groups[g].nodes.push(i);
                g
            }
            None => {
                let shape = fuses(node).then(|| self.extend(&RegionShape::default(), node)).flatten();
                self.groups.push(Group { nodes: vec![i], shape });
                self.groups.len() - 1
            }
        };
        for &o in &node.outputs {
            self.of_value.insert(o, group);
        }
    }

    /// The youngest region that can take `node` and already reads or makes one of its operands.
    fn best_group(&self, node: &Node) -> Option<(usize, RegionShape)> {
        for g in (0..self.groups.len()).rev() {
            let Some(shape) = &self.groups[g].shape else { continue };
            if self.groups[g].nodes.iter().all(|&n| is_source(&self.func.nodes[n])) || !self.related(g, node) {
                continue;
            }
            if let Some(extended) = self.extend(shape, node)
                && self.operands_visible(g, node)
                && !self.makes_cycle(g, node)
            {
                return Some((g, extended));
            }
        }
        None
    }

    /// Shares an operand with, or reads a result of, group `g`.
    fn related(&self, g: usize, node: &Node) -> bool {
        let members = &self.groups[g].nodes;
        node.inputs.iter().any(|v| {
            self.of_value.get(v) == Some(&g)
                || (!self.is_source_value(*v) && members.iter().any(|&m| self.func.nodes[m].inputs.contains(v)))
        })
    }

    fn is_source_value(&self, v: ValueId) -> bool {
        self.of_value.get(&v).is_some_and(|&g| self.groups[g].nodes.iter().all(|&n| is_source(&self.func.nodes[n])))
    }

    /// Rotations and indexed loads read memory, so those operands must come from outside; sums over rows leave the region.
    fn operands_visible(&self, g: usize, node: &Node) -> bool {
        let Some(shape) = &self.groups[g].shape else { return false };
        let reads_memory = |k: usize| match node.op.name {
            "rotate_half" => true,
            "gather" => k == 0,
            "segment_sum" => true,
            _ => false,
        };
        node.inputs.iter().enumerate().all(|(k, v)| {
            let inside = self.of_value.get(v) == Some(&g);
            !(inside && (reads_memory(k) || shape.columns.contains(v)))
        })
    }

    /// Whether `g` would depend on itself: an operand from another group that (transitively) reads a result of `g`.
    fn makes_cycle(&self, g: usize, node: &Node) -> bool {
        let mut stack: Vec<usize> =
            node.inputs.iter().filter_map(|v| self.of_value.get(v).copied()).filter(|&p| p != g).collect();
        let mut seen: HashSet<usize> = HashSet::new();
        while let Some(p) = stack.pop() {
            if p == g {
                return true;
            }
            if seen.insert(p) {
                stack.extend(self.predecessors(p));
            }
        }
        false
    }

    fn predecessors(&self, g: usize) -> Vec<usize> {
        let nodes = &self.groups[g].nodes;
        let inputs = nodes.iter().flat_map(|&n| &self.func.nodes[n].inputs);
        inputs
            .filter(|v| !self.available.contains(v))
            .filter_map(|v| self.of_value.get(v).copied())
            .filter(|&p| p != g)
            .collect()
    }

    /// The region's shape with `node` in it, or `None` if no template covers that.
    fn extend(&self, shape: &RegionShape, node: &Node) -> Option<RegionShape> {
        let mut next = shape.clone();
        if node.op.name == "segment_sum" {
            return shape.domain.is_empty().then(|| {
                let domain = axes(self.func, node.outputs[0]);
                RegionShape { domain, interior: None, columns: BTreeSet::new() }
            });
        }
        let is_segment = |s: &RegionShape| s.domain.is_empty();
        if node.op.class == Class::Reduce {
            let full = axes(self.func, node.inputs[0]);
            let over: BTreeSet<Axis> = node.attrs.axes("axes").iter().copied().collect();
            if !is_segment(shape) && !full.is_superset(&shape.domain) {
                return None;
            }
            let rest: BTreeSet<Axis> = full.difference(&over).copied().collect();
            next.domain = full.clone();
            match (&shape.interior, self.is_column(node)) {
                (Some(interior), _) if *interior == over => {}
                (Some(interior), _) if *interior == rest && node.op.name == "reduce_sum" => {
                    next.columns.insert(node.outputs[0]);
                }
                (Some(_), _) => return None,
                (None, true) => {
                    next.interior = Some(rest);
                    next.columns.insert(node.outputs[0]);
                }
                (None, false) => next.interior = Some(over),
            }
            // The domain of a region with reductions is fixed by them.
            if shape.interior.is_some() && full != shape.domain {
                return None;
            }
            return Some(next);
        }
        let all = axes(self.func, node.outputs[0]);
        match &shape.interior {
            // Rows are given: a map covers rows, the whole domain, or a part of it that is the same for all rows.
            Some(_) => all.is_subset(&shape.domain).then_some(next),
            None if is_segment(shape) || all.is_superset(&shape.domain) => {
                next.domain = all;
                Some(next)
            }
            None => all.is_subset(&shape.domain).then_some(next),
        }
    }

    /// Sums over leading axes are column sums, all others are row reductions.
    fn is_column(&self, node: &Node) -> bool {
        let input = &self.func.ty(node.inputs[0]).shape;
        let over = node.attrs.axes("axes");
        let leading = input[..over.len()].iter().all(|a| over.contains(a));
        node.op.name == "reduce_sum" && leading && over.len() < input.len()
    }

    /// Groups in an order in which every operand is ready; sources are copied into the groups that use them.
    fn ordered(self) -> Vec<Group> {
        let n = self.groups.len();
        let mut done = vec![false; n];
        let mut order = Vec::new();
        while order.len() < n {
            let ready = (0..n).find(|&g| !done[g] && self.predecessors(g).iter().all(|&p| done[p]));
            let g = ready.expect("groups form no cycle: joining checks it");
            done[g] = true;
            order.push(g);
        }
        order.into_iter().map(|g| self.groups[g].clone()).collect()
    }
}
