//! Decoding with caches: the ids and logits are those of whole windows, and models whose positions meet elsewhere are refused.

use std::collections::BTreeMap;

use kiln::decoder::{DecodeError, Decoder};
use kiln::layer::Layer;
use kiln::plan::decode::DecodeRefusal;
use kiln::prelude::*;
use kiln::random;
use kiln::session::Session;
use kiln::{DType, Sizes};
use kiln_examples::gpt::{B, D, F, G, GptLogits, K, L, R, S, V};

fn session<Root: Layer>(sizes: Sizes, precision: DType, threads: usize) -> Session<Root> {
    Session::new(sizes, precision, BTreeMap::new(), threads).expect("the model is sound")
}

/// Of what a root takes, for any layer of this file.
fn small() -> Sizes {
    sizes! { B = 2, S = 12, D = 8, V = 16 }
}

fn likeliest(logits: &[f32]) -> i32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&l| l == best).expect("there are logits") as i32
}

fn tokens(n: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| (random::uniform(3, i as u64, 0) * vocab as f32) as i32 % vocab as i32).collect()
}

fn size(sizes: &Sizes, axis: &str) -> usize {
    sizes.iter().find(|(a, _)| a.name() == axis).map(|(_, n)| n).expect("the axis has a size")
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
    assert_eq!(cached, uncached);
    assert_eq!(decoder.remaining(), 1, "the last token was chosen and not computed");
    let distinct: std::collections::BTreeSet<i32> = cached.into_iter().collect();
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
