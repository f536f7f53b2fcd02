//! The model of the language's first page, in the form that `#[layer]` gives it.

#![allow(missing_docs, reason = "test model")]

use crate::__private::{ArgSig, Frame, KindSig, LayerDef, Parts, Recorder, Sig, Source, call};
use crate::prelude::*;

macro_rules! axes {
    ($($name:ident),+ $(,)?) => {
        $(
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl Axis for $name {
                const NAME: &'static str = stringify!($name);
            }
        )+
    };
}
axes!(B, S, D, G, K, F, T);

pub fn swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor {
    let __frame = Frame::enter("swiglu");
    let x = __frame.argument(x, "x", &["B", "S", "D"]);
    let gate = __frame.argument(gate, "gate", &["D", "F"]);
    let up = __frame.argument(up, "up", &["D", "F"]);
    let down = __frame.argument(down, "down", &["F", "D"]);
    let h = x.matmul(gate).silu() * x.matmul(up);
    h.matmul(down)
}

pub fn attention(x: Tensor, rope: Rope, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> Tensor {
    let __frame = Frame::enter("attention");
    let x = __frame.argument(x, "x", &["B", "S", "D"]);
    let wq = __frame.argument(wq, "wq", &["D", "G", "R", "K"]);
    let wk = __frame.argument(wk, "wk", &["D", "G", "K"]);
    let wv = __frame.argument(wv, "wv", &["D", "G", "K"]);
    let wo = __frame.argument(wo, "wo", &["G", "R", "K", "D"]);
    let q = x.einsum(wq, "b s d, d g r k -> b g r s k").rope(rope);
    let k = x.einsum(wk, "b s d, d g k -> b g s k").rope(rope);
    let v = x.einsum(wv, "b s d, d g k -> b g s k");
    q.attend(k, v, Causal).einsum(wo, "b g r s k, g r k d -> b s d")
}

pub fn block(x: Tensor, rope: Rope, n1: Tensor, n2: Tensor, attn: Attention, mlp: Swiglu) -> Tensor {
    let __frame = Frame::enter("block");
    let x = __frame.argument(x, "x", &["B", "S", "D"]);
    let n1 = __frame.argument(n1, "n1", &["D"]);
    let n2 = __frame.argument(n2, "n2", &["D"]);
    let x = x + attn.forward(x.rms_norm(n1, 1e-5), rope);
    x + mlp.forward(x.rms_norm(n2, 1e-5))
}

pub fn trunk(ids: Ids, emb: Tensor, blocks: Repeat<Block>, nf: Tensor) -> Tensor {
    let __frame = Frame::enter("trunk");
    let ids = __frame.argument(ids, "ids", &["B", "S"]);
    let emb = __frame.argument(emb, "emb", &["V", "D"]);
    let nf = __frame.argument(nf, "nf", &["D"]);
    let rope = Rope::new(10_000.0);
    let mut x = emb.gather(ids);
    for block in blocks {
        x = block.forward(x, rope);
    }
    x.rms_norm(nf, 1e-5)
}

pub fn gpt(ids: Ids, next: Ids, trunk: Trunk) -> Loss {
    let __frame = Frame::enter("gpt");
    let ids = __frame.argument(ids, "ids", &["B", "S"]);
    let next = __frame.argument(next, "next", &["B", "S"]);
    trunk.forward(ids).linear_cross_entropy(trunk.emb, next)
}

#[derive(Clone, Debug)]
pub struct Swiglu {
    pub gate: Tensor,
    pub up: Tensor,
    pub down: Tensor,
}

#[derive(Clone, Debug)]
pub struct Attention {
    pub wq: Tensor,
    pub wk: Tensor,
    pub wv: Tensor,
    pub wo: Tensor,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub n1: Tensor,
    pub n2: Tensor,
    pub attn: Attention,
    pub mlp: Swiglu,
}

#[derive(Clone, Debug)]
pub struct Trunk {
    pub emb: Tensor,
    pub blocks: Repeat<Block>,
    pub nf: Tensor,
}

#[derive(Clone, Debug)]
pub struct Gpt {
    pub trunk: Trunk,
}

impl Swiglu {
    #[track_caller]
    pub fn forward(&self, x: Tensor) -> Tensor {
        call(self, (x,), |(x,)| swiglu(x, self.gate, self.up, self.down))
    }
}

impl Attention {
    #[track_caller]
    pub fn forward(&self, x: Tensor, rope: Rope) -> Tensor {
        call(self, (x, rope), |(x, rope)| attention(x, rope, self.wq, self.wk, self.wv, self.wo))
    }
}

impl Block {
    #[track_caller]
    pub fn forward(&self, x: Tensor, rope: Rope) -> Tensor {
        call(self, (x, rope), |(x, rope)| block(x, rope, self.n1, self.n2, self.attn.clone(), self.mlp.clone()))
    }
}

impl Trunk {
    #[track_caller]
    pub fn forward(&self, ids: Ids) -> Tensor {
        call(self, (ids,), |(ids,)| trunk(ids, self.emb, self.blocks.clone(), self.nf))
    }
}

impl Gpt {
    #[track_caller]
    pub fn forward(&self, ids: Ids, next: Ids) -> Loss {
        call(self, (ids, next), |(ids, next)| gpt(ids, next, self.trunk.clone()))
    }
}

impl Parts for Swiglu {
    fn build(from: &mut Source) -> Self {
        Swiglu { gate: from.param("gate"), up: from.param("up"), down: from.param("down") }
    }

    fn marker(&self) -> Option<Tensor> {
        Some(self.gate)
    }
}

impl Parts for Attention {
    fn build(from: &mut Source) -> Self {
        Attention { wq: from.param("wq"), wk: from.param("wk"), wv: from.param("wv"), wo: from.param("wo") }
    }

    fn marker(&self) -> Option<Tensor> {
        Some(self.wq)
    }
}

impl Parts for Block {
    fn build(from: &mut Source) -> Self {
        Block { n1: from.param("n1"), n2: from.param("n2"), attn: from.sub("attn"), mlp: from.sub("mlp") }
    }

    fn marker(&self) -> Option<Tensor> {
        Some(self.n1)
    }
}

impl Parts for Trunk {
    fn build(from: &mut Source) -> Self {
        Trunk { emb: from.param("emb"), blocks: from.repeat("blocks"), nf: from.param("nf") }
    }

    fn marker(&self) -> Option<Tensor> {
        Some(self.emb)
    }
}

impl Parts for Gpt {
    fn build(from: &mut Source) -> Self {
        Gpt { trunk: from.sub("trunk") }
    }

    fn marker(&self) -> Option<Tensor> {
        self.trunk.marker()
    }
}

const BSD: KindSig = KindSig::Tensor(&["B", "S", "D"]);
const BS: KindSig = KindSig::Ids(&["B", "S"]);

const fn arg(name: &'static str, kind: KindSig) -> ArgSig {
    ArgSig { name, kind }
}

macro_rules! layer {
    ($ty:ident $name:literal ir $ir:literal inputs [$($input:expr),*] output $output:expr, params [$($param:expr),*]
     subs [$($sub:literal $child:ident),*] record $record:expr) => {
        impl Layer for $ty {
            const SIG: Sig = Sig {
                name: $name,
                poisoned: false,
                inputs: &[$($input),*],
                output: $output,
                params: &[$($param),*],
                subs: &[$(($sub, &$child::SIG)),*],
            };
            const DEF: &'static LayerDef = &LayerDef {
                name: $name,
                type_name: stringify!($ty),
                module: module_path!(),
                ir: $ir,
                sig: &Self::SIG,
                subs: &[$($child::DEF),*],
                kernels: &[],
                record: Some($record),
            };
        }
    };
}

