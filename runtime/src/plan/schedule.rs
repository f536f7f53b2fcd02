//! Schedule: unrolls a model's tree into steps and logical buffers with lifetimes.
//!
//! Forward keeps the residuals of each instance, or its inputs alone where the layer says so; backward then first runs the
//! layer's forward launches again. A parameter's first gradient overwrites, later ones add.

use super::{Buffer, BufferId, Memory, Phase, Plan, Segment, SplitAxis, Step, Work, Write, arena, ids};
use crate::link::{Instance, Keep, LayerType, Model};
use kiln_compiler::compile::{CompiledLayer, call_id};
use kiln_compiler::fuse::{Launch, LaunchKind};
use kiln_compiler::ir::{ArgKind, Axis, DType, Node, Sizes, Type, ValueId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The plan of one training micro-batch: forward, then backward.
pub fn build(model: &Model, sizes: &Sizes, memory: Memory) -> Plan {
    let mut s = Scheduler::new(model, sizes, memory);
    let root = s.root();
    let inputs = s.host_inputs();
    let train = &model.types[model.root.ty].programs.train;
    let (outputs, saved) = s.forward(root, train, inputs.clone(), Phase::Forward, None);
    let scale = s.buffer("loss scale", &Type::f32([]), Segment::Host, DType::F32);
    let d_outputs: Vec<Option<BufferId>> = train.d_outputs.iter().map(|d| d.map(|_| scale)).collect();
    s.backward(root, train, saved, &d_outputs);
    s.finish(inputs, outputs, Some(scale))
}

/// The plan of one evaluation or inference: forward alone.
pub fn build_forward(model: &Model, sizes: &Sizes, memory: Memory) -> Plan {
    let mut s = Scheduler::new(model, sizes, memory);
    s.evaluating = true;
    let root = s.root();
    let inputs = s.host_inputs();
    let eval = &model.types[model.root.ty].programs.eval;
    let (outputs, _) = s.forward(root, eval, inputs.clone(), Phase::Forward, None);
    s.finish(inputs, outputs, None)
}

/// Where a program runs: an instance, and inside a `repeat` which copy of the child.
#[derive(Clone, Copy)]
struct Place<'m> {
    instance: &'m Instance,
    ty: &'m LayerType,
    copy: Option<usize>,
}

/// What forward leaves for backward.
struct Saved {
    inputs: Vec<BufferId>,
    /// Residuals; `None` if only the inputs were kept.
    values: Option<HashMap<ValueId, BufferId>>,
    calls: HashMap<i64, Vec<Saved>>,
}

struct Scheduler<'m> {
    model: &'m Model,
    memory: Memory,
    /// Sizes for layers that are whole on every rank, and by layer type for those that are split.
    sizes: Arc<Sizes>,
    split: Vec<Arc<Sizes>>,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    params: HashMap<(usize, DType), BufferId>,
    grads: Vec<Option<BufferId>>,
    evaluating: bool,
}

impl<'m> Scheduler<'m> {
    fn new(model: &'m Model, sizes: &'m Sizes, memory: Memory) -> Self {
        let grads = vec![None; model.params.len()];
        let split = model.types.iter().map(|t| Arc::new(t.local_sizes(sizes))).collect();
        let sizes = Arc::new(sizes.clone());
        Scheduler {
            model,
            memory,
            sizes,
            split,
            buffers: Vec::new(),
            steps: Vec::new(),
            params: HashMap::new(),
            grads,
            evaluating: false,
        }
    }

