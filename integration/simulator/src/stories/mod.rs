//! Stories: short scripted lives of a cluster, each about one thing. `rules` tells the rules of the protocol; the other
//! files tell the scenarios of DRBD's test suite, under its names (`docs/drbd-tests.md` is the table).

mod bounds;
mod catch_up;
mod directions;
mod disk_faults;
mod fencing;
mod force;
mod holding;
mod holes;
mod interruptions;
mod lifecycle;
mod membership;
mod mending;
mod outdated;
mod page;
mod places;
mod promotion;
mod quorum;
mod quorum_lost;
mod renewal;
mod resync;
mod returns;
mod rot;
mod rules;
mod sources;
mod sweep;
mod verify;
mod volumes;
mod withheld;
mod witness_rules;
mod words;
mod worn;

use replicator::io::{AdminCommand, AdminError, AdminResult};
use replicator::view::DiskState;

use self::words::*;
use crate::drive::JOURNAL;
use crate::harness::*;
