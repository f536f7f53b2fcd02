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
    /// Whether it begins with a segmented sum, which fixes the domain and leaves no room for reductions.
    pub segments: bool,
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

/// Whether a node only reads its operand along other axes: regions look through it.
pub fn is_transparent(node: &Node) -> bool {
    matches!(node.op.name, "broadcast" | "permute" | "stop_gradient")
}

/// Operands that a fused node reads from memory at another index than its own.
pub fn reads_memory(node: &Node) -> &[ValueId] {
    match node.op.name {
        "rotate_half" | "gather" => &node.inputs[..1],
        "segment_sum" => &node.inputs,
        _ => &[],
    }
}

/// For each value the one that a region reads in its place.
pub fn bases(func: &Func) -> Vec<ValueId> {
    let mut base: Vec<ValueId> = (0..func.values.len() as u32).map(ValueId).collect();
    for n in func.nodes.iter().filter(|n| is_transparent(n)) {
        base[n.outputs[0].index()] = base[n.inputs[0].index()];
    }
    base
}

/// Whether a node has no operands: it joins whoever uses it.
fn is_source(node: &Node) -> bool {
    node.inputs.is_empty()
}

/// Groups `wanted` nodes. `available` values exist before; they are never recomputed. `stored` maps a result to the value that its
/// launch writes in its place.
pub fn run(
    func: &Func,
    wanted: &[usize],
    available: &HashSet<ValueId>,
    stored: &HashMap<ValueId, ValueId>,
) -> Vec<Group> {
    let base = bases(func);
    let barriers = func.nodes.iter().filter(|n| n.attrs.flag("no_fuse")).flat_map(|n| n.outputs.clone()).collect();
    let mut p = Partition { func, groups: Vec::new(), of_value: HashMap::new(), available, stored, base, barriers };
    for &i in wanted {
        p.place(i);
    }
    while p.merge_one() {}
    p.ordered()
}

struct Partition<'a> {
    func: &'a Func,
    groups: Vec<Group>,
    /// Group that defines a value.
    of_value: HashMap<ValueId, usize>,
    available: &'a HashSet<ValueId>,
    stored: &'a HashMap<ValueId, ValueId>,
    base: Vec<ValueId>,
    /// Values of `#[no_fuse]`, which later nodes read from memory.
    barriers: HashSet<ValueId>,
}

