//! `linear_cross_entropy` and its derivative, over a chunk of rows whose logits another launch has just computed into scratch.
//!
//! lse = ln Σ_V e^l; a row with a target t ≥ 0 costs lse − l\[t\] and counts 1; its logits' cotangent is (e^(l − lse) − \[v = t\])·s̄.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, N0, N1};
use crate::kernels::reduce::{max_team, sum_team};
use crate::kernels::team::Team;
use cubecl::prelude::*;

/// lse, loss and whether it counts, of one row, which is read once: each unit keeps a running maximum and the sum beside it (Milakov and
/// Gimelshein 2018, "Online normalizer calculation for softmax"). Gives lse to every unit.
#[cube]
fn loss_of_row(
    logits: &Array<Vector<f32, N0>>,
    base: usize,
    target: i32,
    lse: &mut Array<Vector<f32, N1>>,
    loss: &mut Array<Vector<f32, N1>>,
    counted: &mut Array<Vector<f32, N1>>,
    row: usize,
    vectors: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] team: Team,
) -> f32 {
    let unit = UNIT_POS as usize;
    let step = comptime!(team.cube_dim as usize).runtime();
    // The lowest finite number: shading languages have no infinity.
    let mut highest = f32::cast_from(-3.402_823_4e38f32);
    let mut sum = 0.0f32;
    let mut own = 0.0f32;
    for v in range_stepped(unit, vectors, step) {
        let logit = logits[base + v];
        let mut next = highest;
        #[unroll]
        for k in 0..comptime!(logit.size()) {
            next = select(logit[k] > next, logit[k], next);
            let is_target = i32::cast_from(v * comptime!(logit.size()) + k) == target;
            own = select(is_target, logit[k], own);
        }
        sum *= (highest - next).exp();
        #[unroll]
        for k in 0..comptime!(logit.size()) {
            sum += (logit[k] - next).exp();
        }
        highest = next;
    }
    let of_row = f32::cast_from(max_team(Vector::new(highest), shared, team));
    let sum = sum * (highest - of_row).exp();
    let sum = f32::cast_from(sum_team(Vector::new(sum), shared, team));
    let own = f32::cast_from(sum_team(Vector::new(own), shared, team));
    let total = of_row + sum.ln();
    if unit == 0 {
        let counts = target >= 0i32;
        lse[row] = Vector::new(total);
        loss[row] = Vector::new(select(counts, total - own, 0.0f32));
        counted[row] = Vector::new(select(counts, 1.0f32, 0.0f32));
    }
    total
}

/// One cube per row of the chunk: lse, loss and whether it counts, at `first` + row.
#[cube]
fn loss_rows(
    logits: &Array<Vector<f32, N0>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &mut Array<Vector<f32, N1>>,
    loss: &mut Array<Vector<f32, N1>>,
    counted: &mut Array<Vector<f32, N1>>,
    first: usize,
    rows: usize,
    vectors: usize,
    #[comptime] team: Team,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize));
    for row in range_stepped(CUBE_POS, rows, CUBE_COUNT) {
        let target = i32::cast_from(targets[first + row]);
        loss_of_row(logits, row * vectors, target, lse, loss, counted, first + row, vectors, &mut shared, team);
    }
}

/// Builds it: buffers logits, targets, lse, loss, counted; first row, rows, V in vectors.
pub fn define_loss_rows(builder: &mut KernelBuilder, spec: &Spec) {
    let logits = arguments::input::<Vector<f32, N0>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let loss = arguments::output::<Vector<f32, N1>>(builder);
    let counted = arguments::output::<Vector<f32, N1>>(builder);
    let [first, rows, vectors] = std::array::from_fn(|_| arguments::position(builder));
    loss_rows::expand(&mut builder.scope, logits, targets, lse, loss, counted, first, rows, vectors, spec.team());
}

/// One cube: Σ loss and Σ counted.
#[cube]
fn loss_sum(
    loss: &Array<Vector<f32, N1>>,
    counted: &Array<Vector<f32, N1>>,
    sum: &mut Array<Vector<f32, N1>>,
    count: &mut Array<Vector<f32, N1>>,
    rows: usize,
    #[comptime] team: Team,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize));
    let unit = UNIT_POS as usize;
    let step = comptime!(team.cube_dim as usize).runtime();
    let mut of_loss = Vector::<f32, N1>::new(0.0f32);
    let mut of_count = Vector::<f32, N1>::new(0.0f32);
    for row in range_stepped(unit, rows, step) {
        of_loss += loss[row];
        of_count += counted[row];
    }
    let of_loss = sum_team(of_loss, &mut shared, team);
    let of_count = sum_team(of_count, &mut shared, team);
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
    loss_sum::expand(&mut builder.scope, loss, counted, sum, count, rows, spec.team());
}

/// Cotangents of the logits of one vector, which begins at column `v`.
#[cube]
fn cotangents(logits: Vector<f32, N0>, v: usize, target: i32, lse: f32, d_sum: f32) -> Vector<f32, N0> {
    let mut out = Vector::<f32, N0>::new(0.0f32);
    if target >= 0i32 {
        let mut hit = Vector::<f32, N0>::new(0.0f32);
        #[unroll]
        for k in 0..comptime!(logits.size()) {
            hit[k] = select(i32::cast_from(v + k) == target, 1.0f32, 0.0f32);
        }
        out = ((logits - Vector::new(lse)).exp() - hit) * Vector::new(d_sum);
    }
    out
}

