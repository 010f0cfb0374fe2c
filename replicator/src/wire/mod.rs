//! What nodes say to each other: one fixed-size hello each way, then frames.

pub mod frame;
pub mod hello;
