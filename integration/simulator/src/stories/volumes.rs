//! Volumes that grow, are made smaller, come and go while clients write: on all nodes or on none, at one place of the log. After
//! each write of a superblock, and at each start, the harness compares its table of volumes with the log's at that place.

use replicator::io::DiskError;
use replicator::view::{Health, ReplicationState};

use super::*;
use crate::client::Kind;
use crate::disk::{Disk, LITTER};
use crate::drive::{META, STORE};
use crate::oracle::UNITS_PER_BLOCK;

/// Blocks that volume 0 has, and that it gets.
const BEFORE: u64 = 600;
const AFTER: u64 = 950;

pub(super) fn failed(result: &AdminResult, why: &str) -> bool {
    matches!(result, Err(AdminError::Failed(text)) if text.contains(why))
}

impl Cluster {
    pub(super) fn answered(&mut self, id: u64) -> AdminResult {
        let answered = self.run_until(60 * SECOND, |c| c.admin_results.contains_key(&id));
        assert!(answered, "it is answered");
        self.admin_results[&id].clone()
    }

    fn resizes(&mut self, node: usize, blocks: u64) -> AdminResult {
        let id = self.resize(node, 0, blocks, 5 * SECOND);
        self.answered(id)
    }

    fn all_have(&mut self, blocks: u64) {
        let have = |c: &Cluster| (A..=C).all(|n| c.up(n) && c.blocks_at(n, 0) == blocks);
        assert!(self.run_until(20 * SECOND, have));
    }

    /// Nothing is left of what a device had.
    fn nothing_foreign(&self, node: usize) {
        let store: &Disk = &self.nodes[node].disks.stores[0];
        let foreign = |b| {
            store
                .block(b)
                .is_some_and(|bytes| bytes.iter().all(|&x| x == LITTER))
        };
        assert!(!(0..AFTER).any(foreign), "node {node}");
    }

    /// A resync has come to its end.
    pub(super) fn until_resynced(&mut self) {
        assert!(self.run_until(20 * SECOND, |c| c.resyncs == 1));
    }

    /// What blocks of volume 0 hold at a node that serves is zeroes.
    fn reads_as_zeroes(&self, node: usize, from: u64, to: u64) {
        let store: &Disk = &self.nodes[node].disks.stores[0];
        let zero = |b| {
            store
                .block(b)
                .is_none_or(|bytes| bytes.iter().all(|&x| x == 0))
        };
        assert!((from..to).all(zero), "node {node}");
    }
}

#[test]
fn a_volume_grows_under_load_and_what_is_new_reads_as_zeroes() {
    for seed in 0..4 {
        let mut c = serving(seed, Options::default());
        c.start_clients(3, 4, MS);
        c.run_for(100 * MS);
        assert_eq!(c.resizes(A, AFTER), Ok(()));
        assert_eq!(c.blocks_at(A, 0), AFTER, "who asked can have it at once");
        c.must_write(A, 0, AFTER - 2, 2);
        c.all_have(AFTER);
        // Where a device had something, nothing is left of it.
        for node in A..=C {
            c.nothing_foreign(node);
        }
        c.run_for(100 * MS);
        c.crash(A, POWER);
        c.must_promote(B);
        c.read_all(B);
        c.restart(A);
        c.conclude();
    }
}

