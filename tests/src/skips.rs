//! Skips that are counted: a case that cannot run here says why, and `cargo xtask test` does not count it as passed.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Records that the running case is skipped.
pub fn skip(case: &str, reason: &str) {
    eprintln!("skipped `{case}`: {reason}");
    let Some(path) = env::var_os("KILN_SKIPS") else { return };
    let line = format!("{case}\t{reason}\n");
    let written =
        OpenOptions::new().append(true).create(true).open(path).and_then(|mut f| f.write_all(line.as_bytes()));
    written.expect("the list of skips can be written");
}

/// Why this machine has no wgpu device, where `cargo xtask test` found out.
pub fn no_wgpu() -> Option<String> {
    env::var("KILN_NO_WGPU").ok()
}

/// Why this machine has no CUDA device, where `cargo xtask test` found out.
pub fn no_cuda() -> Option<String> {
    env::var("KILN_NO_CUDA").ok()
}

/// The folder of NVRTC, or why there is none; `cargo xtask test` unpacks it.
pub fn nvrtc() -> Result<PathBuf, String> {
    let absent = || "no NVRTC: `cargo xtask test --tier cuda-compile` unpacks it".to_owned();
    env::var_os("KILN_NVRTC").map(PathBuf::from).ok_or_else(|| env::var("KILN_NO_NVRTC").unwrap_or_else(|_| absent()))
}

/// Why generated code cannot be compiled for the CPU here.
pub fn no_compiler() -> Option<String> {
    env::var("KILN_NO_GXX").ok()
}
