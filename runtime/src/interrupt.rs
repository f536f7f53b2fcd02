//! Ctrl-C: the first asks the training loop to finish its step, save and exit with 130; the second ends the process at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a process ended by Ctrl-C, as shells report it: 128 + SIGINT.
pub const EXIT_INTERRUPTED: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();

/// Ctrl-C, SIGTERM and SIGHUP of this process.
#[derive(Clone, Copy, Debug)]
pub struct Interrupt {
    _installed: (),
}

/// The system gives us no signals.
#[derive(Clone, Debug, thiserror::Error)]
#[error("K0824: cannot watch for Ctrl-C: {0}")]
pub struct InterruptError(String);

impl Interrupt {
    /// Watches from now on; a second call shares the first one's watch.
    ///
    /// # Errors
    /// [`InterruptError`] if another part of the program watches already.
    pub fn watch() -> Result<Self, InterruptError> {
        let installed = INSTALLED.get_or_init(|| {
            ctrlc::set_handler(|| {
                if REQUESTED.swap(true, Ordering::SeqCst) {
                    std::process::exit(EXIT_INTERRUPTED);
                }
            })
            .map_err(|e| e.to_string())
        });
        match installed {
            Ok(()) => Ok(Interrupt { _installed: () }),
            Err(reason) => Err(InterruptError(reason.clone())),
        }
    }

    /// Whether the process was asked to stop.
    pub fn requested(self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}
