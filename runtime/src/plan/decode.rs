//! Decode: a root whose positions meet in causal attention alone becomes a plan of one position; whatever else mixes positions is refused.
//!
//! The plan is that of forward with the sequence axis at size 1: position t is this rank's part of the axis, at offset t. Regions that
//! read positions see t, parameters over the axis give row t, and an attention step reads the keys and values of earlier positions from
//! a cache. Nothing else may look along the axis: that is checked here, before anything is allocated.

use super::{Memory, Plan, Segment, SplitAxis, Step, Work, build_forward};
use crate::link::Model;
use kiln_compiler::fuse::{Index, Instr, Region, ScalarArg};
use kiln_compiler::ir::{ArgKind, Attr, Attrs, Axis, DType, Func, Sizes, Type};
use kiln_compiler::ops::{self, Op};

/// Why a root cannot be decoded position by position. Nothing has been allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeRefusal {
    /// A layer looks along the sequence by something else than causal attention.
    #[error(
        "K0717: {file}:{line}: layer `{layer}` has {what}; a decoder computes each position once, so positions may meet in `attend(.., Causal)` alone"
    )]
    Mixes {
        /// Layer instance, or the layer's name.
        layer: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
        /// The operation, and the axis.
        what: String,
    },
    /// A root with other inputs or another output.
    #[error(
        "K0718: the root `{layer}` {why}; a decoder takes a root of one `Ids<B, S>` whose first output has a value for each position"
    )]
    Root {
        /// Root.
        layer: String,
        /// What differs.
        why: String,
    },
}

/// A plan of one position, to be run for one position after the other.
#[derive(Clone, Debug)]
pub struct DecodePlan {
    /// The steps of one position.
    pub plan: Plan,
    /// The sequence.
    pub sequence: Axis,
    /// Positions that caches hold: the size of the sequence in the session.
    pub capacity: usize,
    /// Sequences that are decoded side by side: the size of the batch axis.
    pub rows: usize,
    /// What each step does with the position, in the order of the plan's steps.
    pub roles: Vec<Role>,
}

/// What a step does with the position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The same for every position.
    Fixed,
    /// A region that reads the position: its steps differ in their offset.
    Positioned,
    /// A region of whose operand `input` row t of `row` elements is meant, for each pair; it may read the position too.
    Rows(Vec<(usize, usize)>),
    /// Attention over the keys and values of all positions so far.
    Cached,
}

/// The plan of one position of `model`, whose sizes say how many there may be.
///
/// # Errors
/// [`DecodeRefusal`] names what mixes positions, or what the root lacks.
pub fn build_decode(model: &Model, memory: Memory) -> Result<DecodePlan, DecodeRefusal> {
    let [batch, sequence] = root_axes(model)?;
    check_views(model, sequence)?;
    let capacity = model.sizes.of(sequence);
    let sizes: Sizes = model.sizes.iter().map(|(a, n)| if a == sequence { (a, 1) } else { (a, n) }).collect();
    let mut plan = build_forward(model, &sizes, memory);
    check_output(model, &plan, sequence)?;
    let check = Check { model, sequence, plan: &plan };
    let roles: Vec<Role> = plan.steps.iter().map(|s| check.role(s)).collect::<Result<_, _>>()?;
    for step in &mut plan.steps {
        step.split = Some(SplitAxis { axis: sequence, offset: 0, whole: capacity });
    }
    Ok(DecodePlan { plan, sequence, capacity, rows: model.sizes.of(batch), roles })
}

/// Batch and sequence: the axes of the root's only input.
fn root_axes(model: &Model) -> Result<[Axis; 2], DecodeRefusal> {
    let root = &model.types[model.root.ty].layer;
    let refuse = |why: String| DecodeRefusal::Root { layer: root.name.clone(), why };
    let inputs = root.args.iter().filter_map(|a| match &a.kind {
        ArgKind::Input(ty) => Some((&a.name, ty)),
        _ => None,
    });
    let inputs: Vec<(&String, &Type)> = inputs.collect();
    match inputs.as_slice() {
        [(_, Type { shape, dtype: DType::I32 })] if shape.len() == 2 => Ok([shape[0], shape[1]]),
        [(name, ty)] => Err(refuse(format!("takes `{name}` as {ty}"))),
        _ => Err(refuse(format!("takes {} inputs", inputs.len()))),
    }
}

