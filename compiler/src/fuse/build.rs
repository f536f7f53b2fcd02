//! Groups → launches: writes each region's scalar program, absorbs casts into library calls, turns reshapes into aliases.

use super::partition::{self, Group, RegionShape};
use super::region::{Index, Instr, Layout, Reg, Region, ScalarArg, Stream, Template};
use crate::ir::{Attr, Axis, DType, Func, Node, Span, Type, ValueId};
use crate::ops::Class;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// One step of a layer's forward or backward.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What runs.
    pub kind: LaunchKind,
    /// Values that it reads, in the kernel's order.
    pub inputs: Vec<ValueId>,
    /// Values that it writes.
    pub outputs: Vec<ValueId>,
    /// The user's operation (of a region: its last one).
    pub span: Span,
}

/// Kinds of launches.
#[derive(Clone, Debug)]
pub enum LaunchKind {
    /// A fused region.
    Region(Arc<Region>),
    /// A library operation; `rounds[k]` are the casts that it applies to output `k` before storing.
    Library {
        /// The operation with its attributes; operands and results are those of the launch.
        node: Node,
        /// Roundings of each output, in order.
        rounds: Vec<Vec<DType>>,
    },
    /// The output has the bytes of the input.
    Alias,
    /// `call`, `call_vjp`, `repeat`, `repeat_vjp`.
    Structural(Node),
    /// Communication.
    Collective(Node),
}

/// Plans launches for the nodes `wanted` (ascending). `available` exist before; `needed` must exist afterwards.
pub fn launches(func: &Func, wanted: &[usize], available: &HashSet<ValueId>, needed: &HashSet<ValueId>) -> Vec<Launch> {
    let absorbed = absorb_casts(func, wanted, needed);
    let fused: Vec<usize> = wanted.iter().copied().filter(|i| !absorbed.casts.contains(i)).collect();
    let stored = absorbed.stored.iter().map(|(&raw, (stored, _))| (raw, *stored)).collect();
    let groups = partition::run(func, &fused, available, &stored);
    let used_by = users(func, &fused);
    let cx = Context {
        func,
        needed,
        absorbed: &absorbed,
        used_by,
        groups: &groups,
        base: partition::bases(func),
        sources: sources(func),
    };
    groups.iter().filter_map(|group| cx.launch(group)).collect()
}

/// Casts that library calls do in their epilogue.
struct Absorbed {
    /// Cast nodes that disappear.
    casts: HashSet<usize>,
    /// Raw result → (stored result, roundings).
    stored: HashMap<ValueId, (ValueId, Vec<DType>)>,
}

fn absorb_casts(func: &Func, wanted: &[usize], needed: &HashSet<ValueId>) -> Absorbed {
    let used_by = users(func, wanted);
    let mut out = Absorbed { casts: HashSet::new(), stored: HashMap::new() };
    for &i in wanted {
        let node = &func.nodes[i];
        if !matches!(node.op.class, Class::Library | Class::Loss) {
            continue;
        }
        for &raw in &node.outputs {
            let (mut last, mut rounds) = (raw, Vec::new());
            while !needed.contains(&last)
                && let Some([only]) = used_by.get(&last).map(Vec::as_slice)
                && func.nodes[*only].op.name == "cast"
            {
                rounds.push(func.nodes[*only].attrs.dtype("dtype"));
                out.casts.insert(*only);
                last = func.nodes[*only].outputs[0];
            }
            out.stored.insert(raw, (last, rounds));
        }
    }
    out
}

/// For each value the nodes among `wanted` that read it.
fn users(func: &Func, wanted: &[usize]) -> HashMap<ValueId, Vec<usize>> {
    let mut map: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for &i in wanted {
        let mut seen = BTreeSet::new();
        for &v in &func.nodes[i].inputs {
            if seen.insert(v) {
                map.entry(v).or_default().push(i);
            }
        }
    }
    map
}

struct Context<'a> {
    func: &'a Func,
    needed: &'a HashSet<ValueId>,
    absorbed: &'a Absorbed,
    used_by: HashMap<ValueId, Vec<usize>>,
    groups: &'a [Group],
    base: Vec<ValueId>,
    sources: HashMap<ValueId, usize>,
}

