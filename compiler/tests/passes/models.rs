//! Functions that the tests of passes share, their arguments, and comparison of results.

use kiln_compiler::diff::{self, Activity, Joint};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, Func, Sizes, Type, ValueId, verify};
use kiln_compiler::ops::EvalCx;
use kiln_compiler::{precision, simplify};

/// splitmix64 (Steele, Lea & Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn between(&mut self, a: f64, b: f64) -> f64 {
        a + (b - a) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Random number `index` of `site`.
pub fn uniform(site: i64, index: u64) -> f32 {
    // 24 bits, so that the quotient is exact and below 1.
    (Random(index ^ ((site as u64) << 40)).next() >> 40) as f32 / (1 << 24) as f32
}

/// A function with what differentiation takes its arguments for.
pub struct Model {
    pub name: &'static str,
    /// As written: float values are `f32`.
    pub func: Func,
    pub activity: Vec<Activity>,
    pub sizes: Sizes,
    /// Bound of the ids in its arguments.
    pub ids_below: usize,
}

impl Model {
    pub fn new(name: &'static str, b: Builder, outputs: &[ValueId]) -> Model {
        let mut func = b.func;
        func.outputs = outputs.to_vec();
        let kind = |v: &ValueId| match (func.values[v.index()].name.as_deref(), func.ty(*v)) {
            (Some("rope"), _) => Activity::Inactive,
            (_, ty) if !ty.dtype.is_float() => Activity::Inactive,
            (Some("x" | "z"), _) => Activity::Activation,
            _ => Activity::Parameter,
        };
        let activity = func.inputs.iter().map(kind).collect();
        let sizes = [("B", 3), ("S", 5), ("D", 6), ("G", 4), ("R", 4), ("K", 2), ("F", 8), ("V", 7)];
        let sizes = sizes.into_iter().map(|(a, n)| (Axis::new(a), n)).collect();
        Model { name, func: checked(func), activity, sizes, ids_below: 7 }
    }

    /// With casts.
    pub fn rounded(&self, compute: DType) -> Func {
        checked(precision::run(&self.func, compute))
    }

    /// Outputs and cotangents as one function.
    pub fn joint(&self, func: &Func) -> Joint {
        let differentiated = vec![true; func.outputs.len()];
        let joint = diff::run(func, &self.activity, &differentiated).unwrap_or_else(|e| panic!("{}", e.diagnostic));
        checked(joint.func.clone());
        joint
    }

    /// Arguments of `func`, which may be the joint one.
    pub fn arguments(&self, func: &Func, seed: u64) -> Vec<Array> {
        let mut random = Random(seed);
        let element = |v: ValueId, random: &mut Random| match (func.ty(v).dtype, func.values[v.index()].name.as_deref())
        {
            (_, Some("rope")) => 100.0,
            (DType::I32, _) => random.below(self.ids_below) as f64,
            (dtype, _) => interp::round(dtype, random.between(-1.0, 1.0)),
        };
        let array = |&v: &ValueId| interp::build(&self.sizes, &func.ty(v).shape, |_| element(v, &mut random));
        func.inputs.iter().map(array).collect()
    }

    pub fn run(&self, func: &Func, arguments: &[Array]) -> Vec<Array> {
        interp::run(&EvalCx { sizes: &self.sizes, uniform: &uniform }, func, arguments)
    }
}

/// The function, verified.
pub fn checked(func: Func) -> Func {
    verify::func(func).unwrap_or_else(|e| panic!("{e}")).into_inner()
}

/// Whether results agree up to `rtol` of the largest element.
pub fn agree(a: &[Array], b: &[Array], rtol: f64) -> Result<(), String> {
    assert_eq!(a.len(), b.len(), "number of results");
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.dims, b.dims, "sizes of result {k}");
        let scale = b.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let off = a.data.iter().zip(&b.data).position(|(a, b)| (a - b).is_nan() || (a - b).abs() > rtol * scale);
        if let Some(i) = off {
            return Err(format!("result {k}, element {i}: {} instead of {}", a.data[i], b.data[i]));
        }
    }
    Ok(())
}

