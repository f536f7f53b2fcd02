//! The start of a run: where each random stream stands, and the loss scale. Everything else of a plan is the same in every run, so that a
//! recorded plan can be launched again as it is.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use cubecl::prelude::*;

/// Words of a stream in the table.
pub const START_WORDS: usize = 6;

/// For each stream of the table (first word of its region, number of the stream in it, low and high word of its first position, of its
/// positions per part): writes the step and first + part · (positions per part) among `words`, where regions read them.
#[cube]
fn start(
    table: &Array<u32>,
    words: &mut Array<u32>,
    scale: &mut Array<f32>,
    streams: usize,
    step_low: usize,
    step_high: usize,
    part: usize,
    loss_scale: f32,
) {
    let at = ABSOLUTE_POS;
    if at < streams {
        let entry = at * START_WORDS;
        let region = usize::cast_from(table[entry]);
        let stream = region + 2 + 4 * usize::cast_from(table[entry + 1]);
        let part = u32::cast_from(part);
        let each = table[entry + 4];
        let low = each * part;
        let high = u32::mul_hi(each, part) + table[entry + 5] * part;
        let first = table[entry + 2];
        let sum = first + low;
        let carry = select(sum < first, 1u32, 0u32);
        words[region] = u32::cast_from(step_low);
        words[region + 1] = u32::cast_from(step_high);
        words[stream + 2] = sum;
        words[stream + 3] = table[entry + 3] + high + carry;
    }
    if at == 0 {
        scale[0] = loss_scale;
    }
}

/// Builds it: buffers table, words, loss scale; streams, low and high word of the step, part of the batch; loss scale.
pub fn define_start(builder: &mut KernelBuilder, _: &Spec) {
    let table = arguments::words(builder);
    let words = arguments::output::<u32>(builder);
    let scale = arguments::output::<f32>(builder);
    let [streams, step_low, step_high, part] = std::array::from_fn(|_| arguments::position(builder));
    let loss_scale = arguments::number(builder);
    start::expand(&mut builder.scope, table, words, scale, streams, step_low, step_high, part, loss_scale);
}