impl Context<'_> {
    fn launch(&self, group: &Group) -> Option<Launch> {
        match &group.shape {
            Some(shape) => self.region(group, shape),
            None => Some(self.single(&self.func.nodes[group.nodes[0]])),
        }
    }

    fn single(&self, node: &Node) -> Launch {
        let (inputs, span) = (node.inputs.clone(), node.span);
        let (kind, outputs) = match node.op.class {
            Class::Structural => (LaunchKind::Structural(node.clone()), node.outputs.clone()),
            Class::Collective if node.op.name == "pbroadcast" => (LaunchKind::Alias, node.outputs.clone()),
            Class::Collective => (LaunchKind::Collective(node.clone()), node.outputs.clone()),
            Class::View if matches!(node.op.name, "split" | "merge" | "rename") => {
                (LaunchKind::Alias, node.outputs.clone())
            }
            _ => {
                let stored =
                    node.outputs.iter().map(|o| self.absorbed.stored.get(o).cloned().unwrap_or((*o, Vec::new())));
                let (outputs, rounds) = stored.unzip();
                (LaunchKind::Library { node: node.clone(), rounds }, outputs)
            }
        };
        Launch { kind, inputs, outputs, span }
    }

    /// Values of a group that must be stored: wanted afterwards, or read from memory by a launch outside the group.
    fn stored_values(&self, group: &Group) -> Vec<ValueId> {
        let inside: HashSet<usize> = group.nodes.iter().copied().collect();
        let all = group.nodes.iter().flat_map(|&i| &self.func.nodes[i].outputs).copied();
        let outside = |v: ValueId| {
            let users = self.groups.iter().flat_map(|g| &g.nodes).filter(|u| !inside.contains(u));
            users.into_iter().any(|&u| self.reads(&self.func.nodes[u]).contains(&v))
        };
        all.filter(|&v| self.needed.contains(&v) || outside(v)).collect()
    }

    /// What the launch of a node reads from memory or from its own region: views are looked through, sources are inlined, and a
    /// view that nobody stores reads nothing.
    fn reads(&self, node: &Node) -> Vec<ValueId> {
        if !partition::fuses(node) {
            return node.inputs.clone();
        }
        if partition::is_transparent(node) && !self.view_is_stored(node.outputs[0]) {
            return Vec::new();
        }
        let memory = partition::reads_memory(node);
        let read = |&v: &ValueId| if memory.contains(&v) { Some(v) } else { self.through(v) };
        node.inputs.iter().filter_map(read).collect()
    }

    /// What a region reads for `v`: its base, or nothing from memory if that is a source.
    fn through(&self, v: ValueId) -> Option<ValueId> {
        let base = self.base[v.index()];
        (!self.sources.contains_key(&base)).then_some(base)
    }

    fn view_is_stored(&self, v: ValueId) -> bool {
        let users = self.used_by.get(&v).map(Vec::as_slice).unwrap_or_default();
        let raw = |&u: &usize| {
            let n = &self.func.nodes[u];
            !partition::fuses(n) || partition::reads_memory(n).contains(&v)
        };
        self.needed.contains(&v) || users.iter().any(raw)
    }

    fn region(&self, group: &Group, shape: &RegionShape) -> Option<Launch> {
        let stored = self.stored_values(group);
        if stored.is_empty() {
            return None;
        }
        let domain = order_domain(self.func, group, shape);
        let interior = shape.interior.clone().unwrap_or_default();
        let rows = domain.len() - interior.len();
        let mut w = Writer {
            func: self.func,
            region: Region {
                template: Template::FlatMap,
                rows: if shape.interior.is_some() { rows } else { domain.len() },
                domain,
                dtypes: Vec::new(),
                inputs: Vec::new(),
                extra_axes: Vec::new(),
                scalars: Vec::new(),
                streams: Vec::new(),
                code: Vec::new(),
                outputs: Vec::new(),
                spans: Vec::new(),
                names: Vec::new(),
            },
            members: group
                .nodes
                .iter()
                .flat_map(|&i| self.func.nodes[i].outputs.iter().map(move |&o| (o, i)))
                .collect(),
            sources: &self.sources,
            base: &self.base,
            interior: shape.interior.clone(),
            regs: HashMap::new(),
            reads: Vec::new(),
            span: Span::default(),
        };
        for &i in &group.nodes {
            let node = &self.func.nodes[i];
            if !partition::is_transparent(node) {
                w.node(node);
            }
        }
        for &v in &stored {
            w.output(v);
        }
        w.finish();
        let span = group.nodes.last().map(|&i| self.func.nodes[i].span).unwrap_or_default();
        let inputs = w.reads.clone();
        Some(Launch { kind: LaunchKind::Region(Arc::new(w.region)), inputs, outputs: stored, span })
    }
}

/// Values without operands, and the nodes that make them.
fn sources(func: &Func) -> HashMap<ValueId, usize> {
    let nodes = func.nodes.iter().enumerate().filter(|(_, n)| n.inputs.is_empty() && partition::fuses(n));
    nodes.map(|(i, n)| (n.outputs[0], i)).collect()
}

