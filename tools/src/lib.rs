//! What `replctl` is made of.

pub mod cli;
pub mod create;
pub mod demo;
mod failure;
mod output;
mod status;

pub use demo::cluster;
pub use failure::Failure;
