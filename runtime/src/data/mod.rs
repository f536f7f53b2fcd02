//! Byte-level text for language models: files in, shuffled batches of (ids, next ids) out; it knows no model and no device.

mod batches;
mod bigram;
mod corpus;

pub use batches::{Batch, Batches, Cursor};
pub use bigram::{Bigram, PairCounts};
pub use corpus::{Corpus, CorpusOptions, Split, cargo_sources, files_below};

use std::io;
use std::path::PathBuf;

/// Text that cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system refuses.
    #[error("K0811: cannot read corpus `{}`: {source}; give a file or folder that can be read", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// Nothing in it is text.
    #[error("K0812: corpus `{}` holds no text: {seen} files, none of them UTF-8 with content; give a file or folder of text", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// Files looked at.
        seen: usize,
    },
    /// Too little for the sequence length.
    #[error(
        "K0813: the {part} text of `{}` has {found} bytes, at least {wanted} are needed for sequences of {seq}; \
         give more text or a smaller `--seq`",
        path.display()
    )]
    Tiny {
        /// The corpus.
        path: PathBuf,
        /// `training` or `validation`.
        part: &'static str,
        /// Its bytes.
        found: usize,
        /// What it should have.
        wanted: usize,
        /// Length of a sequence.
        seq: usize,
    },
    /// Cargo keeps no sources where it should.
    #[error("K0814: cargo has no downloaded sources in `{}`: run `cargo fetch`, or give text with `--corpus PATH`", path.display())]
    NoCargoSources {
        /// Where they should be.
        path: PathBuf,
    },
}
