//! Blocks that a disk harms while they rest (P6): found by their checksums, mended from a peer, never shown to anybody.

use replicator::io::AdminCommand;
use replicator::view::Health;

use super::*;
use crate::disk::Fate;
use crate::drive::STORE;

/// What a disk may do to block 3 of volume 0, which holds 40 blocks of data, was overwritten once, and is at rest.
const HARMS: &[fn(&mut Cluster, usize)] = &[
    |c, n| c.nodes[n].disks.stores[0].rot(3, 20_000),
    |c, n| c.nodes[n].disks.stores[0].misdirect(30, 3),
    |c, n| c.nodes[n].disks.stores[0].misdirect(500, 3),
    |c, n| c.nodes[n].disks.stores[0].take_back(3),
    |c, n| c.nodes[n].disks.stores[0].spoil(3),
];

/// Everything was written, applied and flushed on all nodes.
fn at_rest(seed: u64, options: Options) -> Cluster {
    let mut c = serving(seed, options);
    c.must_write(A, 0, 0, 40);
    c.run_for(SECOND);
    c.must_write(A, 0, 0, 40);
    c.must_write(A, 1, 0, 5);
    c.until_fed(A);
    c.run_for(SECOND);
    c
}

fn reads(c: &mut Cluster, node: usize, block: u64, blocks: u64) -> Option<Outcome> {
    let id = c.read(node, 0, block, blocks);
    c.outcome(id, 20 * SECOND)
}

fn is_bad(c: &Cluster, node: usize, block: u64) -> bool {
    c.nodes[node].disks.stores[0].is_harmed(block)
}

#[test]
fn a_bad_block_of_the_primary_is_mended_when_it_is_read() {
    for (seed, harm) in (0..).zip(HARMS) {
        // Alone, or among others.
        for (block, blocks) in [(3, 1), (0, 40)] {
            let mut c = at_rest(seed, Options::default());
            harm(&mut c, A);
            assert!(is_bad(&c, A, 3));
            assert_eq!(reads(&mut c, A, block, blocks), Some(Outcome::Done));
            assert!(said(&c, A, "is mended"), "harm {seed}");
            assert!(!is_bad(&c, A, 3), "harm {seed}");
            c.conclude();
        }
    }
}

#[test]
fn a_block_that_is_bad_everywhere_is_not_asked_for_without_end() {
    // Each finds it bad when the other one asks, and could ask in its turn, and so on.
    for (seed, harm) in (0..).zip(HARMS) {
        let mut c = at_rest(seed, Options::default());
        for node in [A, B, C] {
            harm(&mut c, node);
        }
        assert_eq!(reads(&mut c, A, 3, 1), Some(Outcome::Error));
        c.run_for(5 * SECOND);
        for node in [A, B, C] {
            let lost = c.nodes[node].view.integrity.lost_blocks;
            assert!(lost <= 4, "harm {seed}: node {node} asked {lost} times");
        }
        c.conclude();
    }
}

#[test]
fn a_peer_that_hangs_does_not_keep_a_bad_block_from_being_mended() {
    for hung in [B, C] {
        let mut c = at_rest(1, Options::default());
        // The one that hangs is asked first, in one of the two.
        c.freeze(hung, 600 * MS);
        c.nodes[A].disks.stores[0].rot(3, 20_000);
        let id = c.read(A, 0, 3, 1);
        assert_eq!(c.outcome(id, 400 * MS), Some(Outcome::Done), "{hung} hangs");
        c.conclude();
    }
}

#[test]
fn a_peer_that_does_not_answer_is_not_asked_for_more_and_more() {
    for hung in [B, C] {
        let mut c = at_rest(1, Options::default());
        for block in 0..40 {
            c.nodes[A].disks.stores[0].rot(block, 20_000);
        }
        // What it has not answered it has all at once then, and takes for as much as a sound peer asks.
        c.freeze(hung, 900 * MS);
        for block in [0, 12, 24] {
            let id = c.read(A, 0, block, 12);
            assert_eq!(c.outcome(id, 400 * MS), Some(Outcome::Done), "{hung} hangs");
        }
        c.run_for(2 * SECOND);
        c.read_all(A);
        c.conclude();
    }
}

