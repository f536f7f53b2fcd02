//! Random programs: acyclic graphs over maps, views, reductions, contractions, normalisations, lookups and dropout.

use crate::models::{Model, Random, ax, ids, input};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, ValueId};
use kiln_compiler::ops;

/// Operations of one program.
const LENGTH: usize = 16;
/// Powers of two, so that 1/size and means are exact in f32; distinct but for pairs that are renamed into each other.
const SIZES: [(&str, usize); 7] = [("B", 2), ("S", 4), ("D", 8), ("K", 16), ("V", 32), ("E", 8), ("H", 4)];
const MAPS: [&str; 12] =
    ["neg", "sin", "cos", "tanh", "erf", "logistic", "abs", "relu", "silu", "gelu", "gelu_tanh", "stop_gradient"];

/// The program of a seed, with the axes called as `axis` says.
pub fn program(seed: u64, axis: fn(&str) -> Axis) -> Model {
    let mut random = Random(seed);
    let mut b = Builder::default();
    let shape = |names: &str| -> Vec<Axis> { names.split_whitespace().map(axis).collect() };
    let mut pool = Vec::new();
    for (name, axes) in
        [("x", "B S D"), ("z", "S B K"), ("w", "D"), ("table", "V D"), ("v", "D K"), ("u", "K"), ("y", "B K")]
    {
        let v = input(&mut b, name, "");
        b.func.values[v.index()].ty.shape = shape(axes);
        pool.push(v);
    }
    let base = input(&mut b, "rope", "");
    let tokens = ids(&mut b, "tokens", "");
    b.func.values[tokens.index()].ty.shape = shape("B S");
    let mut g = Generator { b, random: &mut random, pool, base, tokens, axis, site: 0 };
    let mut made = 0;
    while made < LENGTH {
        if let Some(v) = g.step() {
            g.pool.push(v);
            made += 1;
        }
    }
    let last = g.pool.len() - 1;
    let mut outputs = vec![g.pool[last], g.pool[last - 1 - g.random.below(4)]];
    outputs.dedup();
    let mut model = Model::new("random", g.b, &outputs);
    model.sizes = SIZES.into_iter().map(|(a, n)| (axis(a), n)).collect();
    model.ids_below = 32;
    model
}

struct Generator<'a> {
    b: Builder,
    random: &'a mut Random,
    pool: Vec<ValueId>,
    base: ValueId,
    tokens: ValueId,
    axis: fn(&str) -> Axis,
    site: i64,
}

