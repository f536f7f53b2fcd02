//! Annotations that are parsed but not in force: plan-time errors that name the layer and the line, never silence.
#![allow(missing_docs, reason = "test models")]

use kiln::layer::{Layer as Definition, LayerDef};
use kiln::link::{self, Keep, LinkError, LinkOptions};
use kiln::prelude::*;
use kiln::{DType, Sizes};
use std::collections::BTreeMap;

axes! { B: "batch", D: "model", F: "hidden", L: "layers" }

/// One layer for each form, called `probe` in a module of its own.
macro_rules! probes {
    ($($module:ident)*) => {
        const PROBES: &[(&str, &LayerDef)] = &[$((stringify!($module), <$module::Probe as Definition>::DEF)),*];
    };
}

probes! {
    selective lean save budget offload fp8 int8 int4 masters reduce sequence sharded_parameter pipelined_repeat
}

mod selective {
    use super::*;
    #[layer]
    #[checkpoint(selective)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod lean {
    use super::*;
    #[layer]
    #[checkpoint(lean)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod save {
    use super::*;
    #[layer]
    #[checkpoint(save = [h, y])]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        let h = x * w;
        let y = h.tanh();
        y * x
    }
}

mod budget {
    use super::*;
    #[layer]
    #[checkpoint(budget = "3GiB")]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod offload {
    use super::*;
    #[layer]
    #[checkpoint(offload)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod fp8 {
    use super::*;
    #[layer]
    #[precision(fp8)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D, F>) -> Tensor<B, F> {
        x.matmul(w)
    }
}

mod int8 {
    use super::*;
    #[layer]
    #[precision(int8)]
    pub fn probe(
        x: Tensor<B, D>,
        #[frozen]
        #[param(init = ones)]
        w: Tensor<D, F>,
    ) -> Tensor<B, F> {
        x.matmul(w)
    }
}

mod int4 {
    use super::*;
    #[layer]
    #[precision(int4)]
    pub fn probe(
        x: Tensor<B, D>,
        #[frozen]
        #[param(init = ones)]
        w: Tensor<D, F>,
    ) -> Tensor<B, F> {
        x.matmul(w)
    }
}

mod masters {
    use super::*;
    #[layer]
    #[precision(bf16, master = bf16)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod reduce {
    use super::*;
    #[layer]
    #[precision(bf16, grad = f32, reduce = bf16)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod sequence {
    use super::*;
    #[layer]
    #[shard(sequence)]
    pub fn probe(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
        x * w
    }
}

mod sharded_parameter {
    use super::*;
    #[layer]
    pub fn probe(
        x: Tensor<B, D>,
        #[shard(data)]
        #[param(init = ones)]
        w: Tensor<D>,
    ) -> Tensor<B, D> {
        x * w
    }
}

#[layer]
pub fn scaled(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

mod pipelined_repeat {
    use super::*;
    #[layer]
    pub fn probe(
        x: Tensor<B, D>,
        #[shard(pipeline)]
        #[sub]
        parts: Repeat<Scaled, L>,
    ) -> Tensor<B, D> {
        let mut x = x;
        for part in parts {
            x = part.forward(x);
        }
        x
    }
}

/// The annotation of a module as it is written above, and the line that the error names: the annotation's own on a layer, the
/// argument's on an argument.
fn annotation(module: &str) -> (String, usize) {
    let source = include_str!("refused.rs");
    let start = source.lines().position(|l| l == format!("mod {module} {{")).expect("each form has its module");
    let found = source.lines().enumerate().skip(start).find(|(_, l)| {
        let l = l.trim();
        ["#[checkpoint", "#[precision", "#[shard"].iter().any(|a| l.starts_with(a))
    });
    let (at, text) = found.expect("each module has an annotation");
    let on_argument = text.starts_with("        ");
    let argument = |l: &&str| !l.trim().starts_with("#[");
    let below = source.lines().skip(at).position(|l| argument(&l)).expect("an item below");
    (text.trim().to_owned(), at + 1 + if on_argument { below } else { 0 })
}

fn options(def: &'static LayerDef) -> LinkOptions {
    let all: Sizes = sizes! { B = 2, D = 3, F = 5, L = 4 };
    let used =
        |name: &str| def.ir.contains(&format!("{name}]")) || def.ir.contains(&format!("{name}, ")) || name != "F";
    let sizes =
        all.iter().filter(|(axis, _)| used(axis.name())).filter(|(a, _)| a.name() != "L" || !def.subs.is_empty());
    LinkOptions {
        sizes: sizes.collect(),
        config: BTreeMap::new(),
        precision: DType::F32,
        keep: Keep::Everything,
        tensor: (1, 0),
    }
}

#[test]
fn forms_that_are_not_in_force_name_layer_and_line() {
    for (module, def) in PROBES {
        let (written, at) = annotation(module);
        let error = link::link(def, &options(def)).map(|_| ()).expect_err("the form is not in force");
        let LinkError::NotInForce { form, layer, file, line, instead } = &error else { panic!("{module}: {error}") };
        assert_eq!((form.as_str(), layer.as_str()), (written.as_str(), "probe"), "{module}");
        assert!(file.ends_with("refused.rs"), "{file}");
        assert_eq!(*line as usize, at, "{module}: {error}");
        assert!(instead.contains('`'), "{module}: {instead}");
        assert!(error.to_string().contains("K0707"));
    }
}

#[test]
fn one_rank_refuses_them_too() {
    // A mesh of one rank needs no collective, but silence would promise one.
    let (_, def) = PROBES.iter().find(|(module, _)| *module == "sequence").expect("it is in the list");
    assert_eq!(options(def).tensor, (1, 0));
    assert!(link::link(def, &options(def)).is_err());
    assert!(link::link(Scaled::DEF, &LinkOptions { sizes: sizes! { B = 2, D = 3 }, ..options(def) }).is_ok());
}