#[test]
fn all_nodes_or_none() {
    let mut c = serving(1, Options::default());
    // One is away: it is named.
    c.crash(C, POWER);
    c.run_for(4 * SECOND);
    let refused = c.resizes(A, AFTER);
    assert!(failed(&refused, "cat can not be reached"), "{refused:?}");
    c.restart(C);
    c.until_fed(A);
    // One has no room.
    c.nodes[B].no_room = true;
    let refused = c.resizes(A, AFTER);
    assert!(
        failed(&refused, "bob: operating system error 28"),
        "{refused:?}"
    );
    assert!((A..=C).all(|n| c.blocks_at(n, 0) == BEFORE));
    let tail = c.nodes[A].view.admitted;
    // One does not answer.
    c.freeze(C, 2 * SECOND);
    let id = c.resize(A, 0, AFTER, SECOND);
    let refused = c.answered(id);
    assert!(failed(&refused, "cat"), "{refused:?}");
    assert_eq!(c.nodes[A].view.admitted, tail, "nothing was recorded");
    // All can.
    c.run_for(3 * SECOND);
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    assert_eq!(c.resizes(A, AFTER), Ok(()), "it is so already");
    let elsewhere = c.resizes(B, AFTER + 1);
    assert!(matches!(elsewhere, Err(AdminError::OtherPrimary(_))));
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn whoever_dies_in_the_middle_all_have_the_old_size_or_all_the_new_one() {
    let mut outcomes = [0, 0];
    for tenths in 0..60 {
        let mut c = serving(tenths, Options::default());
        let dies = if tenths % 2 == 0 { A } else { B };
        c.resize(A, 0, AFTER, 5 * SECOND);
        c.run_for(tenths * 100 * US);
        c.crash(dies, POWER);
        if dies == A {
            c.must_promote(B);
        }
        let primary = if dies == A { B } else { A };
        c.run_for(6 * SECOND);
        let blocks = c.blocks_at(primary, 0);
        assert!(blocks == BEFORE || blocks == AFTER);
        outcomes[usize::from(blocks == AFTER)] += 1;
        c.restart(dies);
        c.all_have(blocks);
        c.must_write(primary, 0, blocks - 1, 1);
        c.conclude();
    }
    assert!(outcomes.iter().all(|&n| n > 5), "{outcomes:?}");
}

#[test]
fn a_change_that_the_primary_recorded_last_is_cut_or_brought_with_the_rest_of_the_log() {
    // Its record is in A's journal alone, or in C's too, which A does not hear of.
    for (seed, alone) in [(0, true), (1, false), (2, true), (3, false)] {
        let mut c = serving(seed, Options::default());
        c.hold(A, B, APPEND);
        if alone {
            c.hold(A, C, APPEND);
        } else {
            c.hold(C, A, ACK);
        }
        let late = c.resizes(A, AFTER);
        assert!(
            matches!(&late, Err(AdminError::NoQuorum(text)) if text.contains("it may be")),
            "{late:?}"
        );
        assert_eq!(c.blocks_at(A, 0), BEFORE);
        c.crash(A, POWER);
        c.heal();
        c.must_promote(B);
        let blocks = if alone { BEFORE } else { AFTER };
        assert_eq!(c.blocks_at(B, 0), blocks);
        c.must_write(B, 0, blocks - 5, 5);
        c.restart_and_feed(B, A);
        c.all_have(blocks);
        assert_eq!(c.resizes(B, AFTER + 50), Ok(()));
        c.all_have(AFTER + 50);
        c.conclude();
    }
}

#[test]
fn a_new_primary_serves_no_smaller_volume_than_clients_have_seen() {
    let mut c = serving(3, Options::default());
    // B and C have the record, and their stores do not come to it.
    for node in [B, C] {
        c.nodes[node].slow[META] = 300;
    }
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.must_write(A, 0, AFTER - 1, 1);
    assert_eq!(c.blocks_at(B, 0), BEFORE);
    c.crash(A, POWER);
    let promoted = c.promote(B, 20 * SECOND);
    assert_eq!(promoted, Ok(()));
    assert_eq!(c.blocks_at(B, 0), AFTER, "exports are open with it only");
    let read = c.read(B, 0, AFTER - 1, 1);
    assert_eq!(c.outcome(read, 10 * SECOND), Some(Outcome::Done));
    c.restart(A);
    c.conclude();
}

#[test]
fn what_was_taken_away_is_not_given_to_a_peer_that_has_zeroes_there_again() {
    let mut c = serving(4, Options::default());
    c.must_write(A, 0, BEFORE - 10, 10);
    c.until_fed(A);
    c.run_for(SECOND);
    // B was away: it has both records then, and its stores come to neither.
    c.crash(B, POWER);
    assert_eq!(c.drops(A, B), Ok(()));
    assert_eq!(c.resizes(A, BEFORE - 10), Ok(()));
    assert_eq!(c.resizes(A, BEFORE), Ok(()));
    let end = c.nodes[A].view.committed;
    c.restart(B);
    c.run_for(SECOND);
    c.nodes[B].slow[META] = 1000;
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(B));
    c.admin(A, AdminCommand::Return { peer, deadline });
    assert!(c.run_until(10 * SECOND, |c| c.nodes[B].view.durable >= end));
    c.nodes[A].disks.stores[0].spoil(BEFORE - 3);
    let read = c.read(A, 0, BEFORE - 10, 10);
    assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
    assert!(c.nodes[B].view.applied.0 + 1 < end.0, "B was asked before");
    c.nodes[B].slow[META] = 1;
    c.read_all(A);
    c.conclude();
}

