//! The eager run against loops over f64, and its checks.

use super::model::*;
use crate::prelude::*;
use crate::tensor::{init, seed};

const SIZES: (usize, usize, usize, usize) = (2, 3, 4, 6);
const HEADS: (usize, usize, usize) = (2, 2, 4);

/// Results are rounded to f32 after each of at most this many operations, each of which amplifies an error by less than 8 here.
const OPERATIONS: f64 = 16.0 * 8.0;

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(f) - e).abs();
        assert!(error <= OPERATIONS * f64::from(f32::EPSILON) * scale, "element {i}: {f} is not {e}");
    }
}

fn f64s(x: Tensor) -> Vec<f64> {
    x.to_vec().into_iter().map(f64::from).collect()
}

fn matmul(x: &[f64], w: &[f64], inner: usize) -> Vec<f64> {
    let (rows, columns) = (x.len() / inner, w.len() / inner);
    let dot = |i: usize| (0..inner).map(|k| x[i / columns * inner + k] * w[k * columns + i % columns]).sum();
    (0..rows * columns).map(dot).collect()
}

fn swiglu_loops(x: &[f64], w: [&[f64]; 3], d: usize, f: usize) -> Vec<f64> {
    let (gate, up) = (matmul(x, w[0], d), matmul(x, w[1], d));
    let h: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    matmul(&h, w[2], f)
}

fn rms_norm_loops(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            row.iter().zip(w).map(move |(x, w)| x / (mean + 1e-5).sqrt() * w).collect::<Vec<_>>()
        })
        .collect()
}

/// Rotary angle position / 10000^(2i/K) on pairs (i, i + K/2).
fn rope_loops(x: &mut [f64], position: usize) {
    let half = x.len() / 2;
    for i in 0..half {
        let angle = position as f64 * 10_000f64.powf(-(2.0 * i as f64) / (2 * half) as f64);
        let (a, b) = (x[i], x[i + half]);
        x[i] = a * angle.cos() - b * angle.sin();
        x[i + half] = b * angle.cos() + a * angle.sin();
    }
}

fn attention_loops(x: &[f64], w: [&[f64]; 4]) -> Vec<f64> {
    let ((b, s, d, _), (g, r, k)) = (SIZES, HEADS);
    let project = |at: usize, w: &[f64], heads: usize, head: usize, turn: Option<usize>| {
        let mut row: Vec<f64> =
            (0..k).map(|c| (0..d).map(|i| x[at * d + i] * w[(i * heads + head) * k + c]).sum()).collect();
        if let Some(position) = turn {
            rope_loops(&mut row, position);
        }
        row
    };
    let mut y = vec![0.0; b * s * d];
    for at in 0..b * s {
        let (batch, i) = (at / s, at % s);
        for head in 0..g * r {
            let q = project(at, w[0], g * r, head, Some(i));
            let keys: Vec<Vec<f64>> = (0..=i).map(|j| project(batch * s + j, w[1], g, head / r, Some(j))).collect();
            let values: Vec<Vec<f64>> = (0..=i).map(|j| project(batch * s + j, w[2], g, head / r, None)).collect();
            let scores: Vec<f64> = keys
                .iter()
                .map(|key| (q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (k as f64).sqrt()).exp())
                .collect();
            let total: f64 = scores.iter().sum();
            for c in 0..k {
                let o: f64 = scores.iter().zip(&values).map(|(p, v)| p / total * v[c]).sum();
                for e in 0..d {
                    y[at * d + e] += o * w[3][(head * k + c) * d + e];
                }
            }
        }
    }
    y
}

fn block_of_numbers() -> Block {
    let ((_, _, d, f), (g, r, k)) = (SIZES, HEADS);
    Block {
        n1: tensor(&[d], 1),
        n2: tensor(&[d], 2),
        attn: Attention {
            wq: tensor(&[d, g, r, k], 3),
            wk: tensor(&[d, g, k], 4),
            wv: tensor(&[d, g, k], 5),
            wo: tensor(&[g, r, k, d], 6),
        },
        mlp: Swiglu { gate: tensor(&[d, f], 7), up: tensor(&[d, f], 8), down: tensor(&[f, d], 9) },
    }
}

fn block_loops(x: &[f64], w: &Block) -> Vec<f64> {
    let (_, _, d, f) = SIZES;
    let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
    let attn = [w.attn.wq, w.attn.wk, w.attn.wv, w.attn.wo].map(f64s);
    let mlp = [w.mlp.gate, w.mlp.up, w.mlp.down].map(f64s);
    let x = add(x, &attention_loops(&rms_norm_loops(x, &f64s(w.n1)), [&attn[0], &attn[1], &attn[2], &attn[3]]));
    let y = swiglu_loops(&rms_norm_loops(&x, &f64s(w.n2)), [&mlp[0], &mlp[1], &mlp[2]], d, f);
    add(&x, &y)
}

