//! Decoding on the host: a plan of one position runs for one position after the other, over caches that are allocated once.
//!
//! In: a [`DecodePlan`], parameters, ids of one position. Out: the root's output at that position. All members of a [`Team`] walk through
//! the same steps: products and attention are cut among them, the rest is the first member's, and they meet only where a step touches
//! what another member has written or still reads. Running a position allocates nothing.
#![allow(unsafe_code)]

use super::arena::Arena;
use super::attention_decode::{Cache, CachedAttention};
use super::buffer::Buf;
use super::gemm::Epilogue;
use super::optim::{self, Shadow};
use super::pool::Pool;
use super::row_product::RowProduct;
use super::share::Shared;
use super::step::{Kernel, RunCx, prepare_step};
use super::team::Team;
use super::tile::{StreamArg, TileArgs, TileProgram};
use crate::device::DeviceError;
use crate::exec::comm::Member;
use crate::exec::layout::FlatLayout;
use crate::exec::{Job, Mode, Placed};
use crate::plan::arena::align;
use crate::plan::decode::{DecodePlan, Role};
use crate::plan::{BufferId, Memory, Plan, Segment, Step, Work, Write};
use kiln_compiler::ir::DType;
use std::collections::HashMap;
use std::sync::Arc;

// Below this many multiply-adds, meeting costs more than a second member saves.
const SOLO_WORK: usize = 1 << 13;

/// The CPU with an arena, caches, and a prepared plan of one position.
pub struct HostDecoder {
    placed: Placed,
    arena: Arena,
    /// Caches, then scratch of each member.
    own: Arena,
    scratch: Scratch,
    steps: Vec<Prepared>,
    /// Steps that fill caches are the first so many; the others serve the output alone.
    filling: usize,
    shadows: Vec<Shadow>,
    team: Team,
    tensor: Member,
}

/// Scratch of the members in the decoder's own memory.
#[derive(Clone, Copy)]
struct Scratch {
    offset: usize,
    /// f32 elements of each member.
    each: usize,
}

/// One step.
struct Prepared {
    /// The members meet before it.
    meets: bool,
    kernel: DecodeKernel,
}

/// Programs of a region: one for all positions, or one for each.
type Programs = Arc<Vec<TileProgram>>;

enum DecodeKernel {
    /// A fused region, of the first member.
    Region(RegionAt),
    /// A product, cut among the members or of the first alone.
    Product { product: RowProduct, buffers: [Buf; 3], epilogue: Epilogue, is_solo: bool },
    /// Attention over a cache, cut among the members.
    Attention { plan: CachedAttention, operands: [Buf; 3], results: [Buf; 2], cache: Cache, rounds: Vec<DType> },
    /// Any other step, of the first member: its number in the plan.
    Other(Box<Kernel>, usize),
}

/// A region with all that it is given, for all positions or for each.
struct RegionAt {
    programs: Programs,
    inputs: Vec<Vec<Buf>>,
    outputs: Vec<Buf>,
    streams: Vec<StreamArg>,
}

impl HostDecoder {
    /// Prepares a kernel for every step, then allocates arena and caches.
    ///
    /// # Errors
    /// [`DeviceError`] names the step without a kernel, or who needs how much memory.
    pub fn open(decode: DecodePlan, flat: FlatLayout, threads: usize) -> Result<HostDecoder, DeviceError> {
        let team = Team::new(threads).map_err(DeviceError::Threads)?;
        let DecodePlan { plan, capacity, roles, .. } = decode;
        let mut programs = Kinds::default();
        let kernels = plan.steps.iter().zip(&roles).map(|(s, r)| programs.prepare(&plan, s, r, capacity));
        let kernels: Vec<Planned> = kernels.collect::<Result<_, _>>()?;
        let workspace = kernels.iter().map(Planned::workspace_len).max().unwrap_or(0);
        let each = kernels.iter().map(Planned::member_len).max().unwrap_or(0).next_multiple_of(CACHE_LINE);
        let tensor = Member::alone();
        let job = Job {
            train: None,
            evaluate: plan,
            kernels: Vec::new(),
            flat,
            n_moments: 0,
            seed: 0,
            threads: 1,
            tensor: tensor.clone(),
            inspects: false,
        };
        let placed = job.place(workspace * size_of::<f32>(), Memory::HOST);
        let arena = Arena::new(placed.layout.total, &Pool::serial(), || placed.owners())?;
        let cached: usize = kernels.iter().map(Planned::cache_bytes).sum();
        let scratch = Scratch { offset: cached, each };
        let own = cached + team.members() * each * size_of::<f32>();
        let own =
            Arena::new(own, &Pool::serial(), || vec![("keys and values of earlier positions".to_owned(), cached)])?;
        let shadows = super::shadows(&placed.layout, &arena);
        let filling = roles.iter().rposition(|r| *r == Role::Cached).map_or(0, |i| i + 1);
        let mut place = Place { plan: &placed.evaluate, arena: &arena, own: &own, at: 0 };
        let bound = kernels.into_iter().enumerate();
        let kernels: Vec<DecodeKernel> =
            bound.map(|(i, k)| place.bind(k, i, &roles[i], capacity, team.members())).collect();
        let meets = meetings(&placed.evaluate, &kernels);
        let steps = kernels.into_iter().zip(meets).map(|(kernel, meets)| Prepared { meets, kernel }).collect();
        Ok(HostDecoder { arena, own, scratch, steps, filling, shadows, team, tensor, placed })
    }

