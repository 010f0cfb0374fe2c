//! Nodes that are past the Primary's journal (protocol C2): what changed is pulled into the stage, and laid over the stores when
//! it is whole. At each write of the superblock the harness compares the node's image with what was committed.

use replicator::WithoutRoom;
use replicator::io::{AdminCommand, DiskError};
use replicator::types::Seq;
use replicator::view::{Health, ReplicationState};

use super::*;
use crate::disk::{ENOSPC, Fate};
use crate::drive::{Flight, META, STAGE, STORE, SUMS};
use crate::forge::Forgery;
use crate::net::FrameKind;

/// C was away while more was written than A's and B's journals hold. Blocks 0 to 7 of volume 0 it has as they are.
pub(super) fn past_the_journal(seed: u64, options: Options) -> Cluster {
    let mut c = serving(seed, options);
    c.must_write(A, 0, 0, 8);
    c.must_write(A, 0, 100, 40);
    c.must_write(A, 1, 0, 5);
    c.until_fed(A);
    c.run_for(SECOND);
    c.crash(C, POWER);
    fill_the_journal(&mut c, A);
    c
}

/// Writes more than a journal holds, to blocks 20 to 320.
pub(super) fn fill_the_journal(c: &mut Cluster, primary: usize) {
    for round in 0..40 {
        c.must_write(primary, 0, 20 + round % 5 * 50, 150);
    }
    c.must_write(primary, 1, 3, 2);
    let trimmed = c.zero(primary, 0, 100, 20);
    assert_eq!(c.outcome(trimmed, SECOND), Some(Outcome::Done));
    c.run_for(SECOND);
}

fn replicates(c: &Cluster, node: usize, peer: usize) -> ReplicationState {
    c.peer_view(node, peer).replication
}

/// C is started, and in its resync from A.
pub(super) fn in_resync(seed: u64) -> Cluster {
    let mut c = past_the_journal(seed, Options::default());
    c.restart(C);
    let pulls = |c: &Cluster| replicates(c, A, C) == ReplicationState::SyncSource;
    assert!(c.run_until(5 * SECOND, pulls));
    c
}

/// C writes a superblock that makes what it staged the image.
fn switches_image(c: &Cluster) -> bool {
    let mut written = c.nodes[C].flights.values().filter_map(Flight::superblock);
    written.any(|s| s.resync.is_some_and(|resync| resync.merging))
}

fn merges(c: &Cluster) -> bool {
    c.nodes[C].merges.is_some()
}

/// C is in its resync, and has come as far as a power cut and `at` allow: `tenths` tenths of a millisecond later.
pub(super) fn some_time_into_it(seed: u64, tenths: u64) -> Cluster {
    let mut c = in_resync(seed);
    c.run_for(tenths * 100 * US);
    c
}

/// 300 blocks, and what C does not see that it has; not 5,000 blocks of journal, nor 664 of the volumes.
pub(super) fn is_what_changed(blocks: u64) {
    assert!((270..345).contains(&blocks), "{blocks} blocks");
}

