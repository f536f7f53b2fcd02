//! Kernels for CUDA cards, run: the code that is made for a card, compiled for the CPU with CUDA's units, planes and tensor cores emulated, gives
//! what f64 gives, to the last element and whatever the order of units.

use kiln::DType;
use kiln::device::cube::{Arch, CudaCompiler, CudaSource, LibraryKernel};
use kiln_tests::emulation::{Emulated, Launch};
use kiln_tests::skips;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// Attention over q \[heads, s, k\] and keys \[heads / group, t, k\].
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    /// Of the queries' numbers: large ones make probabilities of nearly 0 and 1.
    width: f64,
}

/// Tiles that are full, one that is not, one query, more keys than queries and fewer, groups.
const SHAPES: [Shape; 5] = [
    Shape { heads: 1, group: 1, s: 128, t: 128, width: 1.0 },
    Shape { heads: 3, group: 3, s: 75, t: 75, width: 1.0 },
    Shape { heads: 2, group: 1, s: 1, t: 70, width: 1.0 },
    Shape { heads: 2, group: 2, s: 37, t: 201, width: 8.0 },
    Shape { heads: 2, group: 1, s: 133, t: 61, width: 2.0 },
];

/// Which kernel of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    Forward,
    Queries,
    Keys,
}

impl Walk {
    const ALL: [Walk; 3] = [Walk::Forward, Walk::Queries, Walk::Keys];
}

/// Which form of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A unit for each query or key.
    Scalar,
    /// Through shared memory.
    Tiled,
    /// On tensor cores.
    Mma,
}

/// A kernel in one form.
#[derive(Clone, Copy, Debug)]
struct Case {
    walk: Walk,
    form: Form,
    dtype: DType,
    head: usize,
    causal: bool,
}

impl Case {
    fn kernel(&self) -> LibraryKernel {
        let Case { dtype, head, causal, .. } = *self;
        let (types, round) = ([dtype; 4], (dtype != DType::F32).then_some(dtype));
        let rounds = [round; 2];
        match (self.walk, self.form) {
            (Walk::Forward, Form::Scalar) => LibraryKernel::Attention { types, round, head, causal },
            (Walk::Queries, Form::Scalar) => LibraryKernel::AttentionQueries { types, round, head, causal },
            (Walk::Keys, Form::Scalar) => LibraryKernel::AttentionKeys { types, rounds, head, causal },
            (Walk::Forward, Form::Tiled) => LibraryKernel::AttentionTiled { types, round, head, causal },
            (Walk::Queries, Form::Tiled) => LibraryKernel::AttentionQueriesTiled { types, round, head, causal },
            (Walk::Keys, Form::Tiled) => LibraryKernel::AttentionKeysTiled { types, rounds, head, causal },
            (Walk::Forward, Form::Mma) => LibraryKernel::AttentionMma { types, round, head, causal },
            (Walk::Queries, Form::Mma) => LibraryKernel::AttentionQueriesMma { types, round, head, causal },
            (Walk::Keys, Form::Mma) => LibraryKernel::AttentionKeysMma { types, rounds, head, causal },
        }
    }

    /// Cubes of `units` that a launch takes.
    fn cubes(&self, shape: Shape, units: u32) -> u32 {
        let Shape { heads, group, s, t, .. } = shape;
        match (self.form, self.walk) {
            (Form::Mma | Form::Tiled, _) => self.kernel().attention_cubes([heads, group, s, t]) as u32,
            (Form::Scalar, Walk::Forward | Walk::Queries) => ((heads * s) as u32).div_ceil(units),
            (Form::Scalar, Walk::Keys) => ((heads / group * t) as u32).div_ceil(units),
        }
    }

    fn source(&self) -> Result<CudaSource, Failed> {
        Ok(CudaCompiler::new(Arch::SM90A).library(&self.kernel())?)
    }
}