/// Rows first, interior last; within each the order of the value with the most axes.
fn order_domain(func: &Func, group: &Group, shape: &RegionShape) -> Vec<Axis> {
    let values = group.nodes.iter().flat_map(|&i| func.nodes[i].outputs.iter().chain(&func.nodes[i].inputs));
    let widest = values.map(|&v| &func.ty(v).shape).filter(|s| s.iter().all(|a| shape.domain.contains(a))).fold(
        None::<&Vec<Axis>>,
        |best, s| match best {
            Some(b) if b.len() >= s.len() => Some(b),
            _ => Some(s),
        },
    );
    let order: Vec<Axis> = widest.cloned().unwrap_or_default();
    let inner = |a: &Axis| shape.interior.as_ref().is_some_and(|i| i.contains(a));
    let mut out: Vec<Axis> = order.iter().copied().filter(|a| !inner(a)).collect();
    out.extend(order.iter().copied().filter(|a| inner(a)));
    out
}

struct Writer<'a> {
    func: &'a Func,
    region: Region,
    /// Values that the group defines.
    members: HashMap<ValueId, usize>,
    /// Source values of the function, inlined where they are read.
    sources: &'a HashMap<ValueId, usize>,
    base: &'a [ValueId],
    interior: Option<BTreeSet<Axis>>,
    regs: HashMap<ValueId, Reg>,
    reads: Vec<ValueId>,
    span: Span,
}