    fn root(&self) -> Place<'m> {
        self.place(&self.model.root)
    }

    fn place(&self, instance: &'m Instance) -> Place<'m> {
        Place { instance, ty: &self.model.types[instance.ty], copy: None }
    }

    fn buffer(&mut self, name: &str, ty: &Type, segment: Segment, dtype: DType) -> BufferId {
        self.buffer_of(name, self.sizes.elements(&ty.shape), segment, dtype)
    }

    fn buffer_of(&mut self, name: &str, elements: usize, segment: Segment, dtype: DType) -> BufferId {
        let life = (usize::MAX, 0);
        let width = self.memory.width(dtype);
        self.buffers.push(Buffer { name: name.to_owned(), dtype, elements, width, segment, life, offset: 0 });
        self.buffers.len() - 1
    }

    /// Inputs of the root: activations from the host, parameters from their segments.
    fn host_inputs(&mut self) -> Vec<BufferId> {
        let root = self.root();
        let given: Vec<BufferId> = root
            .ty
            .layer
            .args
            .iter()
            .filter_map(|a| match &a.kind {
                ArgKind::Input(ty) => {
                    let dtype = if ty.dtype.is_float() { root.ty.compute } else { ty.dtype };
                    Some(self.buffer(&a.name, ty, Segment::Host, dtype))
                }
                _ => None,
            })
            .collect();
        self.arguments(root, &given)
    }

    /// All inputs of an instance's body: `given` for activations and rotary bases, parameters from their segments.
    fn arguments(&mut self, at: Place<'m>, given: &[BufferId]) -> Vec<BufferId> {
        let mut given = given.iter().copied();
        let slots: Vec<Option<usize>> = at.instance.params.clone();
        slots
            .into_iter()
            .map(|slot| match slot {
                Some(p) => self.param(p, at.ty.compute),
                None => given.next().expect("linking counts a call's arguments"),
            })
            .collect()
    }

    fn param(&mut self, p: usize, dtype: DType) -> BufferId {
        if let Some(&known) = self.params.get(&(p, dtype)) {
            return known;
        }
        let param = &self.model.params[p];
        let segment = if dtype == DType::F32 { Segment::Param(p) } else { Segment::Shadow(p) };
        let id = self.buffer_of(&param.path, param.len(), segment, dtype);
        self.params.insert((p, dtype), id);
        id
    }

    /// Runs `program` forward; keeps what its backward will need.
    fn forward(
        &mut self,
        at: Place<'m>,
        program: &'m CompiledLayer,
        inputs: Vec<BufferId>,
        phase: Phase,
        only: Option<&[usize]>,
    ) -> (Vec<BufferId>, Saved) {
        let mut env: HashMap<ValueId, BufferId> = program.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        let mut calls = HashMap::new();
        let all: Vec<usize> = (0..program.forward.len()).collect();
        for &i in only.unwrap_or(&all) {
            let launch = &program.forward[i];
            match &launch.kind {
                LaunchKind::Structural(node) => {
                    let given: Vec<BufferId> = launch.inputs.iter().map(|v| env[v]).collect();
                    let (outputs, saved) = self.call_forward(at, node, given, phase);
                    env.extend(launch.outputs.iter().copied().zip(outputs));
                    calls.insert(node.attrs.int("id"), saved);
                }
                _ => self.launch(at, program, launch, &mut env, phase, &HashMap::new()),
            }
        }
        let outputs = program.outputs.iter().filter_map(|v| env.get(v).copied()).collect();
        let values = program.residuals.iter().filter_map(|v| env.get(v).map(|&b| (*v, b))).collect();
        (outputs, Saved { inputs, values: Some(values), calls })
    }

    fn call_forward(
        &mut self,
        at: Place<'m>,
        node: &'m Node,
        given: Vec<BufferId>,
        phase: Phase,
    ) -> (Vec<BufferId>, Vec<Saved>) {
        let sub = node.attrs.int("sub") as usize;
        if node.op.name == "call" {
            let child = self.place(&at.instance.subs[sub][at.copy.unwrap_or(0)]);
            let (outputs, saved) = self.instance_forward(child, &given, phase);
            return (outputs, vec![saved]);
        }
        let program = self.body(at, node);
        let mut carried = given[0];
        let mut all = Vec::new();
        for copy in 0..at.instance.subs[sub].len() {
            let mut inputs = vec![carried];
            inputs.extend(&given[1..]);
            let body = Place { copy: Some(copy), ..at };
            let (outputs, saved) = self.forward(body, program, inputs, phase, None);
            carried = outputs[0];
            all.push(saved);
        }
        (vec![carried], all)
    }

    fn body(&self, at: Place<'m>, node: &Node) -> &'m CompiledLayer {
        let programs = &at.ty.bodies[&node.attrs.int("id")];
        if self.evaluating { &programs.eval } else { &programs.train }
    }

    fn instance_forward(&mut self, child: Place<'m>, given: &[BufferId], phase: Phase) -> (Vec<BufferId>, Saved) {
        let inputs = self.arguments(child, given);
        let programs = &child.ty.programs;
        let program = if self.evaluating { &programs.eval } else { &programs.train };
        let (outputs, saved) = self.forward(child, program, inputs, phase, None);
        match child.ty.keep {
            Keep::Everything => (outputs, saved),
            Keep::Inputs => (outputs, Saved { inputs: saved.inputs, values: None, calls: HashMap::new() }),
        }
    }

    /// Runs `program` backward; returns the cotangents of its inputs (parameters' go to their gradients).
    fn backward(
        &mut self,
        at: Place<'m>,
        program: &'m CompiledLayer,
        saved: Saved,
        d_outputs: &[Option<BufferId>],
    ) -> Vec<Option<BufferId>> {
        let mut saved = saved;
        if saved.values.is_none() {
            saved = self.forward(at, program, saved.inputs, Phase::Replay, Some(&program.replay())).1;
        }
        let mut env: HashMap<ValueId, BufferId> = saved.values.take().unwrap_or_default();
        env.extend(program.inputs.iter().copied().zip(saved.inputs.iter().copied()));
        for (d, &b) in program.d_outputs.iter().zip(d_outputs) {
            if let (Some(d), Some(b)) = (d, b) {
                env.insert(*d, b);
            }
        }
        let gradients = self.gradients(at, program);
        for launch in &program.backward {
            match &launch.kind {
                LaunchKind::Structural(node) => {
                    let given: Vec<BufferId> = launch.inputs.iter().map(|v| env[v]).collect();
                    let id = call_id(launch).expect("structural launches are numbered");
                    let child = saved.calls.remove(&id).expect("forward ran before backward");
                    let results = self.call_backward(at, node, &given, child);
                    env.extend(launch.outputs.iter().copied().zip(results));
                }
                _ => self.launch(at, program, launch, &mut env, Phase::Backward, &gradients),
            }
        }
        let params: Vec<Option<usize>> = self.param_slots(at, program);
        let mut results = Vec::new();
        for (&d, param) in program.d_inputs.iter().zip(params) {
            let buffer = d.map(|d| env[&d]);
            if let (Some(d), Some(p), Some(b)) = (d, param, buffer)
                && gradients.get(&d) != Some(&p)
            {
                self.add_gradient(at, p, b);
            }
            results.push(if param.is_some() { None } else { buffer });
        }
        results
    }

    fn param_slots(&self, at: Place<'m>, program: &CompiledLayer) -> Vec<Option<usize>> {
        if at.copy.is_some() { vec![None; program.inputs.len()] } else { at.instance.params.clone() }
    }

    /// Cotangents that their library launch can write into the gradient itself.
    fn gradients(&self, at: Place<'m>, program: &CompiledLayer) -> HashMap<ValueId, usize> {
        let read: HashSet<ValueId> = program.backward.iter().flat_map(|l| l.inputs.iter().copied()).collect();
        let writes = |d: ValueId| {
            program.backward.iter().any(|l| {
                matches!(&l.kind, LaunchKind::Library { node, .. } if accumulates(node)) && l.outputs.contains(&d)
            })
        };
        let mut seen = HashSet::new();
        let slots = self.param_slots(at, program);
        let pairs = program.d_inputs.iter().zip(slots).filter_map(|(d, p)| Some(((*d)?, p?)));
        pairs.filter(|&(d, _)| !read.contains(&d) && writes(d) && seen.insert(d)).collect()
    }

    fn gradient(&mut self, p: usize) -> (BufferId, Write) {
        if let Some(b) = self.grads[p] {
            return (b, Write::Add);
        }
        let param = &self.model.params[p];
        let name = format!("grad {}", param.path);
        let b = self.buffer_of(&name, param.len(), Segment::Grad(p), DType::F32);
        self.grads[p] = Some(b);
        (b, Write::StoreThenAdd)
    }

    fn add_gradient(&mut self, at: Place<'m>, p: usize, from: BufferId) {
        let (grad, write) = self.gradient(p);
        self.step(at, Work::Accumulate(write), vec![from], vec![grad], 0, Phase::Backward);
    }

    fn call_backward(
        &mut self,
        at: Place<'m>,
        node: &'m Node,
        given: &[BufferId],
        mut saved: Vec<Saved>,
    ) -> Vec<BufferId> {
        let n = node.attrs.int("n_inputs") as usize;
        let mask = node.attrs.str("mask").as_bytes().to_vec();
        let sub = node.attrs.int("sub") as usize;
        if node.op.name == "call_vjp" {
            let child = self.place(&at.instance.subs[sub][at.copy.unwrap_or(0)]);
            let program = &child.ty.programs.train;
            let mut cotangents = given[n..].iter().copied();
            let d_outputs: Vec<Option<BufferId>> =
                program.d_outputs.iter().map(|d| d.and_then(|_| cotangents.next())).collect();
            let saved = saved.pop().expect("a call leaves one set of residuals");
            let d = self.backward(child, program, saved, &d_outputs);
            let arguments: Vec<Option<BufferId>> =
                d.into_iter().zip(&child.instance.params).filter(|(_, p)| p.is_none()).map(|(d, _)| d).collect();
            return masked(&arguments, &mask);
        }
        let program = self.body(at, node);
        let mut carried = given[n];
        let mut captured: Vec<Option<BufferId>> = vec![None; n];
        for (copy, saved) in saved.into_iter().enumerate().rev() {
            let body = Place { copy: Some(copy), ..at };
            let d = self.backward(body, program, saved, &[Some(carried)]);
            carried = d[0].expect("the carried value has a cotangent");
            for (sum, d) in captured.iter_mut().zip(d).skip(1) {
                match (*sum, d) {
                    (None, d) => *sum = d,
                    (Some(s), Some(d)) => {
                        self.step(at, Work::Accumulate(Write::Add), vec![d], vec![s], 0, Phase::Backward)
                    }
                    (Some(_), None) => {}
                }
            }
        }
        captured[0] = Some(carried);
        masked(&captured, &mask)
    }

    /// A region, library call or alias.
    fn launch(
        &mut self,
        at: Place<'m>,
        program: &CompiledLayer,
        launch: &Launch,
        env: &mut HashMap<ValueId, BufferId>,
        phase: Phase,
        gradients: &HashMap<ValueId, usize>,
    ) {
        let inputs: Vec<BufferId> = launch.inputs.iter().map(|v| env[v]).collect();
        let resolve = |d: DType| at.ty.dtype(d);
        let resolved = |v: &ValueId| program.func.ty(*v).with(resolve(program.func.ty(*v).dtype));
        match &launch.kind {
            LaunchKind::Alias => {
                env.insert(launch.outputs[0], inputs[0]);
            }
            LaunchKind::Region(r) if r.is_copy(resolve) => {
                env.insert(launch.outputs[0], inputs[0]);
            }
            LaunchKind::Region(region) => {
                let outputs = self.results(at, program, launch);
                env.extend(launch.outputs.iter().copied().zip(outputs.iter().copied()));
                let dtypes = region.dtypes.iter().map(|&d| resolve(d)).collect();
                let work = Work::Region { region: region.clone(), dtypes };
                self.step(at, work, inputs, outputs, launch.span.line, phase);
            }
            LaunchKind::Library { node, rounds } => {
                let mut outputs = Vec::new();
                let mut write = Vec::new();
                for v in &launch.outputs {
                    let (b, w) = match gradients.get(v) {
                        Some(&p) => self.gradient(p),
                        None => (self.result(at, program, *v), Write::Store),
                    };
                    env.insert(*v, b);
                    outputs.push(b);
                    write.push(w);
                }
                let rounds = rounds.iter().map(|r| r.iter().map(|&d| resolve(d)).collect()).collect();
                let work = Work::Library {
                    op: node.op,
                    attrs: node.attrs.clone(),
                    inputs: launch.inputs.iter().map(resolved).collect(),
                    outputs: launch.outputs.iter().map(resolved).collect(),
                    rounds,
                    write,
                };
                self.step(at, work, inputs, outputs, launch.span.line, phase);
            }
            LaunchKind::Collective(node) => {
                assert_eq!(node.op.name, "all_reduce", "placement inserts no other collective that moves bytes");
                let outputs = self.results(at, program, launch);
                env.insert(launch.outputs[0], outputs[0]);
                let work = Work::AllReduce { mesh: node.attrs.str("mesh").to_owned() };
                self.step(at, work, inputs, outputs, launch.span.line, phase);
            }
            LaunchKind::Structural(_) => panic!("structural launches are handled by their callers"),
        }
    }

    fn results(&mut self, at: Place<'m>, program: &CompiledLayer, launch: &Launch) -> Vec<BufferId> {
        launch.outputs.iter().map(|&v| self.result(at, program, v)).collect()
    }

    fn result(&mut self, at: Place<'m>, program: &CompiledLayer, v: ValueId) -> BufferId {
        let value = &program.func.values[v.index()];
        let name = format!("{}:{}", self.path(at), value.name.as_deref().unwrap_or("value"));
        let elements = self.local_sizes(at).elements(&value.ty.shape);
        self.buffer_of(&name, elements, Segment::Temporary, at.ty.dtype(value.ty.dtype))
    }

    fn local_sizes(&self, at: Place<'m>) -> Arc<Sizes> {
        self.split[at.instance.ty].clone()
    }

    fn path(&self, at: Place<'m>) -> String {
        match at.copy {
            None => at.instance.path.clone(),
            Some(i) => format!("{}[{i}]", at.instance.path),
        }
    }

    fn step(
        &mut self,
        at: Place<'m>,
        work: Work,
        inputs: Vec<BufferId>,
        outputs: Vec<BufferId>,
        line: u32,
        phase: Phase,
    ) {
        let now = self.steps.len();
        for &b in inputs.iter().chain(&outputs) {
            let life = &mut self.buffers[b].life;
            *life = (life.0.min(now), life.1.max(now));
        }
        let path: Arc<str> = self.path(at).into();
        let file: Arc<str> = at.ty.layer.file.as_str().into();
        let sizes = self.local_sizes(at);
        let split = at.ty.split.map(|(axis, parts)| {
            let local = sizes.of(axis);
            SplitAxis { axis, offset: local * self.model.tensor_rank, whole: local * parts }
        });
        self.steps.push(Step { work, inputs, outputs, path, file, line, phase, sizes, split });
    }

    fn finish(mut self, inputs: Vec<BufferId>, outputs: Vec<BufferId>, loss_scale: Option<BufferId>) -> Plan {
        let last = self.steps.len();
        for &b in &outputs {
            self.buffers[b].life.1 = last;
        }
        for b in &mut self.buffers {
            b.life.0 = b.life.0.min(b.life.1);
        }
        let temporary_bytes = arena::place_temporaries(&mut self.buffers, self.memory);
        assert_eq!(arena::overlap(&self.buffers), None, "the arena overlaps buffers that are alive together");
        let host: Vec<BufferId> = inputs.into_iter().filter(|&b| self.buffers[b].segment == Segment::Host).collect();
        let first = self.model.types[self.model.root.ty].layer.args.iter().find_map(|a| match &a.kind {
            ArgKind::Input(ty) => ty.shape.first().copied(),
            _ => None,
        });
        let batch = first.unwrap_or(Axis::of(""));
        let id_limits = ids::id_limits(&self.steps, &self.buffers, &host);
        Plan {
            batch,
            id_limits,
            steps: self.steps,
            buffers: self.buffers,
            inputs: host,
            outputs,
            loss_scale,
            temporary_bytes,
        }
    }
}

/// Library operations that can add to their result.
fn accumulates(node: &Node) -> bool {
    matches!(node.op.name, "dot_general" | "linear_cross_entropy_vjp")
}

/// The entries that a mask marks.
fn masked(values: &[Option<BufferId>], mask: &[u8]) -> Vec<BufferId> {
    let marked = values.iter().zip(mask).filter(|(_, m)| **m == b'1');
    marked.map(|(v, _)| v.expect("an active argument has a cotangent")).collect()
}
