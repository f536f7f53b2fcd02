//! The model in burn's own layers, from the weights of a file; it knows nothing of optimizers.

use burn::module::{Module, Param};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{Embedding, Linear, RmsNorm, SwiGlu};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peer_serve::{NORM_EPS, Result, Sizes, Weights, rope_tables};

/// Pre-RMSNorm, half-split rotary positions, SwiGLU, a head of its own.
#[derive(Module, Debug)]
pub struct Gpt {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct Block {
    norm_1: RmsNorm,
    attention: Attention,
    norm_2: RmsNorm,
    gate_up: SwiGlu,
    down: Linear,
}

#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

/// What is computed once: no parameters.
pub struct Tables {
    cos: Tensor<4>,
    sin: Tensor<4>,
    /// True where a key comes after the query.
    later: Tensor<4, Bool>,
    cross_entropy: CrossEntropyLoss,
}

impl Tables {
    /// For sequences of the full length.
    pub fn new(sizes: Sizes, device: &Device) -> Self {
        let (cos, sin) = rope_tables(sizes);
        // Both halves of a head turn by the same angle.
        let table = |values| {
            let half = Tensor::<4>::from_data(TensorData::new(values, [1, 1, sizes.s, sizes.k / 2]), device);
            half.repeat_dim(3, 2)
        };
        // True outside of the lower triangle.
        let later = Tensor::<2, Bool>::tril_mask([sizes.s, sizes.s], 0, device);
        Self {
            cos: table(cos),
            sin: table(sin),
            later: later.unsqueeze(),
            cross_entropy: CrossEntropyLossConfig::new().init(device),
        }
    }

    /// Rotates the halves of each head: `[B, G, S, K]`.
    fn rope(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        x * self.cos.clone() + Tensor::cat(vec![-second, first], 3) * self.sin.clone()
    }
}

impl Gpt {
    /// From the names and shapes of Kiln's file.
    ///
    /// # Errors
    /// If a weight is missing or has another size.
    pub fn load(weights: &Weights, sizes: Sizes, device: &Device) -> Result<Self> {
        let Sizes { d, f, v, .. } = sizes;
        let wide = sizes.g * sizes.k;
        let matrix = |name: &str, shape: [usize; 2]| -> Result<Tensor<2>> {
            let values = weights.get(name, shape[0] * shape[1])?;
            Ok(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let linear = |name: &str, shape| -> Result<Linear> {
            Ok(Linear { weight: Param::from_tensor(matrix(name, shape)?), bias: None })
        };
        let norm = |name: &str| -> Result<RmsNorm> {
            let gamma = Param::from_data(TensorData::new(weights.get(name, d)?, [d]), device);
            Ok(RmsNorm { gamma, epsilon: NORM_EPS })
        };
        let block = |i: usize| -> Result<Block> {
            let at = |name: &str| format!("trunk.blocks.{i}.{name}");
            Ok(Block {
                norm_1: norm(&at("n1"))?,
                attention: Attention {
                    query: linear(&at("attn.wq"), [d, wide])?,
                    key: linear(&at("attn.wk"), [d, wide])?,
                    value: linear(&at("attn.wv"), [d, wide])?,
                    output: linear(&at("attn.wo"), [wide, d])?,
                    heads: sizes.g,
                },
                norm_2: norm(&at("n2"))?,
                gate_up: SwiGlu {
                    linear_inner: linear(&at("mlp.gate"), [d, f])?,
                    linear_outer: linear(&at("mlp.up"), [d, f])?,
                },
                down: linear(&at("mlp.down"), [f, d])?,
            })
        };
        // A linear layer of burn has its inputs as rows.
        let head = matrix("head", [v, d])?.transpose();
        Ok(Self {
            embedding: Embedding { weight: Param::from_tensor(matrix("trunk.emb", [v, d])?) },
            blocks: (0..sizes.l).map(block).collect::<Result<_>>()?,
            norm: norm("trunk.nf")?,
            head: Linear { weight: Param::from_tensor(head), bias: None },
        })
    }

    /// Mean cross-entropy of all tokens; `ids` are `[B, S]`, `targets` `[B·S]`.
    pub fn loss(&self, ids: Tensor<2, Int>, targets: Tensor<1, Int>, tables: &Tables) -> Tensor<1> {
        let x = self.embedding.forward(ids);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, tables));
        let logits = self.head.forward(self.norm.forward(x));
        tables.cross_entropy.forward(logits.flatten(0, 1), targets)
    }
}

impl Block {
    fn forward(&self, x: Tensor<3>, tables: &Tables) -> Tensor<3> {
        let x = x.clone() + self.attention.forward(self.norm_1.forward(x), tables);
        let hidden = self.gate_up.forward(self.norm_2.forward(x.clone()));
        x + self.down.forward(hidden)
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>, tables: &Tables) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let heads = |layer: &Linear| -> Tensor<4> {
            let y = layer.forward(x.clone());
            let width = y.dims()[2] / self.heads;
            y.reshape([batch, length, self.heads, width]).swap_dims(1, 2)
        };
        let query = tables.rope(heads(&self.query));
        let key = tables.rope(heads(&self.key));
        let scale = (query.dims()[3] as f64).powf(-0.5);
        let scores = (query * scale).matmul(key.transpose()).mask_fill(tables.later.clone(), f32::NEG_INFINITY);
        let mixed = softmax(scores, 3).matmul(heads(&self.value));
        self.output.forward(mixed.swap_dims(1, 2).flatten(2, 3))
    }
}