/// Numbers of a bell curve's width from a counter.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        let uniform = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 40) as f64 / (1u64 << 24) as f64
        };
        (0..4).map(|_| uniform(&mut self.0)).sum::<f64>() * 2.0 - 4.0
    }

    fn tensor(&mut self, len: usize, dtype: DType, width: f64) -> Tensor {
        Tensor::new((0..len).map(|_| self.next() * width).collect(), dtype)
    }
}

/// Values of a type, and as a card stores them.
#[derive(Clone)]
struct Tensor {
    values: Vec<f64>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(values: Vec<f64>, dtype: DType) -> Tensor {
        let bytes = values.iter().flat_map(|&x| store(x, dtype)).collect::<Vec<u8>>();
        Tensor { values: load(&bytes, dtype), bytes }
    }
}

fn store(x: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        _ => (x as f32).to_le_bytes().to_vec(),
    }
}

fn load(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f64()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f64()).collect(),
        _ => bytes.chunks_exact(4).map(|c| f64::from(f32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect(),
    }
}

/// Half a step of a type's numbers near 1, and near 0.
fn steps(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::Bf16 => (2f64.powi(-8), 0.0),
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (2f64.powi(-24), 0.0),
    }
}

/// What a kernel should give, and how far from it rounding can lead.
struct Expected {
    values: Vec<f64>,
    bounds: Vec<f64>,
}

impl Expected {
    fn zeros(len: usize) -> Expected {
        Expected { values: vec![0.0; len], bounds: vec![0.0; len] }
    }

    fn add(&mut self, i: usize, value: f64, bound: f64) {
        self.values[i] += value;
        self.bounds[i] += bound;
    }

    /// Times `factor`, then rounded to `dtype`.
    fn stored(mut self, factor: f64, dtype: DType) -> Expected {
        let (u, tiny) = steps(dtype);
        for (value, bound) in self.values.iter_mut().zip(&mut self.bounds) {
            *value *= factor;
            *bound = *bound * factor + u * value.abs() + tiny;
        }
        self
    }
}

/// Operands and results.
struct Attention {
    shape: Shape,
    case: Case,
    /// q, k, v and ō.
    operands: [Tensor; 4],
    /// o, lse, q̄, δ, k̄, v̄.
    results: [Expected; 6],
}

/// Error of a sum of f32 products, relative to the sum of their sizes: far more than the sums of K ≤ 128 terms and of exponents make.
const F32_SUM: f64 = 1e-5;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Σ|a·b|.
fn size(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).sum()
}

