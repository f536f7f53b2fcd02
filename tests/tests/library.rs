//! Library operations on wgpu against the f64 interpreter, in the forms that this machine's device takes and in those of hardware.

use kiln::check::library::checks;
use kiln::device::cube::CubeDevice;
use kiln::device::wgpu;
use kiln_tests::skips;
use std::sync::LazyLock;

/// Opening a device takes seconds on software drivers.
static DEVICE: LazyLock<Option<CubeDevice>> = LazyLock::new(|| wgpu::open().ok());
/// The same with launches as on hardware, which takes other forms of some kernels.
static AS_HARDWARE: LazyLock<Option<CubeDevice>> =
    LazyLock::new(|| wgpu::open().ok().map(|d| d.with_shape(wgpu::HARDWARE)));

/// Runs every check that can fail alone.
fn check(case: &str, device: &LazyLock<Option<CubeDevice>>) {
    let Some(device) = skips::no_wgpu().is_none().then_some(device.as_ref()).flatten() else {
        return skips::skip(case, "no wgpu device");
    };
    let failed = checks().into_iter().filter_map(|(name, check)| Some(format!("{name}: {}", check(device).err()?)));
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn library_operations_on_wgpu_are_those_of_the_interpreter() {
    check("library_operations_on_wgpu_are_those_of_the_interpreter", &DEVICE);
}

#[test]
fn library_operations_on_wgpu_shaped_as_hardware_are_those_of_the_interpreter() {
    check("library_operations_on_wgpu_shaped_as_hardware_are_those_of_the_interpreter", &AS_HARDWARE);
}
