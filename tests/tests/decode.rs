//! Decoding with caches: the ids and logits are those of whole windows, and models whose positions meet elsewhere are refused.

use std::collections::{BTreeMap, BTreeSet};

use kiln::decoder::{DecodeError, Decoder};
use kiln::layer::Layer;
use kiln::plan::decode::DecodeRefusal;
use kiln::prelude::*;
use kiln::random;
use kiln::session::Session;
use kiln::state::{State, TensorData};
use kiln::{DType, Sizes};
use kiln_examples::gpt::{B, D, F, G, GptLogits, K, L, R, S, V};

fn session<Root: Layer>(sizes: Sizes, precision: DType, threads: usize) -> Session<Root> {
    Session::new(sizes, precision, BTreeMap::new(), threads).expect("the model is sound")
}

fn size(sizes: &Sizes, axis: &str) -> usize {
    sizes.iter().find(|(a, _)| a.name() == axis).map(|(_, n)| n).expect("the axis has a size")
}

/// Ids without a pattern.
fn tokens(n: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| (random::uniform(3, i as u64, 0) * vocab as f32) as i32 % vocab as i32).collect()
}

fn likeliest(logits: &[f32]) -> i32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&l| l == best).expect("there are logits") as i32
}

/// Lets both continue a prompt by the likeliest token: the session with a whole window for each token, the decoder with caches.
fn check_greedy(sizes: Sizes, threads: usize, length: usize) {
    let (window, vocab) = (size(&sizes, "S"), size(&sizes, "V"));
    let mut session = session::<GptLogits>(sizes, DType::F32, threads);
    let mut decoder = session.decoder().expect("a causal model");
    let prompt = tokens(window - length, vocab);
    let (mut uncached, mut cached) = (prompt.clone(), prompt.clone());
    let mut next = likeliest(decoder.push(&prompt).expect("a prompt within the window"));
    for i in 0..length {
        let mut ids = uncached.clone();
        ids.resize(window, 0);
        let logits = session.forward(&ids).expect("a sound batch");
        uncached.push(likeliest(&logits[(uncached.len() - 1) * vocab..][..vocab]));
        cached.push(next);
        assert_eq!(cached.last(), uncached.last(), "token {i}");
        if i + 1 < length {
            next = likeliest(decoder.push(&[next]).expect("a place in the window"));
        }
    }
    assert_eq!(decoder.remaining(), 1, "the last token was chosen and not computed");
    let distinct: BTreeSet<i32> = cached.into_iter().collect();
    assert!(distinct.len() > 8, "a text of {} different tokens shows little", distinct.len());
}

#[test]
fn greedy_ids_are_those_of_whole_windows_over_256_tokens() {
    check_greedy(sizes! { B = 1, S = 264, D = 32, G = 4, R = 1, K = 8, F = 48, V = 256, L = 2 }, 2, 256);
}

#[test]
fn greedy_ids_of_grouped_queries_are_those_of_whole_windows() {
    check_greedy(sizes! { B = 1, S = 264, D = 36, G = 2, R = 2, K = 6, F = 50, V = 101, L = 2 }, 3, 256);
}

/// Where no other bound is known: sums of some hundred terms in f32.
const F32_BOUND: f32 = 2e-5;

/// The decoder's output at every position is that of the whole window, for each row of the batch, within `bound`.
fn check_positions<Root: Layer>(sizes: Sizes, precision: DType, bound: f32) {
    let (rows, window, vocab) = (size(&sizes, "B"), size(&sizes, "S"), size(&sizes, "V"));
    let ids = tokens(rows * window, vocab);
    let mut session = session::<Root>(sizes, precision, 2);
    let whole = session.forward(&ids).expect("a sound batch");
    let width = whole.len() / rows / window;
    let mut decoder = session.decoder().expect("a causal model");
    for t in 0..window {
        let column: Vec<i32> = (0..rows).map(|row| ids[row * window + t]).collect();
        let logits = decoder.push(&column).expect("a place in the window");
        assert_eq!(logits.len(), rows * width);
        for (row, found) in logits.chunks_exact(width).enumerate() {
            let wanted = &whole[(row * window + t) * width..][..width];
            let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= bound, "position {t} of row {row} is off by {worst}");
        }
    }
}

#[test]
fn every_position_of_every_row_is_that_of_the_whole_window() {
    let gpt = || sizes! { B = 3, S = 21, D = 40, G = 2, R = 3, K = 6, F = 50, V = 37, L = 2 };
    check_positions::<GptLogits>(gpt(), DType::F32, F32_BOUND);
    // The residual stream is rounded to 8 bits a few times on the way to logits below 1.
    check_positions::<GptLogits>(gpt(), DType::Bf16, 2e-2);
    check_positions::<GptLogits>(gpt(), DType::F16, 2e-3);
    // More rows than are multiplied in place.
    let wide = sizes! { B = 17, S = 5, D = 24, G = 2, R = 1, K = 8, F = 50, V = 37, L = 1 };
    check_positions::<GptLogits>(wide, DType::F32, F32_BOUND);
}

