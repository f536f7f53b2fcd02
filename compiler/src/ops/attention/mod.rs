//! `attention`: scaled dot-product attention with grouped queries (Vaswani et al. 2017; Ainslie et al. 2023).
//!
//! q: prefix ++ \[R\]? ++ \[S, K\], k and v: prefix ++ \[T, K\]; T may have the name S. With s = qkᵀ/√K (causal: −∞ for keys
//! j > i + T − S), lse = ln Σⱼ eˢ, P = e^(s − lse): o = Pv.
//! Backward (Dao 2023), with δ = Σ_K ō·o: v̄ = Pᵀō, s̄ = P·(ōvᵀ − δ), q̄ = s̄k/√K, k̄ = s̄ᵀq/√K; k̄ and v̄ sum over R.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Axis, Builder, Node, Sizes, Type, ValueId};

/// (o, lse) of (q, k, v).
pub static DEF: OpDef = OpDef {
    name: "attention",
    class: Class::Library,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: None,
    flops: |sizes, n, args, _| 4 * scores(sizes, n, args),
};

/// (q̄, k̄, v̄) of (q, k, v, o, lse, ō). It stands in backward functions only and has no derivative.
pub static VJP: OpDef = OpDef {
    name: "attention_vjp",
    class: Class::Library,
    infer: infer_vjp,
    vjp: Vjp::Missing,
    eval: eval_vjp,
    expand: None,
    scalar: None,
    flops: |sizes, n, args, _| 10 * scores(sizes, n, args),
};

/// Multiply-adds of one product of queries with keys.
fn scores(sizes: &Sizes, n: &Node, args: &[&Type]) -> u64 {
    let keys = sizes.of(args[1].shape[args[1].rank() - 2]);
    let all = (sizes.elements(&args[0].shape) * keys) as u64;
    if n.attrs.flag("causal") { all / 2 } else { all }
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [q, k, v] = rules::operands("attention", xs)?;
    check_axes(q, k, v)?;
    if attrs.get("causal").is_none() {
        return Err(TypeError::new("K0117", "`attend` needs a mask: `Causal` or `Full`"));
    }
    Ok(vec![Type::f32(q.shape.clone()), Type::f32(&q.shape[..q.rank() - 1])])
}

fn check_axes(q: &Type, k: &Type, v: &Type) -> Result<(), TypeError> {
    let op = "attend";
    for (i, x) in [q, k, v].into_iter().enumerate() {
        rules::float(op, i, x)?;
        if x.rank() < 2 {
            let message = format!("`{op}` needs positions and head as the last two axes, but `{{{i}}}` is {x}");
            return Err(TypeError::at(i, "K0106", message));
        }
    }
    if v.shape != k.shape {
        let message = format!(
            "`{op}` needs values over the axes of the keys: `{{1}}` has {}, `{{2}}` has {}",
            rules::list(&k.shape),
            rules::list(&v.shape)
        );
        return Err(TypeError::at(2, "K0110", message));
    }
    let (head, key_head) = (q.shape[q.rank() - 1], k.shape[k.rank() - 1]);
    if head != key_head {
        let message =
            format!("`{op}` contracts the last axes, but `{{0}}` ends in `{head}` and `{{1}}` in `{key_head}`");
        return Err(TypeError::at(1, "K0110", message));
    }
    let (lead, prefix) = (&q.shape[..q.rank() - 2], &k.shape[..k.rank() - 2]);
    if lead.starts_with(prefix) && lead.len() <= prefix.len() + 1 {
        return Ok(());
    }
    let message = format!(
        "`{op}`: before its last two axes `{{0}}` has {}, `{{1}}` has {}",
        rules::list(lead),
        rules::list(prefix)
    );
    let help = "the queries have the axes of the keys there, or one more at the end (grouped queries)";
    Err(TypeError::at(1, "K0110", message).help(help))
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    assert!(n.cotangents[1].is_none(), "the log-sum-exp of `attention` is read by its own derivative only");
    let inputs = [n.x(0), n.x(1), n.x(2), n.y(0), n.y(1), n.dy()];
    b.ops("attention_vjp", n.node.attrs.clone(), &inputs).into_iter().map(Some).collect()
}

