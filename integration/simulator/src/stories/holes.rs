//! Maps of holes: what a node says of the blocks on which its store does not have the last word.

use std::ops::Range;

use replicator::types::VolumeId;
use replicator::view::{Holds, Unapplied};

use super::*;

impl Cluster {
    fn unapplied(&self, node: usize, blocks: Range<u64>) -> Vec<Unapplied> {
        let replica = self.nodes[node].replica.as_ref().expect("it runs");
        replica.unapplied(VolumeId(0), blocks).collect()
    }
}

fn part(blocks: Range<u64>, holds: Holds) -> Unapplied {
    Unapplied {
        start: blocks.start,
        blocks: blocks.end - blocks.start,
        holds,
    }
}

const ZEROES: Holds = Holds::Zeroes {
    may_deallocate: true,
};

#[test]
fn a_map_of_holes_shows_zeroes_only_when_they_are_committed() {
    let mut c = serving(1, Options::default());
    c.must_write(A, 0, 0, 12);
    let applied = |c: &Cluster| c.nodes[A].view.applied == c.nodes[A].view.admitted;
    assert!(c.run_until(10 * SECOND, applied));
    // What the store shows there is not asked: its checksums are not those of zeroes.
    assert_eq!(c.unapplied(A, 0..100), [part(0..12, Holds::Anything)]);
    assert_eq!(c.unapplied(A, 12..100), []);
    // Nobody can confirm these: a failover may take them back, so nothing is said of them.
    c.isolate(A);
    let zero = c.zero(A, 0, 4, 4);
    let write = c.write(A, 0, 10, 1);
    c.run_for(10 * MS);
    let open = [0..4, 4..8, 8..10, 10..11, 11..12].map(|blocks| part(blocks, Holds::Anything));
    assert_eq!(c.unapplied(A, 0..100), open);
    c.heal();
    assert_eq!(c.outcome(zero, 20 * SECOND), Some(Outcome::Done));
    assert_eq!(c.outcome(write, 20 * SECOND), Some(Outcome::Done));
    // Zeroes that are not in the store yet, and a map of a part of them.
    let zero = c.zero(A, 0, 20, 8);
    assert_eq!(c.outcome(zero, 20 * SECOND), Some(Outcome::Done));
    assert_eq!(c.unapplied(A, 22..24), [part(22..24, ZEROES)]);
    assert!(c.run_until(10 * SECOND, applied));
    let data = [0..4, 8..12].map(|blocks| part(blocks, Holds::Anything));
    assert_eq!(c.unapplied(A, 0..100), data);
    c.conclude();
}

#[test]
fn a_map_of_holes_shows_the_newest_of_what_the_store_lacks() {
    let mut c = serving(2, Options::default());
    c.must_write(A, 0, 0, 12);
    let zero = c.zero(A, 0, 2, 8);
    assert_eq!(c.outcome(zero, 20 * SECOND), Some(Outcome::Done));
    c.must_write(A, 0, 4, 2);
    let parts = [
        part(1..2, Holds::Anything),
        part(2..4, ZEROES),
        part(4..6, Holds::Anything),
        part(6..10, ZEROES),
    ];
    assert_eq!(c.unapplied(A, 1..10), parts);
    c.conclude();
}
