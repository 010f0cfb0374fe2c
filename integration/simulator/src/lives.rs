//! Lives at random: a seed decides what a cluster is like, what goes wrong, and when.

use replicator::io::AdminCommand;
use replicator::{AckPolicy, OnNoQuorum, WithoutRoom};

use crate::attack::ATTACKS;
use crate::harness::*;
use crate::rng::Rng;

fn options(rng: &mut Rng) -> Options {
    let tight = rng.chance(30);
    Options {
        nodes: match rng.below(100) {
            0..=69 => 3,
            70..=79 => 5,
            80..=87 => 4,
            88..=95 => 2,
            _ => 1,
        },
        witnesses: if rng.chance(25) { 1 + rng.index(3) } else { 0 },
        lease_ms: u32::try_from(rng.between(200, 1000)).expect("small"),
        ack: if rng.chance(20) {
            AckPolicy::All
        } else {
            AckPolicy::Majority
        },
        on_no_quorum: if rng.chance(25) {
            OnNoQuorum::IoError
        } else {
            OnNoQuorum::SuspendIo
        },
        requests_max: u32::try_from(rng.between(4, 48)).expect("small"),
        drop_after_ms: if rng.chance(80) {
            u32::try_from(rng.between(300, 3000)).expect("small")
        } else {
            0
        },
        shares: if tight {
            [700, 800, 1100, 400]
        } else {
            [2048, 2048, 2048, 1024]
        },
        // A page of checksums is about 896 blocks.
        volumes: vec![if rng.chance(15) { 2000 } else { 600 }, 64],
        disk_ns: rng.between(50, 2000) * US,
        net_ns: rng.between(20, 3000) * US,
        without_room: WithoutRoom::Wait,
        drift_ppm: 4000,
        loose_clocks: rng.chance(6),
    }
}

/// What a life came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tally {
    /// Requests of clients that came to an end, answered or not.
    pub(crate) operations: u64,
    /// Writes that were acknowledged, and so checked.
    pub(crate) writes: u64,
    /// Reads that were answered, and so checked.
    pub(crate) reads: u64,
    /// Things that went wrong, by kind.
    pub(crate) faults: [u64; ATTACKS.len()],
    /// Epochs in which somebody served.
    pub(crate) promotions: u64,
    /// Turns of all nodes.
    pub(crate) turns: u64,
    /// Virtual time, in nanoseconds.
    pub(crate) time_ns: u64,
    /// Lives that ended because more was lost than anything could keep.
    pub(crate) beyond: u64,
    /// Lives in which a majority went on alone, or was wiped.
    pub(crate) stuck: u64,
    /// Resyncs that came to their end.
    pub(crate) resyncs: u64,
    /// Nodes that went on without an image of their own until it was whole.
    pub(crate) in_place: u64,
    /// Lives in which a resync came to its end.
    pub(crate) resync_lives: u64,
    /// Verifications that came to their end, and those that found everything in order.
    pub(crate) verified: u64,
    pub(crate) clean: u64,
    /// Of everything that the nodes put out: the same seed has the same.
    pub(crate) hash: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            operations: 0,
            writes: 0,
            reads: 0,
            faults: [0; ATTACKS.len()],
            promotions: 0,
            turns: 0,
            time_ns: 0,
            beyond: 0,
            stuck: 0,
            resyncs: 0,
            in_place: 0,
            resync_lives: 0,
            verified: 0,
            clean: 0,
            hash: 0,
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.writes += other.writes;
        self.reads += other.reads;
        for (sum, n) in self.faults.iter_mut().zip(other.faults) {
            *sum += n;
        }
        self.promotions += other.promotions;
        self.turns += other.turns;
        self.time_ns += other.time_ns;
        self.beyond += other.beyond;
        self.stuck += other.stuck;
        self.resyncs += other.resyncs;
        self.in_place += other.in_place;
        self.resync_lives += other.resync_lives;
        self.verified += other.verified;
        self.clean += other.clean;
        self.hash ^= other.hash;
    }
}

