//! Prints GFLOP/s of the host's matrix products: `cargo run --release -p kiln --no-default-features --example host_gemm [threads]`.

use kiln::device::host::buffer::Buf;
use kiln::device::host::gemm::{Epilogue, GemmPlan};
use kiln::device::host::pool::Pool;
use kiln_compiler::ir::{Axis, DType, Sizes};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |a| a.parse())?;
    let pool = Pool::new(threads)?;
    let (i, j, k) = (Axis::new("I"), Axis::new("J"), Axis::new("K"));
    println!("{:>5} {:>5} {:>5}  {:>8} {:>8} {:>8} {:>8}", "M", "N", "K", "ik,kj", "ik,jk", "ki,kj", "bf16");
    for (m, n, kk) in [
        (1024, 1024, 1024),
        (2048, 1024, 256),
        (256, 8192, 256),
        (2048, 704, 256),
        (2048, 256, 704),
        (256, 704, 2048),
        (2048, 256, 256),
        (1, 4096, 1024),
    ] {
        let sizes: Sizes = [(i, m), (j, n), (k, kk)].into_iter().collect();
        print!("{m:>5} {n:>5} {kk:>5} ");
        for (a, b, dtype) in [
            ([i, k], [k, j], DType::F32),
            ([i, k], [j, k], DType::F32),
            ([k, i], [k, j], DType::F32),
            ([i, k], [j, k], DType::Bf16),
        ] {
            let plan = GemmPlan::new(&a, &b, &[i, j], &sizes, threads)?;
            let mut memory: Vec<Vec<f32>> = [m * kk, kk * n, m * n].iter().map(|&n| vec![1.0; n]).collect();
            let mut workspace = vec![0.0; plan.workspace_len()];
            let bufs: Vec<Buf> = memory
                .iter_mut()
                // SAFETY: `memory` outlives the loop below, which alone uses the views.
                .map(|v| unsafe { Buf::new(v.as_mut_ptr().cast(), v.len() * 4, DType::F32) })
                .collect();
            let input = |b: Buf| match dtype {
                DType::F32 => b,
                // SAFETY: half of the bytes of the same memory.
                _ => unsafe { Buf::new(b.as_ptr(), b.len() * dtype.bytes(), dtype) },
            };
            let mut times: Vec<f64> = (0..25)
                .map(|_| {
                    let start = Instant::now();
                    plan.run(&pool, input(bufs[0]), input(bufs[1]), bufs[2], Epilogue::STORE, &mut workspace);
                    start.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            print!(" {:>8.1}", plan.flops() as f64 / times[times.len() / 2] / 1e9);
        }
        println!();
    }
    Ok(())
}
