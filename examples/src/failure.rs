//! What can end an example: a typed error, said in one line, with exit status 2.

use std::process::ExitCode;

use kiln::data::DataError;
use kiln::decoder::DecodeError;
use kiln::interrupt::InterruptError;
use kiln::metrics::MetricsError;
use kiln::run_dir::RunError;
use kiln::state::StateError;
use kiln::trainer::TrainError;

/// Exit status of a typed error, as of a wrong flag.
pub const EXIT_REFUSED: u8 = 2;

/// Any error of the libraries, or of the flags.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The decoder.
    #[error(transparent)]
    Decode(Box<DecodeError>),
    /// Signals.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// `metrics.jsonl`.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The run's folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The session.
    #[error(transparent)]
    Train(Box<TrainError>),
    /// A flag.
    #[error("K0843: `{flag}`: {why}")]
    Option {
        /// Its name.
        flag: &'static str,
        /// What is wrong and what to do.
        why: String,
    },
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Failure {
        Failure::Train(Box::new(error))
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Failure {
        Failure::Decode(Box::new(error))
    }
}

impl Failure {
    /// A flag that cannot be obeyed.
    pub fn option(flag: &'static str, why: impl Into<String>) -> Failure {
        Failure::Option { flag, why: why.into() }
    }
}

/// Prints the error, if there is one, and gives the exit status.
pub fn report(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        // Through `writeln`, since `eprintln` panics when standard error is closed.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {failure}\n"));
        ExitCode::from(EXIT_REFUSED)
    })
}