fn check_output(model: &Model, plan: &Plan, sequence: Axis) -> Result<(), DecodeRefusal> {
    let root = &model.types[model.root.ty].layer;
    let ty = root.body.ty(root.body.outputs[0]);
    let is_own = plan.buffers[plan.outputs[0]].segment == Segment::Temporary;
    if ty.shape.contains(&sequence) && ty.dtype.is_float() && is_own {
        return Ok(());
    }
    Err(DecodeRefusal::Root { layer: root.name.clone(), why: format!("returns {ty}") })
}

/// Views leave no step behind, so those that give the sequence another name or cut it are found in the layers themselves.
fn check_views(model: &Model, sequence: Axis) -> Result<(), DecodeRefusal> {
    for ty in &model.types {
        let bodies = ty.bodies.values().map(|b| &b.eval.func);
        for func in bodies.chain([&ty.programs.eval.func]) {
            let Some((name, line)) = renamed(func, sequence) else { continue };
            let (layer, file) = (ty.layer.name.clone(), ty.layer.file.clone());
            return Err(DecodeRefusal::Mixes {
                layer,
                file,
                line,
                what: format!("a `{name}` of the sequence `{sequence}`"),
            });
        }
    }
    Ok(())
}

/// The first view that gives the sequence another name, and its line.
fn renamed(func: &Func, sequence: Axis) -> Option<(&'static str, u32)> {
    let views = func.nodes.iter().filter(|n| matches!(n.op.name, "rename" | "split" | "merge"));
    views.into_iter().find(|n| names(&n.attrs, sequence)).map(|n| (n.op.name, n.span.line))
}

/// Whether a constant of an operation is the axis, or has it in a list.
fn names(attrs: &Attrs, axis: Axis) -> bool {
    attrs.iter().any(|(_, attr)| match attr {
        Attr::Axis(a) => *a == axis,
        Attr::Axes(list) => list.contains(&axis),
        _ => false,
    })
}

struct Check<'a> {
    model: &'a Model,
    sequence: Axis,
    plan: &'a Plan,
}