/// Joint functions with composites expanded, duplicates and dead code gone.
pub fn simplified(joint: &Joint) -> Func {
    checked(simplify::run(&joint.func))
}

pub fn ax(names: &str) -> Vec<Axis> {
    names.split_whitespace().map(Axis::new).collect()
}

pub fn input(b: &mut Builder, name: &str, axes: &str) -> ValueId {
    b.func.add_input(Type::f32(ax(axes)), name)
}

pub fn ids(b: &mut Builder, name: &str, axes: &str) -> ValueId {
    b.func.add_input(Type::new(DType::I32, ax(axes)), name)
}

pub fn along(axis: &str) -> Attrs {
    Attrs::new().with("axis", Axis::new(axis))
}

pub fn over(axes: &str) -> Attrs {
    Attrs::new().with("axes", ax(axes))
}

fn eps() -> Attrs {
    Attrs::new().with("eps", 1e-2)
}

fn swiglu_body(b: &mut Builder, x: ValueId, [gate, up, down]: [ValueId; 3]) -> ValueId {
    let g = b.dot(x, gate, &ax("B S F"));
    let g = b.unary("silu", g);
    let u = b.dot(x, up, &ax("B S F"));
    let h = b.mul(g, u);
    b.dot(h, down, &ax("B S D"))
}

pub fn swiglu() -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let w = [("gate", "D F"), ("up", "D F"), ("down", "F D")].map(|(n, a)| input(&mut b, n, a));
    let y = swiglu_body(&mut b, x, w);
    Model::new("swiglu", b, &[y])
}

fn attention_body(b: &mut Builder, x: ValueId, rope: ValueId, [wq, wk, wv, wo]: [ValueId; 4]) -> ValueId {
    let attrs = || Attrs::new().with("seq", Axis::new("S")).with("head", Axis::new("K"));
    let q = b.dot(x, wq, &ax("B G R S K"));
    let q = b.op("rope", attrs(), &[q, rope]);
    let k = b.dot(x, wk, &ax("B G S K"));
    let k = b.op("rope", attrs(), &[k, rope]);
    let v = b.dot(x, wv, &ax("B G S K"));
    let o = b.ops("attention", Attrs::new().with("causal", true), &[q, k, v])[0];
    b.dot(o, wo, &ax("B S D"))
}

pub fn attention() -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let rope = input(&mut b, "rope", "");
    let w = [("wq", "D G R K"), ("wk", "D G K"), ("wv", "D G K"), ("wo", "G R K D")].map(|(n, a)| input(&mut b, n, a));
    let y = attention_body(&mut b, x, rope, w);
    Model::new("attention", b, &[y])
}

/// A hidden axis with a bias, dropout, statistics over it, a normalisation within it, a sum over it without parameters.
pub fn wide() -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B D");
    let w1 = input(&mut b, "w1", "D F");
    let b1 = input(&mut b, "b1", "F");
    let n = input(&mut b, "n", "D");
    let w2 = input(&mut b, "w2", "F D");
    let c = input(&mut b, "c", "");
    let h = b.dot(x, w1, &ax("B F"));
    let bias = b.broadcast(b1, &ax("B F"));
    let h = b.add(h, bias);
    let h = b.unary("tanh", h);
    let h = b.op("dropout", Attrs::new().with("rate", 0.3).with("site", 2i64), &[h]);
    let mean = b.op("mean", over("F"), &[h]);
    let sum = b.sum(h, &ax("F"));
    let shift = b.mul(mean, sum);
    let wide = b.broadcast(shift, &ax("B F"));
    let h = b.sub(h, wide);
    let c = b.broadcast(c, &ax("B F"));
    let h = b.mul(h, c);
    let position = b.op("iota", along("F").with("shape", ax("B F")), &[]);
    let h = b.mul(h, position);
    let w2 = b.op("rms_norm", eps(), &[w2, n]);
    let y = b.dot(h, w2, &ax("B D"));
    let again = b.broadcast(sum, &ax("B D"));
    let y = b.add(y, again);
    Model::new("wide", b, &[y])
}