impl Writer<'_> {
    fn push(&mut self, instr: Instr) -> Reg {
        if let Some(same) = self.region.code.iter().position(|i| *i == instr) {
            return same;
        }
        self.region.code.push(instr);
        self.region.spans.push(self.span);
        self.region.code.len() - 1
    }

    fn dtype(&mut self, d: DType) -> usize {
        let slots = &mut self.region.dtypes;
        slots.iter().position(|&s| s == d).unwrap_or_else(|| {
            slots.push(d);
            slots.len() - 1
        })
    }

    fn position(&self, axis: Axis) -> usize {
        self.region.domain.iter().position(|&a| a == axis).unwrap_or_else(|| panic!("`{axis}` is not in the domain"))
    }

    fn layout(&mut self, ty: &Type) -> Layout {
        let dtype = self.dtype(ty.dtype);
        Layout { axes: ty.shape.iter().map(|&a| Index::Domain(self.position(a))).collect(), dtype }
    }

    fn operand(&mut self, v: ValueId, layout: Layout) -> usize {
        let known = self.reads.iter().zip(&self.region.inputs).position(|(&r, l)| r == v && *l == layout);
        known.unwrap_or_else(|| {
            self.reads.push(v);
            self.region.inputs.push(layout);
            self.region.names.push(self.func.values[v.index()].name.clone().unwrap_or_default());
            self.reads.len() - 1
        })
    }

    /// The register that holds `v`: computed here, a source, or loaded.
    fn reg(&mut self, v: ValueId) -> Reg {
        let v = self.base[v.index()];
        if let Some(&r) = self.regs.get(&v) {
            return r;
        }
        assert!(!self.members.contains_key(&v), "%{} is read before it is computed", v.0);
        let r = match self.sources.get(&v) {
            Some(&i) => self.source(&self.func.nodes[i]),
            None => {
                let layout = self.layout(&self.func.ty(v).clone());
                let i = self.operand(v, layout);
                self.push(Instr::Load(i))
            }
        };
        self.regs.insert(v, r);
        r
    }

    fn scalar(&mut self, s: ScalarArg) -> Reg {
        let known = self.region.scalars.iter().position(|k| *k == s);
        let i = known.unwrap_or_else(|| {
            self.region.scalars.push(s);
            self.region.scalars.len() - 1
        });
        self.push(Instr::Scalar(i))
    }

    fn source(&mut self, node: &Node) -> Reg {
        let a = &node.attrs;
        match node.op.name {
            "const" => {
                let value = a.get("value").cloned().unwrap_or(Attr::Float(0.0));
                self.scalar(ScalarArg::Literal(value))
            }
            "size" => self.scalar(ScalarArg::Size { axes: a.axes("axes").to_vec(), recip: a.flag("recip") }),
            "iota" => {
                let p = self.position(a.axis("axis"));
                self.push(Instr::Iota(p))
            }
            "half_sign" => {
                let p = self.position(a.axis("axis"));
                self.push(Instr::HalfSign(p))
            }
            "uniform" => {
                let axes = a.axes("shape").iter().map(|&x| self.position(x)).collect();
                let stream = Stream { site: a.int("site"), axes };
                let known = self.region.streams.iter().position(|s| *s == stream);
                let i = known.unwrap_or_else(|| {
                    self.region.streams.push(stream);
                    self.region.streams.len() - 1
                });
                self.push(Instr::Uniform(i))
            }
            other => panic!("`{other}` is no source"),
        }
    }

    fn node(&mut self, node: &Node) {
        self.span = node.span;
        let reg = self.compute(node);
        self.regs.insert(node.outputs[0], reg);
    }

    fn compute(&mut self, node: &Node) -> Reg {
        if node.inputs.is_empty() {
            return self.source(node);
        }
        if let Some(scalar) = node.op.scalar {
            let r: Vec<Reg> = node.inputs.iter().map(|&v| self.reg(v)).collect();
            return match *r.as_slice() {
                [a] => self.push(Instr::Unary(scalar, a)),
                [a, b] => self.push(Instr::Binary(scalar, a, b)),
                [m, a, b] => self.push(Instr::Select(m, a, b)),
                _ => panic!("`{}` has {} operands", node.op.name, r.len()),
            };
        }
        match node.op.name {
            "cast" => {
                let a = self.reg(node.inputs[0]);
                let slot = self.dtype(node.attrs.dtype("dtype"));
                self.push(Instr::Round(slot, a))
            }
            "rotate_half" => {
                let p = self.position(node.attrs.axis("axis"));
                let mut layout = self.layout(&self.func.ty(node.inputs[0]).clone());
                for index in &mut layout.axes {
                    if *index == Index::Domain(p) {
                        *index = Index::Rotated(p);
                    }
                }
                let i = self.operand(node.inputs[0], layout);
                self.push(Instr::Load(i))
            }
            "gather" => {
                let id = self.reg(node.inputs[1]);
                let table = self.func.ty(node.inputs[0]).clone();
                let dtype = self.dtype(table.dtype);
                let mut axes = vec![Index::Value(id)];
                axes.extend(table.shape[1..].iter().map(|&a| Index::Domain(self.position(a))));
                let known = self.reads.len();
                let i = self.operand(node.inputs[0], Layout { axes, dtype });
                if i == known {
                    self.region.extra_axes.push(table.shape[0]);
                }
                self.push(Instr::Load(i))
            }
            "reduce_sum" | "reduce_max" => {
                let over: BTreeSet<Axis> = node.attrs.axes("axes").iter().copied().collect();
                let a = self.reg(node.inputs[0]);
                let row = self.interior.as_ref() == Some(&over);
                self.push(match (node.op.name, row) {
                    ("reduce_max", _) => Instr::RowMax(a),
                    (_, true) => Instr::RowSum(a),
                    (_, false) => Instr::ColumnSum(a),
                })
            }
            "segment_sum" => {
                let operands: Vec<usize> = node
                    .inputs
                    .iter()
                    .map(|&v| {
                        let dtype = self.dtype(self.func.ty(v).dtype);
                        self.operand(v, Layout { axes: Vec::new(), dtype })
                    })
                    .collect();
                let [values, order, starts, ends] = *operands.as_slice() else {
                    panic!("`segment_sum` has {} operands", operands.len())
                };
                self.region.rows = 1;
                self.push(Instr::SegmentSum { values, order, starts, ends })
            }
            other => panic!("`{other}` cannot be fused"),
        }
    }

    fn output(&mut self, v: ValueId) {
        let reg = self.reg(v);
        let layout = self.layout(&self.func.ty(v).clone());
        self.region.outputs.push((reg, layout));
        self.region.names.push(self.func.values[v.index()].name.clone().unwrap_or_default());
    }

    fn finish(&mut self) {
        let r = &mut self.region;
        let has = |f: fn(&Instr) -> bool| r.code.iter().any(f);
        let whole: Vec<Index> = (0..r.domain.len()).map(Index::Domain).collect();
        let flat = r.layouts().all(|l| l.axes == whole) && !has(|i| matches!(i, Instr::Iota(_) | Instr::HalfSign(_)));
        r.template = if has(|i| matches!(i, Instr::SegmentSum { .. })) {
            Template::SegmentSum
        } else if has(|i| matches!(i, Instr::ColumnSum(_))) {
            Template::RowColumn
        } else if has(|i| matches!(i, Instr::RowSum(_) | Instr::RowMax(_))) {
            Template::Row
        } else if flat {
            Template::FlatMap
        } else {
            Template::StridedMap
        };
    }
}
