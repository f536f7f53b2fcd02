//! The book as code: the library that a reader of Part I writes, and a doctest for each Rust block of each page.

/// The reader's library, put together from the blocks of Part I.
pub mod moons {
    include!(concat!(env!("OUT_DIR"), "/moons.rs"));
}

/// One item per page; its documentation is the page.
#[cfg(doctest)]
pub mod pages {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"));
}