#[test]
fn a_bad_block_is_mended_while_its_neighbours_are_written_to() {
    // No peer has acknowledged the newest write to the neighbourhood yet when the bad block is found; and the peers came as fresh ones.
    for tenths in 0..20 {
        let mut c = at_rest(tenths, Options::default());
        c.nodes[A].disks.stores[0].rot(3, 20_000);
        let read = c.read(A, 0, 3, 1);
        let part = c.write(A, 0, 7, 1);
        c.run_for(tenths * 20 * US);
        c.must_write(A, 0, 9, 2);
        for id in [read, part] {
            assert_eq!(c.outcome(id, 20 * SECOND), Some(Outcome::Done));
        }
        c.conclude();
    }
}

#[test]
fn a_write_of_a_part_of_a_bad_block_keeps_the_rest_of_it() {
    for (seed, harm) in (0..).zip(HARMS) {
        let mut c = at_rest(seed, Options::default());
        harm(&mut c, A);
        let owned = false;
        let id = c.request(
            A,
            crate::client::Kind::Write { owned },
            0,
            3 * 4 + 1..3 * 4 + 2,
        );
        assert_eq!(c.outcome(id, 20 * SECOND), Some(Outcome::Done));
        assert_eq!(reads(&mut c, A, 3, 1), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn what_is_overwritten_whole_needs_no_peer() {
    for (seed, harm) in (0..).zip(HARMS) {
        let mut c = at_rest(seed, of_nodes(1));
        harm(&mut c, A);
        c.must_write(A, 0, 3, 1);
        c.run_for(SECOND);
        assert!(!is_bad(&c, A, 3));
        assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn without_a_good_copy_that_block_gives_an_error_and_no_other_one() {
    for (seed, harm) in (0..).zip(HARMS) {
        let mut c = at_rest(seed, of_nodes(1));
        harm(&mut c, A);
        for _ in 0..2 {
            assert_eq!(reads(&mut c, A, 3, 1), Some(Outcome::Error));
        }
        assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Error));
        assert_eq!(reads(&mut c, A, 4, 30), Some(Outcome::Done));
        c.must_write(A, 0, 7, 1);
        assert_ne!(c.nodes[A].view.health, Health::Down);
        assert!(c.nodes[A].view.serving);
        c.conclude();
    }
}

#[test]
fn a_copy_that_is_bad_as_well_is_not_taken() {
    // Both others are asked; the first one has a bad copy, and mends that too.
    for (seed, harm) in (0..).zip(HARMS) {
        for other in [B, C] {
            let mut c = at_rest(seed, Options::default());
            harm(&mut c, A);
            c.nodes[other].disks.stores[0].rot(3, 999);
            assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Done));
            assert!(!is_bad(&c, A, 3));
            c.conclude();
        }
    }
}

#[test]
fn three_bad_copies_are_an_error() {
    let mut c = at_rest(1, Options::default());
    for node in [A, B, C] {
        c.nodes[node].disks.stores[0].rot(3, 20_000);
    }
    assert_eq!(reads(&mut c, A, 3, 1), Some(Outcome::Error));
    assert_eq!(reads(&mut c, A, 4, 30), Some(Outcome::Done));
    assert!(said(&c, A, "no peer has a good copy"));
    // A whole write ends that.
    c.must_write(A, 0, 3, 1);
    c.conclude();
}

#[test]
fn a_block_that_nobody_has_fails_who_waits_for_it_and_nobody_who_has_not_come_to_it() {
    // Writes are held. A part of the block is written before it is written whole, or after: only the first needs what it held.
    let partial = crate::client::Kind::Write { owned: false };
    for (seed, before) in [(0, true), (1, false)] {
        let mut c = at_rest(seed, of_nodes(1));
        c.nodes[A].disks.stores[0].rot(3, 20_000);
        let deadline = c.deadline(A, 5 * SECOND);
        assert_eq!(c.command(A, AdminCommand::SuspendIo { deadline }), Ok(()));
        let whole = (!before).then(|| c.write(A, 0, 3, 1));
        let part = c.request(A, partial, 0, 3 * 4 + 1..3 * 4 + 2);
        assert_eq!(reads(&mut c, A, 3, 1), Some(Outcome::Error));
        assert_eq!(c.outcome(part, SECOND), None, "it is held");
        assert_eq!(c.command(A, AdminCommand::ResumeIo), Ok(()));
        let expected = if before {
            Outcome::Error
        } else {
            Outcome::Done
        };
        assert_eq!(c.outcome(part, 20 * SECOND), Some(expected));
        assert!(whole.is_none_or(|id| c.outcome(id, SECOND) == Some(Outcome::Done)));
        c.must_write(A, 0, 3, 1);
        assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn the_peer_that_has_it_dies_while_it_is_asked() {
    for gone in [B, C] {
        let mut c = at_rest(2, Options::default());
        c.nodes[A].disks.stores[0].rot(3, 20_000);
        for peer in [B, C] {
            c.hold(A, peer, BLOCKS_ASK);
        }
        let id = c.read(A, 0, 3, 1);
        c.run_until(SECOND, |c| c.net.snags.len() < 2);
        c.run_for(100 * MS);
        c.net.snags.clear();
        c.heal();
        c.crash(gone, POWER);
        assert_eq!(c.outcome(id, 20 * SECOND), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn a_crash_while_a_block_is_put_in_place_leaves_a_bad_block_or_a_good_one() {
    for tenths in 0..40 {
        let mut c = at_rest(tenths, Options::default());
        c.nodes[A].disks.stores[0].rot(3, 20_000);
        let id = c.read(A, 0, 3, 1);
        c.run_for(tenths * 100 * US);
        c.crash(A, POWER);
        assert!(matches!(
            c.outcomes.get(&id),
            Some(Outcome::Dropped | Outcome::Done)
        ));
        c.restart(A);
        c.must_promote(A);
        assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Done));
        // What was read is compared with what was written. (The sectors of a torn write may be just those that were harmed: then the
        // block is good, and remembered as harmed.)
        c.conclude();
    }
}

#[test]
fn a_write_that_the_store_lost_or_put_elsewhere_is_noticed() {
    for fate in [Fate::Lost, Fate::Stray(1), Fate::Stray(9), Fate::Stray(200)] {
        let mut c = at_rest(3, Options::default());
        c.nodes[A].next_fate[STORE] = Some(fate);
        c.must_write(A, 0, 3, 4);
        c.run_for(SECOND);
        assert!(c.nodes[A].next_fate[STORE].is_none() && is_bad(&c, A, 3));
        for restarts in [false, true] {
            if restarts {
                c.crash(A, POWER);
                c.restart(A);
                c.must_promote(A);
            }
            c.read_all(A);
            assert!(!is_bad(&c, A, 3) && said(&c, A, "is mended"));
        }
        c.conclude();
    }
}

#[test]
fn a_bad_block_of_a_secondary_is_mended_when_it_is_primary() {
    for (seed, harm) in (0..).zip(HARMS) {
        let mut c = at_rest(seed, Options::default());
        harm(&mut c, B);
        c.crash(A, POWER);
        c.must_promote(B);
        c.read_all(B);
        assert!(!is_bad(&c, B, 3));
        c.restart_and_feed(B, A);
        c.conclude();
    }
}

#[test]
fn checksums_that_rot_cost_nothing_while_there_are_peers() {
    for slot in 0..2 {
        let mut c = at_rest(4, Options::default());
        let pages: Vec<u64> = c.nodes[A].disks.sums.written().map(|(b, _)| b).collect();
        // One slot of each page, and then it is started anew.
        for page in pages.into_iter().filter(|p| p / 2 % 2 == slot) {
            c.nodes[A].disks.sums.rot(page, 9999);
        }
        c.nodes[A].sums_rotted = true;
        c.crash(A, POWER);
        c.restart(A);
        c.must_promote(A);
        c.calm = true;
        c.read_all(A);
        c.must_write(A, 0, 3, 2);
        c.conclude();
    }
}

#[test]
fn a_snapshot_of_a_store_with_a_bad_block_is_no_excuse_for_the_others() {
    // Writes are held, and a bad block is mended meanwhile: that is the only change that the store may see.
    let mut c = at_rest(5, Options::default());
    let deadline = c.deadline(A, 5 * SECOND);
    assert_eq!(c.command(A, AdminCommand::SuspendIo { deadline }), Ok(()));
    c.nodes[A].disks.stores[0].rot(3, 20_000);
    assert_eq!(reads(&mut c, A, 0, 40), Some(Outcome::Done));
    assert!(!is_bad(&c, A, 3));
    assert_eq!(c.command(A, AdminCommand::ResumeIo), Ok(()));
    c.conclude();
}