fn infer_vjp(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [q, k, v, o, lse, d] = rules::operands("attention_vjp", xs)?;
    check_axes(q, k, v)?;
    let expected: [(usize, &Type, &[Axis]); 3] =
        [(3, o, &q.shape), (4, lse, &q.shape[..q.rank() - 1]), (5, d, &q.shape)];
    for (i, x, shape) in expected {
        if x.shape != shape {
            let message = format!("`attention_vjp` needs {} for `{{{i}}}`, which is {x}", rules::list(shape));
            return Err(TypeError::at(i, "K0110", message));
        }
    }
    Ok([q, k, v].map(|x| Type::f32(x.shape.clone())).to_vec())
}

/// Sizes of the problem: for each of `heads` query heads `s` queries of size `k` meet the `t` keys of head `h / group`.
struct Extents {
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    k: usize,
    causal: bool,
}

impl Extents {
    fn of(n: &EvalNode<'_>) -> Self {
        let (q, k) = (&n.args[0].dims, &n.args[1].dims);
        let split =
            |dims: &[usize]| (dims[..dims.len() - 2].iter().product(), dims[dims.len() - 2], dims[dims.len() - 1]);
        let ((heads, s, head), (groups, t, _)): ((usize, usize, usize), (usize, usize, usize)) = (split(q), split(k));
        Extents { heads, group: heads / groups.max(1), s, t, k: head, causal: n.attrs().flag("causal") }
    }

    /// Number of keys that query `i` sees.
    fn visible(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.t).saturating_sub(self.s).min(self.t) } else { self.t }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.k as f64).sqrt()
    }

    /// Offset of query `i` of head `h`.
    fn query(&self, h: usize, i: usize) -> usize {
        (h * self.s + i) * self.k
    }

    /// Offset of key `j` that head `h` sees.
    fn key(&self, h: usize, j: usize) -> usize {
        (h / self.group * self.t + j) * self.k
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn eval(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let e = Extents::of(n);
    let (q, k, v) = (n.args[0], n.args[1], n.args[2]);
    let mut o = Array::full(q.dims.clone(), 0.0);
    let mut lse = Array::full(&q.dims[..q.dims.len() - 1], f64::NEG_INFINITY);
    for h in 0..e.heads {
        for i in 0..e.s {
            let qi = e.query(h, i);
            let row = &q.data[qi..qi + e.k];
            let s: Vec<f64> =
                (0..e.visible(i)).map(|j| e.scale() * dot(row, &k.data[e.key(h, j)..e.key(h, j) + e.k])).collect();
            if s.is_empty() {
                continue;
            }
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let l = max + s.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
            lse.data[h * e.s + i] = l;
            for (j, s) in s.iter().enumerate() {
                let p = (s - l).exp();
                (0..e.k).for_each(|c| o.data[qi + c] += p * v.data[e.key(h, j) + c]);
            }
        }
    }
    vec![o, lse]
}

fn eval_vjp(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let e = Extents::of(n);
    let [q, k, v, o, lse, d] = std::array::from_fn(|i| n.args[i]);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Array::full(x.dims.clone(), 0.0));
    for h in 0..e.heads {
        for i in 0..e.s {
            let qi = e.query(h, i);
            let at = qi..qi + e.k;
            let delta = dot(&d.data[at.clone()], &o.data[at.clone()]);
            for j in 0..e.visible(i) {
                let kj = e.key(h, j);
                let s = e.scale() * dot(&q.data[at.clone()], &k.data[kj..kj + e.k]);
                let p = (s - lse.data[h * e.s + i]).exp();
                let ds = p * (dot(&d.data[at.clone()], &v.data[kj..kj + e.k]) - delta) * e.scale();
                for c in 0..e.k {
                    dv.data[kj + c] += p * d.data[qi + c];
                    dq.data[qi + c] += ds * k.data[kj + c];
                    dk.data[kj + c] += ds * q.data[qi + c];
                }
            }
        }
    }
    vec![dq, dk, dv]
}
