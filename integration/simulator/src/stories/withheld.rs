//! A resync of which a block is bad where it comes from, while nobody who is there has a good copy: it is not held up for that,
//! and the block is an error for whoever reads it, until somebody comes who has it.

use super::renewal::{is_inconsistent, without_room};
use super::*;

/// A block that C lacks, and that has rotted on A's disk.
const ROTTEN: u64 = 30;

/// C is in resync from A, in place or staged; B, which has all, is away; a block that C lacks has rotted on A's disk.
fn held_up(seed: u64, in_place: bool) -> Cluster {
    let mut c = without_room(seed);
    c.nodes[C].stage_full = in_place;
    c.crash(B, POWER);
    c.nodes[A].disks.stores[0].rot(ROTTEN, 77);
    assert!(c.run_until(10 * SECOND, |c| c.nodes[C].resyncs));
    c
}

/// C has everything but that block.
fn until_it_counts(c: &mut Cluster) {
    let waits = c.write(A, 0, 400, 1);
    assert_eq!(c.outcome(waits, 20 * SECOND), Some(Outcome::Done));
    c.until_follows(A, C);
    assert!(!is_inconsistent(c, C));
}

fn reads(c: &mut Cluster, node: usize, block: u64) -> Option<Outcome> {
    let read = c.read(node, 0, block, 1);
    c.outcome(read, 20 * SECOND)
}

#[test]
fn it_goes_on_without_the_block_that_nobody_has_and_has_it_when_one_comes_who_does() {
    for (seed, in_place) in [(0, true), (1, false), (2, true), (3, false)] {
        let mut c = held_up(seed, in_place);
        until_it_counts(&mut c);

        assert_eq!(reads(&mut c, A, ROTTEN), Some(Outcome::Error));
        c.restart(B);
        c.until_follows(A, B);
        c.run_for(2 * SECOND);
        assert_eq!(reads(&mut c, A, ROTTEN), Some(Outcome::Done));
        c.must_demote(A);
        c.ends_on(C);
    }
}

#[test]
fn a_new_primary_without_the_block_answers_an_error_for_that_alone() {
    for (seed, in_place) in [(4, true), (5, false)] {
        let mut c = held_up(seed, in_place);
        until_it_counts(&mut c);
        c.must_demote(A);
        c.must_promote(C);

        assert_eq!(reads(&mut c, C, ROTTEN), Some(Outcome::Error));
        assert_eq!(reads(&mut c, C, 430), Some(Outcome::Done));
        c.restart(B);
        c.until_follows(C, B);
        c.run_for(2 * SECOND);
        assert_eq!(reads(&mut c, C, ROTTEN), Some(Outcome::Done));
        c.read_all(C);
        c.conclude();
    }
}
