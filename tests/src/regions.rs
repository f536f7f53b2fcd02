//! Regions for tests of kernels: one for each template and index form, with the sizes to run them at.

use kiln_compiler::fuse::{Index, Instr, Layout, Region, ScalarArg, Stream, Template};
use kiln_compiler::interp::{Array, round};
use kiln_compiler::ir::{Attr, Axis, DType, Sizes, Span};
use kiln_compiler::ops::Scalar;

/// A region, and where to run it.
pub struct Case {
    /// Name of the kernel.
    pub name: &'static str,
    /// The region.
    pub region: Region,
    /// Sizes, each set a run of its own.
    pub sizes: Vec<Vec<(&'static str, usize)>>,
    /// Element types of the slots, each set a run of its own.
    pub dtypes: Vec<Vec<DType>>,
    /// Its operands.
    pub operands: fn(&Case, &Sizes, &[DType]) -> Vec<Array>,
    /// How results are compared.
    pub matching: Match,
}

/// How near results must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Bit for bit.
    Exact,
    /// To rounding errors.
    Close,
    /// As `Close`, and roundings inside the program may fall to either side.
    Rounded,
}

impl Case {
    /// Sizes number `i`.
    pub fn bound(&self, i: usize) -> Sizes {
        self.sizes[i].iter().map(|&(a, n)| (Axis::new(a), n)).collect()
    }
}

use DType::{Bf16, Bool, F16, F32, I32};
use Index::{Domain, Rotated, Value};
use Instr::{Binary, ColumnSum, HalfSign, Iota, Load, Round, RowMax, RowSum, Select, Unary, Uniform};

struct Draft(Case);

fn draft(name: &'static str, template: Template, domain: &[&str], rows: usize, dtypes: &[DType]) -> Draft {
    let region = Region {
        template,
        domain: domain.iter().map(|a| Axis::new(a)).collect(),
        rows,
        dtypes: dtypes.to_vec(),
        inputs: Vec::new(),
        extra_axes: Vec::new(),
        scalars: Vec::new(),
        streams: Vec::new(),
        code: Vec::new(),
        outputs: Vec::new(),
        spans: Vec::new(),
        names: Vec::new(),
    };
    let dtypes = vec![dtypes.to_vec()];
    Draft(Case { name, region, sizes: Vec::new(), dtypes, operands: plain, matching: Match::Close })
}

impl Draft {
    fn input(mut self, name: &str, axes: &[Index], dtype: usize) -> Self {
        self.0.region.inputs.push(Layout { axes: axes.to_vec(), dtype });
        self.0.region.names.push(name.to_owned());
        self
    }

    fn code(mut self, code: &[Instr]) -> Self {
        self.0.region.code = code.to_vec();
        self.0.region.spans = vec![Span::default(); code.len()];
        self
    }

    fn literal(mut self, x: f64) -> Self {
        self.0.region.scalars.push(ScalarArg::Literal(Attr::Float(x)));
        self
    }

    fn size_recip(mut self, axes: &[&str]) -> Self {
        let axes = axes.iter().map(|a| Axis::new(a)).collect();
        self.0.region.scalars.push(ScalarArg::Size { axes, recip: true });
        self
    }

    fn output(mut self, name: &str, reg: usize, axes: &[Index], dtype: usize) -> Self {
        self.0.region.outputs.push((reg, Layout { axes: axes.to_vec(), dtype }));
        self.0.region.names.push(name.to_owned());
        self
    }