impl Generator<'_> {
    /// One of the pool, the younger the likelier.
    fn any(&mut self) -> ValueId {
        let n = self.pool.len();
        let k = self.random.below(n).max(self.random.below(n));
        self.pool[k]
    }

    fn axis_of(&mut self, v: ValueId) -> Option<Axis> {
        let shape = self.b.shape(v);
        (!shape.is_empty()).then(|| shape[self.random.below(shape.len())])
    }

    /// Some axes of `v`, in its order.
    fn some_axes(&mut self, v: ValueId) -> Vec<Axis> {
        self.b.shape(v).into_iter().filter(|_| self.random.below(2) == 0).collect()
    }

    fn shuffled(&mut self, v: ValueId) -> Vec<Axis> {
        let mut shape = self.b.shape(v);
        for i in (1..shape.len()).rev() {
            shape.swap(i, self.random.below(i + 1));
        }
        shape
    }

    fn apply(&mut self, name: &str, attrs: Attrs, inputs: &[ValueId]) -> Option<ValueId> {
        let op = ops::find(name).unwrap_or_else(|| panic!("no operation `{name}`"));
        self.b.try_op(op, attrs, inputs).ok().map(|outputs| outputs[0])
    }

    /// `v` over the axes `to`, if it has no others.
    fn fitted(&mut self, v: ValueId, to: &[Axis]) -> Option<ValueId> {
        let shape = self.b.shape(v);
        let fits = self.b.ty(v).dtype.is_float() && shape.iter().all(|a| to.contains(a));
        let name = if shape.len() == to.len() { "permute" } else { "broadcast" };
        match fits {
            true if shape == to => Some(v),
            true => self.apply(name, Attrs::new().with("to", to), &[v]),
            false => None,
        }
    }

    /// A partner with the axes of `v`.
    fn partner(&mut self, v: ValueId) -> Option<ValueId> {
        let to = self.b.shape(v);
        (0..8).find_map(|_| {
            let p = self.any();
            self.fitted(p, &to)
        })
    }

    fn vector(&mut self, axis: Axis) -> Option<ValueId> {
        let found = self.pool.iter().copied().find(|&v| self.b.ty(v).shape == [axis]);
        found.or_else(|| {
            let wide = self.pool.iter().copied().find(|&v| self.b.ty(v).position(axis).is_some())?;
            let others = self.b.shape(wide).into_iter().filter(|&a| a != axis).collect::<Vec<_>>();
            let sum = self.b.sum(wide, &others);
            Some(self.b.unary("tanh", sum))
        })
    }

    fn step(&mut self) -> Option<ValueId> {
        let none = Attrs::new;
        let a = self.any();
        match self.random.below(20) {
            0..=3 => {
                let name = MAPS[self.random.below(MAPS.len())];
                self.apply(name, none(), &[a])
            }
            4..=7 => {
                let p = self.partner(a)?;
                let name = ["add", "sub", "mul", "max", "min"][self.random.below(5)];
                self.apply(name, none(), &[a, p])
            }
            8 => {
                let (p, q) = (self.partner(a)?, self.partner(a)?);
                let name = ["lt", "ge", "gt", "le"][self.random.below(4)];
                let mask = self.apply(name, none(), &[a, p])?;
                self.apply("select", none(), &[mask, q, a])
            }
            9 => {
                let to = self.shuffled(a);
                self.apply("permute", none().with("to", to), &[a])
            }
            10 => {
                let c = [0.5, -1.25, 2.0, 0.0][self.random.below(4)];
                Some(self.b.scale(a, c))
            }
            11 | 12 => {
                let over = self.some_axes(a);
                let name = ["reduce_sum", "reduce_max", "mean"][self.random.below(3)];
                if over.is_empty() { None } else { self.apply(name, none().with("axes", over), &[a]) }
            }
            13 => {
                let axis = self.axis_of(a)?;
                let name = ["softmax", "log_softmax"][self.random.below(2)];
                self.apply(name, none().with("axis", axis), &[a])
            }
            14 => {
                let last = *self.b.shape(a).last()?;
                let (w, v) = (self.vector(last)?, self.vector(last)?);
                let eps = none().with("eps", 0.0625);
                match self.random.below(2) {
                    0 => self.apply("rms_norm", eps, &[a, w]),
                    _ => self.apply("layer_norm", eps, &[a, w, v]),
                }
            }
            15 => {
                let p = self.any();
                let (left, right) = (self.b.shape(a), self.b.shape(p));
                let mut out: Vec<Axis> = Vec::new();
                for &x in left.iter().chain(&right).filter(|x| !(left.contains(x) && right.contains(x))) {
                    out.insert(self.random.below(out.len() + 1), x);
                }
                if out.len() > 4 { None } else { self.apply("dot_general", none().with("out", out), &[a, p]) }
            }
            16 => {
                let attrs = none().with("seq", (self.axis)("S")).with("head", (self.axis)("K"));
                let (base, at) = (self.base, self.any());
                let rotated = self.apply("rope", attrs, &[at, base]);
                rotated.or_else(|| self.apply("rotate_half", none().with("axis", (self.axis)("D")), &[a]))
            }
            17 => {
                let tokens = self.tokens;
                let table = if self.b.ty(a).shape.first() == Some(&(self.axis)("V")) { a } else { self.pool[3] };
                self.apply("gather", none(), &[table, tokens])
            }
            18 => {
                self.site += 1;
                self.apply("dropout", none().with("rate", 0.25).with("site", self.site), &[a])
            }
            _ => {
                let [d, e, s, h] = ["D", "E", "S", "H"].map(self.axis);
                match self.random.below(4) {
                    0 => self.apply("rename", none().with("from", d).with("to", e), &[a]),
                    1 => self.apply("rename", none().with("from", e).with("to", d), &[a]),
                    2 => self.apply("slice", none().with("axis", d).with("start", 3i64).with("to", h), &[a]),
                    _ => self.apply("concat", none().with("axis", s).with("other", s).with("to", e), &[a, a]),
                }
            }
        }
    }
}

/// The axes' own names.
pub fn plain(name: &str) -> Axis {
    ax(name)[0]
}

/// Other names, in another alphabetical order.
pub fn renamed(name: &str) -> Axis {
    let letter = name.bytes().next().unwrap_or_default();
    Axis::new(&format!("{}{name}", char::from(b'z' - (letter - b'A'))))
}

/// Types in which the tests compute.
pub const COMPUTE: [DType; 2] = [DType::F32, DType::Bf16];
