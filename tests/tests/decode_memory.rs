//! The heap while a decoder runs: not one block per token, on any thread.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln::DType;
use kiln::prelude::sizes;
use kiln::session::Session;
use kiln_examples::gpt::{B, D, F, G, GptLogits, K, L, R, S, V};

/// The system's allocator with a counter of all threads' blocks.
struct Counting;

static BLOCKS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BLOCKS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// The only test of this executable: the counter is of the whole process.
#[test]
fn no_token_allocates() {
    for (rows, threads, precision) in [(1, 1, DType::F32), (1, 3, DType::F32), (2, 2, DType::Bf16), (20, 2, DType::F32)]
    {
        let sizes = sizes! { B = rows, S = 40, D = 32, G = 2, R = 2, K = 8, F = 48, V = 101, L = 2 };
        let session =
            Session::<GptLogits>::new(sizes, precision, BTreeMap::new(), threads).expect("the model is sound");
        let mut decoder = session.decoder().expect("a causal model");
        let prompt = vec![1; rows * 8];
        let mut ids = vec![2; rows];
        let before = BLOCKS.load(Ordering::SeqCst);
        decoder.push(&prompt).expect("a prompt");
        for _ in 0..2 {
            while decoder.remaining() > 0 {
                let logits = decoder.push(&ids).expect("a position");
                ids[0] = i32::from(logits[0] > 0.0);
            }
            decoder.reset();
        }
        let blocks = BLOCKS.load(Ordering::SeqCst) - before;
        assert_eq!(blocks, 0, "{rows} rows, {threads} threads, {precision}: blocks were allocated");
    }
}