impl Attention {
    /// Everything in f64, but that the derivative reads o and lse as they are stored.
    fn new(case: Case, shape: Shape) -> Attention {
        let Case { dtype, head, causal, .. } = case;
        let Shape { heads, group, s, t, width } = shape;
        let mut numbers = Numbers(1 + (head + s * 7 + t * 31) as u64);
        let (of_queries, of_keys) = (heads * s * head, heads / group * t * head);
        let lengths = [(of_queries, width), (of_keys, 1.0), (of_keys, 1.0), (of_queries, 1.0)];
        let operands = lengths.map(|(len, width)| numbers.tensor(len, dtype, width));
        let [q, k, v, d_o] = operands.each_ref().map(|x| x.values.as_slice());
        let (u, tiny) = steps(dtype);
        let scale = 1.0 / (head as f64).sqrt();
        let [mut o, mut d_q] = [(); 2].map(|()| Expected::zeros(of_queries));
        let [mut lse, mut delta] = [(); 2].map(|()| Expected::zeros(heads * s));
        let [mut d_k, mut d_v] = [(); 2].map(|()| Expected::zeros(of_keys));
        for row in 0..heads * s {
            let key_rows = row / s / group * t;
            let seen = if causal { (row % s + 1 + t).saturating_sub(s).min(t) } else { t };
            let line = |x: &'_ [f64], at: usize| x[at * head..][..head].to_vec();
            let (query, d) = (line(q, row), line(d_o, row));
            let scores: Vec<f64> = (0..seen).map(|j| dot(&query, &line(k, key_rows + j)) * scale).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|x| (x - highest).exp()).sum();
            let norm = if seen == 0 { f64::NEG_INFINITY } else { highest + total.ln() };
            let score_error = F32_SUM * (1.0 + scores.iter().fold(0.0f64, |a, x| a.max(x.abs())));
            lse.add(row, norm, score_error);
            let weights: Vec<f64> = scores.iter().map(|x| (x - norm).exp()).collect();
            let relative = u + score_error;
            for (j, weight) in weights.iter().enumerate() {
                for x in 0..head {
                    let value = v[(key_rows + j) * head + x];
                    o.add(row * head + x, weight * value, (relative * weight + tiny) * value.abs());
                }
            }
            let stored: Vec<f64> = line(&o.values, row).iter().flat_map(|&x| load(&store(x, dtype), dtype)).collect();
            let own = dot(&d, &stored);
            delta.add(row, own, F32_SUM * size(&d, &stored));
            for (j, weight) in weights.iter().enumerate() {
                let (key, value) = (line(k, key_rows + j), line(v, key_rows + j));
                let d_score = weight * (dot(&d, &value) - own);
                let error = (u + score_error) * d_score.abs()
                    + weight * F32_SUM * (size(&d, &value) + size(&d, &stored))
                    + tiny;
                for x in 0..head {
                    let at = (key_rows + j) * head + x;
                    d_q.add(row * head + x, d_score * key[x], error * key[x].abs());
                    d_k.add(at, d_score * query[x], error * query[x].abs());
                    d_v.add(at, weight * d[x], (relative * weight + tiny) * d[x].abs());
                }
            }
        }
        let [o, d_q, d_k, d_v] =
            [(o, 1.0), (d_q, scale), (d_k, scale), (d_v, 1.0)].map(|(x, factor)| x.stored(factor, dtype));
        Attention { shape, case, operands, results: [o, lse, d_q, delta, d_k, d_v] }
    }

    /// Buffers of the walk; outputs are poison.
    fn buffers(&self) -> Vec<Vec<u8>> {
        let [q, k, v, d_o] = self.operands.each_ref().map(|x| x.bytes.clone());
        let [o, lse, delta] = [(0, self.case.dtype), (1, DType::F32), (3, DType::F32)]
            .map(|(i, dtype)| Tensor::new(self.results[i].values.clone(), dtype).bytes);
        let poison = |like: &Vec<u8>| vec![0xff; like.len()];
        match self.case.walk {
            Walk::Forward => {
                let outputs = [poison(&q), poison(&lse)];
                [vec![q, k, v], outputs.to_vec()].concat()
            }
            Walk::Queries => {
                let outputs = [poison(&q), poison(&lse)];
                [vec![q, k, v, o, lse, d_o], outputs.to_vec()].concat()
            }
            Walk::Keys => {
                let outputs = [poison(&k), poison(&k)];
                [vec![q, k, v, lse, d_o, delta], outputs.to_vec()].concat()
            }
        }
    }

    /// Results with their names, their places among the buffers and their types.
    fn expected(&self) -> [(&'static str, usize, DType, &Expected); 2] {
        let (dtype, [o, lse, d_q, delta, d_k, d_v]) = (self.case.dtype, &self.results);
        match self.case.walk {
            Walk::Forward => [("o", 3, dtype, o), ("lse", 4, DType::F32, lse)],
            Walk::Queries => [("q̄", 6, dtype, d_q), ("δ", 7, DType::F32, delta)],
            Walk::Keys => [("k̄", 6, dtype, d_k), ("v̄", 7, dtype, d_v)],
        }
    }

    /// Runs it with units in the order of `seed`; gives the buffers and the largest share of a bound that an error takes.
    fn run(&self, emulated: &mut Emulated, seed: u32) -> Result<(Vec<Vec<u8>>, f64), String> {
        let Shape { heads, group, s, t, .. } = self.shape;
        let mut buffers = self.buffers();
        let positions = [heads, group, s, t].map(|n| n as u32);
        let numbers = [1.0 / (self.case.head as f32).sqrt()];
        let cubes = [self.case.cubes(self.shape, emulated.units()), 1];
        emulated.launch(&mut buffers, &Launch { cubes, positions: &positions, numbers: &numbers, seed })?;
        let mut worst = 0.0f64;
        for (name, at, dtype, expected) in self.expected() {
            for (i, (got, want)) in load(&buffers[at], dtype).iter().zip(&expected.values).enumerate() {
                let share = if got == want { 0.0 } else { (got - want).abs() / expected.bounds[i] };
                if share.is_nan() || share > 1.0 {
                    return Err(format!(
                        "{:?} {name}[{i}] is {got}, not {want} (within {:e})",
                        self.shape, expected.bounds[i]
                    ));
                }
                worst = worst.max(share);
            }
        }
        Ok((buffers, worst))
    }
}