/// A life of a cluster, from one seed.
///
/// # Panics
/// When a promise is broken: that is what it is for.
pub(crate) fn live(seed: u64, trace: bool) -> Tally {
    let mut rng = Rng::stream(seed, "life");
    let mut options = options(&mut rng);
    if Rng::stream(seed, "without room").chance(60) {
        options.without_room = WithoutRoom::InPlace;
    }
    let mut c = Cluster::new(seed, options);
    c.tracing = trace;
    c.trace(|| format!("{:?}", c.options));
    c.big_percent = match rng.below(100) {
        // Somebody restores a backup, and the journal fills up: who was away is past it.
        0..=9 => rng.between(30, 70),
        10..=28 => rng.below(16),
        _ => rng.below(2),
    };
    let mut clients = 1 + rng.index(3);
    let mut depth = 1 + rng.index(6);
    let mut pause = rng.between(2, 12) * MS;
    if c.big_percent >= 30 {
        (clients, depth, pause) = (3, depth + 2, rng.between(2, 8) * MS);
    }
    c.choose_victims(&mut rng);
    c.start_clients(clients, depth, pause);
    c.run_for(200 * MS);
    let first = rng.index(c.nodes.len());
    let deadline = c.deadline(first, 5 * SECOND);
    c.admin(first, AdminCommand::Promote { deadline });
    if rng.chance(80) {
        c.run_for(SECOND);
    }
    // Many short lives see more than few long ones, but for what takes its time.
    let long = rng.chance(30);
    let length = if long {
        rng.between(3000, 8000)
    } else {
        rng.between(500, 3000)
    };
    let end = c.now + length * MS;
    suffer(&mut c, seed, rng.between(10, 250) * MS, end);
    c.conclude();
    let beyond = c.tally().beyond;
    let mut rng = Rng::stream(seed, "after life");
    if rng.chance(8) {
        c.suffer_garbage(&mut rng);
    }
    Tally {
        beyond,
        ..c.tally()
    }
}

/// Lets the attacks come, each at its own times, until `end`.
fn suffer(c: &mut Cluster, seed: u64, pace: u64, end: u64) {
    let mut plan: Vec<_> = ATTACKS
        .iter()
        .enumerate()
        .filter_map(|(index, attack)| {
            let mut rng = Rng::stream(seed, attack.name);
            let there = rng.chance(attack.percent);
            let at = c.now + rng.below(2 * attack.mean * pace);
            there.then_some((at, index, rng))
        })
        .collect();
    loop {
        let next = plan
            .iter_mut()
            .min_by_key(|(at, ..)| *at)
            .expect("some are always there");
        let (at, index, rng) = next;
        let attack = &ATTACKS[*index];
        if *at >= end || c.checks.is_beyond() {
            return;
        }
        c.run_for(at.saturating_sub(c.now));
        if (attack.act)(c, rng) {
            c.faults[*index] += 1;
            c.trace(|| format!("-- {}", attack.name));
        }
        *at += 1 + rng.below(2 * attack.mean * pace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line each: a seed, the commit on which it failed, what it found.
    const REGRESSIONS: &str = include_str!("../regressions.txt");

    #[test]
    fn seeds_that_once_failed() {
        let mut lived = 0;
        for line in REGRESSIONS.lines().filter(|l| !l.starts_with('#')) {
            let seed = line.split_whitespace().next();
            let seed = seed.and_then(|s| s.parse().ok());
            // What a test prints is shown if it fails: the last one is the seed.
            println!("{line}");
            live(seed.expect("a line begins with a seed"), false);
            lived += 1;
        }
        assert!(lived > 0);
    }

    #[test]
    fn a_seed_does_the_same_again() {
        for seed in 1000..1010 {
            assert_eq!(live(seed, false), live(seed, false));
        }
    }
}