/// One unit per vector of the chunk's logits, in place.
#[cube]
fn loss_gradient(
    logits: &mut Array<Vector<f32, N0>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &Array<Vector<f32, N1>>,
    d_sum: &Array<Vector<f32, N1>>,
    first: usize,
    rows: usize,
    vectors: usize,
    #[comptime] width: usize,
) {
    let at = ABSOLUTE_POS;
    if at < rows * vectors {
        let row = first + at / vectors;
        let (target, lse) = (i32::cast_from(targets[row]), f32::cast_from(lse[row]));
        let v = at % vectors * comptime!(width);
        logits[at] = cotangents(logits[at], v, target, lse, f32::cast_from(d_sum[0]));
    }
}

/// Builds it: buffers logits, targets, lse, s̄; first row, rows, V in vectors.
pub fn define_loss_gradient(builder: &mut KernelBuilder, spec: &Spec) {
    let logits = arguments::output::<Vector<f32, N0>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_sum = arguments::input::<Vector<f32, N1>>(builder);
    let [first, rows, vectors] = std::array::from_fn(|_| arguments::position(builder));
    loss_gradient::expand(&mut builder.scope, logits, targets, lse, d_sum, first, rows, vectors, spec.width);
}

/// Losses of rows, and at once the cotangents of their logits, rounded: a row is read again while it is in the device's cache, if not many
/// cubes run at once.
#[cube]
fn loss_rows_rounded(
    logits: &Array<Vector<f32, N0>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &mut Array<Vector<f32, N1>>,
    loss: &mut Array<Vector<f32, N1>>,
    counted: &mut Array<Vector<f32, N1>>,
    d_sum: &Array<Vector<f32, N1>>,
    d_logits: &mut Array<Vector<F0, N0>>,
    first: usize,
    rows: usize,
    vectors: usize,
    #[comptime] width: usize,
    #[comptime] team: Team,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.cube_dim as usize));
    let unit = UNIT_POS as usize;
    let step = comptime!(team.cube_dim as usize).runtime();
    for row in range_stepped(CUBE_POS, rows, CUBE_COUNT) {
        let target = i32::cast_from(targets[first + row]);
        let base = row * vectors;
        let total = loss_of_row(logits, base, target, lse, loss, counted, first + row, vectors, &mut shared, team);
        for v in range_stepped(unit, vectors, step) {
            let d = cotangents(logits[base + v], v * comptime!(width), target, total, f32::cast_from(d_sum[0]));
            d_logits[base + v] = Vector::<F0, N0>::cast_from(d);
        }
    }
}

/// Builds it: buffers logits, targets, lse, loss, counted, s̄, cotangents of logits; first row, rows, V in vectors.
pub fn define_loss_rows_rounded(builder: &mut KernelBuilder, spec: &Spec) {
    let logits = arguments::input::<Vector<f32, N0>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let loss = arguments::output::<Vector<f32, N1>>(builder);
    let counted = arguments::output::<Vector<f32, N1>>(builder);
    let d_sum = arguments::input::<Vector<f32, N1>>(builder);
    let d_logits = arguments::output::<Vector<F0, N0>>(builder);
    let [first, rows, vectors] = std::array::from_fn(|_| arguments::position(builder));
    let (scope, width, team) = (&mut builder.scope, spec.width, spec.team());
    loss_rows_rounded::expand(
        scope, logits, targets, lse, loss, counted, d_sum, d_logits, first, rows, vectors, width, team,
    );
}

/// The same, rounded to the operands' type for a product by tensor cores.
#[cube]
fn loss_gradient_rounded(
    logits: &Array<Vector<f32, N0>>,
    targets: &Array<Vector<i32, N1>>,
    lse: &Array<Vector<f32, N1>>,
    d_sum: &Array<Vector<f32, N1>>,
    d_logits: &mut Array<Vector<F0, N0>>,
    first: usize,
    rows: usize,
    vectors: usize,
    #[comptime] width: usize,
) {
    let at = ABSOLUTE_POS;
    if at < rows * vectors {
        let row = first + at / vectors;
        let (target, lse) = (i32::cast_from(targets[row]), f32::cast_from(lse[row]));
        let v = at % vectors * comptime!(width);
        let d = cotangents(logits[at], v, target, lse, f32::cast_from(d_sum[0]));
        d_logits[at] = Vector::<F0, N0>::cast_from(d);
    }
}

/// Builds it: buffers logits, targets, lse, s̄, their cotangents; first row, rows, V in vectors.
pub fn define_loss_gradient_rounded(builder: &mut KernelBuilder, spec: &Spec) {
    let logits = arguments::input::<Vector<f32, N0>>(builder);
    let targets = arguments::input::<Vector<i32, N1>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_sum = arguments::input::<Vector<f32, N1>>(builder);
    let d_logits = arguments::output::<Vector<F0, N0>>(builder);
    let [first, rows, vectors] = std::array::from_fn(|_| arguments::position(builder));
    loss_gradient_rounded::expand(
        &mut builder.scope,
        logits,
        targets,
        lse,
        d_sum,
        d_logits,
        first,
        rows,
        vectors,
        spec.width,
    );
}