/// Orders of units: as numbered, and the other way round, each turn begun elsewhere.
const SEEDS: [u32; 2] = [0, 75];

fn check(case: Case) -> Result<(), Failed> {
    let mut emulated = Emulated::compile(&case.source()?)?;
    for shape in SHAPES {
        let attention = Attention::new(case, shape);
        let (first, share) = attention.run(&mut emulated, SEEDS[0])?;
        println!("{case:?} {shape:?}: {share:.3} of the bound");
        for seed in &SEEDS[1..] {
            if attention.run(&mut emulated, *seed)?.0 != first {
                return Err(format!("{shape:?}: the order of units changes the result").into());
            }
        }
    }
    Ok(())
}

/// The case must fail when `from` is replaced in its code.
fn notices(case: Case, from: &str, to: &str) -> Result<(), Failed> {
    let mut source = case.source()?;
    if !source.code.contains(from) {
        return Err(format!("the code has no `{from}`").into());
    }
    source.code = source.code.replace(from, to);
    let mut emulated = Emulated::compile(&source)?;
    for shape in SHAPES {
        let attention = Attention::new(case, shape);
        let mut first = None;
        for seed in SEEDS {
            match attention.run(&mut emulated, seed) {
                Err(_) => return Ok(()),
                Ok((buffers, _)) if first.get_or_insert_with(|| buffers.clone()) != &buffers => return Ok(()),
                Ok(_) => {}
            }
        }
    }
    Err(format!("`{to}` instead of `{from}` is not noticed").into())
}

fn cases() -> Vec<Case> {
    let forms = [
        (Form::Tiled, DType::F32, 64, true),
        (Form::Tiled, DType::F32, 128, false),
        (Form::Tiled, DType::Bf16, 20, true),
        (Form::Mma, DType::Bf16, 64, true),
        (Form::Mma, DType::Bf16, 64, false),
        (Form::Mma, DType::Bf16, 128, true),
        (Form::Mma, DType::Bf16, 48, true),
        (Form::Mma, DType::Bf16, 16, true),
        (Form::Mma, DType::F16, 64, true),
        (Form::Mma, DType::F16, 128, false),
        (Form::Scalar, DType::F32, 64, true),
        (Form::Scalar, DType::Bf16, 20, false),
    ];
    let of_walk = |walk| forms.map(|(form, dtype, head, causal)| Case { walk, form, dtype, head, causal });
    Walk::ALL.into_iter().flat_map(of_walk).collect()
}

/// Mistakes in the code of a kernel on tensor cores, of which the second is one through shared memory too: what they are, and what is replaced
/// by what.
const MISTAKES: [(&str, &str, &str); 3] = [
    ("a matrix that is not transposed", ".trans.shared", ".shared"),
    ("no barrier", "__syncthreads();", ""),
    ("wrong powers", "exp2f(", "1.1f * exp2f("),
];