impl Partition<'_> {
    fn place(&mut self, i: usize) {
        let func = self.func;
        let node = &func.nodes[i];
        let chosen =
            if fuses(node) && !is_source(node) && !is_transparent(node) { self.best_group(node) } else { None };
        let group = match chosen {
            Some((g, shape)) => {
                self.groups[g].shape = Some(shape);
                self.groups[g].nodes.push(i);
                g
            }
            None => {
                let shape = fuses(node).then(|| self.extend(None, node)).flatten();
                self.groups.push(Group { nodes: vec![i], shape });
                self.groups.len() - 1
            }
        };
        for &o in &node.outputs {
            self.of_value.insert(o, group);
            self.of_value.extend(self.stored.get(&o).map(|&s| (s, group)));
        }
    }

    /// The youngest region that can take `node` and already reads or makes one of its operands.
    fn best_group(&self, node: &Node) -> Option<(usize, RegionShape)> {
        for g in (0..self.groups.len()).rev() {
            let Some(shape) = &self.groups[g].shape else { continue };
            if self.is_free(g) || !self.related(g, node) {
                continue;
            }
            if let Some(extended) = self.extend(Some(shape), node)
                && self.operands_visible(g, node)
                && !self.makes_cycle(g, node)
            {
                return Some((g, extended));
            }
        }
        None
    }

    /// Sources and views: evaluated where they are read.
    fn is_free(&self, g: usize) -> bool {
        self.groups[g].nodes.iter().all(|&n| is_source(&self.func.nodes[n]) || is_transparent(&self.func.nodes[n]))
    }

    /// Operands as the launch of `node` reads them: regions look through views, except where they read memory.
    fn operands(&self, node: &Node) -> Vec<ValueId> {
        let raw = |v: &ValueId| !fuses(node) || reads_memory(node).contains(v);
        node.inputs.iter().map(|v| if raw(v) { *v } else { self.base[v.index()] }).collect()
    }

    /// Shares an operand with, or reads a result of, group `g`.
    fn related(&self, g: usize, node: &Node) -> bool {
        let members = &self.groups[g].nodes;
        self.operands(node).iter().any(|v| {
            self.of_value.get(v) == Some(&g)
                || (!self.is_free_value(*v) && members.iter().any(|&m| self.operands(&self.func.nodes[m]).contains(v)))
        })
    }

    fn is_free_value(&self, v: ValueId) -> bool {
        self.of_value.get(&v).is_some_and(|&g| self.is_free(g))
    }

    /// Rotations and indexed loads read memory, so those operands must come from outside; sums over rows and `#[no_fuse]` values
    /// leave the region.
    fn operands_visible(&self, g: usize, node: &Node) -> bool {
        let Some(shape) = &self.groups[g].shape else { return false };
        let memory = reads_memory(node);
        self.operands(node).iter().all(|v| {
            let inside = self.of_value.get(v) == Some(&g);
            !(inside && (memory.contains(v) || shape.columns.contains(v) || self.barriers.contains(v)))
        })
    }

    /// Whether `g` would depend on itself: an operand from another group that (transitively) reads a result of `g`.
    fn makes_cycle(&self, g: usize, node: &Node) -> bool {
        let from: Vec<usize> = self.operands(node).iter().filter_map(|v| self.of_value.get(v).copied()).collect();
        self.reaches(from.into_iter().filter(|&p| p != g).collect(), g)
    }

    /// Whether any of the groups `from`, or one that they depend on, is `target`.
    fn reaches(&self, mut from: Vec<usize>, target: usize) -> bool {
        let mut seen: HashSet<usize> = HashSet::new();
        while let Some(p) = from.pop() {
            if p == target {
                return true;
            }
            if seen.insert(p) {
                from.extend(self.predecessors(p));
            }
        }
        false
    }

    fn predecessors(&self, g: usize) -> Vec<usize> {
        let nodes = &self.groups[g].nodes;
        let inputs = nodes.iter().flat_map(|&n| self.operands(&self.func.nodes[n]));
        inputs
            .filter(|v| !self.available.contains(v))
            .filter_map(|v| self.of_value.get(&v).copied())
            .filter(|&p| p != g)
            .collect()
    }

    /// Merges two regions where one reads a result of, or an operand with, the other. Returns whether it did.
    fn merge_one(&mut self) -> bool {
        for b in 1..self.groups.len() {
            for a in 0..b {
                if let Some(shape) = self.merged(a, b) {
                    let moved = std::mem::take(&mut self.groups[b].nodes);
                    for &i in &moved {
                        for o in &self.func.nodes[i].outputs {
                            self.of_value.insert(*o, a);
                        }
                    }
                    self.groups[a].nodes.extend(moved);
                    self.groups[a].nodes.sort_unstable();
                    self.groups[a].shape = Some(shape);
                    self.groups.remove(b);
                    for g in self.of_value.values_mut().filter(|g| **g > b) {
                        *g -= 1;
                    }
                    return true;
                }
            }
        }
        false
    }

    /// The shape of regions `a` and `b` as one, if that is legal.
    fn merged(&self, a: usize, b: usize) -> Option<RegionShape> {
        if self.groups[a].shape.is_none() || self.groups[b].shape.is_none() || self.is_free(a) || self.is_free(b) {
            return None;
        }
        let nodes_of = |g: usize| self.groups[g].nodes.iter().map(|&i| &self.func.nodes[i]);
        let related = nodes_of(b).any(|n| self.related(a, n)) || nodes_of(a).any(|n| self.related(b, n));
        let visible =
            nodes_of(b).all(|n| self.operands_visible(a, n)) && nodes_of(a).all(|n| self.operands_visible(b, n));
        if !related || !visible {
            return None;
        }
        let outside =
            |g: usize, other: usize| self.predecessors(g).into_iter().filter(|&p| p != other).collect::<Vec<_>>();
        if self.reaches(outside(a, b), b) || self.reaches(outside(b, a), a) {
            return None;
        }
        let mut nodes: Vec<usize> = self.groups[a].nodes.iter().chain(&self.groups[b].nodes).copied().collect();
        nodes.sort_unstable();
        let mut shape = None;
        for i in nodes {
            shape = Some(self.extend(shape.as_ref(), &self.func.nodes[i])?);
        }
        shape
    }

    /// The region's shape with `node` in it (`None` while it is empty), or `None` if no template covers that.
    fn extend(&self, shape: Option<&RegionShape>, node: &Node) -> Option<RegionShape> {
        if node.op.name == "segment_sum" {
            let domain = axes(self.func, node.outputs[0]);
            return shape.is_none().then(|| RegionShape { domain, segments: true, ..RegionShape::default() });
        }
        let shape = &shape.cloned().unwrap_or_default();
        let mut next = shape.clone();
        if shape.segments {
            let inside = node.op.class != Class::Reduce && axes(self.func, node.outputs[0]).is_subset(&shape.domain);
            return inside.then_some(next);
        }
        if node.op.class == Class::Reduce {
            let full = axes(self.func, node.inputs[0]);
            let over: BTreeSet<Axis> = node.attrs.axes("axes").iter().copied().collect();
            if !full.is_superset(&shape.domain) {
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
            None if all.is_superset(&shape.domain) => {
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
