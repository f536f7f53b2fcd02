//! Fixed work of the host device whose instructions are counted: kernels by themselves, and one training step.
//!
//! In: the name of a case. Out: nothing; what counts is what callgrind collects inside of [`counted_region`]. A case makes its operands,
//! runs once, so that what is decided or allocated once is not counted, and then once more inside of the region. One thread, and the
//! instruction set that `KILN_CPU=x86-64-v3` allows: counts of other sets are other numbers.

use super::trainer;
use crate::Result;
use crate::models::xs;
use kiln::device::host::arena::Arena;
use kiln::device::host::attention::AttentionPlan;
use kiln::device::host::buffer::Buf;
use kiln::device::host::cpu::Isa;
use kiln::device::host::gemm::{Epilogue, GemmPlan};
use kiln::device::host::loss::{Gradient, LossOperands, LossPlan, LossResults};
use kiln::device::host::optim::adamw;
use kiln::device::host::pool::Pool;
use kiln::device::host::scatter::SortPlan;
use kiln::device::host::tile::{TileArgs, TileProgram};
use kiln::optim::{AdamW, Group};
use kiln::plan::arena::align;
use kiln::{Axis as _, DType, Sizes, random};
use kiln_compiler::fuse::{Index, Instr, Layout, Region, ScalarArg, Template};
use kiln_compiler::ir::{Attr, Axis, Span};
use kiln_compiler::ops::Scalar;
use kiln_examples::gpt::B;
use std::hint::black_box;

/// Work that can be done again and again.
type Case = Box<dyn FnMut() -> Result<()>>;

/// Makes the operands of a case.
type Build = fn() -> Result<Case>;

/// The cases in the order of the table.
const CASES: [(&str, Build); 13] = [
    ("product_nn", || product(["ik", "kj"], [256, 704, 256])),
    ("product_nt", || product(["ik", "jk"], [256, 256, 704])),
    ("product_tn", || product(["ki", "kj"], [256, 704, 256])),
    ("product_skinny", || product(["ik", "kj"], [4, 2048, 512])),
    ("attention_forward", || attention(Direction::Forward)),
    ("attention_backward", || attention(Direction::Backward)),
    ("loss_forward", || loss(Direction::Forward)),
    ("loss_backward", || loss(Direction::Backward)),
    ("gated_map", gated_map),
    ("rms_norm_rows", rms_norm_rows),
    ("gather_backward", gather_backward),
    ("adamw", adamw_range),
    ("step_xs", step_xs),
];

const POOL: Pool = Pool::serial();
const F32: DType = DType::F32;

/// A kernel or its derivative.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// Names of all cases.
pub fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|(name, _)| *name)
}

/// Runs a case twice, the second time as [`counted_region`].
///
/// # Errors
/// If there is no such case, the kernels would use other instructions than x86-64-v3, or the case fails.
pub fn run(name: &str) -> Result<()> {
    let (_, case) = CASES.iter().find(|(n, _)| *n == name).ok_or_else(|| format!("no case `{name}`"))?;
    if Isa::detect() != Isa::V3 {
        return Err(format!("counts are of x86-64-v3 and this is {:?}: set KILN_CPU=x86-64-v3", Isa::detect()).into());
    }
    let mut case = case()?;
    case()?;
    counted_region(&mut *case)
}

/// What callgrind collects: it finds this function by its name.
#[inline(never)]
pub fn counted_region(case: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    // A call in tail position would be a jump, and the region would end where it begins.
    black_box(case())
}

/// Numbers of an operand.
#[derive(Clone, Copy)]
enum Values {
    /// Uniform in [−1, 1).
    Floats(usize),
    /// That many ids below a bound.
    Ids(usize, usize),
}

/// Operands and results in one arena.
struct Operands<const N: usize> {
    memory: Arena,
    at: [(usize, usize, DType); N],
}

impl<const N: usize> Operands<N> {
    fn new(values: [Values; N]) -> Result<Operands<N>> {
        let mut end = 0;
        let at = values.map(|v| {
            let (n, dtype) = match v {
                Values::Floats(n) => (n, F32),
                Values::Ids(n, _) => (n, DType::I32),
            };
            let begin = end;
            end = align(begin + n * dtype.bytes());
            (begin, n, dtype)
        });
        let mut memory = Arena::new(end, &POOL, || vec![("operands of the case".to_owned(), end)])?;
        for (stream, (v, (begin, n, _))) in values.into_iter().zip(at).enumerate() {
            let drawn = |i: usize| random::uniform(stream as u64, i as u64, 0);
            match v {
                Values::Floats(_) => {
                    memory.f32s_mut(begin, n).iter_mut().enumerate().for_each(|(i, x)| *x = 2.0 * drawn(i) - 1.0);
                }
                Values::Ids(_, below) => {
                    let id = |i: usize| ((drawn(i) * below as f32) as usize).min(below - 1) as i32;
                    memory.i32s_mut(begin, n).iter_mut().enumerate().for_each(|(i, x)| *x = id(i));
                }
            }
        }
        Ok(Operands { memory, at })
    }

