//! The comparison with other servers: `cargo side-by-side`.
//!
//! Every system serves a volume of the same size over a Unix socket; fio's nbd engine does the same jobs on each, one after the
//! other, in several rounds. All systems are up all the time, and the order changes from job to job, so that whatever
//! else goes on on the machine meets each of them alike. What counts are ratios within a round, and their median.
//!
//! Criterion benches of single pieces live in `benches/`.
//!
//! | module | what it knows |
//! |---|---|
//! | [`place`] | a disk, or memory; what a flush there costs |
//! | [`systems`], [`process`] | the servers: how each is started, what it promises, when it is at rest |
//! | [`jobs`], [`fio`] | the work, and how it went |
//! | [`cost`] | CPU time and system calls of the servers' processes |
//! | [`run`] | who does what when |
//! | [`results`] | medians, ratios, JSON |
//! | [`table`], [`chart`] | the same for people |

pub mod chart;
pub mod cost;
pub mod error;
pub mod fio;
pub mod jobs;
pub mod place;
pub mod process;
pub mod results;
pub mod run;
pub mod systems;
pub mod table;
