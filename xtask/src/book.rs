//! Builds the guide with mdbook, where it is installed.

use crate::workspace;
use std::process::Command;

/// Builds `book/` into `target/book`.
pub fn build() -> Result<bool, String> {
    match Command::new("mdbook").args(["build", "book"]).current_dir(workspace::root()).status() {
        Ok(status) => Ok(status.success()),
        Err(e) => {
            Err(format!("mdbook did not start ({e}); install it with `cargo install mdbook --version 0.5.4 --locked`"))
        }
    }
}
