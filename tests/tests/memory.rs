//! The heap, counted: planned bytes are the measured ones, steps after the first allocate nothing large, refusals nothing at all.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use kiln::link::Keep;
use kiln::prelude::sizes;
use kiln::ranks::Mesh;
use kiln::trainer::{Trainer, TrainerBuilder};
use kiln::{DType, Sizes};
use kiln_tests::models::*;
use kiln_tests::training::batch;

/// The system's allocator with counters of all threads.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::SeqCst) + bytes;
    PEAK.fetch_max(live, Ordering::SeqCst);
    LARGEST.fetch_max(bytes, Ordering::SeqCst);
}

// SAFETY: every call is the system allocator's with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// Cases run one after another: the counters are of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// Largest block, and highest sum above the start, of all threads while `f` runs.
fn measured<T>(f: impl FnOnce() -> T) -> (usize, usize, T) {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    LARGEST.store(0, Ordering::SeqCst);
    let result = f();
    (LARGEST.load(Ordering::SeqCst), PEAK.load(Ordering::SeqCst).saturating_sub(before), result)
}

/// Blocks of this size and more are the arena's alone once a session runs.
const PAGE: usize = 4096;

fn sizes() -> Sizes {
    sizes! { B = 4, S = 37, D = 36, G = 2, R = 3, K = 6, F = 70, V = 101, L = 3 }
}

fn settings() -> Vec<(&'static str, TrainerBuilder<Dropped>)> {
    let plain = || Trainer::<Dropped>::new(sizes()).seed(1).clip(1.0);
    vec![
        ("one thread", plain().threads(1)),
        ("three threads", plain().threads(3).accumulate(2)),
        ("bf16, inputs kept", plain().threads(2).precision(DType::Bf16).checkpoint(Keep::Inputs)),
        ("f16", plain().threads(2).precision(DType::F16)),
        ("four ranks", plain().threads(4).mesh(Mesh { data: 2, tensor: 2 })),
    ]
}

#[test]
fn steps_after_the_first_allocate_no_page() {
    let _alone = alone();
    for (name, builder) in settings() {
        let mut trainer = builder.build().expect("the model is sound");
        let batches: Vec<_> = (0..4).map(|step| batch(&sizes(), step)).collect();
        trainer.step(&batches[0]).expect("a sound step");
        let (largest, peak, ()) = measured(|| {
            for batch in &batches[1..] {
                trainer.step(batch).expect("a sound step");
                trainer.evaluate([batch]).expect("a sound batch");
            }
        });
        println!("{name}: largest block {largest}, {peak} bytes at once");
        assert!(largest < PAGE, "{name}: a block of {largest} bytes after the first step");
        assert!(peak < 16 * PAGE, "{name}: {peak} bytes at once after the first step");
    }
}

#[test]
fn planned_bytes_are_the_measured_ones() {
    let _alone = alone();
    for (name, builder) in settings() {
        let (largest, peak, trainer) = measured(|| builder.build().expect("the model is sound"));
        let (planned, ranks) = (trainer.peak_bytes(), trainer.ranks().world_size());
        assert_eq!(largest, planned, "{name}: the arena is one block, and nothing is larger");
        println!("{name}: {ranks} arenas of {planned} bytes, {} bytes besides", peak - ranks * planned);
        // Models, plans and kernels: data about the run, not of it.
        assert!(peak >= ranks * planned, "{name}");
        drop(trainer);
    }
}

#[test]
fn refused_sessions_allocate_no_tensor() {
    let _alone = alone();
    // The matrices of the feed-forward part have 8 MiB; the lists of a plan's steps are smaller.
    let large = || sizes! { B = 6, S = 128, D = 1024, G = 4, R = 4, K = 64, F = 2048, V = 1024, L = 4 };
    let builder = || Trainer::<Dropped>::new(large());
    let absurd = sizes! { B = 1, S = 2, D = 32768, G = 1, R = 1, K = 2, F = 32768, V = 3, L = 64 };
    let refused = [
        ("tensor = 3", builder().mesh(Mesh { data: 1, tensor: 3 })),
        ("batch over five", builder().accumulate(5)),
        ("no ranks", builder().mesh(Mesh { data: 1, tensor: 0 })),
        ("memory", Trainer::<Dropped>::new(absurd)),
    ];
    for (name, builder) in refused {
        let (largest, _, result) = measured(|| builder.build().err().map(|e| e.to_string()));
        println!("{name}: largest block {largest}: {}", result.expect("it cannot be planned"));
        assert!(largest < 4 << 20, "{name}: a block of {largest} bytes before the refusal");
    }
}