impl Check<'_> {
    fn role(&self, step: &Step) -> Result<Role, DecodeRefusal> {
        match &step.work {
            Work::Region { region, .. } => self.region(step, region),
            Work::Library { op, attrs, inputs, outputs, .. } => self.library(step, op, attrs, inputs, outputs),
            Work::Accumulate(_) | Work::AllReduce { .. } => Ok(Role::Fixed),
        }
    }

    fn refuse(&self, step: &Step, line: u32, what: String) -> DecodeRefusal {
        let root = &self.model.types[self.model.root.ty].layer.name;
        let layer = if step.path.is_empty() { root.clone() } else { step.path.to_string() };
        DecodeRefusal::Mixes { layer, file: step.file.to_string(), line, what }
    }

    fn region(&self, step: &Step, region: &Region) -> Result<Role, DecodeRefusal> {
        let along = region.domain.iter().position(|&a| a == self.sequence);
        let line = |reg: usize| region.spans.get(reg).map_or(step.line, |s| s.line);
        let refuse = |reg: usize, what: &str| {
            Err(self.refuse(step, line(reg), format!("{what} the sequence `{}`", self.sequence)))
        };
        let inside = along.is_some_and(|p| p >= region.rows);
        let mut positioned = false;
        for (reg, instr) in region.code.iter().enumerate() {
            match instr {
                Instr::RowSum(_) if inside => return refuse(reg, "a sum over"),
                Instr::RowMax(_) if inside => return refuse(reg, "a maximum over"),
                Instr::ColumnSum(_) if along.is_some() && !inside => return refuse(reg, "a sum over"),
                Instr::HalfSign(p) if along == Some(*p) => return refuse(reg, "a rotation along"),
                Instr::SegmentSum { .. } => return refuse(reg, "a sum by ids over"),
                Instr::Iota(p) => positioned |= along == Some(*p),
                Instr::Uniform(s) => positioned |= along.is_some_and(|p| region.streams[*s].axes.contains(&p)),
                Instr::Load(_)
                | Instr::Scalar(_)
                | Instr::HalfSign(_)
                | Instr::Unary(..)
                | Instr::Binary(..)
                | Instr::Select(..)
                | Instr::Round(..)
                | Instr::RowSum(_)
                | Instr::RowMax(_)
                | Instr::ColumnSum(_) => {}
            }
        }
        if region.extra_axes.contains(&self.sequence) {
            return refuse(0, "an index by value along");
        }
        let rotated = |i: &Index| matches!(i, Index::Rotated(p) if along == Some(*p));
        if region.layouts().any(|l| l.axes.iter().any(rotated)) {
            return refuse(0, "a rotation along");
        }
        let mut rows = Vec::new();
        for (i, (layout, &buffer)) in region.inputs.iter().zip(&step.inputs).enumerate() {
            let Some(param) = self.sequence_param(buffer) else { continue };
            // Row t is one piece of memory only where the sequence is the slowest axis.
            if layout.axes.first().copied() != along.map(Index::Domain) {
                return Err(self.refuse(step, step.line, self.param_words(param)));
            }
            let axes = &self.model.params[param].shape[1..];
            rows.push((i, step.sizes.elements(axes)));
        }
        // A size of the sequence is that of the whole: the offset of the part does not change it.
        debug_assert!(region.scalars.iter().all(|s| matches!(s, ScalarArg::Literal(_) | ScalarArg::Size { .. })));
        Ok(match (rows.is_empty(), positioned) {
            (false, _) => Role::Rows(rows),
            (true, true) => Role::Positioned,
            (true, false) => Role::Fixed,
        })
    }

    /// The parameter behind a buffer, if the sequence is one of its axes.
    fn sequence_param(&self, buffer: super::BufferId) -> Option<usize> {
        match self.plan.buffers[buffer].segment {
            Segment::Param(p) | Segment::Shadow(p) => self.model.params[p].shape.contains(&self.sequence).then_some(p),
            Segment::Grad(_) | Segment::Host | Segment::Temporary => None,
        }
    }

    fn param_words(&self, param: usize) -> String {
        let path = &self.model.params[param].path;
        format!("a use of the parameter `{path}`, of which no row belongs to a position of `{}`", self.sequence)
    }

    fn library(
        &self,
        step: &Step,
        op: Op,
        attrs: &Attrs,
        inputs: &[Type],
        outputs: &[Type],
    ) -> Result<Role, DecodeRefusal> {
        let s = self.sequence;
        let refuse = |what: String| Err(self.refuse(step, step.line, what));
        if let Some(param) = step.inputs.iter().find_map(|&b| self.sequence_param(b)) {
            return refuse(self.param_words(param));
        }
        let has = |ty: &Type| ty.shape.contains(&s);
        match op.name {
            "attention" => return self.attention(step, attrs, &inputs[0], &inputs[1]),
            "dot_general" if inputs.iter().any(has) && !outputs.iter().any(has) => {
                return refuse(format!("a product that sums over the sequence `{s}`"));
            }
            "dot_general" => {}
            "slice" | "pad" | "concat" if names(attrs, s) => {
                return refuse(format!("a `{}` along the sequence `{s}`", ops::word(op, attrs)));
            }
            "slice" | "pad" | "concat" => {}
            // Whatever else there is may look anywhere, an operation of the user's own too.
            _ if inputs.iter().chain(outputs).any(has) => {
                return refuse(format!("`{}` over the sequence `{s}`", ops::word(op, attrs)));
            }
            _ => {}
        }
        Ok(Role::Fixed)
    }

    fn attention(&self, step: &Step, attrs: &Attrs, q: &Type, k: &Type) -> Result<Role, DecodeRefusal> {
        let s = self.sequence;
        let refuse = |what: String| Err(self.refuse(step, step.line, what));
        let positions = |ty: &Type| ty.shape.iter().rev().nth(1).copied();
        let (queries, keys) = (positions(q) == Some(s), positions(k) == Some(s));
        match (queries, keys, attrs.flag("causal")) {
            (true, true, true) => Ok(Role::Cached),
            (true, true, false) => refuse(format!("an `attend` with `Full` over the sequence `{s}`")),
            // Keys that do not grow: every position sees all of them.
            (true, false, false) => Ok(Role::Fixed),
            (true, false, true) | (false, true, _) => {
                refuse(format!("an `attend` between the sequence `{s}` and another axis"))
            }
            (false, false, _) if q.shape.last() == Some(&s) => {
                refuse(format!("an `attend` whose heads lie along the sequence `{s}`"))
            }
            (false, false, _) => Ok(Role::Fixed),
        }
    }
}
