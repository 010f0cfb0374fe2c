//! What `replctl` is made of.

mod bar;
mod check;
pub mod cli;
pub mod create;
pub mod demo;
mod dump;
mod failure;
mod known;
mod output;
mod status;
mod verify;

pub use demo::cluster;
pub use failure::Failure;