/// Losses of five rows and at once the cotangents of their logits, over two cubes; row 1 has no target.
fn loss() -> Result<(), Failed> {
    const ROWS: usize = 5;
    const VOCAB: usize = 36;
    const FIRST: usize = 2;
    const WIDTH: usize = 4;
    const D_SUM: f64 = 0.75;
    let kernel = LibraryKernel::LossRowsRounded { to: DType::Bf16, width: WIDTH };
    let mut emulated = Emulated::compile(&CudaCompiler::new(Arch::SM90A).library(&kernel)?)?;
    let logits: Vec<f64> = (0..ROWS * VOCAB).map(|i| ((i * 53 % 89) as f64 - 44.0) / 8.0).collect();
    let targets: [i32; FIRST + ROWS] = [9, 9, 0, -1, 35, 17, 4];
    let poison = |bytes: usize| vec![0xff; bytes];
    let of_rows = || poison(4 * (FIRST + ROWS));
    for seed in SEEDS {
        let targets_bytes = targets.iter().flat_map(|t| t.to_le_bytes()).collect();
        let mut buffers = vec![
            logits.iter().flat_map(|&x| store(x, DType::F32)).collect(),
            targets_bytes,
            of_rows(),
            of_rows(),
            of_rows(),
            store(D_SUM, DType::F32).to_vec(),
            poison(2 * ROWS * VOCAB),
        ];
        let positions = [FIRST, ROWS, VOCAB / WIDTH].map(|n| n as u32);
        emulated.launch(&mut buffers, &Launch { cubes: [2, 1], positions: &positions, numbers: &[], seed })?;
        let [lse, losses, counted] = [2, 3, 4].map(|i| load(&buffers[i], DType::F32));
        let found = load(&buffers[6], DType::Bf16);
        let (u, _) = steps(DType::Bf16);
        let near = |what: &str, got: f64, want: f64, relative: f64| match (got - want).abs()
            <= relative * want.abs() + F32_SUM
        {
            true => Ok(()),
            false => Err(Failed::from(format!("{what} is {got}, not {want}"))),
        };
        for row in 0..ROWS {
            let (of_row, target) = (&logits[row * VOCAB..(row + 1) * VOCAB], targets[FIRST + row]);
            let total = of_row.iter().map(|l| l.exp()).sum::<f64>().ln();
            let counts = target >= 0;
            near("lse", lse[FIRST + row], total, F32_SUM)?;
            near("a count", counted[FIRST + row], f64::from(u8::from(counts)), 0.0)?;
            let loss = if counts { total - of_row[target as usize] } else { 0.0 };
            near("a loss", losses[FIRST + row], loss, F32_SUM)?;
            for (v, l) in of_row.iter().enumerate() {
                let hit = f64::from(u8::from(v as i32 == target));
                let want = if counts { ((l - total).exp() - hit) * D_SUM } else { 0.0 };
                near("a cotangent", found[row * VOCAB + v], want, u + F32_SUM)?;
            }
        }
        // Rows before the first are another chunk's.
        assert!(lse[..FIRST].iter().all(|x| x.is_nan()), "{lse:?}");
    }
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for case in cases() {
        let Case { walk, form, dtype, head, causal } = case;
        let mask = if causal { " causal" } else { "" };
        let name = format!("emulated/{walk:?}/{form:?} {dtype} {head}{mask}").to_lowercase();
        trials.push(trial(name, move || check(case)));
    }
    trials.push(trial("emulated/losses with cotangents".to_owned(), loss));
    for walk in Walk::ALL {
        let case = Case { walk, form: Form::Mma, dtype: DType::Bf16, head: 64, causal: true };
        for (what, from, to) in MISTAKES {
            trials.push(trial(format!("emulated/{walk:?}/notices {what}").to_lowercase(), move || {
                notices(case, from, to)
            }));
        }
        let (case, [_, (what, from, to), _]) = (Case { form: Form::Tiled, dtype: DType::F32, ..case }, MISTAKES);
        trials.push(trial(format!("emulated/{walk:?}/tiled notices {what}").to_lowercase(), move || {
            notices(case, from, to)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A case that is skipped, and counted, where there is no g++.
fn trial(name: String, run: impl Fn() -> Result<(), Failed> + Send + Sync + 'static) -> Trial {
    let run = Arc::new(run);
    Trial::test(name.clone(), move || match skips::no_compiler() {
        None => run(),
        Some(reason) => {
            skips::skip(&name, &reason);
            Ok(())
        }
    })
}
