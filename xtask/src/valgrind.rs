//! Makes sure that there is valgrind, and builds the program whose instructions it counts.

use crate::{apt, workspace};
use std::path::PathBuf;

const PACKAGE: &str = "valgrind";

/// Why there is none.
pub fn missing() -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some("instructions are counted on Linux on x86-64 only".to_owned());
    }
    (!apt::on_path(PACKAGE)).then(|| "no valgrind yet; the tier installs it when it runs".to_owned())
}

/// The program to count; inside, why the cases of the tier must be skipped.
///
/// # Errors
/// If the program does not build: that is no reason to skip.
pub fn prepare() -> Result<Result<PathBuf, String>, String> {
    if let Some(reason) = install() {
        return Ok(Err(reason));
    }
    // Without the GPU devices, which would be most of the build.
    let package = ["-p", "kiln-bench", "--bin", "counted", "--no-default-features"];
    let status = workspace::cargo().args(["build", "--release"]).args(package).status();
    match status {
        Ok(s) if s.success() => Ok(Ok(workspace::target().join("release/counted"))),
        Ok(_) => Err("`counted` does not build".to_owned()),
        Err(e) => Err(format!("cargo did not start: {e}")),
    }
}

/// `None` when valgrind is there, after installing it if need be.
fn install() -> Option<String> {
    let why = missing()?;
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some(why);
    }
    if !apt::is_there() {
        return Some("no valgrind, and this is neither Debian nor Ubuntu: install it by hand".to_owned());
    }
    println!("no valgrind: installing it with apt-get");
    apt::install(&[PACKAGE]).err().map(|why| format!("no valgrind, and it could not be installed: {why}"))
}