#[test]
fn swiglu_is_its_formula() {
    let (b, s, d, f) = SIZES;
    let (x, gate, up, down) = (tensor(&[b, s, d], 0), tensor(&[d, f], 1), tensor(&[d, f], 2), tensor(&[f, d], 3));
    let y = swiglu(x, gate, up, down);
    assert_eq!(y.dims(), [b, s, d]);
    assert_close(&y.to_vec(), &swiglu_loops(&f64s(x), [&f64s(gate), &f64s(up), &f64s(down)], d, f));
}

#[test]
fn attention_is_its_formula() {
    let (b, s, d, _) = SIZES;
    let w = block_of_numbers().attn;
    let x = tensor(&[b, s, d], 0);
    let y = attention(x, Rope::new(10_000.0), w.wq, w.wk, w.wv, w.wo);
    let w = [w.wq, w.wk, w.wv, w.wo].map(f64s);
    assert_close(&y.to_vec(), &attention_loops(&f64s(x), [&w[0], &w[1], &w[2], &w[3]]));
}

#[test]
fn block_is_its_formula() {
    let (b, s, d, _) = SIZES;
    let (x, w) = (tensor(&[b, s, d], 0), block_of_numbers());
    let y = w.forward(x, Rope::new(10_000.0));
    assert_close(&y.to_vec(), &block_loops(&f64s(x), &w));
}

#[test]
fn repeat_applies_its_copies_in_order_and_the_loss_reads_the_tied_table() {
    let (b, s, d, _) = SIZES;
    let v = 7;
    let copies = [block_of_numbers(), block_of_numbers()];
    let (emb, nf) = (tensor(&[v, d], 11), tensor(&[d], 12));
    let model = Gpt { trunk: Trunk { emb, blocks: Repeat::new(copies.clone()), nf } };
    let (ids, next) = (vec![0, 3, 6, 2, 2, 5], vec![3, 6, -1, 2, 5, 1]);
    let loss = model.forward(Ids::new(&[b, s], ids.clone()), Ids::new(&[b, s], next.clone()));

    let table = f64s(emb);
    let mut x: Vec<f64> = ids.iter().flat_map(|&i| table[i as usize * d..][..d].to_vec()).collect();
    for copy in &copies {
        x = block_loops(&x, copy);
    }
    let x = rms_norm_loops(&x, &f64s(nf));
    let mut sum = 0.0;
    for (row, &target) in x.chunks(d).zip(&next).filter(|(_, t)| **t >= 0) {
        let logits: Vec<f64> = table.chunks(d).map(|w| row.iter().zip(w).map(|(a, b)| a * b).sum()).collect();
        sum += logits.iter().map(|z| z.exp()).sum::<f64>().ln() - logits[target as usize];
    }
    assert_eq!(loss.count().item(), 5.0);
    assert_close(&[loss.ratio(), (loss * 0.5 + loss).ratio()], &[sum / 5.0, 1.5 * sum / 5.0]);
}

#[test]
fn a_tensor_is_copy_and_keeps_its_value() {
    let x = Tensor::new(&[2], vec![1.0, 2.0]);
    let y = x;
    let mut z = x;
    z += 1.0;
    z *= y;
    assert_eq!((x.to_vec(), y.to_vec(), z.to_vec()), (vec![1.0, 2.0], vec![1.0, 2.0], vec![2.0, 6.0]));
}

