//! Recomputes the peers' values: a Python environment of its own, PyTorch in the pinned version, the scripts of `tests/peers`.

use crate::workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the fresh values are, and the Python that made them.
pub struct Fresh {
    /// The folder.
    pub values: PathBuf,
    /// The interpreter.
    pub python: PathBuf,
}

/// Writes `target/peers-values`.
pub fn compute() -> Result<Fresh, String> {
    let (scripts, values) = (scripts(), workspace::target().join("peers-values"));
    let python = environment()?;
    run(script(&python, &scripts, "values.py").arg(&values))?;
    Ok(Fresh { values, python })
}

/// The Python of `target/peers-venv`, which is made and filled if need be.
pub fn environment() -> Result<PathBuf, String> {
    let venv = workspace::target().join("peers-venv");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        println!("creating {} (PyTorch is a large download)", venv.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let requirements = scripts().join("requirements.txt");
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements))?;
    Ok(python)
}

fn scripts() -> PathBuf {
    workspace::root().join("tests/peers")
}

fn script(python: &Path, folder: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    // Without it Python writes a cache beside the scripts.
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(folder.join(name));
    command
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(e) => Err(format!("{command:?} did not start: {e}")),
    }
}
