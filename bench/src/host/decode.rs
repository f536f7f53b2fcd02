//! Decoding: tokens per second of one row whose keys and values are cached, each token being the likeliest after those before it.

use crate::Result;
use crate::models::Model;
use kiln::Sizes;
use kiln::decoder::Decoder;
use kiln::session::Session;
use kiln_examples::gpt::GptLogits;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

/// Positions that are computed before the clock starts.
const WARM_UP: usize = 16;

/// Computes `tokens` positions of a model with its first weights and writes `{"tokens": n, "seconds": t}`. When its window is full, the
/// decoder is reset.
///
/// # Errors
/// If the session or the decoder cannot be built.
pub fn decode(model: &Model, threads: usize, tokens: usize, mut output: impl Write) -> Result<()> {
    let sizes: Sizes = model.sizes.iter().map(|(a, n)| if a.name() == "B" { (a, 1) } else { (a, n) }).collect();
    let session = Session::<GptLogits>::new(sizes, model.precision, BTreeMap::new(), threads)?;
    let mut decoder = session.decoder()?;
    drop(session);
    let mut id = 1;
    for _ in 0..WARM_UP {
        id = next(&mut decoder, id)?;
    }
    decoder.reset();
    let begin = Instant::now();
    for _ in 0..tokens {
        id = next(&mut decoder, id)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    writeln!(output, "{}", serde_json::json!({ "tokens": tokens, "seconds": seconds }))?;
    Ok(())
}

/// The likeliest token after `id`.
fn next(decoder: &mut Decoder<GptLogits>, id: i32) -> Result<i32> {
    if decoder.remaining() == 0 {
        decoder.reset();
    }
    let logits = decoder.push(&[id])?;
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
    Ok(i32::try_from(best.0)?)
}
