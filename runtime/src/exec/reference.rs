//! The reference executor: a plan's steps in f64, buffer by buffer. The truth that a device's run of the same plan is compared with.
//!
//! It holds every buffer apart, so a mistake in offsets or lifetimes shows as a difference from the device.

use crate::plan::{Plan, Step, Work, Write};
use crate::random;
use kiln_compiler::fuse::{Index, Layout, Region, ScalarArg, reference};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Attr, Axis, DType, Node, Sizes, Span, Type, ValueId};
use kiln_compiler::ops::{EvalCx, EvalNode};

/// A plan's buffers as f64 arrays; `None` until a step or the caller writes them.
pub struct Reference<'a> {
    plan: &'a Plan,
    seed: u64,
    /// Values by buffer.
    pub values: Vec<Option<Vec<f64>>>,
}

impl<'a> Reference<'a> {
    /// No values yet.
    pub fn new(plan: &'a Plan, seed: u64) -> Self {
        Reference { plan, seed, values: vec![None; plan.buffers.len()] }
    }

    /// Runs all steps of micro-batch `micro` of training step `step`.
    ///
    /// # Panics
    /// If a step reads a buffer that nothing has written.
    pub fn run(&mut self, step: u64, micro: usize) {
        for s in &self.plan.steps {
            self.step(s, step, micro);
        }
    }

    fn get(&self, id: usize) -> &[f64] {
        let name = || format!("buffer `{}` is read before it is written", self.plan.buffers[id].name);
        self.values[id].as_deref().unwrap_or_else(|| panic!("{}", name()))
    }

    fn step(&mut self, s: &Step, step: u64, micro: usize) {
        match &s.work {
            Work::Region { region, dtypes } => {
                let results = self.region(s, region, dtypes, step, micro);
                for (&id, r) in s.outputs.iter().zip(results) {
                    self.values[id] = Some(r.data);
                }
            }
            Work::Library { op, attrs, inputs, outputs, rounds, write } => {
                let args: Vec<Array> = s
                    .inputs
                    .iter()
                    .zip(inputs)
                    .map(|(&b, t)| Array::new(s.sizes.shape(&t.shape), self.get(b).to_vec()))
                    .collect();
                let id = |k: usize| ValueId(k as u32);
                let n = inputs.len();
                let node = Node {
                    op,
                    inputs: (0..n).map(id).collect(),
                    outputs: (n..n + outputs.len()).map(id).collect(),
                    attrs: attrs.clone(),
                    bodies: Vec::new(),
                    span: Span::default(),
                };
                let refs: Vec<&Array> = args.iter().collect();
                let arg_types: Vec<&Type> = inputs.iter().collect();
                let result_types: Vec<&Type> = outputs.iter().collect();
                let cx =
                    EvalCx { sizes: &s.sizes, uniform: &|_, _| panic!("library operations draw no random numbers") };
                let results = (op.eval)(
                    &cx,
                    &EvalNode { node: &node, args: &refs, arg_types: &arg_types, result_types: &result_types },
                );
                for (k, (&id, r)) in s.outputs.iter().zip(results).enumerate() {
                    let dtype = self.plan.buffers[id].dtype;
                    let chain: Vec<DType> = rounds[k].iter().copied().chain([dtype]).collect();
                    let data: Vec<f64> =
                        r.data.iter().map(|&x| chain.iter().fold(x, |x, &d| interp::round(d, x))).collect();
                    self.write(id, data, write[k], micro);
                }
            }
            Work::AllReduce { .. } => {
                let data = self.get(s.inputs[0]).to_vec();
                self.values[s.outputs[0]] = Some(data);
            }
            Work::Accumulate(write) => {
                let data = self.get(s.inputs[0]).to_vec();
                self.write(s.outputs[0], data, *write, micro);
            }
        }
    }

    fn write(&mut self, id: usize, data: Vec<f64>, write: Write, micro: usize) {
        let old = if write.adds(micro) { Some(self.get(id).to_vec()) } else { None };
        let sum = match old {
            Some(old) => old.iter().zip(&data).map(|(a, b)| a + b).collect(),
            None => data,
        };
        self.values[id] = Some(sum);
    }

    fn region(&self, s: &Step, region: &Region, dtypes: &[DType], step: u64, micro: usize) -> Vec<Array> {
        let sizes: &Sizes = &s.sizes;
        let scalars = scalars(region, sizes);
        let inputs: Vec<Array> = s
            .inputs
            .iter()
            .zip(&region.inputs)
            .map(|(&b, layout)| {
                let data = self.get(b).to_vec();
                Array { dims: dims(region, layout, sizes, data.len()), data }
            })
            .collect();
        let uniform = |stream: usize, index: u64| {
            let key = random::stream_key(self.seed, &s.path, region.streams[stream].site, random::Purpose::Operation);
            let len: usize = region.streams[stream].axes.iter().map(|&a| sizes.of(region.domain[a])).product();
            random::uniform(key, index + (micro * len) as u64, step)
        };
        reference::run(region, sizes, &reference::Bindings { dtypes, scalars: &scalars, uniform: &uniform }, &inputs)
    }
}

/// Sizes of an operand's own axes.
fn dims(region: &Region, layout: &Layout, sizes: &Sizes, len: usize) -> Vec<usize> {
    if layout.axes.is_empty() {
        return if len == 1 { Vec::new() } else { vec![len] };
    }
    let of = |a: Axis| sizes.of(a);
    let by_domain = |i: &Index| match i {
        Index::Domain(p) | Index::Rotated(p) => Some(of(region.domain[*p])),
        Index::Value(_) => None,
    };
    let known: usize = layout.axes.iter().filter_map(by_domain).product();
    layout.axes.iter().map(|i| by_domain(i).unwrap_or(len / known.max(1))).collect()
}

/// Values of a region's scalar arguments.
///
/// # Panics
/// On a configuration value that linking has not bound.
pub fn scalars(region: &Region, sizes: &Sizes) -> Vec<f32> {
    region
        .scalars
        .iter()
        .map(|s| match s {
            ScalarArg::Literal(Attr::Float(x)) => *x as f32,
            ScalarArg::Literal(Attr::Int(i)) => *i as f32,
            ScalarArg::Literal(Attr::Bool(b)) => f32::from(u8::from(*b)),
            ScalarArg::Literal(other) => panic!("a region's scalar is not a number: {other:?}"),
            ScalarArg::Size { axes, recip } => {
                let n = sizes.elements(axes) as f64;
                (if *recip { 1.0 / n } else { n }) as f32
            }
        })
        .collect()
}
