//! Packs the GPU suite into one folder that needs a driver, Python and PyTorch alone, and runs it where there is an NVIDIA card.

use crate::workspace;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A larger executable is not carried around lightly.
const LIMIT: u64 = 50_000_000;
/// What lies beside the executable.
const SCRIPTS: [&str; 3] = ["run.sh", "torch_step.py", "table.py"];

/// Builds and packs; where this machine has a card, runs and keeps the results. True when nothing failed.
pub fn run(args: &[String]) -> Result<bool, String> {
    let pack_only = match args {
        [] => false,
        [flag] if flag == "--pack-only" => true,
        _ => return Err("cargo xtask gpu [--pack-only]".to_owned()),
    };
    let folder = pack()?;
    let has_card = Path::new("/proc/driver/nvidia").exists();
    if pack_only || !has_card {
        let why = if has_card { "" } else { "no NVIDIA driver here: " };
        println!(
            "{why}copy {} to a machine with an NVIDIA card and PyTorch, and run `sh gpu/run.sh` there; then copy gpu/results/kiln.json, \
             torch.json and table.md back into bench/results/ as gpu-<device>-<date>.{{json,torch.json,md}}",
            folder.display()
        );
        return Ok(true);
    }
    let status =
        Command::new("sh").arg(folder.join("run.sh")).status().map_err(|e| format!("sh did not start: {e}"))?;
    keep(&folder.join("results"))?;
    Ok(status.success())
}

/// Builds the executable and copies it with its scripts.
fn pack() -> Result<PathBuf, String> {
    let mut build = workspace::cargo();
    build.args(["build", "--release", "-p", "kiln-bench", "--bin", "gpu"]);
    build.env("CARGO_PROFILE_RELEASE_STRIP", "symbols").env("KILN_COMMIT", commit());
    let status = build.status().map_err(|e| format!("cargo did not start: {e}"))?;
    if !status.success() {
        return Err("the suite does not build".to_owned());
    }
    let folder = workspace::target().join("gpu");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let copy = |from: PathBuf, name: &str| {
        fs::copy(&from, folder.join(name)).map_err(|e| format!("{} into {}: {e}", from.display(), folder.display()))
    };
    let bytes = copy(workspace::target().join("release/gpu"), "gpu")?;
    for name in SCRIPTS {
        copy(workspace::root().join("bench/gpu").join(name), name)?;
    }
    println!("{}: {:.1} MB", folder.join("gpu").display(), bytes as f64 / 1e6);
    if bytes > LIMIT {
        return Err(format!("the executable has {bytes} bytes, more than {LIMIT}"));
    }
    Ok(folder)
}

/// The commit that is built; a changed tree says so.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(workspace::root()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { format!("{commit} with changes") } else { commit }
}

/// Copies what a run left to `bench/results`, under the device and the day.
fn keep(results: &Path) -> Result<(), String> {
    let kept = workspace::root().join("bench/results");
    fs::create_dir_all(&kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    let table = fs::read_to_string(results.join("table.md")).map_err(|e| format!("{}: {e}", results.display()))?;
    let name = file_name(&table);
    for (from, extension) in [("kiln.json", "json"), ("torch.json", "torch.json"), ("table.md", "md")] {
        let from = results.join(from);
        if from.exists() {
            let to = kept.join(format!("{name}.{extension}"));
            fs::copy(&from, &to).map_err(|e| format!("{}: {e}", to.display()))?;
            println!("{}", to.display());
        }
    }
    Ok(())
}

/// `gpu-nvidia-h100-2026-07-01` of a table whose title is `# NVIDIA H100 sm_90 driver 12.8, 2026-07-01`.
fn file_name(table: &str) -> String {
    let title = table.lines().next().unwrap_or_default().trim_start_matches("# ");
    let (identity, date) = title.rsplit_once(", ").unwrap_or((title, "undated"));
    let device = identity.split(" sm_").next().unwrap_or(identity).to_lowercase();
    let words = device.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    format!("gpu-{}-{date}", words.collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_named_after_device_and_day() {
        let table = "# NVIDIA H100 80GB HBM3 sm_90 driver 12.8, 2026-07-01\n\nKiln";
        assert_eq!(file_name(table), "gpu-nvidia-h100-80gb-hbm3-2026-07-01");
        assert_eq!(file_name(""), "gpu--undated");
    }
}
