//! x
pub mod cluster;
pub mod oracle;
mod place;
mod process;
mod status;
pub use place::scratch_dir;
