//! One map of what changed last serves any number of nodes that are past the journal (protocol C2), whoever is their source: several at
//! once, each from where it is, after a restart of all nodes, and after the source is lost.

use replicator::io::DiskError;
use replicator::view::{Health, ReplicationState};

use super::membership::options;
use super::resync::{fill_the_journal, is_what_changed, past_the_journal};
use super::*;
use crate::disk::Fate;
use crate::drive::STAGE;

/// An error of the operating system that is no lack of room: EIO.
const EIO: i32 = 5;

/// Five nodes that all have the same.
fn five(seed: u64) -> Cluster {
    let mut c = serving(seed, options(5, 0));
    c.must_write(A, 0, 0, 8);
    c.until_fed(A);
    c.run_for(SECOND);
    c
}

#[test]
fn two_at_once_get_each_what_changed_since_it_was_there() {
    for seed in 0..3 {
        let mut c = five(seed);
        c.crash(D, POWER);
        // E has these, and D does not.
        c.must_write(A, 0, 400, 100);
        c.must_write(A, 0, 500, 100);
        c.run_for(SECOND);
        c.crash(E, POWER);
        fill_the_journal(&mut c, A);
        let before = [D, E].map(|node| c.sent(A, node));
        c.restart(D);
        c.restart(E);
        c.until_follows(A, D);
        c.until_follows(A, E);
        assert_eq!(c.resyncs, 2);
        let [to_d, to_e] = [D, E].map(|node| c.sent(A, node));
        let (to_d, to_e) = (to_d - before[0], to_e - before[1]);
        is_what_changed(to_e);
        assert!((470..560).contains(&to_d), "{to_d} blocks");
        c.crash(A, POWER);
        c.crash(B, POWER);
        c.must_promote(D);
        c.must_write(D, 0, 3, 2);
        c.read_all(D);
        c.must_demote(D);
        c.ends_on(E);
    }
}

#[test]
fn after_a_restart_of_all_nodes_it_is_what_changed_and_no_more() {
    for power in [POWER, KILL] {
        for seed in 0..3 {
            let mut c = past_the_journal(seed, Options::default());
            c.crash(B, power);
            c.crash(A, power);
            for node in [A, B, C] {
                c.restart(node);
            }
            let before = c.sent(A, C);
            c.must_promote(A);
            c.until_follows(A, C);
            assert_eq!(c.resyncs, 1);
            is_what_changed(c.sent(A, C) - before);
            c.crash(A, POWER);
            c.ends_on(C);
        }
    }
}

#[test]
fn another_source_brings_what_the_lost_one_did_not() {
    let mut halfway = 0;
    for tenths in 0..50 {
        let mut c = past_the_journal(tenths, Options::default());
        let before = c.sent(A, C);
        c.restart(C);
        let pulls = |c: &Cluster| c.peer_view(A, C).replication == ReplicationState::SyncSource;
        assert!(c.run_until(5 * SECOND, pulls));
        c.run_for(tenths * 100 * US);
        let first = c.sent(A, C) - before;
        c.crash(A, POWER);
        c.must_promote(B);
        c.until_follows(B, C);
        let second = c.sent(B, C);
        halfway += u64::from((50..300).contains(&first));
        assert!(first + second < 345, "{first} and {second} blocks");
        c.conclude();
    }
    assert!(halfway > 0, "the source was never lost in the midst");
}

#[test]
fn a_stage_that_fails_ends_the_resync_and_leaves_the_image() {
    for seed in 0..4 {
        let mut c = past_the_journal(seed, Options::default());
        c.nodes[C].slow[STAGE] = 300;
        c.restart(C);
        let stages = |c: &Cluster| c.nodes[C].flights.values().any(|f| f.writes_to(STAGE));
        assert!(c.run_until(5 * SECOND, stages));
        // The first write to the stage is a discard.
        assert!(c.run_until(5 * SECOND, |c| !stages(c)));
        c.run_for(seed * 20 * MS);
        c.nodes[C].next_fate[STAGE] = Some(Fate::Fails(DiskError::Os(EIO)));
        assert!(
            c.run_until(5 * SECOND, |c| c.nodes[C].view.failed),
            "{seed} {:?}",
            c.nodes[C].view
        );
        assert_eq!(c.nodes[C].view.health, Health::Down);
        c.must_write(A, 0, 3, 1);
        c.image_is_prefix(C);
        c.crash(C, KILL);
        c.restart_and_feed(A, C);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn what_was_staged_before_its_node_was_promoted_is_not_laid_over_what_it_wrote_then() {
    for seed in 0..3 {
        let mut c = five(seed);
        // D's journal begins where its resync ended, which E has not come to.
        c.crash(D, POWER);
        fill_the_journal(&mut c, A);
        c.crash(E, POWER);
        c.must_write(A, 0, 400, 1);
        c.restart_and_feed(A, D);
        c.run_for(SECOND);
        c.must_demote(A);
        c.must_promote(D);
        c.nodes[E].slow[STAGE] = 2000;
        c.restart(E);
        let staged = |c: &Cluster| {
            let superblock = c.nodes[E].disks.meta.superblock();
            superblock.is_some_and(|s| s.resync.is_some())
        };
        assert!(c.run_until(20 * SECOND, staged));
        // The others' journals reach E: it has what it lacks from there, and goes on by itself.
        c.crash(D, POWER);
        c.must_promote(E);
        c.must_write(E, 0, 400, 1);
        c.run_for(2 * SECOND);
        c.verify_all(E);
        c.crash(E, POWER);
        c.must_promote(A);
        fill_the_journal(&mut c, A);
        c.restart_and_feed(A, E);
        c.run_for(SECOND);
        c.image_is_prefix(E);
        c.crash(A, POWER);
        c.crash(B, POWER);
        c.restart(D);
        c.ends_on(E);
    }
}

#[test]
fn a_former_primary_that_says_last_that_it_is_past_the_journal_is_no_source() {
    for seed in 0..4 {
        let mut c = past_the_journal(seed, Options::default());
        c.hold(A, C, TOO_FAR);
        c.restart(C);
        c.until_snagged();
        c.must_demote(A);
        c.must_promote(B);
        c.nodes[C].slow[STAGE] = 100;
        let pulls = |c: &Cluster| c.peer_view(B, C).replication == ReplicationState::SyncSource;
        assert!(c.run_until(5 * SECOND, pulls));
        c.run_for(seed * 10 * MS);
        // What A said as Primary arrives now.
        c.heal();
        c.until_follows(B, C);
        c.crash(B, POWER);
        c.ends_on(C);
    }
}
