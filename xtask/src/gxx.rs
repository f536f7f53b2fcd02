//! Makes sure that there is g++, so that kernels for CUDA cards can be run on the CPU.

use crate::apt;

const PACKAGE: &str = "g++";

/// Why there is none.
pub fn missing() -> Option<String> {
    (!apt::on_path("g++")).then(|| "no g++ yet; the tier installs it when it runs".to_owned())
}

/// `None` when g++ is there (after installing it if need be), else why the cases of the tier must be skipped.
pub fn prepare() -> Option<String> {
    missing()?;
    if !cfg!(target_os = "linux") || !apt::is_there() {
        return Some("no g++, and this is neither Debian nor Ubuntu: install it by hand".to_owned());
    }
    println!("no g++: installing it with apt-get");
    apt::install(&[PACKAGE]).err().map(|why| format!("no g++, and it could not be installed: {why}"))
}
