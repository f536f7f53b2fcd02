//! The GPU suite ends with numbers for every part, on the host and on wgpu, and a part that fails is named: dry runs at small sizes.

use kiln_tests::skips;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn suite(arguments: &[&str], folder: &Path) -> (Output, Value) {
    let out = folder.join("kiln.json");
    let output = Command::new(env!("CARGO_BIN_EXE_gpu"))
        .args(arguments)
        .arg("--quick")
        .arg("--out")
        .arg(&out)
        .output()
        .expect("the suite starts");
    let file = std::fs::read_to_string(&out).unwrap_or_else(|_| "null".to_owned());
    (output, serde_json::from_str(&file).expect("JSON"))
}

const PARTS: [&str; 7] = ["check", "kernels", "step-124m-bf16", "step-124m-f32", "step-s-bf16", "step-s-f32", "train"];

fn complete(device: &str, output: &Output, file: &Value) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let parts: Vec<&String> = file["parts"].as_object().expect("parts").keys().collect();
    assert_eq!(parts, PARTS);
    assert_eq!(file["device"], device);
    assert!(file["failures"].as_object().expect("failures").is_empty(), "{said}");
    let parts = &file["parts"];
    assert!(parts["check"]["trials"].as_u64() > Some(0));
    assert!(parts["train"]["loss_difference"].as_f64() < Some(1e-4), "{}", parts["train"]);
    let rows = parts["kernels"]["rows"].as_array().expect("rows");
    let product = rows.iter().find(|r| r["name"] == "dot_general BSD,DF").expect("a product");
    // Forward, gate and up of two layers: 2·B·S·D·F each.
    assert_eq!(product["flops"].as_f64(), Some((4 * 2 * 2 * 16 * 16 * 24) as f64), "{product}");
    for step in ["step-124m-bf16", "step-s-f32"] {
        assert!(parts[step]["tokens_per_second"].as_f64() > Some(0.0), "{}", parts[step]);
        assert_eq!(parts[step]["seconds"].as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn a_dry_run_on_the_host_gives_every_number_and_what_pytorch_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, file) = suite(&["--device", "host"], folder.path());
    complete("host", &output, &file);
    let weights = folder.path().join("weights");
    let recipe: Value =
        serde_json::from_str(&std::fs::read_to_string(weights.join("models.json")).expect("it is there"))
            .expect("JSON");
    for model in recipe["models"].as_array().expect("models") {
        let tokens = std::fs::read(weights.join(model["tokens"].as_str().expect("a name"))).expect("tokens");
        // Three steps of 2 x 16 tokens, and one more.
        assert_eq!(tokens.len(), 4 * (3 * 32 + 1));
        assert!(weights.join(model["weights"].as_str().expect("a name")).exists());
    }
}

#[test]
fn a_dry_run_on_wgpu_gives_every_number() {
    let case = "a_dry_run_on_wgpu_gives_every_number";
    if skips::no_wgpu().is_some() || kiln::device::Target::wgpu().is_err() {
        return skips::skip(case, "no wgpu device");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (output, file) = suite(&["--device", "wgpu"], folder.path());
    complete("wgpu", &output, &file);
    assert!(file["parts"]["kernels"]["copy"]["gb_per_second"].as_f64() > Some(0.0));
}

#[test]
fn a_part_that_takes_too_long_is_ended_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, file) = suite(&["--device", "host", "--part", "train", "--limit", "0"], folder.path());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(file["failures"]["train"], "it took longer than 0 s");
}

#[test]
fn an_unknown_device_is_refused_before_any_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, file) = suite(&["--device", "abacus"], folder.path());
    assert_eq!((output.status.code(), file), (Some(2), Value::Null));
    assert!(String::from_utf8_lossy(&output.stderr).contains("K0831"));
}
