//! The tests of the host device for AArch64: natively where this machine is one, under an emulator elsewhere. On request, since the emulator is
//! slow and one more target is built.

use crate::{apt, workspace};
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
const PACKAGES: &[&str] = &["qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// Where the cross packages keep the libraries of the target.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Builds and runs them; true if they pass.
pub fn run() -> Result<bool, String> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--release", "-p", "kiln", "--no-default-features", "--lib"]);
    if !cfg!(target_arch = "aarch64") {
        install()?;
        cargo.args(["--target", TARGET]);
        let variable = |name: &str| format!("CARGO_TARGET_{}_{name}", TARGET.replace('-', "_").to_uppercase());
        cargo.env(variable("LINKER"), LINKER).env(variable("RUNNER"), format!("{EMULATOR} -L {LIBRARIES}"));
    }
    let status = cargo.arg("device::host").status().map_err(|e| format!("cargo did not start: {e}"))?;
    Ok(status.success())
}

fn install() -> Result<(), String> {
    let rustup = Command::new("rustup").args(["target", "add", TARGET]).status();
    if !rustup.is_ok_and(|s| s.success()) {
        return Err(format!("the standard library of {TARGET} could not be installed: `rustup target add {TARGET}`"));
    }
    if apt::on_path(LINKER) && apt::on_path(EMULATOR) {
        return Ok(());
    }
    if !apt::is_there() {
        return Err(format!("neither Debian nor Ubuntu: install {LINKER} and {EMULATOR} by hand"));
    }
    apt::install(PACKAGES)
}
