//! `linear_cross_entropy` and its derivative, over a chunk of rows whose logits another launch has just computed into scratch.
//!
//! lse = ln Σ_V e^l; a row with a target t ≥ 0 costs lse − l\[t\] and counts 1; its logits' cotangent is (e^(l − lse) − \[v = t\])·s̄.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::N1;
use crate::kernels::reduce::{max_cube, sum_cube};
use cubecl::prelude::*;

/// One cube per row of the chunk: lse, loss and whether it counts, at `first` + row.
#[cube]
fn loss_rows(
    logits: &Array<Vector<f32, N1>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &mut Array<Vector<f32, N1>>,
    loss: &mut Array<Vector<f32, N1>>,
    counted: &mut Array<Vector<f32, N1>>,
    first: usize,
    rows: usize,
    vocab: usize,
    #[comptime] cube_dim: u32,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(cube_dim as usize));
    let unit = UNIT_POS as usize;
    let step = comptime!(cube_dim as usize).runtime();
    for row in range_stepped(CUBE_POS, rows, CUBE_COUNT) {
        let base = row * vocab;
        // The lowest finite number: shading languages have no infinity.
        let mut highest = f32::cast_from(-3.402_823_4e38f32);
        for v in range_stepped(unit, vocab, step) {
            let logit = f32::cast_from(logits[base + v]);
            highest = select(logit > highest, logit, highest);
        }
        let highest = f32::cast_from(max_cube(Vector::new(highest), &mut shared, cube_dim));
        let mut sum = 0.0f32;
        for v in range_stepped(unit, vocab, step) {
            sum += (f32::cast_from(logits[base + v]) - highest).exp();
        }
        let sum = f32::cast_from(sum_cube(Vector::new(sum), &mut shared, cube_dim));
        if unit == 0 {
            let target = i32::cast_from(targets[first + row]);
            let counts = target >= 0i32;
            let at = usize::cast_from(select(counts, target, 0i32));
            let total = highest + sum.ln();
            lse[first + row] = Vector::new(total);
            loss[first + row] = Vector::new(select(counts, total - f32::cast_from(logits[base + at]), 0.0f32));
            counted[first + row] = Vector::new(select(counts, 1.0f32, 0.0f32));
        }
    }
}

/// Builds it: buffers logits, targets, lse, loss, counted; first row, rows, V.
pub fn define_loss_rows(builder: &mut KernelBuilder, spec: &Spec) {
    let logits = arguments::input::<Vector<f32, N1>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let loss = arguments::output::<Vector<f32, N1>>(builder);
    let counted = arguments::output::<Vector<f32, N1>>(builder);
    let [first, rows, vocab] = std::array::from_fn(|_| arguments::position(builder));
    loss_rows::expand(&mut builder.scope, logits, targets, lse, loss, counted, first, rows, vocab, spec.cube_dim);
}

/// One cube: Σ loss and Σ counted.
#[cube]
fn loss_sum(
    loss: &Array<Vector<f32, N1>>,
    counted: &Array<Vector<f32, N1>>,
    sum: &mut Array<Vector<f32, N1>>,
    count: &mut Array<Vector<f32, N1>>,
    rows: usize,
    #[comptime] cube_dim: u32,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(cube_dim as usize));
    let unit = UNIT_POS as usize;
    let step = comptime!(cube_dim as usize).runtime();
    let mut of_loss = Vector::<f32, N1>::new(0.0f32);
    let mut of_count = Vector::<f32, N1>::new(0.0f32);
    for row in range_stepped(unit, rows, step) {
        of_loss += loss[row];
        of_count += counted[row];
    }
    let of_loss = sum_cube(of_loss, &mut shared, cube_dim);
    let of_count = sum_cube(of_count, &mut shared, cube_dim);
    if unit == 0 && CUBE_POS == 0 {
        sum[0] = of_loss;
        count[0] = of_count;
    }
}

/// Builds it: buffers loss, counted, sum, count; rows.
pub fn define_loss_sum(builder: &mut KernelBuilder, spec: &Spec) {
    let loss = arguments::input::<Vector<f32, N1>>(builder);
    let counted = arguments::input::<Vector<f32, N1>>(builder);
    let sum = arguments::output::<Vector<f32, N1>>(builder);
    let count = arguments::output::<Vector<f32, N1>>(builder);
    let rows = arguments::position(builder);
    loss_sum::expand(&mut builder.scope, loss, counted, sum, count, rows, spec.cube_dim);
}

/// One unit per logit of the chunk, in place.
#[cube]
fn loss_gradient(
    logits: &mut Array<Vector<f32, N1>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &Array<Vector<f32, N1>>,
    d_sum: &Array<Vector<f32, N1>>,
    first: usize,
    rows: usize,
    vocab: usize,
) {
    let at = ABSOLUTE_POS;
    if at < rows * vocab {
        let row = first + at / vocab;
        let target = i32::cast_from(targets[row]);
        let p = (f32::cast_from(logits[at]) - f32::cast_from(lse[row])).exp();
        let hit = select(i32::cast_from(at % vocab) == target, 1.0f32, 0.0f32);
        let e = (p - hit) * f32::cast_from(d_sum[0]);
        logits[at] = Vector::new(select(target >= 0i32, e, 0.0f32));
    }
}

/// Builds it: buffers logits, targets, lse, s̄; first row, rows, V.
pub fn define_loss_gradient(builder: &mut KernelBuilder, _: &Spec) {
    let logits = arguments::output::<Vector<f32, N1>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_sum = arguments::input::<Vector<f32, N1>>(builder);
    let [first, rows, vocab] = std::array::from_fn(|_| arguments::position(builder));
    loss_gradient::expand(&mut builder.scope, logits, targets, lse, d_sum, first, rows, vocab);
}