#[test]
fn it_gets_what_changed_and_no_more() {
    for seed in 0..3 {
        let mut c = past_the_journal(seed, Options::default());
        let before = c.sent(A, C);
        c.restart_and_feed(A, C);
        assert_eq!(c.resyncs, 1);
        is_what_changed(c.sent(A, C) - before);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn while_it_lasts_both_say_so_and_the_target_stays_what_it_was() {
    let mut c = past_the_journal(1, Options::default());
    c.nodes[C].slow[STAGE] = 1000;
    c.restart(C);
    let pulls = |c: &Cluster| replicates(c, A, C) == ReplicationState::SyncSource;
    assert!(c.run_until(5 * SECOND, pulls));
    let told = |c: &Cluster| c.peer_view(A, C).sync.is_some_and(|s| s.total_bytes > 0);
    assert!(c.run_until(SECOND, told));
    assert_eq!(replicates(&c, C, A), ReplicationState::SyncTarget);
    assert_eq!(c.nodes[C].view.disk_state, DiskState::Outdated);
    assert_eq!(c.peer_disk(A, C), DiskState::Outdated);
    let sync = c.peer_view(A, C).sync.expect("it is in resync");
    assert!(sync.left_bytes > 0 && sync.left_bytes <= sync.total_bytes);
    assert_eq!(c.nodes[A].view.health, Health::Degraded);
    assert!(!merges(&c));
    c.image_is_prefix(C);
    // It counts for no commit: without B nothing is answered.
    c.crash(B, POWER);
    let waits = c.write(A, 0, 3, 1);
    assert_eq!(c.outcome(waits, 300 * MS), None);
    // When it is whole, it does.
    c.nodes[C].slow[STAGE] = 1;
    assert_eq!(c.outcome(waits, 10 * SECOND), Some(Outcome::Done));
    c.conclude();
}

#[test]
fn clients_go_on_and_what_they_write_meanwhile_is_there() {
    for seed in 0..6 {
        let mut c = past_the_journal(seed, Options::default());
        c.big_percent = seed * 5;
        c.nodes[C].slow[STAGE] = 1 + seed * 5;
        c.start_clients(3, 4, 2 * MS);
        c.restart(C);
        let before = c.oracle.acknowledged;
        c.until_follows(A, C);
        assert!(c.resyncs >= 1 && c.oracle.acknowledged > before + 20);
        c.stop_clients();
        c.run_for(SECOND);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn it_arrives_also_where_the_stage_is_slow_and_clients_never_pause() {
    for seed in 0..2 {
        let mut c = past_the_journal(seed, Options::default());
        c.big_percent = 0;
        c.nodes[C].slow[STAGE] = 20;
        c.start_clients(3, 6, MS);
        c.restart(C);
        let done = |c: &Cluster| c.resyncs > 0;
        assert!(c.run_until(20 * SECOND, done));
        c.stop_clients();
        c.until_follows(A, C);
        c.conclude();
    }
}

#[test]
fn two_nodes_with_one_past_the_journal_are_a_majority() {
    // B is lost for good. A's epoch record needs C, which is past A's journal: C ends its resync first, at what is committed.
    for seed in 0..5 {
        let mut c = past_the_journal(seed, Options::default());
        c.crash(A, POWER);
        c.crash(B, POWER);
        c.restart(A);
        c.restart(C);
        c.run_for(SECOND);
        c.must_promote(A);
        c.must_write(A, 0, 3, 2);
        c.read_all(A);
        c.until_follows(A, C);
        c.conclude();
    }
}

#[test]
fn the_target_crashes_at_any_time() {
    for tenths in 0..60 {
        for power in [POWER, KILL] {
            let mut c = some_time_into_it(tenths, tenths * 8);
            if !c.up(C) {
                continue;
            }
            c.crash(C, power);
            c.must_write(A, 0, 30, 9);
            c.restart_and_feed(A, C);
            c.crash(B, POWER);
            c.must_write(A, 0, 3, 1);
            c.conclude();
        }
    }
}

#[test]
fn the_target_crashes_in_the_merge_and_needs_nobody_to_end_it() {
    for tenths in 0..20 {
        let mut c = past_the_journal(tenths, Options::default());
        c.nodes[C].slow[STORE] = 10;
        c.restart(C);
        assert!(c.run_until(10 * SECOND, merges));
        for round in 0..3 {
            c.run_for((tenths + round) * 400 * US);
            if !merges(&c) {
                break;
            }
            c.crash(C, POWER);
            c.isolate(C);
            c.restart(C);
            c.nodes[C].slow[STORE] = 10;
            // It promises nothing before it is through: the harness looks at each report.
            c.begin_promote(B, 200 * MS);
        }
        assert!(c.run_until(20 * SECOND, |c| !merges(c)), "alone it ends it");
        c.heal();
        c.run_for(SECOND);
        c.conclude();
    }
}

#[test]
fn the_source_is_lost_while_the_target_switches_its_image() {
    for seed in 0..12 {
        let mut c = past_the_journal(seed, Options::default());
        c.nodes[C].slow[META] = 300;
        c.nodes[C].slow[STORE] = 1000;
        c.restart(C);
        assert!(c.run_until(20 * SECOND, switches_image));
        c.run_for(seed * 2 * MS);
        c.crash(A, POWER);
        // Whoever asks it to be Primary now waits until its stores are the image.
        assert_eq!(c.promote(C, 20 * SECOND), Ok(()));
        assert!(!merges(&c));
        c.read_all(C);
        c.must_write(C, 0, 3, 2);
        c.conclude();
    }
}

#[test]
fn an_operator_promotes_the_target_while_it_switches_its_image() {
    // The source is not lost, only no Primary any more.
    for seed in 0..12 {
        let mut c = past_the_journal(seed, Options::default());
        c.nodes[C].slow[META] = 300;
        c.nodes[C].slow[STORE] = 1000;
        c.restart(C);
        assert!(c.run_until(20 * SECOND, switches_image));
        c.must_demote(A);
        c.run_for(seed * 2 * MS);
        c.must_promote(C);
        assert!(!merges(&c));
        c.read_all(C);
        c.conclude();
    }
}

#[test]
fn the_source_crashes_and_another_one_goes_on() {
    for tenths in 0..40 {
        let mut c = some_time_into_it(tenths, tenths * 10);
        c.crash(A, POWER);
        c.must_promote(B);
        c.must_write(B, 0, 25, 3);
        c.until_follows(B, C);
        c.must_demote(B);
        c.ends_on(C);
    }
}

#[test]
fn what_it_has_saved_does_not_come_again() {
    // The stage is slow, so that some of it is saved; then the target's power fails. The same with another source.
    for other in [false, true] {
        let mut c = past_the_journal(3, Options::default());
        c.nodes[C].slow[STAGE] = 2000;
        c.nodes[C].slow[SUMS] = 1;
        c.restart(C);
        let saved = |c: &Cluster| {
            let superblock = c.nodes[C].disks.meta.superblock();
            superblock.is_some_and(|s| s.resync.is_some())
        };
        assert!(c.run_until(20 * SECOND, saved));
        assert!(!merges(&c));
        let source = if other { B } else { A };
        c.crash(C, POWER);
        if other {
            c.must_demote(A);
            c.must_promote(B);
        }
        let before = c.sent(A, C) + c.sent(B, C);
        c.nodes[C].slow[STAGE] = 1;
        c.restart_and_feed(source, C);
        let got = c.sent(A, C) + c.sent(B, C) - before;
        assert!(got < 290, "{got} blocks come again");
        c.conclude();
    }
}

#[test]
fn the_connection_breaks_at_each_kind_of_frame() {
    let kinds: &[(usize, usize, FrameKind)] = &[
        (A, C, TOO_FAR),
        (C, A, RESYNC_ASK),
        (A, C, RESYNC_FROM),
        (C, A, CHANGED_ASK),
        (A, C, CHANGED),
        (C, A, COMPARE),
        (A, C, COMPARED),
        (C, A, STAGED),
    ];
    for (seed, &(from, to, kind)) in (0..).zip(kinds) {
        for after in [false, true] {
            let mut c = past_the_journal(seed, Options::default());
            if after {
                c.break_after(from, to, kind);
            } else {
                c.break_before(from, to, kind);
            }
            c.nodes[C].slow[STAGE] = 20;
            c.start_clients(1, 2, 5 * MS);
            c.restart(C);
            c.until_snagged();
            c.stop_clients();
            c.until_follows(A, C);
            c.conclude();
        }
    }
}

#[test]
fn a_source_that_answers_what_can_not_be_is_refused_and_the_next_answer_counts() {
    for forgery in [Forgery::Groups, Forgery::Others, Forgery::Unknown] {
        let mut c = past_the_journal(3, Options::default());
        c.net.forge.insert((A, C), forgery);
        c.restart(C);
        assert!(c.run_until(5 * SECOND, |c| c.net.forge.is_empty()));
        c.until_follows(A, C);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn it_is_cut_off_for_long_and_past_the_journal_again() {
    for tenths in [5, 20, 40, 80] {
        let mut c = some_time_into_it(tenths, tenths);
        c.isolate(C);
        fill_the_journal(&mut c, A);
        c.heal();
        c.until_follows(A, C);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn forced_in_mid_resync_the_target_goes_on_from_its_old_point() {
    for tenths in 0..30 {
        let mut c = some_time_into_it(tenths, tenths * 15);
        let before = c.log_of(C);
        let was = merges(&c);
        c.crash(A, POWER);
        c.crash(B, POWER);
        c.run_for(5 * SECOND);
        let id = c.force(C, 30 * SECOND);
        assert_eq!(c.answer(id, 40 * SECOND), Some(Ok(())), "after {tenths}");
        // From what it had: the old point, or the new one if the superblock said so already. Its world's checkers compare it.
        assert!(was || merges(&c) || c.log_of(C).0 >= before.0);
        c.must_write(C, 0, 3, 2);
        // What was staged for the other history is given back.
        let empty = |c: &Cluster| {
            let mut blocks = c.nodes[C].disks.stage.written();
            blocks.all(|(_, b)| b.iter().all(|&byte| byte == 0))
        };
        assert!(c.run_until(5 * SECOND, empty), "after {tenths}");
        c.read_all(C);
        c.conclude();
    }
}

#[test]
fn without_room_it_waits_and_says_so() {
    let mut c = past_the_journal(4, Options::default());
    c.restart(C);
    // The first write to the stage is a discard; a full disk is met by the next.
    let begun = c.run_until(5 * SECOND, |c| {
        c.nodes[C].flights.values().any(|f| f.writes_to(STAGE))
    });
    assert!(begun);
    let discarded = |c: &Cluster| !c.nodes[C].flights.values().any(|f| f.writes_to(STAGE));
    assert!(c.run_until(5 * SECOND, discarded));
    c.nodes[C].next_fate[STAGE] = Some(Fate::Fails(DiskError::Os(ENOSPC)));
    let full = |c: &Cluster| said(c, C, "there is no room to stage");
    assert!(c.run_until(5 * SECOND, full));
    assert_eq!(c.nodes[C].view.disk_state, DiskState::Outdated);
    assert_eq!(c.nodes[C].view.health, Health::Degraded);
    c.must_write(A, 0, 3, 1);
    c.image_is_prefix(C);
    // There is room again.
    c.until_follows(A, C);
    c.conclude();
}

#[test]
fn a_bad_block_of_the_source_is_mended_first() {
    for seed in 0..4 {
        let mut c = past_the_journal(seed, Options::default());
        match seed {
            0 => c.nodes[A].disks.stores[0].rot(150, 333),
            1 => c.nodes[A].disks.stores[0].spoil(150),
            2 => c.nodes[A].disks.stores[0].take_back(150),
            _ => c.nodes[A].disks.stores[0].misdirect(140, 150),
        }
        c.restart_and_feed(A, C);
        assert!(said(&c, A, "is mended"));
        c.conclude();
    }
}

#[test]
fn what_rots_in_the_stage_comes_from_a_peer_when_it_is_read() {
    for seed in 0..3 {
        let mut c = past_the_journal(seed, Options::default());
        c.nodes[C].slow[META] = 20;
        c.restart(C);
        // All is staged, and nothing of it is in the stores yet.
        assert!(c.run_until(20 * SECOND, switches_image));
        for block in 0..600 {
            if c.nodes[C].disks.stage.block(block).is_some() && block % 7 == 0 {
                match seed {
                    0 => c.nodes[C].disks.stage.rot(block, 5),
                    1 => c.nodes[C].disks.stage.spoil(block),
                    _ => c.nodes[C].disks.stage.take_back(block),
                }
            }
        }
        c.nodes[C].slow[META] = 1;
        c.until_follows(A, C);
        c.must_demote(A);
        c.must_promote(C);
        c.calm = true;
        c.read_all(C);
        c.calm = false;
        assert!(said(&c, C, "is mended with a peer's copy"));
        c.conclude();
    }
}

#[test]
fn what_it_staged_that_the_next_primary_does_not_know_to_be_committed_comes_again() {
    for (seed, in_place) in [(0, false), (1, true), (2, false), (3, true)] {
        let mut c = super::renewal::without_room(seed);
        c.nodes[C].stage_full = in_place;
        // C asks for the first blocks that it lacks. Of those before it knows that it has them.
        c.hold(C, A, COMPARE);
        c.until_snagged();
        c.must_write(A, 0, 3, 2);
        // That is committed, and C stages it. B has it, and does not hear that it is committed.
        c.cut(A, B);
        c.run_for(100 * MS);
        assert!(c.nodes[B].view.committed < c.nodes[A].view.committed);
        c.crash(A, POWER);
        c.heal();
        c.must_promote(B);
        c.until_follows(B, C);
        c.must_demote(B);
        c.ends_on(C);
    }
}

#[test]
fn past_the_journal_again_while_it_lays_the_stage_over_its_stores() {
    for cut_off in [false, true] {
        let mut c = past_the_journal(5, Options::default());
        c.nodes[C].slow[STORE] = 10;
        c.restart(C);
        assert!(c.run_until(20 * SECOND, merges));
        c.nodes[C].hung_until[STORE] = c.now + 12 * SECOND;
        // C's journal takes as much as it holds.
        for _ in 0..3 {
            fill_the_journal(&mut c, A);
        }
        assert!(c.is_too_far(A, C), "{:?}", c.peer_view(A, C));
        c.run_for(100 * MS);
        assert!(merges(&c), "the store hangs");
        if cut_off {
            // On the next connection it is told so anew.
            c.reset(A, C);
        }
        c.until_follows(A, C);
        assert_eq!(c.resyncs, 2);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn a_new_primary_with_less_known_committed_takes_over_the_stream() {
    // A writes without a pause while C stages, and dies in it: what C has staged is committed, so nothing of it is undone.
    for seed in 0..20 {
        let mut c = past_the_journal(seed, Options::default());
        c.nodes[C].slow[STAGE] = 10;
        c.start_clients(3, 6, MS);
        c.restart(C);
        c.run_for(SECOND / 2 + seed * 20 * MS);
        c.crash(A, POWER);
        c.must_promote(B);
        c.run_for(seed * 10 * MS);
        if c.up(C) && seed % 2 == 0 {
            c.crash(C, POWER);
            c.restart(C);
        }
        c.until_follows(B, C);
        c.stop_clients();
        c.must_demote(B);
        c.ends_on(C);
    }
}

#[test]
fn a_stopped_target_is_drained_at_its_old_point() {
    let mut c = in_resync(6);
    assert_eq!(c.command(C, AdminCommand::Drain), Ok(()));
    assert_eq!(c.nodes[C].view.applied, c.nodes[C].view.committed);
    assert!(c.nodes[C].view.applied > Seq(0));
    c.crash(C, KILL);
    c.restart_and_feed(A, C);
    c.conclude();
}

#[test]
fn stores_that_are_being_merged_are_no_image_for_an_operator() {
    let mut c = past_the_journal(7, Options::default());
    c.nodes[C].slow[STORE] = 100;
    c.restart(C);
    assert!(c.run_until(10 * SECOND, merges));
    // It has everything, and not yet in its stores.
    let deadline = c.deadline(A, 5 * MS);
    let held = c.admin(A, AdminCommand::SuspendIo { deadline });
    let drain = c.admin(C, AdminCommand::Drain);
    assert_eq!(c.answer(held, SECOND), Some(Ok(())));
    assert!(merges(&c), "the store is slow");
    assert!(c.peer_view(A, C).applied < Some(c.nodes[A].view.committed));
    assert_eq!(c.command(A, AdminCommand::ResumeIo), Ok(()));
    let over = |c: &Cluster| !merges(c) || c.admin_results.contains_key(&drain);
    assert!(c.run_until(20 * SECOND, over));
    assert!(!merges(&c), "it is drained when its stores are the image");
    assert_eq!(c.answer(drain, SECOND), Some(Ok(())));
    c.crash(C, POWER);
    c.restart_and_feed(A, C);
    c.conclude();
}

#[test]
fn a_late_report_makes_nobody_wait_for_a_resync_that_is_not_needed() {
    // What C says of itself to B is held up from when it was Inconsistent on, and is heard at once when B is Primary.
    let mut vain = 0;
    for tenths in 0..10 {
        let mut c = past_the_journal(
            tenths,
            Options {
                without_room: WithoutRoom::InPlace,
                ..of_nodes(5)
            },
        );
        c.nodes[C].stage_full = true;
        c.nodes[C].slow[STORE] = 20;
        c.restart(C);
        assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
        c.hold(C, B, REPORT);
        assert!(c.promote(B, 300 * MS).is_err(), "A serves");
        c.nodes[C].slow[STORE] = 1;
        c.until_follows(A, C);
        assert!(c.promote(B, 300 * MS).is_err(), "A serves");
        c.crash(A, POWER);
        c.must_promote(B);
        c.run_for(tenths * MS);
        c.heal();
        c.until_follows(B, C);
        vain += usize::from(said(&c, B, "is Inconsistent"));
        c.restart(A);
        c.conclude();
    }
    assert!(vain > 0);
}
