//! What the tests with real processes share.
//!
//! A [`Scene`] is a small cluster on loopback with the model of what its volumes hold. The tests are in
//! `tests/`, named after the property that they check; `real/` has the scripts that use other people's
//! programs, and `test.sh` runs everything.

mod build;
mod disk;
mod network;
pub mod pages;
mod reader;
mod scene;

pub use build::{BuildError, PROGRAMS_DIR, build_programs, programs};
pub use disk::{Disk, FailAt};
pub use network::Network;
pub use reader::read_on;
pub use scene::{BOUND, MIB, Scene, dropped, roomy, small};
