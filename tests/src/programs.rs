//! Random programs: well-typed functions over a few axes, their arguments, and a seeded source of numbers.

use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, Func, Sizes, Type, ValueId};
use kiln_compiler::ops::{self, EvalCx};

/// splitmix64 (Steele, Lea & Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in [0, n).
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A number in [a, b).
    pub fn between(&mut self, a: f64, b: f64) -> f64 {
        a + (b - a) * (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `list`.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A function with sizes and arguments.
pub struct Program {
    /// All float values `f32`, without casts.
    pub func: Func,
    /// Odd, prime and even sizes.
    pub sizes: Sizes,
    /// One per input; numbers of both signs.
    pub arguments: Vec<Array>,
}

const AXES: [(&str, [usize; 3]); 5] =
    [("B", [1, 3, 5]), ("S", [2, 3, 7]), ("D", [5, 6, 9]), ("K", [2, 4, 6]), ("V", [3, 4, 11])];
const MAPS: [&str; 9] = ["neg", "sin", "cos", "tanh", "erf", "logistic", "silu", "gelu", "gelu_tanh"];

/// Operations of one program.
const LENGTH: usize = 14;

/// The random number that `uniform` operations read.
pub fn uniform(site: i64, index: u64) -> f32 {
    // 24 bits, so that the quotient is exact and below 1.
    (Random(index ^ ((site as u64) << 40)).bits() >> 40) as f32 / (1 << 24) as f32
}

/// Runs a function in f64.
pub fn run(func: &Func, sizes: &Sizes, arguments: &[Array]) -> Vec<Array> {
    interp::run(&EvalCx { sizes, uniform: &uniform }, func, arguments)
}

/// The program of a seed: smooth, so that differences along a line approach its derivative.
pub fn program(seed: u64) -> Program {
    let mut random = Random(seed);
    let sizes: Sizes = AXES.iter().map(|(name, sizes)| (Axis::new(name), *random.pick(sizes))).collect();
    let mut b = Builder::default();
    let mut pool = Vec::new();
    for (i, shape) in
        [&["B", "S", "D"][..], &["S", "B", "K"], &["D"], &["V", "D"], &["D", "K"], &["B", "K"]].iter().enumerate()
    {
        let shape: Vec<Axis> = shape.iter().map(|n| Axis::new(n)).collect();
        pool.push(b.func.add_input(Type::f32(shape), &format!("x{i}")));
    }
    let ids = b.func.add_input(Type::new(DType::I32, vec![Axis::new("B"), Axis::new("S")]), "ids");
    let mut made = 0;
    while made < LENGTH {
        if let Some(value) = step(&mut b, &pool, ids, &mut random, made) {
            pool.push(value);
            made += 1;
        }
    }
    let mut outputs = vec![*pool.last().expect("the pool holds the inputs")];
    let other = *random.pick(&pool[6..]);
    if !outputs.contains(&other) {
        outputs.push(other);
    }
    b.func.outputs = outputs;
    let func = b.func;
    let arguments = func
        .inputs
        .iter()
        .map(|&v| {
            let ty = func.ty(v);
            let rows = sizes.of(Axis::new("V"));
            interp::build(&sizes, &ty.shape, |_| match ty.dtype {
                DType::I32 => random.below(rows) as f64,
                _ => random.between(-1.5, 1.5),
            })
        })
        .collect();
    Program { func, sizes, arguments }
}

/// One more operation on values of the pool; `None` if the drawn operands do not fit.
fn step(b: &mut Builder, pool: &[ValueId], ids: ValueId, random: &mut Random, site: usize) -> Option<ValueId> {
    // Later values more often: long chains rather than many short ones.
    let x = pool[random.below(pool.len()).max(random.below(pool.len()))];
    let y = *random.pick(pool);
    let shape = b.shape(x);
    let axis = shape.get(random.below(shape.len().max(1))).copied();
    match random.below(12) {
        0..=2 => Some(b.unary(MAPS[random.below(MAPS.len())], x)),
        3 | 4 => {
            let to = shape;
            let fits = b.shape(y).iter().all(|a| to.contains(a));
            let y = if fits { b.broadcast(y, &to) } else { return None };
            Some(b.binary(["add", "sub", "mul"][random.below(3)], x, y))
        }
        5 => {
            let mut to = shape.clone();
            to.rotate_left(1.min(shape.len()));
            (shape.len() > 1).then(|| b.op("permute", Attrs::new().with("to", to), &[x]))
        }
        6 => {
            let axes = vec![axis?];
            let name = ["reduce_sum", "mean"][random.below(2)];
            Some(b.op(name, Attrs::new().with("axes", axes), &[x]))
        }
        7 => {
            let other = b.shape(y);
            let shared: Vec<Axis> = shape.iter().copied().filter(|a| other.contains(a)).collect();
            let summed = *shared.get(random.below(shared.len().max(1)))?;
            let mut out: Vec<Axis> = shape.iter().copied().filter(|a| *a != summed).collect();
            out.extend(other.iter().copied().filter(|a| *a != summed && !shape.contains(a)));
            (out.len() <= 4).then(|| b.dot(x, y, &out))
        }
        8 => {
            let name = ["softmax", "log_softmax"][random.below(2)];
            Some(b.op(name, Attrs::new().with("axis", axis?), &[x]))
        }
        9 => {
            let w = *pool.iter().find(|&&w| b.shape(w).as_slice() == [*b.shape(x).last().unwrap_or(&Axis::of("?"))])?;
            // Far above the squared step of the differences, or the norm of a row near zero bends within it.
            Some(b.op("rms_norm", Attrs::new().with("eps", 0.125), &[x, w]))
        }
        10 => {
            let is_table =
                b.shape(x).first() == Some(&Axis::new("V")) && shape[1..].iter().all(|a| *a != Axis::new("B"));
            let is_free = shape.iter().all(|a| *a != Axis::new("S"));
            (is_table && is_free).then(|| b.op("gather", Attrs::new(), &[x, ids]))
        }
        _ => {
            let attrs = Attrs::new().with("rate", 0.25).with("site", site as i64);
            let op = ops::find("dropout")?;
            b.try_op(op, attrs, &[x]).ok().map(|v| v[0])
        }
    }
}