    /// Bytes of the arena and of the caches.
    pub fn bytes(&self) -> usize {
        self.placed.layout.total + self.scratch.offset + self.team.members() * self.scratch.each * size_of::<f32>()
    }

    /// Sets parameter `i`; [`HostDecoder::write_shadows`] is due after the last.
    ///
    /// # Panics
    /// If there are more values than the parameter has.
    pub fn set_param(&mut self, i: usize, values: &[f32]) {
        let layout = &self.placed.layout;
        assert!(values.len() <= layout.flat.lens[i], "a parameter of {} elements", layout.flat.lens[i]);
        let offset = layout.params + layout.flat.offsets[i] * size_of::<f32>();
        self.arena.f32s_mut(offset, values.len()).copy_from_slice(values);
    }

    /// Writes every copy of a parameter in a narrower type.
    pub fn write_shadows(&mut self) {
        let layout = &self.placed.layout;
        let masters = self.arena.buf(layout.params, layout.flat.len * size_of::<f32>(), DType::F32);
        optim::write_shadows(&Pool::serial(), masters, &self.shadows);
    }

    /// Elements of the output at one position, all rows together.
    pub fn output_len(&self) -> usize {
        let plan = &self.placed.evaluate;
        plan.buffers[plan.outputs[0]].elements
    }

    /// Runs position `t`, one id for each row, over the caches of all positions before it. Only with `out` is the output computed.
    ///
    /// # Panics
    /// If `t` is not below the capacity, or `ids` or `out` has another length than the plan says.
    pub fn run(&mut self, t: usize, ids: &[i32], out: Option<&mut [f32]>) {
        let HostDecoder { placed, arena, own, scratch, steps, filling, team, tensor, .. } = self;
        let (plan, layout) = (&*placed.evaluate, &*placed.layout);
        let slot = placed.slot(Mode::Evaluate, plan.inputs[0]);
        arena.i32s_mut(slot.offset, slot.elements).copy_from_slice(ids);
        let arena = &*arena;
        let steps = if out.is_some() { &steps[..] } else { &steps[..*filling] };
        let (pool, members, each) = (Pool::serial(), team.members(), scratch.each);
        let cx = RunCx { arena, layout, pool: &pool, plan, step: 0, micro: 0, part: 0, tensor, apart: false };
        let scratch = scratch.shared(own, members);
        let walk = |member: usize, barrier: super::team::Barrier<'_>| {
            // SAFETY: each member has its own part, and takes it once in a run.
            let mine = unsafe { scratch.slice(member * each, each) };
            for step in steps {
                if step.meets {
                    barrier.wait();
                }
                step.kernel.run(&cx, (member, members), t, mine);
            }
        };
        team.run(&walk);
        if let Some(out) = out {
            let slot = placed.slot(Mode::Evaluate, plan.outputs[0]);
            let bytes = slot.elements * slot.dtype.bytes();
            arena.buf(slot.offset, bytes, slot.dtype).load(0, out);
        }
    }
}

// Scratch of two members never shares a line of 64 bytes.
const CACHE_LINE: usize = 64 / size_of::<f32>();

impl Scratch {
    fn shared(self, own: &Arena, members: usize) -> Shared<f32> {
        let len = members * self.each;
        let ptr = own.at(self.offset, len * size_of::<f32>()).cast();
        // SAFETY: in range, and aligned since caches are; `run` has the decoder for itself, and nothing else lies there.
        Shared::new(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
    }
}

/// A kernel before its memory is known.
enum Planned {
    Region(Programs, Vec<StreamArg>),
    Product(RowProduct, Epilogue),
    Attention(CachedAttention, [DType; 2], Vec<DType>),
    Other(Box<Kernel>),
}

impl Planned {
    fn workspace_len(&self) -> usize {
        match self {
            Planned::Region(programs, _) => programs.iter().map(TileProgram::workspace_len).max().unwrap_or(0),
            Planned::Other(kernel) => kernel.workspace_len(),
            Planned::Product(..) | Planned::Attention(..) => 0,
        }
    }

