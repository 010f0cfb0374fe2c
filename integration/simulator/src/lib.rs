//! Clusters of the production core in virtual time: disks that lose and tear, connections that stall and break, nodes that
//! crash and freeze, operators that err, clients that remember. One seed decides everything.

mod attack;
mod bounds;
mod checks;
mod cli;
mod client;
mod control;
mod disk;
mod disks;
mod drive;
mod exile;
mod fences;
mod forge;
mod garbage;
mod harness;
mod hash;
mod intake;
mod judgement;
mod links;
mod lives;
mod memory;
mod net;
mod oracle;
#[cfg(feature = "planted")]
mod proof;
mod renewal;
mod requests;
mod resync;
mod rng;
mod rot;
mod start;
#[cfg(test)]
mod stories;
mod verifying;
mod volumes;
mod watch;
mod withheld;

pub use cli::main;
