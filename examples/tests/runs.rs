//! Whole runs of the executables: bad input, stopping, resuming, killing; a resumed run is the run that never stopped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kiln::state::State;

/// A folder with a text, in which runs are made.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..400).map(|i| format!("fn number_{i}() -> u32 {{ {} }}\n", i * i)).collect();
        fs::write(folder.path().join("text.rs"), text).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn gpt(&self, flags: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpt"));
        command.args(flags.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Trains a model that is small enough for tests.
    fn train(&self, flags: &str) -> Command {
        self.train_on("host", flags)
    }

    /// The same on another device.
    fn train_on(&self, device: &str, flags: &str) -> Command {
        self.gpt(&format!("train --device {device} --corpus text.rs --steps 12 --batch 2 --seq 16 --layers 1 {flags}"))
    }

    fn state(&self, run: &str) -> State<'static> {
        State::load(&self.path("runs").join(run).join("state.safetensors")).unwrap()
    }

    /// The columns of metrics that do not depend on time.
    fn losses(&self, run: &str) -> Vec<(u64, f64, Option<f64>, f64)> {
        let records = kiln::metrics::read_metrics(&self.path("runs").join(run).join("metrics.jsonl")).unwrap();
        records.into_iter().map(|r| (r.step, r.train_loss, r.valid_loss, r.grad_norm)).collect()
    }

    /// All of the state but the seconds that the run took.
    fn assert_same_run(&self, a: &str, b: &str) {
        let timeless = |run: &str| {
            let mut state = self.state(run);
            state.meta.remove("elapsed_s");
            state
        };
        assert!(timeless(a) == timeless(b), "the states of {a} and {b} differ");
        assert_eq!(self.losses(a), self.losses(b));
    }
}