/// Positions are learned, as in GPT-2: a table over the sequence.
#[layer]
fn learned(
    ids: Ids<B, S>,
    #[param(init = normal(1.0))] emb: Tensor<V, D>,
    #[param(init = normal(1.0))] place: Tensor<S, D>,
    #[param(init = normal(0.5))] wq: Tensor<D, G, K>,
    #[param(init = normal(0.5))] wk: Tensor<D, G, K>,
    #[param(init = normal(0.5))] wo: Tensor<G, K, D>,
    #[param(init = normal(0.5))] head: Tensor<D, V>,
) -> Tensor<B, S, V> {
    let x = emb.gather(ids) + place;
    let q = x.einsum(wq, "b s d, d g k -> b g s k");
    let k = x.einsum(wk, "b s d, d g k -> b g s k");
    let y: Tensor<B, S, D> = q.attend(k, k, Causal).einsum(wo, "b g s k, g k d -> b s d");
    (x + y).matmul(head).softmax(V)
}

#[test]
fn rows_of_a_table_of_positions_are_taken_one_by_one() {
    let sizes = || sizes! { B = 2, S = 9, D = 12, G = 2, K = 4, V = 11 };
    check_positions::<Learned>(sizes(), DType::F32, F32_BOUND);
    check_positions::<Learned>(sizes(), DType::Bf16, 5e-2);
}

/// Keys that do not grow: parameters to which every position attends.
#[layer]
fn remembering(
    ids: Ids<B, S>,
    #[param(init = normal(1.0))] emb: Tensor<V, D>,
    #[param(init = normal(1.0))] memory: Tensor<B, L, D>,
    #[param(init = normal(0.5))] head: Tensor<D, V>,
) -> Tensor<B, S, V> {
    emb.gather(ids).attend(memory, memory, Full).matmul(head)
}

#[test]
fn attention_to_what_no_position_changes_is_run_as_it_is() {
    check_positions::<Remembering>(sizes! { B = 2, S = 9, D = 12, L = 5, V = 11 }, DType::F32, F32_BOUND);
}