    fn member_len(&self) -> usize {
        match self {
            Planned::Product(p, _) => p.worker_len(),
            Planned::Attention(p, ..) => p.worker_len(),
            Planned::Region(..) | Planned::Other(_) => 0,
        }
    }

    fn cache_bytes(&self) -> usize {
        match self {
            Planned::Attention(p, dtypes, _) => dtypes.iter().map(|d| align(p.cache_len() * d.bytes())).sum(),
            Planned::Region(..) | Planned::Product(..) | Planned::Other(_) => 0,
        }
    }
}

/// Programs of regions that many steps share: copies of one layer run the same ones.
#[derive(Default)]
struct Kinds {
    known: HashMap<(usize, Vec<DType>, bool), Programs>,
}

impl Kinds {
    fn prepare(&mut self, plan: &Plan, step: &Step, role: &Role, capacity: usize) -> Result<Planned, DeviceError> {
        match &step.work {
            Work::Region { region, dtypes } => {
                let streams = region.streams.iter().map(|s| plan.stream(step, region, s, 0));
                let streams = streams.map(|(key, _)| StreamArg { key, offset: 0 }).collect();
                let by_position = *role != Role::Fixed;
                let key = (Arc::as_ptr(region).addr(), dtypes.clone(), by_position);
                if let Some(known) = self.known.get(&key) {
                    return Ok(Planned::Region(known.clone(), streams));
                }
                let count = if by_position { capacity } else { 1 };
                let programs = (0..count).map(|t| program(plan, step, t)).collect::<Result<Vec<_>, _>>()?;
                let programs = Arc::new(programs);
                self.known.insert(key, programs.clone());
                Ok(Planned::Region(programs, streams))
            }
            Work::Library { inputs, rounds, .. } if *role == Role::Cached => {
                let plan = CachedAttention::new(&inputs[0].shape, &inputs[1].shape, &step.sizes, capacity);
                Ok(Planned::Attention(plan, [inputs[1].dtype, inputs[2].dtype], rounds[0].clone()))
            }
            Work::Library { op, inputs, outputs, rounds, write, .. } if op.name == "dot_general" => {
                let [a, b, out] = [&inputs[0], &inputs[1], &outputs[0]];
                let product = RowProduct::new(&a.shape, &b.shape, &out.shape, &step.sizes);
                let takes = |p: &RowProduct| RowProduct::takes(if p.swapped() { a.dtype } else { b.dtype });
                match product.filter(takes).filter(|_| write[0] == Write::Store) {
                    Some(p) => {
                        Ok(Planned::Product(p, Epilogue { round: rounds[0].first().copied(), accumulate: false }))
                    }
                    None => other(plan, step),
                }
            }
            Work::Library { .. } | Work::Accumulate(_) | Work::AllReduce { .. } => other(plan, step),
        }
    }
}

fn other(plan: &Plan, step: &Step) -> Result<Planned, DeviceError> {
    Ok(Planned::Other(Box::new(prepare_step(plan, step, 1, 0)?)))
}

/// A region's program at position `t`.
fn program(plan: &Plan, step: &Step, t: usize) -> Result<TileProgram, DeviceError> {
    let mut at = step.clone();
    if let Some(split) = &mut at.split {
        split.offset = t;
    }
    match prepare_step(plan, &at, 1, 0)? {
        Kernel::Region(program, _) => Ok(program),
        _ => panic!("a region becomes a region's kernel"),
    }
}

/// Gives kernels their memory; caches follow each other.
struct Place<'a> {
    plan: &'a Plan,
    arena: &'a Arena,
    own: &'a Arena,
    at: usize,
}