fn finished(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Exit status 2, one line that contains each of `parts`, no panic.
fn refused(mut command: Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{command:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not all in: {text}");
}

#[test]
fn a_run_leaves_everything_in_its_folder() {
    let place = Place::new();
    let output = finished(place.train("--name a"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("step 12/12 loss") && text.contains("bigram") && !text.contains('\u{1b}'), "{text}");
    for file in ["config.json", "plan.txt", "metrics.jsonl", "state.safetensors", "loss.svg", "samples/step-000012.txt"]
    {
        assert!(fs::metadata(place.path("runs/a").join(file)).unwrap().len() > 0, "{file}");
    }
    let losses = place.losses("a");
    assert_eq!(losses.iter().map(|l| l.0).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert!(losses[11].1 < losses[0].1, "the loss falls");
    let written = finished(place.gpt("generate --name a --prompt fn --length 20"));
    assert!(String::from_utf8_lossy(&written.stdout).starts_with("fn"));
}

#[test]
fn stopping_and_resuming_changes_no_bit() {
    let place = Place::new();
    for precision in ["f32", "f16"] {
        let (whole, parts) = (format!("whole_{precision}"), format!("parts_{precision}"));
        let flags = format!("--precision {precision} --eval-every 4");
        finished(place.train(&format!("{flags} --name {whole}")));
        finished(place.train(&format!("{flags} --name {parts} --stop-at 5")));
        assert_eq!(place.losses(&parts).len(), 5);
        finished(place.gpt(&format!("train --resume --name {parts} --stop-at 8 --threads 1")));
        finished(place.gpt(&format!("train --resume --name {parts}")));
        // Norms of overflowing f16 steps may be NaN: bits are compared. Where the run stops it evaluates once more.
        let bits = |run: &str| -> Vec<_> {
            place.losses(run).into_iter().map(|(step, loss, _, norm)| (step, loss.to_bits(), norm.to_bits())).collect()
        };
        assert_eq!(bits(&whole), bits(&parts));
        let (mut a, mut b) = (place.state(&whole), place.state(&parts));
        a.meta.remove("elapsed_s");
        b.meta.remove("elapsed_s");
        assert!(a == b, "{precision}");
    }
}

/// Bytes that nothing predicts cost ln 256 = 5.545 nats; a lower validation loss would mean that the model saw them.
#[test]
fn random_bytes_cannot_be_learnt() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..200_000).map(|i| (kiln::random::uniform(11, i, 0) * 256.0) as u8).collect();
    fs::write(place.path("noise.bin"), bytes).unwrap();
    let flags = "--steps 60 --batch 8 --seq 32 --layers 2 --eval-every 20";
    finished(place.gpt(&format!("train --corpus noise.bin {flags} --name noise")));
    let valid: Vec<f64> = place.losses("noise").into_iter().filter_map(|(_, _, valid, _)| valid).collect();
    assert!(valid.len() >= 3 && valid.iter().all(|&loss| loss >= 5.5), "{valid:?}");
}

#[test]
fn another_seed_is_another_run_and_the_same_seed_the_same() {
    let place = Place::new();
    for (name, flags) in [("a", ""), ("b", "--threads 1"), ("c", "--seed 1")] {
        finished(place.train(&format!("{flags} --name {name}")));
    }
    place.assert_same_run("a", "b");
    assert_ne!(place.losses("a"), place.losses("c"));
}

#[cfg(unix)]
#[test]
fn interrupt_saves_and_resume_continues() {
    let place = Place::new();
    let flags = "--steps 300 --batch 2 --seq 16 --layers 1 --eval-every 300";
    let mut child =
        place.gpt(&format!("train --corpus text.rs {flags} --name cut")).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&place.path("runs/cut/metrics.jsonl"));
    interrupt(child.id());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let step: u64 = place.state("cut").meta_value("step", "a number").unwrap();
    assert!((1..300).contains(&step), "{step}");
    finished(place.gpt("train --resume --name cut"));
    finished(place.gpt(&format!("train --corpus text.rs {flags} --name uncut")));
    let (a, b) = (place.state("cut"), place.state("uncut"));
    assert!(a.tensors == b.tensors);
}

#[cfg(unix)]
#[test]
fn kill_at_random_moments_loses_at_most_the_steps_since_the_last_save() {
    let place = Place::new();
    let flags = "--steps 60 --batch 2 --seq 16 --layers 1 --save-every 3 --eval-every 60";
    finished(place.gpt(&format!("train --corpus text.rs {flags} --name whole")));
    let mut child =
        place.gpt(&format!("train --corpus text.rs {flags} --name killed")).stdout(Stdio::null()).spawn().unwrap();
    for round in 0..20u64 {
        // Spread over start, steps and saves; the rounds of one run advance it, so that each meets another moment.
        std::thread::sleep(Duration::from_millis(3 + round * 37 % 211));
        child.kill().unwrap();
        child.wait().unwrap();
        let has_state = place.path("runs/killed/state.safetensors").exists();
        let next = match (place.path("runs/killed").exists(), has_state) {
            (_, true) => {
                place.state("killed");
                "train --resume --name killed".to_owned()
            }
            (true, false) => {
                refused(place.gpt("train --resume --name killed"), &["K0822", "no state yet"]);
                fs::remove_dir_all(place.path("runs/killed")).unwrap();
                format!("train --corpus text.rs {flags} --name killed")
            }
            (false, false) => format!("train --corpus text.rs {flags} --name killed"),
        };
        child = place.gpt(&next).stdout(Stdio::null()).spawn().unwrap();
    }
    child.wait().unwrap();
    if place.path("runs/killed/state.safetensors").exists() {
        finished(place.gpt("train --resume --name killed"));
    }
    place.assert_same_run("whole", "killed");
}

#[test]
fn runs_are_never_overwritten() {
    let place = Place::new();
    finished(place.train("--name a"));
    let before = fs::read(place.path("runs/a/state.safetensors")).unwrap();
    refused(place.train("--name a"), &["K0821", "--resume"]);
    assert_eq!(fs::read(place.path("runs/a/state.safetensors")).unwrap(), before);
    finished(place.train("--stop-at 1"));
    finished(place.train("--stop-at 1"));
    assert_eq!(fs::read_dir(place.path("runs")).unwrap().count(), 3);
}

#[test]
fn resume_names_what_differs() {
    let place = Place::new();
    finished(place.train("--name a --stop-at 2"));
    refused(place.gpt("train --resume --name a --seq 32"), &["K0823", "`seq` is 32 here and 16"]);
    refused(place.gpt("train --resume --name a --steps 99"), &["K0823", "`steps` is 99 here and 12"]);
    refused(place.gpt("train --resume --name a --precision bf16"), &["K0823", "`precision`"]);
    fs::write(place.path("text.rs"), "other text, which would continue another training\n".repeat(100)).unwrap();
    refused(place.gpt("train --resume --name a"), &["K0823", "text of the corpus"]);
    refused(place.gpt("train --resume --name none"), &["K0822"]);
    refused(place.gpt("train --resume --runs nowhere"), &["K0822", "nowhere"]);
}

#[test]
fn damaged_files_are_named() {
    let place = Place::new();
    finished(place.train("--name a --stop-at 2"));
    let path = place.path("runs/a/state.safetensors");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 16;
    fs::write(&path, &bad).unwrap();
    refused(place.gpt("train --resume --name a"), &["K0863", "state.safetensors", "tensor `"]);
    refused(place.gpt("generate --name a"), &["K0863"]);
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    refused(place.gpt("train --resume --name a"), &["K0863"]);
    fs::write(&path, &good).unwrap();
    fs::write(place.path("runs/a/config.json"), "{\"batch\": ").unwrap();
    refused(place.gpt("train --resume --name a"), &["K0824", "config.json"]);
}

#[test]
fn unusable_text_is_refused() {
    let place = Place::new();
    let with = |corpus: &str| place.gpt(&format!("train --steps 2 --seq 16 --corpus {corpus}"));
    refused(with("missing.txt"), &["K0811", "missing.txt"]);
    fs::write(place.path("empty.txt"), "").unwrap();
    refused(with("empty.txt"), &["K0812", "empty.txt"]);
    fs::write(place.path("tiny.txt"), "tiny").unwrap();
    refused(with("tiny.txt"), &["K0813", "--seq"]);
    fs::create_dir(place.path("empty")).unwrap();
    refused(with("empty"), &["K0812"]);
    let mut no_cargo = place.gpt("train --steps 2");
    no_cargo.env("CARGO_HOME", place.path("nothing"));
    refused(no_cargo, &["K0814", "--corpus"]);
    assert!(!place.path("runs").exists(), "nothing was started");
}

#[test]
fn flags_that_cannot_be_obeyed_are_refused() {
    let place = Place::new();
    for (flags, part) in [
        ("--batch 0", "--batch"),
        ("--seq 18446744073709551616", "--seq"),
        ("--device tpu", "tpu"),
        ("--device cuda", "--device host"),
        ("--mesh tensor=0", "--mesh"),
        ("--mesh tensor=3", "K07"),
        ("--name a/b", "a/b"),
        ("--precision fp8", "fp8"),
        ("--batch 1048576", "K0"),
    ] {
        refused(place.gpt(&format!("train --corpus text.rs --steps 2 --seq 16 {flags}")), &[part]);
    }
}

/// Hides every Vulkan driver from a command.
fn without_drivers(mut command: Command) -> Command {
    command.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null");
    command
}

#[test]
fn a_device_without_driver_is_refused() {
    let place = Place::new();
    for flags in ["--name a", "--precision bf16"] {
        refused(without_drivers(place.train_on("wgpu", flags)), &["K0831", "--device host"]);
    }
    assert!(!place.path("runs").exists(), "nothing was started");
    finished(without_drivers(place.train_on("auto", "--name host")));
    let metrics = kiln::metrics::read_metrics(&place.path("runs/host/metrics.jsonl")).unwrap();
    assert!(metrics.iter().all(|r| (r.device.as_str(), r.h2d_bytes, r.d2h_bytes) == ("host", 0, 0)));
}

/// Bytes of the report that the host reads of a step.
const REPORT_BYTES: u64 = 28;

#[test]
fn a_run_on_wgpu_is_that_of_the_host_and_copies_ids_and_reports_alone() {
    if let Some(reason) = no_wgpu() {
        return eprintln!("no wgpu device: {reason}");
    }
    let place = Place::new();
    finished(place.train("--name host --log-every 3 --eval-every 6"));
    finished(place.train_on("wgpu", "--name gpu --log-every 3 --eval-every 6 --stop-at 6"));
    finished(place.gpt("train --resume --name gpu"));
    let records = kiln::metrics::read_metrics(&place.path("runs/gpu/metrics.jsonl")).unwrap();
    assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), [3, 6, 9, 12]);
    for r in &records {
        // Two inputs of 2 rows of 16 ids.
        assert_eq!((r.device.as_str(), r.h2d_bytes, r.d2h_bytes), ("wgpu", 2 * 2 * 16 * 4, REPORT_BYTES), "{r:?}");
    }
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * a.abs();
    for (host, gpu) in place.losses("host").into_iter().zip(place.losses("gpu")) {
        let valid = host.2.zip(gpu.2).is_none_or(|(a, b)| near(a, b));
        assert!(host.0 == gpu.0 && near(host.1, gpu.1) && near(host.3, gpu.3) && valid, "{gpu:?} is not {host:?}");
    }
    refused(place.train_on("wgpu", "--name two --local-ranks 2"), &["K0834", "--device host"]);
}