fn small() -> Sizes {
    sizes! { B = 2, S = 21, D = 24, G = 2, R = 2, K = 4, F = 30, V = 37, L = 2 }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_cut_into_pushes() {
    let ids = tokens(2 * 8, 37);
    let mut seen: Vec<Vec<u32>> = Vec::new();
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    for threads in [1, 2, 3, 5] {
        let mut decoder = session::<GptLogits>(small(), DType::F32, threads).decoder().expect("a causal model");
        seen.push(bits(decoder.push(&ids).expect("eight positions")));
        decoder.reset();
        assert_eq!((decoder.position(), decoder.capacity()), (0, 21));
        for t in 0..7 {
            decoder.push(&[ids[t], ids[8 + t]]).expect("a position");
        }
        seen.push(bits(decoder.push(&[ids[7], ids[15]]).expect("the last")));
    }
    assert!(seen.windows(2).all(|s| s[0] == s[1]));
}

/// One table and nothing else.
#[layer]
fn table(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    emb.gather(ids)
}

#[test]
fn a_decoder_has_the_weights_of_its_moment_and_outlives_the_session() {
    let mut session = session::<Table>(sizes! { B = 1, S = 4, D = 2, V = 3 }, DType::F32, 2);
    let mut ones = session.decoder().expect("a table has no positions that meet");
    let emb = TensorData::f32([3, 2], vec![0.5, 1.5, 2.5, 3.5, 4.5, 5.5]);
    let state = State { tensors: [("emb".to_owned(), emb)].into(), meta: BTreeMap::new() };
    session.set_params(&state).expect("the state fits");
    let mut set = session.decoder().expect("the same model");
    drop(session);
    assert_eq!(ones.push(&[1]).expect("a position"), [1.0, 1.0]);
    assert_eq!(set.push(&[0, 1]).expect("positions"), [2.5, 3.5]);
}

#[test]
fn what_is_no_position_is_refused_and_changes_nothing() {
    let mut decoder = session::<GptLogits>(small(), DType::F32, 2).decoder().expect("a causal model");
    decoder.push(&tokens(2 * 20, 37)).expect("20 of 21 positions");
    let says = |decoder: &mut Decoder<GptLogits>, ids: &[i32]| decoder.push(ids).expect_err("refused").to_string();
    let full = says(&mut decoder, &[1, 2, 3, 4]);
    assert!(full.starts_with("K0871: 2 more positions after 20") && full.contains("21"), "{full}");
    for uneven in [&[][..], &[1], &[1, 2, 3]] {
        assert!(matches!(decoder.push(uneven), Err(DecodeError::Uneven { rows: 2, .. })));
    }
    assert!(says(&mut decoder, &[1]).starts_with("K0872: 1 ids"));
    let unknown = says(&mut decoder, &[1, 37]);
    assert!(unknown.starts_with("K0810: element 1 of input `ids` is the id 37"), "{unknown}");
    assert_eq!(decoder.remaining(), 1);
    decoder.push(&[1, -1]).expect("negative ids stand for nothing");
    assert!(matches!(decoder.push(&[1, 2]), Err(DecodeError::Full { capacity: 21, held: 21, pushed: 1 })));
    decoder.reset();
    decoder.push(&[1, 2]).expect("an empty window");
}

/// A weighted mean over the sequence.
#[layer]
fn pooling(x: Tensor<B, S, D>) -> Tensor<B, S, D> {
    x * x.softmax(S)
}

#[layer]
fn pooled(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>, #[sub] pool: Pooling) -> Tensor<B, S, D> {
    pool.forward(emb.gather(ids))
}

#[layer]
fn centred(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    x - x.mean(S).over(S)
}

#[layer]
fn peaked(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    x - x.max(S).over(S)
}

#[layer]
fn looking_ahead(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    x.attend(x, x, Full)
}

/// Positions meet in a product, as in MLP-Mixer.
#[layer]
fn mixing(
    ids: Ids<B, S>,
    #[param(init = ones)] emb: Tensor<V, D>,
    #[param(init = ones)] w: Tensor<S, T>,
) -> Tensor<B, S, D> {
    let mixed: Tensor<B, T, D> = emb.gather(ids).einsum(w, "b s d, s t -> b t d");
    mixed.rename(T, S)
}

#[layer]
fn agreeing(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    x * x.einsum(x, "b s d, b s d -> b d").over(S)
}

#[layer]
fn renaming(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    let keys = x.rename(S, T);
    x.attend(keys, keys, Causal)
}

#[layer]
fn shifting(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    let x = emb.gather(ids);
    let late = x.pad(S, 1, T);
    x + late.slice(T, 0, S)
}

#[layer]
fn looking_up(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<S, D>) -> Tensor<B, S, D> {
    emb.gather(ids)
}

#[layer]
fn two_inputs(ids: Ids<B, S>, x: Tensor<B, S, D>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    emb.gather(ids) + x
}

#[layer]
fn floats(x: Tensor<B, S, D>, #[param(init = ones)] n: Tensor<D>) -> Tensor<B, S, D> {
    x * n
}

#[layer]
fn without_positions(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Tensor<B, D> {
    emb.gather(ids).mean(S)
}

#[layer]
fn losing(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>) -> Loss {
    emb.gather(ids).linear_cross_entropy(emb, ids)
}

axes! { T: "later positions" }

/// What the refusal of a root says.
fn refusal<Root: Layer>(sizes: Sizes) -> String {
    match session::<Root>(sizes, DType::F32, 1).decoder() {
        Err(DecodeError::Refused(refusal @ (DecodeRefusal::Mixes { .. } | DecodeRefusal::Root { .. }))) => {
            refusal.to_string()
        }
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("positions meet, and nobody noticed"),
    }
}

#[test]
fn models_whose_positions_meet_elsewhere_are_refused_by_layer_and_operation() {
    let sizes = || sizes! { B = 2, S = 6, D = 6, V = 7 };
    let later = |t: usize| sizes! { B = 2, S = 6, D = 6, V = 7, T = t };
    let cases = [
        (refusal::<Pooled>(sizes()), "layer `pool` has a maximum over the sequence `S`"),
        (refusal::<Centred>(sizes()), "layer `centred` has a sum over the sequence `S`"),
        (refusal::<Peaked>(sizes()), "layer `peaked` has a maximum over the sequence `S`"),
        (refusal::<LookingAhead>(sizes()), "layer `looking_ahead` has an `attend` with `Full` over the sequence `S`"),
        (refusal::<Mixing>(later(6)), "layer `mixing` has a `rename` of the sequence `S`"),
        (refusal::<Agreeing>(sizes()), "layer `agreeing` has a product that sums over the sequence `S`"),
        (refusal::<Renaming>(later(6)), "layer `renaming` has a `rename` of the sequence `S`"),
        (refusal::<Shifting>(later(7)), "layer `shifting` has a `pad` along the sequence `S`"),
        (
            refusal::<LookingUp>(sizes! { B = 2, S = 6, D = 6 }),
            "layer `looking_up` has an index by value along the sequence `S`",
        ),
    ];
    for (said, wanted) in cases {
        assert!(
            said.starts_with("K0717: tests/decode.rs:") || said.starts_with("K0717: tests/tests/decode.rs:"),
            "{said}"
        );
        assert!(said.contains(wanted), "{said}\nand not\n{wanted}");
    }
    let roots = [
        (refusal::<TwoInputs>(sizes()), "the root `two_inputs` takes 2 inputs"),
        (refusal::<Floats>(sizes! { B = 2, S = 6, D = 6 }), "the root `floats` takes `x` as f32[B, S, D]"),
        (refusal::<WithoutPositions>(sizes()), "the root `without_positions` returns f32[B, D]"),
        (refusal::<Losing>(sizes()), "the root `losing` returns f32[]"),
    ];
    for (said, wanted) in roots {
        assert!(said.starts_with("K0718: ") && said.contains(wanted), "{said}\nand not\n{wanted}");
    }
}
