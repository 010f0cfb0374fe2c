//! `replctl` as a library: what the command and the tests with real processes share.

pub mod demo;

pub use demo::cluster;