/// Why there is no wgpu device, where `cargo xtask test` found out.
fn no_wgpu() -> Option<String> {
    std::env::var("KILN_NO_WGPU").ok()
}

#[test]
fn a_second_start_on_wgpu_compiles_nothing() {
    if let Some(reason) = no_wgpu() {
        return eprintln!("no wgpu device: {reason}");
    }
    let place = Place::new();
    let warm = |cache: &str| {
        let mut command = place.gpt("kernels --warm --device wgpu --batch 2 --seq 16 --layers 1");
        let cache = if cache == "off" { PathBuf::from("off") } else { place.path(cache) };
        command.env("KILN_KERNEL_CACHE", cache);
        let text = String::from_utf8(finished(command).stdout).unwrap();
        let line = text.lines().find(|l| l.contains("kernels compiled")).unwrap_or_else(|| panic!("{text}"));
        let compiled: u64 = line.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        (compiled, text)
    };
    let (cold, _) = warm("cache");
    assert!(cold > 20, "{cold} kernels");
    assert_eq!(warm("cache").0, 0, "a second start finds all of them");
    assert_eq!(warm("other").0, cold, "another folder has none");
    assert_eq!((warm("off").0, warm("off").0), (cold, cold));
    // A run starts from the same kernels.
    let mut run = place.train_on("wgpu", "--name warm");
    run.env("KILN_KERNEL_CACHE", place.path("cache"));
    finished(run);
    let kept = files(&place.path("cache")).into_iter().find(|f| f.to_string_lossy().ends_with(".json.log")).unwrap();
    let bytes = fs::read(&kept).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&kept, damaged).unwrap();
    let (compiled, text) = warm("cache");
    assert!(compiled == cold && text.contains("is damaged"), "{compiled} of {cold}: {text}");
    let (compiled, text) = warm("cache");
    assert!(compiled == 0 && !text.contains("damaged"), "said once: {text}");
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

