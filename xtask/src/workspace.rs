//! Where things are: the root of the workspace, its target folder, and cargo.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The folder of the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    // `cargo run` sets the variable for the package; the compiled-in path serves a binary that is started by hand.
    let package = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    PathBuf::from(package).join("..").canonicalize().unwrap_or_else(|_| PathBuf::from("."))
}

/// The target folder that all tiers share.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A cargo command in the root, with the shared target folder.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target()).env("CARGO_TERM_COLOR", "never");
    // Set by `cargo run` for this package only.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    command
}
