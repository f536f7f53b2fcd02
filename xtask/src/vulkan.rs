//! Makes sure that a Vulkan device exists, so that emitted kernels can run: installs Mesa's software driver on Debian and Ubuntu.

use crate::apt;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The packages of the software driver and of the loader.
const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// `None` when a Vulkan driver and its loader are there (after installing them if need be), else why wgpu cases must be skipped.
pub fn prepare(may_install: bool) -> Option<String> {
    if !cfg!(target_os = "linux") || driver_is_installed() {
        return None;
    }
    if !apt::is_there() {
        return Some("no Vulkan driver, and this is neither Debian nor Ubuntu: install one by hand".to_owned());
    }
    if !may_install {
        return Some(format!("no Vulkan driver yet; `cargo xtask test` installs {}", PACKAGES.join(" and ")));
    }
    println!("no Vulkan driver: installing {} with apt-get", PACKAGES.join(" and "));
    match apt::install(&PACKAGES) {
        Ok(()) if driver_is_installed() => None,
        Ok(()) => Some("apt-get succeeded, yet no Vulkan driver is there".to_owned()),
        Err(why) => Some(format!("no Vulkan driver, and it could not be installed: {why}")),
    }
}

fn driver_is_installed() -> bool {
    has_driver_manifest() && has_loader()
}

fn has_driver_manifest() -> bool {
    if ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| env::var_os(name).is_some()) {
        return true;
    }
    ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .any(|entry| entry.path().extension().is_some_and(|e| e == "json"))
}

fn has_loader() -> bool {
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"]
        .iter()
        .flat_map(|folder| [PathBuf::from(folder), Path::new(folder).join(&triplet)])
        .any(|folder| folder.join("libvulkan.so.1").exists())
}