#[test]
fn a_kernel_is_shown_with_its_region() {
    let place = Place::new();
    let shown = String::from_utf8(finished(place.gpt("kernels --show block_fwd_0")).stdout).unwrap();
    let parts = ["Row over [B, S, D]", "pub fn block_fwd_0(", "__global__ void", "block_fwd_0("];
    assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
    refused(place.gpt("kernels --show nothing"), &["K0843", "`nothing`"]);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let place = Place::new();
    for flags in ["--help", "train --help", "explain --layers 1", "kernels", "generate --help"] {
        let mut child = place.gpt(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        child.wait().unwrap();
        assert!(!errors.contains("panicked"), "{flags}: {errors}");
    }
    let mut child = place.train("--name piped").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(place.path("runs/piped/state.safetensors").exists(), "training goes on without a reader");
}

#[test]
fn explain_plans_without_text_or_run() {
    let place = Place::new();
    let plan = String::from_utf8(finished(place.gpt("explain --layers 2 --precision bf16")).stdout).unwrap();
    assert!(plan.contains("block") && plan.contains("parameters"), "{plan}");
    assert!(!place.path("runs").exists());
}

#[cfg(unix)]
fn wait_for(path: &Path) {
    for _ in 0..600 {
        if fs::metadata(path).is_ok_and(|m| m.len() > 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} did not appear", path.display());
}

#[cfg(unix)]
fn interrupt(process: u32) {
    let status = Command::new("kill").args(["-INT", &process.to_string()]).status().unwrap();
    assert!(status.success());
}