#[test]
fn a_node_that_did_not_count_gets_it_with_the_log_and_waits_for_room() {
    let mut c = serving(5, Options::default());
    assert_eq!(c.drops(A, C), Ok(()));
    c.crash(C, POWER);
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.must_write(A, 0, AFTER - 1, 1);
    c.restart(C);
    c.nodes[C].no_room = true;
    c.run_for(SECOND);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    c.admin(A, AdminCommand::Return { peer, deadline });
    assert!(
        c.run_until(5 * SECOND, |c| c.nodes[C].view.health == Health::Degraded
            && c.nodes[C].view.health_reason.contains("no room"))
    );
    let says =
        |(node, text): &(usize, String)| *node == C && text.contains("no room for volume v0");
    assert!(c.lines.iter().any(says));
    // It tries again by itself.
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn who_has_no_room_yet_gives_what_its_log_has_of_it() {
    let mut c = serving(5, Options::default());
    let id = c.resize(A, 0, AFTER, 5 * SECOND);
    assert!(c.run_until(SECOND, |c| said(c, A, "changes the volumes")));
    (c.nodes[B].no_room, c.nodes[C].no_room) = (true, true);
    assert_eq!(c.answered(id), Ok(()));
    c.must_write(A, 0, AFTER - 1, 1);
    let there = c.nodes[A].view.admitted;
    assert!(c.run_until(5 * SECOND, |c| c.nodes[A].view.applied == there));
    c.nodes[A].disks.stores[0].rot(AFTER - 1, 5);
    let read = c.read(A, 0, AFTER - 30, 30);
    assert_eq!(c.outcome(read, 5 * SECOND), Some(Outcome::Done));
    assert!([B, C].iter().all(|&n| c.blocks_at(n, 0) == BEFORE));
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn who_has_no_room_for_what_clients_have_seen_is_not_promoted_and_says_why() {
    let mut c = serving(6, Options::default());
    assert_eq!(c.drops(A, C), Ok(()));
    c.crash(C, POWER);
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.restart(C);
    c.nodes[C].no_room = true;
    c.run_for(SECOND);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    let returned = c.command(A, AdminCommand::Return { peer, deadline });
    assert_eq!(returned, Ok(()));
    let degraded = |c: &Cluster| c.nodes[C].view.health == Health::Degraded;
    assert!(c.run_until(5 * SECOND, degraded));
    c.crash(A, POWER);
    // Both who ask hear the same: whoever comes second is not told that it serves.
    let asked = [3, 1].map(|seconds| {
        let deadline = c.deadline(C, seconds * SECOND);
        let id = c.admin(C, AdminCommand::Promote { deadline });
        c.run_for(1500 * MS);
        id
    });
    for id in asked {
        let refused = c.answered(id);
        assert!(failed(&refused, "no room"), "{refused:?}");
    }
    assert_eq!(c.promote(C, 20 * SECOND), Ok(()), "there is room now");
    assert_eq!(c.blocks_at(C, 0), AFTER);
    c.restart(A);
    c.conclude();
}

/// C was away while A's and B's journals went on.
fn past_the_journal(seed: u64) -> Cluster {
    let mut c = serving(seed, Options::default());
    c.must_write(A, 0, 0, 8);
    c.until_fed(A);
    c.run_for(SECOND);
    assert_eq!(c.drops(A, C), Ok(()));
    c.crash(C, POWER);
    c
}

pub(super) fn fill_the_journal(c: &mut Cluster) {
    for round in 0..40 {
        c.must_write(A, 0, 20 + round % 5 * 50, 150);
    }
    c.run_for(SECOND);
}

fn returns(c: &mut Cluster) {
    c.restart(C);
    c.run_for(SECOND);
    let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
    assert_eq!(
        c.command(A, AdminCommand::Return { peer, deadline }),
        Ok(())
    );
}

#[test]
fn a_node_past_the_journal_gets_it_with_the_resync() {
    for seed in 0..3 {
        let mut c = past_the_journal(seed);
        assert_eq!(c.resizes(A, AFTER), Ok(()));
        c.must_write(A, 0, AFTER - 20, 16);
        fill_the_journal(&mut c);
        returns(&mut c);
        c.until_resynced();
        c.all_have(AFTER);
        c.crash(A, POWER);
        c.must_promote(C);
        c.read_all(C);
        c.restart(A);
        c.conclude();
    }
}

#[test]
fn a_resync_in_whose_midst_the_volume_changes_comes_to_an_end() {
    for tenths in 0..12 {
        let mut c = past_the_journal(tenths);
        fill_the_journal(&mut c);
        c.restart(C);
        let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
        let id = c.admin(A, AdminCommand::Return { peer, deadline });
        let pulls = |c: &Cluster| c.peer_view(A, C).replication == ReplicationState::SyncSource;
        assert!(c.run_until(5 * SECOND, pulls));
        c.run_for(tenths * 300 * US);
        let size = if tenths % 2 == 0 { AFTER } else { BEFORE - 300 };
        assert_eq!(c.resizes(A, size), Ok(()));
        if tenths % 3 == 0 {
            c.crash(C, POWER);
            c.restart(C);
        }
        assert_eq!(c.answered(id), Ok(()));
        c.all_have(size);
        c.conclude();
    }
}

#[test]
fn what_is_cut_off_reads_as_zeroes_when_the_volume_grows_again() {
    // C has it all the time, or is away and comes back by the journal, or past it.
    for away in 0..3 {
        let mut c = if away == 0 {
            serving(away, Options::default())
        } else {
            past_the_journal(away)
        };
        c.must_write(A, 0, 390, 40);
        c.must_write(A, 0, BEFORE - 20, 20);
        assert_eq!(c.resizes(A, 401), Ok(()));
        assert_eq!(c.blocks_at(A, 0), 401);
        let beyond = c.write(A, 0, 401, 1);
        assert_eq!(c.outcome(beyond, SECOND), Some(Outcome::Dropped));
        assert_eq!(c.resizes(A, AFTER), Ok(()));
        let read = c.request(
            A,
            Kind::Read,
            0,
            401 * UNITS_PER_BLOCK..AFTER.min(401 + 200) * UNITS_PER_BLOCK,
        );
        assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
        if away == 2 {
            fill_the_journal(&mut c);
        }
        if away > 0 {
            returns(&mut c);
        }
        if away == 2 {
            c.until_resynced();
        }
        c.all_have(AFTER);
        for node in A..=C {
            c.reads_as_zeroes(node, 401, AFTER);
        }
        c.conclude();
    }
}

#[test]
fn a_volume_that_grows_right_after_it_was_made_smaller_has_its_room() {
    for seed in 0..20 {
        let mut c = serving(seed, Options::default());
        c.start_clients(2, 3, MS);
        c.run_for(50 * MS);
        assert_eq!(c.resizes(A, 300), Ok(()));
        // What is behind the end is not cut off yet.
        assert_eq!(c.resizes(A, 500), Ok(()));
        c.must_write(A, 0, 490, 10);
        c.all_have(500);
        c.run_for(SECOND);
        c.read_all(A);
        c.conclude();
    }
}

#[test]
fn who_has_not_come_to_the_change_before_is_named() {
    let mut c = serving(1, Options::default());
    c.nodes[C].hung_until[META] = c.now + 4 * SECOND;
    assert_eq!(c.resizes(A, 300), Ok(()));
    let id = c.resize(A, 0, AFTER, SECOND);
    let refused = c.answered(id);
    assert!(
        failed(
            &refused,
            "the stores of cat have not come to the change before this one"
        ),
        "{refused:?}"
    );
    c.run_for(4 * SECOND);
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn stores_do_not_change_while_an_operator_copies_them() {
    let mut c = serving(1, Options::default());
    let deadline = c.deadline(A, 5 * SECOND);
    let held = c.command(A, AdminCommand::SuspendIo { deadline });
    assert_eq!(held, Ok(()));
    let refused = c.resizes(A, AFTER);
    assert!(failed(&refused, "resume them first"), "{refused:?}");
    assert_eq!(c.command(A, AdminCommand::ResumeIo), Ok(()));
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.conclude();
}

#[test]
fn a_store_that_can_not_be_zeroed_refuses() {
    let mut c = serving(1, Options::default());
    c.nodes[C].next_fate[STORE] = Some(crate::disk::Fate::Fails(DiskError::Os(5)));
    let refused = c.resizes(A, AFTER);
    assert!(
        failed(&refused, "cat: operating system error 5"),
        "{refused:?}"
    );
    assert_eq!(c.resizes(A, AFTER), Ok(()));
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn fresh_nodes_with_other_volumes_are_no_resource() {
    let mut c = Cluster::new(1, Options::default());
    c.crash(B, POWER);
    c.options.volumes[0] += 1;
    let config = c.nodes[B].config.clone();
    c.nodes[B].disks = c.format(&config, false);
    c.options.volumes[0] -= 1;
    c.restart(B);
    c.run_for(SECOND);
    let refused = c.promote(A, 2 * SECOND);
    assert!(
        matches!(&refused, Err(AdminError::NoData(text)) if text.contains("bob was created with other volumes")),
        "{refused:?}"
    );
}

#[test]
fn a_node_that_was_created_with_the_new_size_or_an_old_one_joins() {
    for (seed, blocks) in [(1, BEFORE), (2, AFTER), (3, AFTER + 100)] {
        let mut c = serving(seed, Options::default());
        assert_eq!(c.resizes(A, AFTER), Ok(()));
        c.must_write(A, 0, AFTER - 3, 3);
        c.crash(C, POWER);
        c.options.volumes[0] = blocks;
        c.wipe(C);
        c.options.volumes[0] = BEFORE;
        c.restart(C);
        c.run_for(SECOND);
        let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
        let joined = c.command(A, AdminCommand::Replace { peer, deadline });
        assert_eq!(joined, Ok(()));
        c.all_have(AFTER);
        c.conclude();
    }
}

#[test]
fn one_change_of_the_volumes_at_a_time() {
    let mut c = serving(1, Options::default());
    let first = c.resize(A, 0, AFTER, 5 * SECOND);
    let second = c.add_volume(A, "v2", 100, 5 * SECOND);
    let refused = c.answered(second);
    assert!(failed(&refused, "another change"), "{refused:?}");
    assert_eq!(c.answered(first), Ok(()));
    let second = c.add_volume(A, "v2", 100, 5 * SECOND);
    assert_eq!(c.answered(second), Ok(()));
    c.all_have(AFTER);
    c.conclude();
}

#[test]
fn room_that_was_made_for_a_change_that_did_not_come_and_was_cut_off_is_made_again() {
    for seed in 0..4 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 8);
        c.until_fed(A);
        c.nodes[B].no_room = true;
        let refused = c.resizes(A, AFTER);
        assert!(failed(&refused, "bob"), "{refused:?}");
        // C has room all the same. It comes to other volumes by a resync, and keeps running.
        c.run_for(SECOND);
        c.isolate(C);
        assert_eq!(c.drops(A, C), Ok(()));
        // Larger than it was, or smaller.
        let (meanwhile, then) = if seed.is_multiple_of(2) {
            (AFTER - 200, AFTER)
        } else {
            (BEFORE - 200, BEFORE)
        };
        assert_eq!(c.resizes(A, meanwhile), Ok(()));
        fill_the_journal(&mut c);
        c.heal();
        c.run_for(SECOND);
        let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
        let returned = c.command(A, AdminCommand::Return { peer, deadline });
        assert_eq!(returned, Ok(()));
        c.until_resynced();
        c.all_have(meanwhile);
        c.run_for(SECOND);
        assert_eq!(c.resizes(A, then), Ok(()));
        c.must_write(A, 0, then - 5, 5);
        c.all_have(then);
        c.run_for(SECOND);
        c.conclude();
    }
}
