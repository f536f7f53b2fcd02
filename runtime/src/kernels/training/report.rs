//! The report of a step, kept on the device: loss, targets, gradient norm, and with which factor the gradient is to be used.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{N0, N1};
use crate::kernels::reduce::sum_team;
use crate::kernels::team::Team;
use cubecl::prelude::*;

/// Numbers of a report: sum of the loss, counted targets, sum of squares of the gradient, elements of it that are not finite, factor of the
/// gradient, 1 if weights are updated, and steps since the loss was not finite (weights stay as they are from that step on).
pub const REPORT: usize = 7;

pub const LOSS: usize = 0;
pub const COUNT: usize = 1;
pub const SQUARES: usize = 2;
pub const BROKEN: usize = 3;
pub const FACTOR: usize = 4;
pub const UPDATES: usize = 5;
pub const FAILED: usize = 6;

/// Numbers that a cube leaves of its part of the gradient: sum of squares, elements that are not finite.
pub const SQUARES_STRIDE: usize = 2;

/// PyTorch's `clip_grad_norm_` adds it to the norm.
const CLIP_EPSILON: f32 = 1e-6;
/// The smallest exponent field of what is not finite, in place.
const EXPONENT: u32 = 0x7f80_0000;

/// Adds a micro-batch's loss and targets to the report, or begins it.
#[cube]
fn collect(
    loss: &Array<Vector<f32, N1>>,
    count: &Array<Vector<f32, N1>>,
    report: &mut Array<Vector<f32, N1>>,
    #[comptime] first: bool,
) {
    if ABSOLUTE_POS == 0 {
        if comptime!(first) {
            report[LOSS] = loss[0];
            report[COUNT] = count[0];
        } else {
            report[LOSS] = report[LOSS] + loss[0];
            report[COUNT] = report[COUNT] + count[0];
        }
    }
}

/// Builds it: buffers loss, count, report. Constant 0: the first micro-batch.
pub fn define_collect(builder: &mut KernelBuilder, spec: &Spec) {
    let loss = arguments::input::<Vector<f32, N1>>(builder);
    let count = arguments::input::<Vector<f32, N1>>(builder);
    let report = arguments::output::<Vector<f32, N1>>(builder);
    collect::expand(&mut builder.scope, loss, count, report, spec.constants[0] == 1);
}

/// Each cube: Σx² of its elements of a range, and how many are not finite, at partial\[first + cube\].
#[cube]
fn squares(
    x: &Array<Vector<f32, N0>>,
    partial: &mut Array<Vector<f32, N1>>,
    len: usize,
    first: usize,
    #[comptime] team: Team,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize));
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    let mut broken = 0.0f32;
    let all = CUBE_COUNT * comptime!(team.cube_dim as usize);
    for at in range_stepped(CUBE_POS * comptime!(team.cube_dim as usize) + unit, len, all) {
        let values = x[at];
        #[unroll]
        for k in 0..comptime!(values.size()) {
            let value = values[k];
            let finite = u32::reinterpret(value) & EXPONENT != EXPONENT;
            sum += select(finite, value * value, 0.0f32);
            broken += select(finite, 0.0f32, 1.0f32);
        }
    }
    let sum = sum_team(Vector::new(sum), &mut shared, team);
    let broken = sum_team(Vector::new(broken), &mut shared, team);
    if unit == 0 {
        let at = (first + CUBE_POS) * SQUARES_STRIDE;
        partial[at] = sum;
        partial[at + 1] = broken;
    }
}

/// Builds it: buffers x and partial; vectors, first place.
pub fn define_squares(builder: &mut KernelBuilder, spec: &Spec) {
    let x = arguments::input::<Vector<f32, N0>>(builder);
    let partial = arguments::output::<Vector<f32, N1>>(builder);
    let [len, first] = std::array::from_fn(|_| arguments::position(builder));
    squares::expand(&mut builder.scope, x, partial, len, first, spec.team());
}

/// One cube: ends the report. The factor brings the sum over targets, times the loss scale, to the mean with a norm of at most `max_norm`.
#[cube]
fn close(
    partial: &Array<Vector<f32, N1>>,
    report: &mut Array<Vector<f32, N1>>,
    places: usize,
    unscale: f32,
    max_norm: f32,
    #[comptime] team: Team,
    #[comptime] skips_overflow: bool,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize));
    let unit = UNIT_POS as usize;
    let mut sum = Vector::<f32, N1>::new(0.0f32);
    let mut broken = Vector::<f32, N1>::new(0.0f32);
    for at in range_stepped(unit, places, comptime!(team.cube_dim as usize).runtime()) {
        sum += partial[at * SQUARES_STRIDE];
        broken += partial[at * SQUARES_STRIDE + 1];
    }
    let sum = sum_team(sum, &mut shared, team);
    let broken = f32::cast_from(sum_team(broken, &mut shared, team));
    if unit == 0 && CUBE_POS == 0 {
        let loss = f32::cast_from(report[LOSS]);
        let count = f32::cast_from(report[COUNT]);
        let failed = f32::cast_from(report[FAILED]);
        let is_sound = u32::reinterpret(loss) & EXPONENT != EXPONENT && count > 0.0f32 && failed == 0.0f32;
        let mean = unscale / count;
        let norm = f32::cast_from(sum).sqrt() * mean;
        let clip = max_norm / (norm + CLIP_EPSILON);
        let clipped = max_norm > 0.0f32 && clip < 1.0f32;
        let updates = comptime!(skips_overflow).runtime() && broken > 0.0f32;
        report[SQUARES] = sum;
        report[BROKEN] = Vector::new(broken);
        report[FACTOR] = Vector::new(select(clipped, mean * clip, mean));
        report[UPDATES] = Vector::new(select(is_sound && !updates, 1.0f32, 0.0f32));
        report[FAILED] = Vector::new(select(is_sound, 0.0f32, failed + 1.0f32));
    }
}

/// Builds it: buffers partial and report; places; 1 / loss scale, largest norm or 0. Constant 0: an overflow skips the update.
pub fn define_close(builder: &mut KernelBuilder, spec: &Spec) {
    let partial = arguments::input::<Vector<f32, N1>>(builder);
    let report = arguments::output::<Vector<f32, N1>>(builder);
    let places = arguments::position(builder);
    let [unscale, max_norm] = std::array::from_fn(|_| arguments::number(builder));
    let (scope, skips) = (&mut builder.scope, spec.constants[0] == 1);
    close::expand(scope, partial, report, places, unscale, max_norm, spec.team(), skips);
}

/// Sets the factor of the gradient by hand.
#[cube]
fn factor(report: &mut Array<Vector<f32, N1>>, factor: f32) {
    if ABSOLUTE_POS == 0 {
        report[FACTOR] = Vector::new(factor);
        report[UPDATES] = Vector::new(1.0f32);
        report[FAILED] = Vector::new(0.0f32);
    }
}

/// Builds it: buffer report; factor.
pub fn define_factor(builder: &mut KernelBuilder, _: &Spec) {
    let report = arguments::output::<Vector<f32, N1>>(builder);
    let value = arguments::number(builder);
    factor::expand(&mut builder.scope, report, value);
}