    fn views(&self) -> [Buf; N] {
        self.at.map(|(begin, n, dtype)| self.memory.buf(begin, n * dtype.bytes(), dtype))
    }
}

/// An axis for each letter.
fn axes(letters: &str) -> Vec<Axis> {
    letters.chars().map(|c| Axis::new(&c.to_string())).collect()
}

fn sizes<const N: usize>(letters: &str, sizes: [usize; N]) -> Sizes {
    axes(letters).into_iter().zip(sizes).collect()
}

/// C[i, j] = Σₖ A·B of m × n × k.
fn product([a, b]: [&str; 2], [m, n, k]: [usize; 3]) -> Result<Case> {
    let plan = GemmPlan::new(&axes(a), &axes(b), &axes("ij"), &sizes("ijk", [m, n, k]), POOL.threads())?;
    let operands = Operands::new([m * k, k * n, m * n].map(Values::Floats))?;
    let mut workspace = vec![0.0; plan.workspace_len()];
    Ok(Box::new(move || {
        let [a, b, c] = operands.views();
        plan.run(&POOL, a, b, c, Epilogue::STORE, &mut workspace);
        Ok(())
    }))
}

/// Causal attention of four heads, as one sequence of S has.
fn attention(direction: Direction) -> Result<Case> {
    let (heads, s, head) = (4, 256, 64);
    let (q, k) = (axes("hsk"), axes("htk"));
    let plan = AttentionPlan::new(&q, &k, &sizes("hstk", [heads, s, s, head]), true, POOL.threads());
    let n = heads * s * head;
    let lens = [n, n, n, n, heads * s, n, n, n, n];
    let operands = Operands::new(lens.map(Values::Floats))?;
    let mut workspace = vec![0.0; plan.workspace_len().max(plan.backward_workspace_len())];
    let [q, k, v, o, lse, ..] = operands.views();
    plan.forward(&POOL, q, k, v, o, lse, &[], &mut workspace);
    Ok(Box::new(move || {
        let [q, k, v, o, lse, d_o, d_q, d_k, d_v] = operands.views();
        match direction {
            Direction::Forward => plan.forward(&POOL, q, k, v, o, lse, &[], &mut workspace),
            Direction::Backward => {
                plan.backward(&POOL, [q, k, v, o, lse, d_o], [d_q, d_k, d_v], [&[]; 3], &mut workspace);
            }
        }
        Ok(())
    }))
}

/// Fewer rows and classes than S has: valgrind calls a function for each fused multiply-add of each lane.
fn loss(direction: Direction) -> Result<Case> {
    let (rows, classes, d) = (64, 1000, 256);
    let plan = LossPlan::new(&axes("rd"), &axes("vd"), &sizes("rvd", [rows, classes, d]), POOL.threads());
    let [sum, count, d_sum] = [Values::Floats(1); 3];
    let [x, w, lse, dx, dw] = [rows * d, classes * d, rows, rows * d, classes * d].map(Values::Floats);
    let operands = Operands::new([x, w, Values::Ids(rows, classes), sum, count, lse, d_sum, dx, dw])?;
    let mut workspace = vec![0.0; plan.workspace_len().max(plan.backward_workspace_len(F32))];
    let [x, w, targets, sum, count, lse, ..] = operands.views();
    plan.forward(&POOL, [x, w, targets], LossResults { sum, count, lse }, &mut workspace);
    Ok(Box::new(move || {
        let [x, w, targets, sum, count, lse, d_sum, dx, dw] = operands.views();
        match direction {
            Direction::Forward => {
                plan.forward(&POOL, [x, w, targets], LossResults { sum, count, lse }, &mut workspace);
            }
            Direction::Backward => {
                let operands = LossOperands { x, w, targets, lse, d_sum };
                let dw = Gradient { to: dw, rounds: &[], accumulate: false };
                plan.backward(&POOL, operands, dx, &[], dw, &mut workspace);
            }
        }
        Ok(())
    }))
}

/// A region of f32 (and i32) without random numbers.
fn region(template: Template, domain: &str, rows: usize, inputs: Vec<Layout>, code: Vec<Instr>) -> Region {
    let domain = axes(domain);
    let spans = vec![Span::default(); code.len()];
    Region {
        template,
        domain,
        rows,
        dtypes: vec![F32, DType::I32],
        inputs,
        extra_axes: Vec::new(),
        scalars: Vec::new(),
        streams: Vec::new(),
        code,
        outputs: Vec::new(),
        spans,
        names: Vec::new(),
    }
}

/// A buffer of f32 over some axes of the domain.
fn over(axes: &[usize]) -> Layout {
    Layout { axes: axes.iter().map(|&a| Index::Domain(a)).collect(), dtype: 0 }
}

