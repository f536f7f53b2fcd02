//! What this processor can do: a large product and a large copy, measured with the workers of a session.

use super::buffer::Buf;
use super::gemm::{Epilogue, GemmPlan};
use super::pool::Pool;
use super::share::Shared;
use crate::profile::Ceilings;
use kiln_compiler::ir::{Axis, DType, Sizes};
use std::time::Instant;

/// Side of the matrices: 4 MiB each.
const SIDE: usize = 1024;
/// Elements of the copy: 64 MiB, more than most caches hold.
const COPIED: usize = 16 << 20;
/// Elements that a task copies.
const PIECE: usize = 1 << 16;
/// Samples, of which the best counts: a ceiling is what nothing disturbed.
const SAMPLES: usize = 5;

/// Measures both.
///
/// # Errors
/// When the system refuses to start threads.
pub fn ceilings(threads: usize) -> std::io::Result<Ceilings> {
    let pool = Pool::new(threads)?;
    Ok(Ceilings { gflops: product(&pool), gb_per_s: copy(&pool) })
}

fn best(mut sample: impl FnMut()) -> f64 {
    let timed = |_| {
        let begin = Instant::now();
        sample();
        begin.elapsed().as_secs_f64()
    };
    (0..=SAMPLES).map(timed).fold(f64::INFINITY, f64::min)
}

#[allow(unsafe_code)]
fn product(pool: &Pool) -> f64 {
    let [i, k, j] = ["i", "k", "j"].map(Axis::new);
    let sizes: Sizes = [i, k, j].into_iter().map(|a| (a, SIDE)).collect();
    let plan = GemmPlan::new(&[i, k], &[k, j], &[i, j], &sizes, pool.threads()).expect("every axis is in an operand");
    let mut all = [(); 3].map(|()| vec![0.5f32; SIDE * SIDE]);
    // SAFETY: the vectors live until the end of this function, and only the product uses them.
    let [a, b, c] = all.each_mut().map(|x| unsafe { Buf::new(x.as_mut_ptr().cast(), size_of_val(&x[..]), DType::F32) });
    let mut workspace = vec![0.0; plan.workspace_len()];
    let seconds = best(|| plan.run(pool, a, b, c, Epilogue::STORE, &mut workspace));
    plan.flops() as f64 / seconds / 1e9
}

#[allow(unsafe_code)]
fn copy(pool: &Pool) -> f64 {
    let (from, mut to) = (vec![0.5f32; COPIED], vec![0.0f32; COPIED]);
    let seconds = best(|| {
        let to = Shared::new(&mut to);
        pool.run(COPIED / PIECE, |task, _| {
            // SAFETY: each task has its own piece.
            unsafe { to.slice(task * PIECE, PIECE) }.copy_from_slice(&from[task * PIECE..][..PIECE]);
        });
    });
    2.0 * size_of_val(&from[..]) as f64 / seconds / 1e9
}
