//! Packages of Debian and Ubuntu, installed where a tier of tests needs them.

use std::env;
use std::path::Path;
use std::process::Command;

/// Whether this machine has such packages.
pub fn is_there() -> bool {
    Path::new("/etc/debian_version").exists() && on_path("apt-get")
}

/// Whether a program can be started by its name.
pub fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).exists()))
}

/// Installs them.
pub fn install(packages: &[&str]) -> Result<(), String> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0");
    if !is_root && !on_path("sudo") {
        return Err(format!("not root and no sudo; run `apt-get install {}` as root", packages.join(" ")));
    }
    let apt = |args: &[&str]| {
        let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root {
            // Never wait for a password: the reason below tells what to run.
            command.args(["--non-interactive", "apt-get"]);
        }
        let status = command.args(args).env("DEBIAN_FRONTEND", "noninteractive").status();
        match status {
            Ok(s) if s.success() => Ok(()),
            Ok(s) => Err(format!("`apt-get {}` ended with {s}", args.join(" "))),
            Err(e) => Err(format!("`apt-get {}` did not start: {e}", args.join(" "))),
        }
    };
    let get = [&["install", "-y", "-q", "--no-install-recommends"], packages].concat();
    // Fresh images have no package lists: the first try fails there.
    apt(&get).or_else(|_| apt(&["update", "-q"]).and_then(|()| apt(&get)))
}