#[test]
fn host_tensors_work_without_names() {
    let a = Tensor::new(&[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let b = Tensor::new(&[3], vec![10.0, 20.0, 30.0]);
    assert_eq!((a + b).to_vec(), [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
    assert_eq!((1.0 - b).to_vec(), [-9.0, -19.0, -29.0]);
    let square = Tensor::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
    assert_eq!(square.matmul(a).to_vec(), [9.0, 12.0, 15.0, 19.0, 26.0, 33.0]);
    assert_eq!(square.matmul(square).to_vec(), [7.0, 10.0, 15.0, 22.0]);
    assert_eq!(a.einsum(a, "i k, j k -> i j").to_vec(), [14.0, 32.0, 32.0, 77.0]);
    assert_eq!(a.gt(3.0).select(a, 0.0).to_vec(), [0.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
    assert_eq!((a.maximum(b) - b).to_vec(), [0.0; 6]);
}

#[test]
fn a_split_takes_sizes_from_the_arguments_and_derives_one() {
    let frame = crate::__private::Frame::enter("heads");
    let x = frame.argument(tensor(&[2, 12], 0), "x", &["S", "D"]);
    let w = frame.argument(tensor(&[3], 1), "w", &["G"]);
    assert_eq!(x.split(D, (G, K)).dims(), [2, 3, 4]);
    assert_eq!(w.dims(), [3]);
}

#[test]
#[should_panic(expected = "K0123: `split` needs the size of `G`")]
fn a_split_into_unknown_sizes_says_so() {
    tensor(&[2, 12], 0).named((S, D)).split(D, (G, K));
}

#[test]
fn views_and_reductions() {
    let x = Tensor::new(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).named((S, D));
    assert_eq!(x.permute((D, S)).to_vec(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(x.merge((S, D), F).dims(), [6]);
    assert_eq!(x.sum(S).to_vec(), [3.0, 5.0, 7.0]);
    assert_eq!(x.sum((S, D)).item(), 15.0);
    assert_eq!(x.max(D).to_vec(), [2.0, 5.0]);
    assert_eq!((x - x.mean(D).over(D)).to_vec(), [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]);
    assert_eq!((x.mean(S).over(S) - x).to_vec(), [1.5, 1.5, 1.5, -1.5, -1.5, -1.5]);
    assert_eq!(x.concat(x.rename(S, T), S, T, B).dims(), [4, 3]);
    assert_eq!(x.softmax(D).sum(D).to_vec(), [1.0, 1.0]);
}

#[test]
fn initial_values_follow_the_header_the_path_and_the_seed() {
    let sizes = sizes! { D = 4, G = 2, R = 1, K = 2, F = 3, V = 5, L = 2 };
    let model: Gpt = init(&sizes, 7).expect("all axes have sizes");
    let blocks: Vec<Block> = model.trunk.blocks.clone().into_iter().collect();
    assert_eq!((blocks.len(), blocks[0].mlp.gate.dims()), (2, vec![4, 3]));
    assert_eq!(blocks[1].n1.to_vec(), [1.0; 4]);
    assert_ne!(blocks[0].mlp.gate.to_vec(), blocks[1].mlp.gate.to_vec());
    let again: Gpt = init(&sizes, 7).expect("all axes have sizes");
    assert_eq!(model.trunk.emb.to_vec(), again.trunk.emb.to_vec());
    let first = crate::random::normal(crate::init::key(7, "trunk.blocks.1.mlp.gate"), 0, 0);
    assert_eq!(blocks[1].mlp.gate.to_vec()[0], (f64::from(first) * 0.02) as f32);
    let loss = model.forward(Ids::new(&[1, 2], vec![0, 1]), Ids::new(&[1, 2], vec![1, 2]));
    // Small weights give even probabilities: the loss is near ln 5.
    assert!((loss.ratio() - 5f32.ln()).abs() < 0.05);
}

#[test]
fn an_axis_without_a_size_is_an_error() {
    let error = init::<Swiglu>(&sizes! { D = 4 }, 0).expect_err("F has no size");
    assert_eq!(error.to_string(), "K0701: axis `F` of layer `swiglu` has no size: add `F = ..` to `sizes!`");
}

#[test]
fn dropout_keeps_the_mean_and_depends_on_the_seed() {
    let x = Tensor::ones(&[10_000]);
    let y = x.dropout(0.25);
    let kept = y.to_vec().iter().filter(|&&v| v != 0.0).count();
    // Five standard deviations of a binomial count with n = 10 000, p = 0.75.
    assert!(kept.abs_diff(7_500) < 5 * 44, "{kept} of 10000 are kept");
    assert!(y.to_vec().iter().all(|&v| v == 0.0 || v == 4.0 / 3.0));
    assert_eq!(x.dropout(0.25).to_vec(), y.to_vec());
    seed(1);
    assert_ne!(x.dropout(0.25).to_vec(), y.to_vec());
}

#[test]
#[should_panic(expected = "K0121: axis `D` of `swiglu` has size 5 in argument `gate`, but 4 in an earlier one")]
fn one_name_has_one_size() {
    swiglu(tensor(&[2, 3, 4], 0), tensor(&[5, 6], 1), tensor(&[4, 6], 2), tensor(&[6, 4], 3));
}

#[test]
#[should_panic(expected = "K0122: argument `x` of `swiglu` has 3 axes, [B, S, D]; the tensor given has sizes [3, 4]")]
fn an_argument_has_its_rank() {
    swiglu(tensor(&[3, 4], 0), tensor(&[4, 6], 1), tensor(&[4, 6], 2), tensor(&[6, 4], 3));
}

#[test]
#[should_panic(expected = "K0101: `matmul` contracts `D` with `F`")]
fn names_check_what_positions_mean() {
    let (x, w) = (tensor(&[2, 4], 0).named((S, D)), tensor(&[4, 4], 1).named((F, D)));
    x.matmul(w);
}
