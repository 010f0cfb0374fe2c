//! The replication core of a disk that survives the loss of the machine it runs on.
pub mod io;
pub mod journal;
pub mod memory;
pub mod meta;
pub mod recover;
pub mod replica;
pub mod store;
pub mod types;
pub mod view;
pub mod wire;
pub use replica::{Replica, ReplicaConfig};
