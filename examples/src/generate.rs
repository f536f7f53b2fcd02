//! Writing text with a trained GPT: the state of a run continues a prompt byte by byte, with keys and values of earlier bytes in caches.

use std::collections::BTreeMap;
use std::process::ExitCode;

use kiln::decoder::Decoder;
use kiln::progress::print_line;
use kiln::random;
use kiln::run_dir::{RunDir, RunError};
use kiln::session::Session;
use kiln::state::State;

use crate::cli::GenerateArgs;
use crate::config::{BYTES, Config};
use crate::failure::Failure;
use crate::gpt::GptLogits;
use crate::train::{dtype, sizes_of};

/// `gpt generate`: prints what the model of a run writes.
///
/// # Errors
/// [`Failure`] if there is no such run or its state cannot be used.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode, Failure> {
    let folder = RunDir::resume(&args.runs, args.name.as_deref())?;
    let config: Config = serde_json::from_value(folder.read_config()?)
        .map_err(|e| RunError::Config { path: folder.config(), detail: e.to_string() })?;
    let config = Config { threads: args.threads.unwrap_or(config.threads), ..config };
    print_line(&text(&config, &State::load(&folder.state())?, args)?);
    Ok(ExitCode::SUCCESS)
}

/// The prompt and its continuation by the parameters of `state`. Bytes that are not UTF-8 become U+FFFD. A byte sees at most `config.seq`
/// bytes before it: of a longer prompt the last ones, and whenever the window is full, it goes on with its second half.
///
/// # Errors
/// [`Failure::Train`] if the state does not fit, [`Failure::Option`] if the prompt is empty.
pub fn text(config: &Config, state: &State<'_>, args: &GenerateArgs) -> Result<String, Failure> {
    if args.prompt.is_empty() {
        return Err(Failure::option("--prompt", "the model needs at least one byte to continue"));
    }
    let sizes = sizes_of(config, 1);
    let mut session = Session::<GptLogits>::new(sizes, dtype(config.precision), BTreeMap::new(), config.threads)?;
    session.set_params(state)?;
    let mut decoder = session.decoder()?;
    drop(session);
    let mut bytes = args.prompt.clone().into_bytes();
    let mut ids: Vec<i32> = bytes.iter().map(|&b| i32::from(b)).collect();
    let mut seen = ids.len().saturating_sub(decoder.capacity());
    for i in 0..args.length {
        seen = room(&mut decoder, seen, ids.len());
        let logits = decoder.push(&ids[seen..])?;
        seen = ids.len();
        let uniform = random::uniform(args.seed, i as u64, 0);
        let byte = choose(&logits[..BYTES], args.temperature, uniform);
        bytes.push(byte);
        ids.push(i32::from(byte));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes room for the ids from `seen` up to `all`. Where there is none, the decoder forgets, and takes half a window of the last ids again:
/// then that many more follow before it forgets the next time. Returns the first id to push.
fn room<L>(decoder: &mut Decoder<L>, seen: usize, all: usize) -> usize {
    if all - seen <= decoder.remaining() {
        return seen;
    }
    decoder.reset();
    all - (decoder.capacity() / 2).max(1)
}

/// The byte at which the cumulated softmax(logits/temperature) passes `uniform` in [0, 1); the likeliest at temperature 0.
fn choose(logits: &[f32], temperature: f64, uniform: f32) -> u8 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let likeliest = logits.iter().position(|&l| l == best).unwrap_or(0);
    if temperature == 0.0 {
        return likeliest as u8;
    }
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l - best) / temperature).exp()).collect();
    let mut left = f64::from(uniform) * weights.iter().sum::<f64>();
    for (byte, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return byte as u8;
        }
    }
    likeliest as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::{B, D, F, G, K, L, R, S, V};
    use kiln::prelude::sizes;

    #[test]
    fn a_full_window_goes_on_with_its_second_half() {
        const WINDOW: usize = 8;
        let sizes = sizes! { B = 1, S = WINDOW, D = 12, G = 2, R = 1, K = 4, F = 10, V = 16, L = 1 };
        let mut session =
            Session::<GptLogits>::new(sizes, kiln::DType::F32, BTreeMap::new(), 1).expect("the model is sound");
        let mut decoder = session.decoder().expect("a causal model");
        let ids: Vec<i32> = (0..30).map(|i| i * 7 % 16).collect();
        let mut seen = 0;
        for all in 3..ids.len() {
            seen = room(&mut decoder, seen, all);
            let logits = decoder.push(&ids[seen..all]).expect("there is room").to_vec();
            seen = all;
            let held = decoder.position();
            assert!(held <= WINDOW && (held >= WINDOW / 2 || held == all), "{held} positions of {all}");
            let mut window = ids[all - held..all].to_vec();
            window.resize(WINDOW, 0);
            let whole = session.forward(&window).expect("a sound batch");
            let off = logits.iter().zip(&whole[(held - 1) * 16..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "off by {off} after {all} ids");
        }
    }

    #[test]
    fn choices_follow_the_distribution() {
        let logits: Vec<f32> = [1.0f32, 2.0, 5.0].iter().map(|p| p.ln()).collect();
        assert_eq!([0.0, 0.12, 0.13, 0.37, 0.38, 0.999].map(|u| choose(&logits, 1.0, u)), [0, 0, 1, 1, 2, 2]);
        assert_eq!(choose(&logits, 0.0, 0.0), 2);
        assert_eq!(choose(&logits, 1e-300, 0.0), 2, "a tiny temperature neither overflows nor divides by zero");
    }
}
