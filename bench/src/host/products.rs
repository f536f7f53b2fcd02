//! The products of a training step by themselves: what a step cannot be faster than.

use crate::Result;
use crate::models::Model;
use kiln::device::host::buffer::Buf;
use kiln::device::host::gemm::{Epilogue, GemmPlan};
use kiln::device::host::pool::Pool;
use kiln::{DType, axes, sizes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

axes! { I: "rows", P: "inner", J: "columns" }

/// A product C[m, n] = A·B, summed over k.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Product {
    /// What it computes.
    pub name: String,
    /// How often a step does.
    pub times: usize,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// How the operands lie: `nn` as A[m, k] and B[k, n], `nt` as A[m, k] and B[n, k], `tn` as A[k, m] and B[k, n].
    pub layout: String,
    /// Library → GFLOP/s, the median of some samples.
    pub gflops: BTreeMap<String, f64>,
}

/// Samples of each product.
const SAMPLES: usize = 9;

impl Product {
    fn flops(&self) -> f64 {
        2.0 * (self.m * self.n * self.k) as f64
    }

    /// Seconds of a step that go to it at the best rate.
    pub fn least_seconds(&self) -> f64 {
        let best = self.gflops.values().copied().fold(0.0, f64::max);
        self.times as f64 * self.flops() / (best * 1e9)
    }
}

/// The products of a model's step, with Kiln's rates.
///
/// # Errors
/// If a product cannot be planned or no thread started.
pub fn of(model: &Model, threads: usize) -> Result<Vec<Product>> {
    let size = |name: &str| model.sizes.iter().find(|(a, _)| a.name() == name).map_or(1, |(_, n)| n);
    let (tokens, d, f, v, l) = (model.tokens_per_step(), size("D"), size("F"), size("V"), size("L"));
    let heads = size("G") * size("R") * size("K");
    let mut all = Vec::new();
    for (name, times, inner, outer) in [
        ("q, k, v", 3 * l, d, heads),
        ("o", l, heads, d),
        ("gate, up", 2 * l, d, f),
        ("down", l, f, d),
        ("head", 1, d, v),
    ] {
        let mut add = |what: &str, (m, n, k): (usize, usize, usize), layout: &str| {
            let (name, layout) = (format!("{name}: {what}"), layout.to_owned());
            all.push(Product { name, times, m, n, k, layout, gflops: BTreeMap::new() });
        };
        // The head lies as [V, D].
        let (forward, backward) = if name == "head" { ("nt", "nn") } else { ("nn", "nt") };
        add("y = x·w", (tokens, outer, inner), forward);
        add("x̄ = ȳ·wᵀ", (tokens, inner, outer), backward);
        add("w̄ = xᵀ·ȳ", (inner, outer, tokens), "tn");
    }
    let pool = Pool::new(threads)?;
    for product in &mut all {
        let rate = rate(product, &pool)?;
        product.gflops.insert("kiln".to_owned(), rate);
    }
    Ok(all)
}

fn rate(product: &Product, pool: &Pool) -> Result<f64> {
    let sizes = sizes! { I = product.m, P = product.k, J = product.n };
    let axis = |name: &str| sizes.iter().map(|(a, _)| a).find(|a| a.name() == name).ok_or("an axis has a size");
    let (i, p, j) = (axis("I")?, axis("P")?, axis("J")?);
    let (a, b) = match product.layout.as_str() {
        "nt" => ([i, p], [j, p]),
        "tn" => ([p, i], [p, j]),
        _ => ([i, p], [p, j]),
    };
    let plan = GemmPlan::new(&a, &b, &[i, j], &sizes, pool.threads())?;
    let mut operands = [product.m * product.k, product.k * product.n, product.m * product.n].map(|n| vec![0.5f32; n]);
    // SAFETY: the buffers live until the end of this function, and only the product uses them.
    #[allow(unsafe_code)]
    let [x, y, z] = operands.each_mut().map(|o| unsafe { Buf::new(o.as_mut_ptr().cast(), 4 * o.len(), DType::F32) });
    let mut workspace = vec![0.0; plan.workspace_len()];
    let mut seconds: Vec<f64> = Vec::new();
    for _ in 0..=SAMPLES {
        let begin = Instant::now();
        plan.run(pool, x, y, z, Epilogue::STORE, &mut workspace);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    Ok(product.flops() / seconds[SAMPLES / 2] / 1e9)
}
