//! The model in candle's own layers, from the weights of a file; it knows nothing of optimizers.

use candle_core::{D, Device, Module, Result, Shape, Tensor, Var};
use candle_nn::ops::softmax;
use candle_nn::rotary_emb::rope_slow;
use candle_nn::{Embedding, RmsNorm, loss};
use peer_serve::{NORM_EPS, Sizes, Weights, rope_tables};

/// Pre-RMSNorm, half-split rotary positions, SwiGLU, a head of its own.
pub struct Gpt {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `[V, D]`.
    head: Tensor,
    tables: Tables,
}

struct Block {
    norm_1: RmsNorm,
    attention: Attention,
    norm_2: RmsNorm,
    mlp: Mlp,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// `[inputs, outputs]`, as in the file. The linear layer of candle has outputs as rows: its derivative is then a transposed view, which
/// the optimizer walks slowly, and a step takes 5 % longer.
struct Linear {
    weight: Tensor,
}

/// What is computed once: no parameters.
struct Tables {
    cos: Tensor,
    sin: Tensor,
    /// −∞ where a key comes after the query, else 0: `[S, S]`.
    mask: Tensor,
}

/// Makes layers from the names and shapes of Kiln's file, and keeps their parameters for the optimizer.
pub struct Loader<'a> {
    /// The file.
    pub weights: &'a Weights,
    /// Where they go.
    pub device: &'a Device,
    /// What was made so far.
    pub parameters: Vec<Var>,
}

impl Gpt {
    /// With the weights of a file.
    ///
    /// # Errors
    /// If a weight is missing or has another size.
    pub fn load(from: &mut Loader, sizes: Sizes) -> peer_serve::Result<Self> {
        let Sizes { d, v, .. } = sizes;
        Ok(Self {
            embedding: Embedding::new(from.parameter("trunk.emb", (v, d))?, d),
            blocks: (0..sizes.l).map(|i| Block::load(from, sizes, i)).collect::<peer_serve::Result<_>>()?,
            norm: from.norm("trunk.nf", d)?,
            head: from.parameter("head", (v, d))?,
            tables: Tables::new(sizes, from.device)?,
        })
    }

    /// Mean cross-entropy of all tokens; `ids` are `[B, S]`, `targets` `[B·S]`.
    pub fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.forward(ids)?;
        for block in &self.blocks {
            x = block.forward(&x, &self.tables)?;
        }
        let logits = self.norm.forward_diff(&x)?.flatten_to(1)?.matmul(&self.head.t()?)?;
        loss::cross_entropy(&logits, targets)
    }
}

impl Block {
    fn load(from: &mut Loader, sizes: Sizes, layer_idx: usize) -> peer_serve::Result<Self> {
        let Sizes { d, f, g, k, .. } = sizes;
        let at = |name: &str| format!("trunk.blocks.{layer_idx}.{name}");
        Ok(Self {
            norm_1: from.norm(&at("n1"), d)?,
            attention: Attention {
                query: from.linear(&at("attn.wq"), d, g * k)?,
                key: from.linear(&at("attn.wk"), d, g * k)?,
                value: from.linear(&at("attn.wv"), d, g * k)?,
                output: from.linear(&at("attn.wo"), g * k, d)?,
                heads: g,
            },
            norm_2: from.norm(&at("n2"), d)?,
            mlp: Mlp {
                gate: from.linear(&at("mlp.gate"), d, f)?,
                up: from.linear(&at("mlp.up"), d, f)?,
                down: from.linear(&at("mlp.down"), f, d)?,
            },
        })
    }

    fn forward(&self, x: &Tensor, tables: &Tables) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.norm_1.forward_diff(x)?, tables)?)?;
        &x + self.mlp.forward(&self.norm_2.forward_diff(&x)?)?
    }
}

impl Attention {
    fn forward(&self, x: &Tensor, tables: &Tables) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        let heads =
            |layer: &Linear| layer.forward(x)?.reshape((batch, length, self.heads, ()))?.transpose(1, 2)?.contiguous();
        let query = tables.rope(&heads(&self.query)?)?;
        let key = tables.rope(&heads(&self.key)?)?;
        let scale = (query.dim(D::Minus1)? as f64).powf(-0.5);
        let scores = (query * scale)?.matmul(&key.t()?)?.broadcast_add(&tables.mask)?;
        let mixed = softmax(&scores, D::Minus1)?.matmul(&heads(&self.value)?)?;
        self.output.forward(&mixed.transpose(1, 2)?.flatten_from(2)?)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(self.gate.forward(x)?.silu()? * self.up.forward(x)?)?)
    }
}

impl Linear {
    /// `[B, S, inputs]` to `[B, S, outputs]`, as one product of two matrices.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        x.flatten_to(1)?.matmul(&self.weight)?.reshape((batch, length, ()))
    }
}

impl Tables {
    /// For sequences of the full length.
    fn new(sizes: Sizes, device: &Device) -> Result<Self> {
        let Sizes { s, k, .. } = sizes;
        let (cos, sin) = rope_tables(sizes);
        let table = |values| Tensor::from_vec(values, (s, k / 2), device);
        let value = |i| if i % s > i / s { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_iter((0..s * s).map(value), device)?.reshape((s, s))?;
        Ok(Self { cos: table(cos)?, sin: table(sin)?, mask })
    }

    /// Rotates the halves of each head, `[B, G, S, K]`; candle's faster `rope` has no derivative.
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        rope_slow(x, &self.cos, &self.sin)
    }
}

impl Loader<'_> {
    fn parameter(&mut self, name: &str, shape: impl Into<Shape>) -> peer_serve::Result<Tensor> {
        let shape = shape.into();
        let parameter = Var::from_vec(self.weights.get(name, shape.elem_count())?, shape, self.device)?;
        self.parameters.push(parameter.clone());
        Ok(parameter.into_inner())
    }

    fn norm(&mut self, name: &str, width: usize) -> peer_serve::Result<RmsNorm> {
        Ok(RmsNorm::new(self.parameter(name, width)?, NORM_EPS))
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> peer_serve::Result<Linear> {
        Ok(Linear { weight: self.parameter(name, (inputs, outputs))? })
    }
}
