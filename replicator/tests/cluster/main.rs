//! A cluster of the production core in virtual time: disks that lose and tear, connections that stall and break, nodes that
//! crash and freeze, clients that remember. One seed decides everything.

mod checks;
mod client;
mod control;
mod disk;
mod drive;
mod harness;
mod intake;
mod memory;
mod net;
mod oracle;
mod random;
mod rng;
mod rules;