layer! { Swiglu "swiglu" ir r#"layer swiglu "model.rs" {
    arg x input f32[B, S, D]
    arg gate param f32[D, F] normal(0.02)
    arg up param f32[D, F] normal(0.02)
    arg down param f32[F, D] normal(0.02)
    fn() { return }
}"#
    inputs [arg("x", BSD)] output BSD,
    params [
        arg("gate", KindSig::Tensor(&["D", "F"])),
        arg("up", KindSig::Tensor(&["D", "F"])),
        arg("down", KindSig::Tensor(&["F", "D"]))
    ]
    subs [] record |r: &mut Recorder| {
        let out = swiglu(r.tensor("x"), r.param("gate"), r.param("up"), r.param("down"));
        r.output(out);
    }
}

layer! { Attention "attention" ir r#"layer attention "model.rs" {
    arg x input f32[B, S, D]
    arg rope rope S K
    arg wq param f32[D, G, R, K] normal(0.02)
    arg wk param f32[D, G, K] normal(0.02)
    arg wv param f32[D, G, K] normal(0.02)
    arg wo param f32[G, R, K, D] normal(0.02)
    fn() { return }
}"#
    inputs [arg("x", BSD), arg("rope", KindSig::Rope("S", "K"))] output BSD,
    params [
        arg("wq", KindSig::Tensor(&["D", "G", "R", "K"])),
        arg("wk", KindSig::Tensor(&["D", "G", "K"])),
        arg("wv", KindSig::Tensor(&["D", "G", "K"])),
        arg("wo", KindSig::Tensor(&["G", "R", "K", "D"]))
    ]
    subs [] record |r: &mut Recorder| {
        let out = attention(r.tensor("x"), r.rope("rope"), r.param("wq"), r.param("wk"), r.param("wv"), r.param("wo"));
        r.output(out);
    }
}