impl Place<'_> {
    fn buffer(&self, id: BufferId) -> Buf {
        let b = &self.plan.buffers[id];
        self.arena.buf(b.offset, b.bytes(), b.dtype)
    }

    fn cache(&mut self, elements: usize, dtype: DType) -> Buf {
        let bytes = elements * dtype.bytes();
        let buf = self.own.buf(self.at, bytes, dtype);
        self.at += align(bytes);
        buf
    }

    fn bind(&mut self, kernel: Planned, i: usize, role: &Role, capacity: usize, members: usize) -> DecodeKernel {
        let step = &self.plan.steps[i];
        let input = |k: usize| self.buffer(step.inputs[k]);
        let output = |k: usize| self.buffer(step.outputs[k]);
        match kernel {
            Planned::Region(programs, streams) => {
                let inputs: Vec<Buf> = step.inputs.iter().map(|&b| self.buffer(b)).collect();
                let inputs = match role {
                    Role::Rows(rows) => (0..capacity).map(|t| self.rows(step, &inputs, rows, t)).collect(),
                    Role::Fixed | Role::Positioned | Role::Cached => vec![inputs],
                };
                let outputs = step.outputs.iter().map(|&b| self.buffer(b)).collect();
                DecodeKernel::Region(RegionAt { programs, inputs, outputs, streams })
            }
            Planned::Product(product, epilogue) => {
                let is_solo = members == 1 || product.work() < SOLO_WORK;
                let buffers = [input(0), input(1), output(0)];
                DecodeKernel::Product { product, buffers, epilogue, is_solo }
            }
            Planned::Attention(plan, [k, v], rounds) => {
                let (operands, results) = ([input(0), input(1), input(2)], [output(0), output(1)]);
                let n = plan.cache_len();
                let cache = Cache { k: self.cache(n, k), v: self.cache(n, v) };
                DecodeKernel::Attention { plan, operands, results, cache, rounds }
            }
            Planned::Other(kernel) => DecodeKernel::Other(kernel, i),
        }
    }

    /// The operands of a region at position `t`: of some, row `t`.
    fn rows(&self, step: &Step, inputs: &[Buf], rows: &[(usize, usize)], t: usize) -> Vec<Buf> {
        let mut inputs = inputs.to_vec();
        for &(i, row) in rows {
            let b = &self.plan.buffers[step.inputs[i]];
            inputs[i] = self.arena.buf(b.offset + t * row * b.width, row * b.width, b.dtype);
        }
        inputs
    }
}

impl DecodeKernel {
    /// Whether the first member runs it alone.
    fn is_solo(&self) -> bool {
        match self {
            DecodeKernel::Region(_) | DecodeKernel::Other(..) => true,
            DecodeKernel::Product { is_solo, .. } => *is_solo,
            DecodeKernel::Attention { .. } => false,
        }
    }

    fn run(&self, cx: &RunCx<'_>, (member, members): (usize, usize), t: usize, scratch: &mut [f32]) {
        if self.is_solo() && member > 0 {
            return;
        }
        match self {
            DecodeKernel::Region(RegionAt { programs, inputs, outputs, streams }) => {
                let inputs = &inputs[t.min(inputs.len() - 1)];
                let args = TileArgs { inputs, outputs, accumulate: &[], streams, step: 0 };
                programs[t.min(programs.len() - 1)].run(cx.pool, &args, cx.workspace());
            }
            DecodeKernel::Product { product, buffers, epilogue, is_solo } => {
                let share = if *is_solo { (0, 1) } else { (member, members) };
                product.run(share, *buffers, *epilogue, scratch);
            }
            DecodeKernel::Attention { plan, operands, results, cache, rounds } => {
                plan.run((member, members), t, *operands, *results, *cache, rounds, scratch);
            }
            DecodeKernel::Other(kernel, i) => kernel.run(cx, &cx.plan.steps[*i]),
        }
    }
}

/// Bytes that a step touches.
struct Touched {
    from: usize,
    to: usize,
    writes: bool,
    is_solo: bool,
}

/// Before which steps the members meet: where a step touches what another member may have written, or may still read.
fn meetings(plan: &Plan, kernels: &[DecodeKernel]) -> Vec<bool> {
    let mut since: Vec<Touched> = Vec::new();
    let mut meets = Vec::new();
    for (step, kernel) in plan.steps.iter().zip(kernels) {
        let is_solo = kernel.is_solo();
        let touched = |(&id, writes): (&BufferId, bool)| {
            let b = &plan.buffers[id];
            let own = matches!(b.segment, Segment::Temporary | Segment::Host);
            own.then_some(Touched { from: b.offset, to: b.offset + b.bytes(), writes, is_solo })
        };
        let inputs = step.inputs.iter().map(|b| (b, false));
        let mine: Vec<Touched> = inputs.chain(step.outputs.iter().map(|b| (b, true))).filter_map(touched).collect();
        let apart = |a: &Touched, b: &Touched| {
            a.to <= b.from || b.to <= a.from || !(a.writes || b.writes) || (a.is_solo && b.is_solo)
        };
        let must = mine.iter().any(|m| since.iter().any(|s| !apart(s, m)));
        if must {
            since.clear();
        }
        since.extend(mine);
        meets.push(must);
    }
    meets
}