    fn at(mut self, sizes: &[(&'static str, usize)]) -> Self {
        self.0.sizes.push(sizes.to_vec());
        self
    }

    fn matching(mut self, matching: Match) -> Self {
        self.0.matching = matching;
        self
    }

    fn operands(mut self, operands: fn(&Case, &Sizes, &[DType]) -> Vec<Array>) -> Self {
        self.0.operands = operands;
        self
    }

    fn also(mut self, dtypes: &[DType]) -> Self {
        self.0.dtypes.push(dtypes.to_vec());
        self
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let drafts = [
        silu_mul(),
        broadcast_add(),
        permuted(),
        rope(),
        rms_norm(),
        softmax(),
        rms_norm_backward(),
        masked_softmax(),
        embedding(),
        embedding_backward(),
        dropout(),
        rounding(),
        scalars(),
        column_of_rows(),
        math(),
    ];
    drafts.into_iter().map(|d| d.0).collect()
}

fn silu_mul() -> Draft {
    let all = [Domain(0), Domain(1), Domain(2)];
    draft("silu_mul", Template::FlatMap, &["B", "S", "K"], 3, &[F32, F32])
        .input("gate", &all, 0)
        .input("up", &all, 0)
        .code(&[
            Load(0),
            Unary(Scalar::Logistic, 0),
            Binary(Scalar::Mul, 0, 1),
            Round(0, 2),
            Load(1),
            Binary(Scalar::Mul, 3, 4),
            Round(1, 5),
        ])
        .output("hidden", 6, &all, 1)
        .matching(Match::Rounded)
        .also(&[Bf16, Bf16])
        .also(&[F16, F32])
        .at(&[("B", 1), ("S", 1), ("K", 1)])
        .at(&[("B", 1), ("S", 3), ("K", 5)])
        .at(&[("B", 2), ("S", 17), ("K", 24)])
}

fn broadcast_add() -> Draft {
    draft("broadcast_add", Template::StridedMap, &["B", "S", "D"], 3, &[F32])
        .input("x", &[Domain(0), Domain(1), Domain(2)], 0)
        .input("bias", &[Domain(2)], 0)
        .input("shift", &[Domain(0), Domain(1)], 0)
        .input("scale", &[], 0)
        .code(&[
            Load(0),
            Load(1),
            Binary(Scalar::Add, 0, 1),
            Load(2),
            Load(3),
            Binary(Scalar::Mul, 3, 4),
            Binary(Scalar::Add, 2, 5),
        ])
        .output("y", 6, &[Domain(0), Domain(1), Domain(2)], 0)
        // The rows' part alone, stored once per row.
        .output("rows", 5, &[Domain(0), Domain(1)], 0)
        .at(&[("B", 1), ("S", 1), ("D", 1)])
        .at(&[("B", 2), ("S", 7), ("D", 13)])
        .at(&[("B", 3), ("S", 5), ("D", 40)])
}

fn permuted() -> Draft {
    draft("permuted", Template::StridedMap, &["B", "H", "S", "K"], 4, &[F32])
        .input("x", &[Domain(0), Domain(2), Domain(1), Domain(3)], 0)
        .input("t", &[Domain(3), Domain(1)], 0)
        .code(&[Load(0), Load(1), Binary(Scalar::Sub, 0, 1), Unary(Scalar::Neg, 0)])
        .output("y", 2, &[Domain(0), Domain(1), Domain(2), Domain(3)], 0)
        .output("z", 3, &[Domain(3), Domain(0), Domain(1), Domain(2)], 0)
        .at(&[("B", 1), ("H", 1), ("S", 1), ("K", 1)])
        .at(&[("B", 2), ("H", 3), ("S", 5), ("K", 7)])
        .at(&[("B", 2), ("H", 4), ("S", 11), ("K", 8)])
}

/// x·cos + rotate_half(x)·half_sign·sin, angle = position · base^(−2i/K), i = k mod K/2; base^(..) = exp(−2i/K · ln base).
fn rope() -> Draft {
    let x = [Domain(0), Domain(1), Domain(2), Domain(3)];
    draft("rope", Template::StridedMap, &["B", "S", "H", "K"], 4, &[F32])
        .input("q", &x, 0)
        .input("q", &[Domain(0), Domain(1), Domain(2), Rotated(3)], 0)
        .input("base", &[], 0)
        .literal(0.5)
        .size_recip(&["K"])
        .code(&[
            Iota(1),                     // 0 position
            Iota(3),                     // 1 k
            HalfSign(3),                 // 2 −1 or 1
            Instr::Scalar(0),            // 3 ½
            Binary(Scalar::Mul, 2, 3),   // 4 −½ or ½
            Binary(Scalar::Add, 4, 3),   // 5 0 or 1
            Instr::Scalar(1),            // 6 1/K
            Binary(Scalar::Div, 3, 6),   // 7 K/2
            Binary(Scalar::Mul, 5, 7),   // 8 0 or K/2
            Binary(Scalar::Sub, 1, 8),   // 9 i
            Binary(Scalar::Mul, 9, 6),   // 10 i/K
            Binary(Scalar::Div, 10, 3),  // 11 2i/K
            Load(2),                     // 12 base
            Unary(Scalar::Log, 12),      // 13 ln base
            Binary(Scalar::Mul, 11, 13), // 14
            Unary(Scalar::Neg, 14),      // 15
            Unary(Scalar::Exp, 15),      // 16 frequency
            Binary(Scalar::Mul, 0, 16),  // 17 angle
            Unary(Scalar::Cos, 17),      // 18
            Unary(Scalar::Sin, 17),      // 19
            Load(0),                     // 20
            Load(1),                     // 21
            Binary(Scalar::Mul, 20, 18), // 22
            Binary(Scalar::Mul, 21, 2),  // 23
            Binary(Scalar::Mul, 23, 19), // 24
            Binary(Scalar::Add, 22, 24), // 25
        ])
        .output("rotated", 25, &x, 0)
        .at(&[("B", 1), ("S", 1), ("H", 1), ("K", 2)])
        .at(&[("B", 2), ("S", 9), ("H", 3), ("K", 6)])
        .at(&[("B", 1), ("S", 70), ("H", 2), ("K", 16)])
}

fn rms_norm() -> Draft {
    let x = [Domain(0), Domain(1), Domain(2)];
    draft("rms_norm", Template::Row, &["B", "S", "D"], 2, &[F32, F32])
        .input("x", &x, 1)
        .input("weight", &[Domain(2)], 0)
        .size_recip(&["D"])
        .literal(1e-5)
        .code(&[
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
            Round(1, 10),
        ])
        .output("normed", 11, &x, 1)
        .output("rstd", 7, &[Domain(0), Domain(1)], 0)
        .also(&[F32, Bf16])
        .at(&[("B", 1), ("S", 1), ("D", 1)])
        .at(&[("B", 2), ("S", 3), ("D", 37)])
        .at(&[("B", 2), ("S", 5), ("D", 264)])
}

fn softmax() -> Draft {
    let x = [Domain(0), Domain(1)];
    draft("softmax", Template::Row, &["R", "V"], 1, &[F32])
        .input("logits", &x, 0)
        .code(&[
            Load(0),
            RowMax(0),
            Binary(Scalar::Sub, 0, 1),
            Unary(Scalar::Exp, 2),
            RowSum(3),
            Binary(Scalar::Div, 3, 4),
        ])
        .output("probabilities", 5, &x, 0)
        .output("largest", 1, &[Domain(0)], 0)
        .at(&[("R", 1), ("V", 1)])
        .at(&[("R", 5), ("V", 31)])
        .at(&[("R", 11), ("V", 132)])
}

/// With μ = mean(dy·w·x): dx = rstd·(dy·w − x·rstd²·μ), dw = Σ over rows of dy·x·rstd.
fn rms_norm_backward() -> Draft {
    let x = [Domain(0), Domain(1), Domain(2)];
    draft("rms_norm_backward", Template::RowColumn, &["B", "S", "D"], 2, &[F32, F32])
        .input("x", &x, 1)
        .input("weight", &[Domain(2)], 0)
        .input("dy", &x, 1)
        .input("rstd", &[Domain(0), Domain(1)], 0)
        .size_recip(&["D"])
        .code(&[
            Load(0),                    // 0 x
            Load(1),                    // 1 w
            Load(2),                    // 2 dy
            Load(3),                    // 3 rstd
            Binary(Scalar::Mul, 2, 1),  // 4 dy·w
            Binary(Scalar::Mul, 4, 0),  // 5 dy·w·x
            RowSum(5),                  // 6
            Instr::Scalar(0),           // 7
            Binary(Scalar::Mul, 6, 7),  // 8 μ
            Binary(Scalar::Mul, 3, 3),  // 9
            Binary(Scalar::Mul, 8, 9),  // 10
            Binary(Scalar::Mul, 0, 10), // 11
            Binary(Scalar::Sub, 4, 11), // 12
            Binary(Scalar::Mul, 12, 3), // 13 dx
            Round(1, 13),               // 14
            Binary(Scalar::Mul, 2, 0),  // 15
            Binary(Scalar::Mul, 15, 3), // 16 dy·x·rstd
            ColumnSum(16),              // 17 dw
        ])
        .output("dx", 14, &x, 1)
        .output("dw", 17, &[Domain(2)], 0)
        .also(&[F32, Bf16])
        .at(&[("B", 1), ("S", 1), ("D", 1)])
        .at(&[("B", 2), ("S", 13), ("D", 37)])
        .at(&[("B", 3), ("S", 7), ("D", 136)])
}

/// Causal scores: an interior of two axes in another order in memory, masks, and a row that depends on its own position.
fn masked_softmax() -> Draft {
    let x = [Domain(1), Domain(0), Domain(2), Domain(3)];
    draft("masked_softmax", Template::Row, &["H", "S", "G", "T"], 2, &[F32, Bool])
        .input("scores", &x, 0)
        .literal(-1e9)
        .code(&[
            Load(0),
            Iota(1),
            Iota(3),
            Binary(Scalar::Le, 2, 1),
            Instr::Scalar(0),
            Select(3, 0, 4),
            RowMax(5),
            Binary(Scalar::Sub, 5, 6),
            Unary(Scalar::Exp, 7),
            RowSum(8),
            Binary(Scalar::Div, 8, 9),
        ])
        .output("attention", 10, &x, 0)
        .output("mask", 3, &[Domain(0), Domain(1), Domain(2), Domain(3)], 1)
        .at(&[("H", 1), ("S", 1), ("G", 1), ("T", 1)])
        .at(&[("H", 2), ("S", 5), ("G", 3), ("T", 5)])
        .at(&[("H", 2), ("S", 8), ("G", 2), ("T", 8)])
}

fn embedding() -> Draft {
    let mut d = draft("embedding", Template::StridedMap, &["B", "S", "D"], 3, &[I32, F32])
        .input("ids", &[Domain(0), Domain(1)], 0)
        .input("table", &[Value(0), Domain(2)], 1)
        .code(&[Load(0), Load(1), Round(1, 1)])
        .output("x", 2, &[Domain(0), Domain(1), Domain(2)], 1)
        .also(&[I32, Bf16])
        .at(&[("B", 1), ("S", 1), ("D", 1), ("V", 1)])
        .at(&[("B", 2), ("S", 11), ("D", 5), ("V", 23)])
        .at(&[("B", 2), ("S", 3), ("D", 68), ("V", 7)]);
    d.0.region.extra_axes = vec![Axis::new("V")];
    d
}

fn embedding_backward() -> Draft {
    draft("embedding_backward", Template::SegmentSum, &["V", "D"], 1, &[F32, I32])
        .input("dy", &[], 0)
        .input("order", &[], 1)
        .input("starts", &[], 1)
        .input("ends", &[], 1)
        .code(&[Instr::SegmentSum { values: 0, order: 1, starts: 2, ends: 3 }])
        .output("dtable", 0, &[Domain(0), Domain(1)], 0)
        .operands(segments)
        .also(&[Bf16, I32])
        .at(&[("V", 1), ("D", 1)])
        .at(&[("V", 9), ("D", 7)])
        .at(&[("V", 13), ("D", 36)])
}

fn dropout() -> Draft {
    let x = [Domain(0), Domain(1), Domain(2)];
    let mut d = draft("dropout", Template::StridedMap, &["B", "S", "D"], 3, &[F32, Bool])
        .input("x", &x, 0)
        .literal(0.25)
        .literal(2.0)
        .literal(0.0)
        .code(&[
            Uniform(0),
            Instr::Scalar(0),
            Binary(Scalar::Ge, 0, 1),
            Load(0),
            Instr::Scalar(1),
            Binary(Scalar::Mul, 3, 4),
            Instr::Scalar(2),
            Select(2, 5, 6),
        ])
        .output("y", 7, &x, 0)
        .output("kept", 2, &x, 1)
        .output("u", 0, &x, 0)
        .matching(Match::Exact)
        .at(&[("B", 1), ("S", 1), ("D", 1)])
        .at(&[("B", 2), ("S", 7), ("D", 11)])
        .at(&[("B", 2), ("S", 9), ("D", 32)]);
    d.0.region.streams = vec![Stream { site: 0, axes: vec![0, 1, 2] }];
    d
}

/// Rounding of a value that is not stored, and of one that is.
fn rounding() -> Draft {
    let x = [Domain(0)];
    draft("rounding", Template::FlatMap, &["N"], 1, &[F32, Bf16, F16])
        .input("x", &x, 0)
        .code(&[Load(0), Round(1, 0), Round(2, 0)])
        .output("as_bf16", 1, &x, 0)
        .output("as_f16", 2, &x, 0)
        .output("stored_bf16", 0, &x, 1)
        .output("stored_f16", 0, &x, 2)
        .operands(wide)
        .matching(Match::Exact)
        .at(&[("N", 1)])
        .at(&[("N", 1009)])
}

/// No axis at all.
fn scalars() -> Draft {
    draft("scalars", Template::StridedMap, &[], 0, &[F32])
        .input("loss", &[], 0)
        .input("count", &[], 0)
        .code(&[Load(0), Load(1), Binary(Scalar::Div, 0, 1)])
        .output("mean", 2, &[], 0)
        .at(&[])
}

/// A sum over rows alone: the gradient of a bias.
fn column_of_rows() -> Draft {
    draft("column_of_rows", Template::RowColumn, &["B", "S", "D"], 2, &[F32])
        .input("dy", &[Domain(0), Domain(1), Domain(2)], 0)
        .code(&[Load(0), ColumnSum(0)])
        .output("dbias", 1, &[Domain(2)], 0)
        .at(&[("B", 1), ("S", 2), ("D", 3)])
        .at(&[("B", 4), ("S", 25), ("D", 44)])
}

/// Each scalar function.
fn math() -> Draft {
    let x = [Domain(0)];
    let mut d = draft("math", Template::FlatMap, &["N"], 1, &[F32, Bool]).input("a", &x, 0).input("b", &x, 0);
    let unary = [
        Scalar::Neg,
        Scalar::Exp,
        Scalar::Recip,
        Scalar::Sin,
        Scalar::Cos,
        Scalar::Tanh,
        Scalar::Erf,
        Scalar::Logistic,
        Scalar::Abs,
        Scalar::Sign,
    ];
    let positive = [Scalar::Log, Scalar::Sqrt, Scalar::Rsqrt];
    let binary = [Scalar::Sub, Scalar::Div, Scalar::Max, Scalar::Min];
    let compare = [Scalar::Lt, Scalar::Le, Scalar::Gt, Scalar::Ge, Scalar::Eq, Scalar::Ne];
    let mut code = vec![Load(0), Load(1), Unary(Scalar::Abs, 0)];
    code.extend(unary.iter().map(|&f| Unary(f, 0)));
    code.extend(positive.iter().map(|&f| Unary(f, 2)));
    code.extend(binary.iter().map(|&f| Binary(f, 0, 1)));
    let first_compare = code.len();
    code.extend(compare.iter().map(|&f| Binary(f, 0, 1)));
    d = d.code(&code);
    for reg in 3..code.len() {
        d = d.output("", reg, &x, usize::from(reg >= first_compare));
    }
    d.operands(coarse).at(&[("N", 1)]).at(&[("N", 256)]).at(&[("N", 77)])
}

/// A fixed sequence of words: SplitMix64.
fn word(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn dims(case: &Case, operand: usize, sizes: &Sizes) -> Vec<usize> {
    let region = &case.region;
    let size = |index: &Index| match *index {
        Domain(a) | Rotated(a) => sizes.of(region.domain[a]),
        Value(_) => sizes.of(region.extra_axes[0]),
    };
    region.inputs[operand].axes.iter().map(size).collect()
}

/// Operands from a function of their number and position, rounded to their type; two with one name are one tensor.
fn filled(case: &Case, sizes: &Sizes, dtypes: &[DType], value: fn(u64) -> f64) -> Vec<Array> {
    let region = &case.region;
    let same = |k: usize| region.names.iter().position(|n| *n == region.names[k]).unwrap_or(k) as u64;
    let operand = |k: usize| {
        let dims = dims(case, k, sizes);
        let dtype = dtypes[region.inputs[k].dtype];
        let n: usize = dims.iter().product();
        let element = |i: usize| match dtype {
            // Ids in range, below it and above it.
            I32 => (word(i as u64) % (sizes.of(region.extra_axes[0]) as u64 + 2)) as f64 - 1.0,
            _ => round(dtype, f64::from(value(same(k) << 32 | i as u64) as f32)),
        };
        Array::new(dims, (0..n).map(element).collect())
    };
    (0..region.inputs.len()).map(operand).collect()
}

fn unit(i: u64) -> f64 {
    word(i) as f64 / u64::MAX as f64
}

/// Uniform in [−2, 2); the scalar of a rope is its base, of a mean its count.
fn plain(case: &Case, sizes: &Sizes, dtypes: &[DType]) -> Vec<Array> {
    let mut all = filled(case, sizes, dtypes, |i| 4.0 * unit(i) - 2.0);
    for (k, layout) in case.region.inputs.iter().enumerate() {
        if layout.axes.is_empty() {
            all[k].data = vec![10_000.0];
        }
    }
    all
}

/// Multiples of 1/8 up to 8: some pairs are equal, sines leave their first period.
fn coarse(case: &Case, sizes: &Sizes, dtypes: &[DType]) -> Vec<Array> {
    filled(case, sizes, dtypes, |i| (128.0 * unit(i)).floor() / 8.0 - 8.0 + 0.0625)
}

/// Many exponents, among them those where f16 is subnormal or infinite, ties, zeros and NaN.
fn wide(case: &Case, sizes: &Sizes, dtypes: &[DType]) -> Vec<Array> {
    filled(case, sizes, dtypes, |i| match word(i) % 16 {
        0 => 0.0,
        1 => -0.0,
        2 => f64::NAN,
        3 => 65_519.0 + (word(!i) % 3) as f64,
        4 => f64::from(f32::from_bits(0x3f80_0000 + (word(!i) as u32 % 64) * 0x1000)),
        5 => ((word(!i) % 64) as f64 + 0.5) * 2f64.powi(-24),
        6 => f64::INFINITY,
        _ => (2.0 * unit(!i) - 1.0) * 2f64.powi((word(i) >> 8) as i32 % 48 - 28),
    })
}

/// Rows for 3 V + 1 tokens, their numbers sorted by id, stable; some ids have none.
fn segments(_: &Case, sizes: &Sizes, dtypes: &[DType]) -> Vec<Array> {
    let (v, d) = (sizes.of(Axis::new("V")), sizes.of(Axis::new("D")));
    let tokens = 3 * v + 1;
    let ids: Vec<usize> = (0..tokens).map(|i| word(i as u64) as usize % v).collect();
    let mut order: Vec<usize> = (0..tokens).collect();
    order.sort_by_key(|&i| ids[i]);
    let start = |id: usize| ids.iter().filter(|&&x| x < id).count() as f64;
    let rows = (0..tokens * d).map(|i| round(dtypes[0], 4.0 * unit(i as u64) - 2.0)).map(|x| f64::from(x as f32));
    vec![
        Array::new([tokens, d], rows.collect()),
        Array::new([tokens], order.into_iter().map(|i| i as f64).collect()),
        Array::new([v], (0..v).map(start).collect()),
        Array::new([v], (1..=v).map(start).collect()),
    ]
}

/// Philox4x32-10 (Salmon et al., 2011), written for these tests alone.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p = u64::from(a) * 0xd251_1f53;
        let q = u64::from(c) * 0xcd9e_8d57;
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [a, b, c, d]
}

/// Number `index` of the stream with this key at a step, uniform in [0, 1): the upper 24 bits of its word.
pub fn uniform(key: u64, index: u64, step: u64) -> f32 {
    let counter = index / 4;
    let words = [counter as u32, (counter >> 32) as u32, step as u32, (step >> 32) as u32];
    let lane = philox(words, [key as u32, (key >> 32) as u32])[(index % 4) as usize];
    (lane >> 8) as f32 / (1 << 24) as f32
}