layer! { Block "block" ir r#"layer block "model.rs" {
    arg x input f32[B, S, D]
    arg rope rope S K
    arg n1 param f32[D] ones
    arg n2 param f32[D] ones
    arg attn sub Attention
    arg mlp sub Swiglu
    fn() { return }
}"#
    inputs [arg("x", BSD), arg("rope", KindSig::Rope("S", "K"))] output BSD,
    params [arg("n1", KindSig::Tensor(&["D"])), arg("n2", KindSig::Tensor(&["D"]))]
    subs ["attn" Attention, "mlp" Swiglu] record |r: &mut Recorder| {
        let out = block(r.tensor("x"), r.rope("rope"), r.param("n1"), r.param("n2"), r.sub("attn"), r.sub("mlp"));
        r.output(out);
    }
}

layer! { Trunk "trunk" ir r#"layer trunk "model.rs" {
    arg ids input i32[B, S]
    arg emb param f32[V, D] normal(0.02)
    arg blocks sub Block repeat L
    arg nf param f32[D] ones
    fn() { return }
}"#
    inputs [arg("ids", BS)] output BSD,
    params [arg("emb", KindSig::Tensor(&["V", "D"])), arg("nf", KindSig::Tensor(&["D"]))]
    subs ["blocks" Block] record |r: &mut Recorder| {
        let out = trunk(r.ids("ids"), r.param("emb"), r.repeat("blocks"), r.param("nf"));
        r.output(out);
    }
}

layer! { Gpt "gpt" ir r#"layer gpt "model.rs" loss {
    arg ids input i32[B, S]
    arg next input i32[B, S]
    arg trunk sub Trunk
    fn() { return }
}"#
    inputs [arg("ids", BS), arg("next", BS)] output KindSig::Loss,
    params []
    subs ["trunk" Trunk] record |r: &mut Recorder| {
        let out = gpt(r.ids("ids"), r.ids("next"), r.sub("trunk"));
        r.output(out);
    }
}

/// Numbers in [−1, 1) from a counter, the same everywhere.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let word = |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..n as u64).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// A host tensor of such numbers.
pub fn tensor(dims: &[usize], seed: u64) -> Tensor {
    Tensor::new(dims, numbers(dims.iter().product(), seed))
}