/// Runs a region whose last buffers are its outputs.
fn tiles<const N: usize>(region: &Region, sizes: &Sizes, values: [Values; N]) -> Result<Case> {
    let program = TileProgram::new(region, sizes, |d| d, |_| None, POOL.threads())?;
    let operands = Operands::new(values)?;
    let mut workspace = vec![0.0; program.workspace_len()];
    let n = region.inputs.len();
    Ok(Box::new(move || {
        let views = operands.views();
        let (inputs, outputs) = views.split_at(n);
        let args = TileArgs { inputs, outputs, accumulate: &[], streams: &[], step: 0 };
        program.run(&POOL, &args, &mut workspace);
        Ok(())
    }))
}

/// SwiGLU's map: x·σ(x)·y.
fn gated_map() -> Result<Case> {
    use Instr::{Binary, Load, Unary};
    let (rows, columns) = (256, 704);
    let code = vec![Load(0), Unary(Scalar::Logistic, 0), Binary(Scalar::Mul, 0, 1), Load(1), Binary(Scalar::Mul, 2, 3)];
    let mut region = region(Template::FlatMap, "rf", 2, vec![over(&[0, 1]), over(&[0, 1])], code);
    region.outputs = vec![(4, over(&[0, 1]))];
    tiles(&region, &sizes("rf", [rows, columns]), [Values::Floats(rows * columns); 3])
}

/// RMSNorm: x·w / √(mean(x²) + ε), and the reciprocal root.
fn rms_norm_rows() -> Result<Case> {
    use Instr::{Binary, Load, RowSum, Unary};
    let (rows, d) = (512, 256);
    let code = vec![
        Load(0),
        Binary(Scalar::Mul, 0, 0),
        RowSum(1),
        Instr::Scalar(0),
        Binary(Scalar::Mul, 2, 3),
        Instr::Scalar(1),
        Binary(Scalar::Add, 4, 5),
        Unary(Scalar::Rsqrt, 6),
        Binary(Scalar::Mul, 0, 7),
        Load(1),
        Binary(Scalar::Mul, 8, 9),
    ];
    let mut region = region(Template::Row, "rd", 1, vec![over(&[0, 1]), over(&[1])], code);
    let epsilon = ScalarArg::Literal(Attr::Float(1e-5));
    region.scalars = vec![ScalarArg::Size { axes: axes("d"), recip: true }, epsilon];
    region.outputs = vec![(10, over(&[0, 1])), (7, over(&[0]))];
    tiles(&region, &sizes("rd", [rows, d]), [rows * d, d, rows * d, rows].map(Values::Floats))
}

/// The derivative of a gather: ids are sorted, then rows with one id are summed.
fn gather_backward() -> Result<Case> {
    let (rows, ids, d) = (2048, 4096, 128);
    let list = |dtype: usize| Layout { axes: Vec::new(), dtype };
    let sum = Instr::SegmentSum { values: 0, order: 1, starts: 2, ends: 3 };
    let mut region = region(Template::SegmentSum, "vd", 1, vec![list(0), list(1), list(1), list(1)], vec![sum]);
    region.outputs = vec![(0, over(&[0, 1]))];
    let program = TileProgram::new(&region, &sizes("vd", [ids, d]), |d| d, |_| None, POOL.threads())?;
    let sort = SortPlan::new(rows, ids, POOL.threads());
    let [order, starts, ends] = [rows, ids, ids].map(|n| Values::Ids(n, 1));
    let [values, table] = [rows * d, ids * d].map(Values::Floats);
    let operands = Operands::new([Values::Ids(rows, ids), values, order, starts, ends, table])?;
    let mut workspace = vec![0.0; sort.workspace_len().max(program.workspace_len())];
    Ok(Box::new(move || {
        let [ids, values, order, starts, ends, table] = operands.views();
        sort.run(&POOL, ids, order, starts, ends, &mut workspace);
        let inputs = [values, order, starts, ends];
        let args = TileArgs { inputs: &inputs, outputs: &[table], accumulate: &[], streams: &[], step: 0 };
        program.run(&POOL, &args, &mut workspace);
        Ok(())
    }))
}

/// AdamW of a quarter of a million parameters.
fn adamw_range() -> Result<Case> {
    const PARAMETERS: usize = 1 << 18;
    let rule = AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1 };
    let step = rule.step(3e-4, 10, 1.0, Group::Decay);
    let operands = Operands::new([Values::Floats(PARAMETERS); 4])?;
    let [.., v] = operands.views();
    // Second moments are squares.
    v.store(0, &vec![0.25; PARAMETERS]);
    Ok(Box::new(move || {
        let [p, g, m, v] = operands.views();
        adamw(&POOL, &step, p, g, [m, v], &[]);
        Ok(())
    }))
}

/// One training step of XS on a single sequence, its report included: the whole batch would take valgrind ten minutes.
fn step_xs() -> Result<Case> {
    let mut model = xs(false);
    let single = |&(axis, n): &(Axis, usize)| (axis, if axis.name() == B::NAME { 1 } else { n });
    model.sizes = model.sizes.iter().map(|pair| single(&pair)).collect();
    let mut trainer = trainer(&model, 1).build()?;
    let batch = model.batch(&model.tokens(1), 0);
    Ok(Box::new(move || {
        trainer.submit(&batch)?;
        trainer.report()?;
        Ok(())
    }))
}
