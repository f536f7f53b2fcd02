//! Unpacks NVIDIA's NVRTC from its wheels, so that kernels can be compiled for CUDA on a machine without a card, a driver or CUDA.

use crate::workspace;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the wheels' contents, if the pinned versions were unpacked there to the end.
pub fn installed() -> Option<PathBuf> {
    let wanted = fs::read_to_string(requirements()).ok()?;
    let folder = folder();
    (fs::read_to_string(done(&folder)).ok()? == wanted).then_some(folder)
}

/// As [`installed`], after unpacking them if need be; the error is why the cases of the tier must be skipped.
pub fn prepare() -> Result<PathBuf, String> {
    if !cfg!(target_os = "linux") {
        return Err("NVRTC is unpacked on Linux only".to_owned());
    }
    if let Some(folder) = installed() {
        return Ok(folder);
    }
    let folder = folder();
    println!("unpacking NVRTC into {} with pip", folder.display());
    let failed = |why: String| format!("NVRTC could not be installed: {why}");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| failed(format!("{}: {e}", folder.display())))?;
    }
    install(&folder).map_err(failed)?;
    // Last, so that an unpacking that was cut off is done again.
    fs::copy(requirements(), done(&folder)).map_err(|e| failed(e.to_string()))?;
    Ok(folder)
}

/// Into a folder of its own: no virtual environment, since nothing here is run by Python.
fn install(folder: &Path) -> Result<(), String> {
    let flags = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--no-compile"];
    let mut command = Command::new("python3");
    command.args(flags).args(["--disable-pip-version-check", "--root-user-action=ignore", "--target"]);
    match command.arg(folder).arg("-r").arg(requirements()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("pip ended with {status}")),
        Err(e) => Err(format!("python3 did not start: {e}")),
    }
}

fn folder() -> PathBuf {
    workspace::target().join("nvrtc")
}

fn requirements() -> PathBuf {
    workspace::root().join("tests/nvrtc/requirements.txt")
}

/// What was asked for, written when all of it is there.
fn done(folder: &Path) -> PathBuf {
    folder.join("requirements.txt")
}