/// Norms, attention and feed-forward with residual sums. Children: `attention`, then `swiglu`, called or, with `inlined`, in place.
pub fn block(inlined: bool) -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let rope = input(&mut b, "rope", "");
    let n1 = input(&mut b, "n1", "D");
    let n2 = input(&mut b, "n2", "D");
    let child = |b: &mut Builder, sub: i64, model: Model, args: &[ValueId]| {
        if !inlined {
            let attrs = Attrs::new().with("sub", sub).with("dtype", DType::F32).with("outs", 1i64);
            return b.op("call", attrs.with("out0", ax("B S D")), args);
        }
        let mut all = args.to_vec();
        for &v in &model.func.inputs[args.len()..] {
            let (ty, name) = (model.func.ty(v).clone(), model.func.values[v.index()].name.clone().unwrap_or_default());
            all.push(b.func.add_input(ty, &name));
        }
        simplify::inline(b, &model.func, &all)[0]
    };
    let h = b.op("rms_norm", eps(), &[x, n1]);
    let a = child(&mut b, 0, attention(), &[h, rope]);
    let x = b.add(x, a);
    let h = b.op("rms_norm", eps(), &[x, n2]);
    let m = child(&mut b, 1, swiglu(), &[h]);
    let y = b.add(x, m);
    Model::new("block", b, &[y])
}

/// relu, layer_norm, softmax, dropout, gelu and a loss.
pub fn mlp() -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let next = ids(&mut b, "next", "B S");
    let w1 = input(&mut b, "w1", "D F");
    let w = input(&mut b, "w", "F");
    let bias = input(&mut b, "bias", "F");
    let w2 = input(&mut b, "w2", "F V");
    let h = b.dot(x, w1, &ax("B S F"));
    let r = b.unary("relu", h);
    let g = b.unary("gelu", h);
    let h = b.add(r, g);
    let h = b.op("layer_norm", eps(), &[h, w, bias]);
    let p = b.op("softmax", along("S"), &[h]);
    let h = b.mul(p, h);
    let h = b.op("dropout", Attrs::new().with("rate", 0.25).with("site", 0i64), &[h]);
    let logits = b.dot(h, w2, &ax("B S V"));
    let loss = b.ops("cross_entropy", Attrs::new(), &[logits, next])[0];
    Model::new("mlp", b, &[logits, loss])
}

/// One table read as rows and as the weights of the head.
pub fn tied() -> Model {
    let mut b = Builder::default();
    let tokens = ids(&mut b, "tokens", "B S");
    let emb = input(&mut b, "emb", "V D");
    let n = input(&mut b, "n", "D");
    let x = b.op("gather", Attrs::new(), &[emb, tokens]);
    let h = b.op("rms_norm", eps(), &[x, n]);
    let loss = b.ops("linear_cross_entropy", Attrs::new(), &[h, emb, tokens]);
    Model::new("tied", b, &loss[..1])
}

/// Values with several readers, one of which hides its derivative; an argument without influence; views.
pub fn tangle() -> Model {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B D");
    let z = input(&mut b, "z", "B");
    let w = input(&mut b, "w", "D");
    let idle = input(&mut b, "idle", "S D");
    let h = b.unary("sin", x);
    let wide = b.broadcast(w, &ax("B D"));
    let a = b.mul(h, wide);
    let still = b.unary("stop_gradient", h);
    let c = b.mul(still, a);
    let d = b.mul(c, h);
    let turned = b.op("permute", Attrs::new().with("to", ax("D B")), &[d]);
    let e = b.sum(turned, &ax("D"));
    let e = b.mul(e, z);
    let dead = b.sum(idle, &ax("S"));
    b.unary("exp", dead);
    let back = b.broadcast(e, &ax("B D"));
    let f = b.add(back, a);
    Model::new("tangle", b, &[f, e])
}

pub fn all() -> Vec<Model> {
    vec![swiglu(), attention(), wide(), block(true), mlp(), tied(), tangle()]
}
