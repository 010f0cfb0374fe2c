//! Nodes whose stores are no image (protocol C3, C4): a resync that goes straight to them since there is no room to stage it, a node
//! that gave its data up, a node that was made of a seed.

use replicator::WithoutRoom;
use replicator::io::{AdminCommand, AdminError, AdminResult, DiskError};
use replicator::types::Seq;

use super::*;
use crate::disk::{ENOSPC, Fate};
use crate::drive::{META, STORE, SUMS};
use crate::rng::Rng;

fn invalidate(c: &mut Cluster, node: usize, insists: bool) -> AdminResult {
    let deadline = c.deadline(node, 10 * SECOND);
    c.command(node, AdminCommand::Invalidate { deadline, insists })
}

fn replace(c: &mut Cluster, node: usize, peer: usize) -> AdminResult {
    let (deadline, peer) = (c.deadline(node, 30 * SECOND), node_id(peer));
    c.command(node, AdminCommand::Replace { peer, deadline })
}

/// A and B have written more than their journals hold while C was away; C has no room for it.
pub(super) fn without_room(seed: u64) -> Cluster {
    let options = Options {
        without_room: WithoutRoom::InPlace,
        ..Options::default()
    };
    let mut c = serving(seed, options);
    c.must_write(A, 0, 0, 8);
    c.must_write(A, 0, 100, 40);
    c.until_fed(A);
    c.run_for(SECOND);
    c.crash(C, POWER);
    for round in 0..40 {
        c.must_write(A, 0, 20 + round % 5 * 50, 150);
    }
    c.run_for(SECOND);
    c.nodes[C].stage_full = true;
    c.restart(C);
    c
}

pub(super) fn is_inconsistent(c: &Cluster, node: usize) -> bool {
    c.nodes[node].view.disk_state == DiskState::Inconsistent
}

#[test]
pub(super) fn without_room_it_goes_in_place_and_is_inconsistent_until_it_is_whole() {
    for seed in 0..4 {
        let mut c = without_room(seed);
        c.nodes[C].slow[STORE] = 50;
        assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place
            && is_inconsistent(c, C)));
        assert!(c.run_until(SECOND, |c| c.peer_disk(A, C) == DiskState::Inconsistent));
        assert!(c.nodes[C].view.health_reason.contains("Inconsistent"));
        assert_eq!(c.nodes[C].view.applied, Seq(0));
        let refused = c.promote(C, SECOND);
        assert!(matches!(refused, Err(AdminError::NoData(_))), "{refused:?}");
        let id = c.force(C, SECOND);
        assert!(matches!(
            c.answer(id, SECOND),
            Some(Err(AdminError::NoData(_)))
        ));
        c.nodes[C].forced = false;
        c.nodes[C].slow[STORE] = 1;
        c.until_follows(A, C);
        assert!(!c.nodes[C].in_place);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn in_place_it_crashes_at_any_time_and_goes_on() {
    for tenths in 0..40 {
        let mut c = without_room(tenths);
        c.nodes[C].slow[STORE] = 3;
        assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
        c.run_for(tenths * 500 * US);
        c.crash(C, tenths % 2 == 0);
        let source = if tenths % 3 == 0 {
            c.must_demote(A);
            c.must_promote(B);
            B
        } else {
            A
        };
        c.must_write(source, 0, 30, 9);
        c.restart_and_feed(source, C);
        c.crash(source, POWER);
        c.ends_on(C);
    }
}

#[test]
fn what_was_to_come_in_place_and_did_not_keeps_its_checksums() {
    for seed in 0..4 {
        let mut c = without_room(seed);
        assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
        // Before C has asked what changed, A alone has a record that changes a group that C has.
        c.crash(B, POWER);
        c.hold(C, A, CHANGED_ASK);
        c.until_snagged();
        c.write(A, 0, 2, 3);
        c.run_for(5 * MS);
        c.hold(A, C, COMPARED);
        c.heal();
        c.until_snagged();
        c.run_for(50 * MS);
        // By now C knows nothing of that group any more, since it is to be written. The others never hear of the record.
        c.crash(C, KILL);
        c.crash(A, POWER);
        c.heal();
        c.restart(B);
        c.restart(C);
        c.must_promote(B);
        c.until_follows(B, C);
        c.restart_and_feed(B, A);
        c.verify_all(B);
        c.must_demote(B);
        c.ends_on(C);
    }
}

#[test]
fn what_came_in_the_stream_for_groups_that_were_known_already_is_no_bad_block_after_a_gap() {
    let mut halfway = 0;
    for seed in 0..16 {
        // So much that not all of it is asked for at once.
        let mut c = serving(
            seed,
            Options {
                without_room: WithoutRoom::InPlace,
                volumes: vec![6000, 64],
                ..Options::default()
            },
        );
        c.must_write(A, 0, 0, 8);
        c.until_fed(A);
        c.run_for(SECOND);
        c.crash(C, POWER);
        for round in 0..36 {
            c.must_write(A, 0, 20 + round * 150, 150);
        }
        c.run_for(SECOND);
        c.nodes[C].stage_full = true;
        c.nodes[C].slow[STORE] = 10;
        c.restart(C);
        assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
        c.run_for(seed * 5 * MS);
        // C has that group as it is; a record about it comes in the stream.
        c.must_write(A, 0, 5800, 2);
        let written = |c: &Cluster| c.nodes[C].disks.stores[0].block(5800).is_some();
        assert!(c.run_until(5 * SECOND, written));
        if !c.nodes[C].in_place {
            continue;
        }
        halfway += 1;
        c.isolate(C);
        // The first one is again what C took it for, and the stream begins anew behind that.
        let trimmed = c.zero(A, 0, 5800, 1);
        assert_eq!(c.outcome(trimmed, SECOND), Some(Outcome::Done));
        super::resync::fill_the_journal(&mut c, A);
        c.heal();
        c.until_follows(A, C);
        c.verify_all(A);
        assert_eq!(c.nodes[C].view.integrity.bad_blocks, 0, "{seed}");
        c.must_demote(A);
        c.ends_on(C);
    }
    assert!(halfway > 2, "it was over too soon");
}

#[test]
fn what_its_new_log_took_before_it_was_heard_is_not_sent_again() {
    for seed in 0..3 {
        let mut c = without_room(seed);
        c.start_clients(3, 6, MS);
        assert!(c.run_until(10 * SECOND, |c| is_inconsistent(c, C)));
        assert!(c.run_until(SECOND, |c| c.peer_disk(A, C) == DiskState::Inconsistent));
        // It says what it is now, and at once what it took of that which was on its way. A hears both together, and has
        // that in its journal only.
        c.nodes[C].slow[META] = 20;
        c.hold(C, A, REPORT);
        let whole = |c: &Cluster| said(c, C, "the stores have everything");
        assert!(c.run_until(20 * SECOND, whole));
        c.run_for(20 * MS);
        c.stop_clients();
        c.run_for(SECOND);
        c.heal();
        c.until_follows(A, C);
        c.conclude();
    }
}

#[test]
fn in_place_it_still_helps_others_to_be_promoted() {
    let mut c = without_room(3);
    c.nodes[C].slow[STORE] = 300;
    assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
    c.crash(A, POWER);
    c.must_promote(B);
    c.nodes[C].slow[STORE] = 1;
    c.must_write(B, 0, 3, 2);
    c.until_follows(B, C);
    c.conclude();
}

#[test]
fn invalidated_it_is_let_go_and_comes_back_by_itself_with_little_to_carry() {
    for seed in 0..4 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 200);
        c.must_write(A, 1, 3, 20);
        c.until_fed(A);
        c.run_for(SECOND);
        let life = c.checks.life_of(C);
        let before = c.sent(A, C);
        assert_eq!(invalidate(&mut c, C, false), Ok(()));
        assert_ne!(c.checks.life_of(C), life);
        assert!(is_inconsistent(&c, C));
        c.until_follows(A, C);
        let got = c.sent(A, C) - before;
        assert!(got < 20, "{got} blocks come, and all but a few are there");
        assert!(invalidate(&mut c, A, false).is_err(), "it is Primary");
        c.run_for(SECOND);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn its_copy_is_not_given_up_while_the_others_lack_it() {
    // B lacks what A and C have: C is not let go.
    let mut c = serving(2, Options::default());
    c.until_fed(A);
    c.isolate(B);
    c.run_for(5 * SECOND);
    c.must_write(A, 0, 0, 8);
    let refused = invalidate(&mut c, C, false);
    assert!(
        matches!(refused, Err(AdminError::NoQuorum(_))),
        "{refused:?}"
    );
    c.must_write(A, 0, 0, 8);
    c.conclude();
}

#[test]
fn where_no_primary_is_heard_an_operator_has_to_insist() {
    let mut c = serving(5, Options::default());
    c.must_write(A, 0, 0, 50);
    c.until_fed(A);
    c.must_demote(A);
    c.run_for(SECOND);
    let refused = invalidate(&mut c, C, false);
    assert!(matches!(refused, Err(AdminError::NoData(_))), "{refused:?}");
    c.nodes[C].renews = true;
    assert_eq!(invalidate(&mut c, C, true), Ok(()));
    c.must_promote(A);
    c.run_for(SECOND);
    assert_eq!(replace(&mut c, A, C), Ok(()));
    c.until_follows(A, C);
    c.conclude();
}

#[test]
fn it_crashes_while_it_gives_its_data_up() {
    for tenths in 0..30 {
        let mut c = serving(tenths, Options::default());
        c.must_write(A, 0, 0, 100);
        c.until_fed(A);
        let (deadline, insists) = (c.deadline(C, 10 * SECOND), false);
        c.nodes[C].slow[META] = 20;
        c.admin(C, AdminCommand::Invalidate { deadline, insists });
        c.run_for(tenths * 4 * MS);
        c.crash(C, POWER);
        c.must_write(A, 0, 50, 9);
        c.restart(C);
        c.run_for(SECOND);
        c.conclude();
    }
}

#[test]
fn a_node_made_of_a_seed_is_given_what_differs() {
    for seed in 0..4 {
        let mut c = serving(seed, Options::default());
        if seed % 2 == 1 {
            // The volumes are those that it is made with, and were not all the time.
            for blocks in [500, 600] {
                let id = c.resize(A, 0, blocks, 5 * SECOND);
                assert_eq!(c.answered(id), Ok(()));
            }
        }
        c.must_write(A, 0, 0, 250);
        c.must_write(A, 0, 100, 30);
        let zeroed = c.zero(A, 0, 40, 16);
        assert_eq!(c.outcome(zeroed, SECOND), Some(Outcome::Done));
        c.until_fed(A);
        c.run_for(SECOND);
        c.crash(C, POWER);
        c.wipe_for_a_seed(C, &mut Rng::stream(seed, "seed"));
        c.must_write(A, 0, 10, 20);
        let before = c.sent(A, C);
        c.restart(C);
        c.run_for(SECOND);
        assert!(is_inconsistent(&c, C));
        assert_eq!(replace(&mut c, A, C), Ok(()));
        c.until_follows(A, C);
        let got = c.sent(A, C) - before;
        assert!(got < 100, "{got} blocks come, of 250");
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn a_resource_does_not_begin_with_a_seed() {
    let mut c = Cluster::new(1, Options::default());
    c.crash(B, KILL);
    c.wipe_for_a_seed(B, &mut Rng::stream(1, "seed"));
    c.restart(B);
    c.run_for(SECOND);
    for node in [A, B] {
        let refused = c.promote(node, 2 * SECOND);
        assert!(matches!(refused, Err(AdminError::NoData(_))), "{refused:?}");
    }
}

#[test]
fn a_full_store_is_waited_for_in_place() {
    let mut c = without_room(7);
    assert!(c.run_until(10 * SECOND, |c| c.nodes[C].in_place));
    c.nodes[C].next_fate[STORE] = Some(Fate::Fails(DiskError::Os(ENOSPC)));
    assert!(c.run_until(10 * SECOND, |c| said(c, C, "a store has no room")));
    c.until_follows(A, C);
    assert!(
        c.nodes[C]
            .disks
            .stage
            .written()
            .all(|(_, b)| b.iter().all(|&byte| byte == 0))
    );
    c.conclude();
}

#[test]
fn what_is_told_to_a_life_that_was_given_up_is_heard_by_nobody() {
    let mut c = serving(14, Options::default());
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    assert_eq!(c.command(A, AdminCommand::Drop { peer, deadline }), Ok(()));
    c.must_write(A, 0, 9, 2);
    // C is to count again, and that it has everything is under way when it gives that up, and asks nobody.
    c.hold(C, A, ACK);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    let id = c.admin(A, AdminCommand::Return { peer, deadline });
    c.until_snagged();
    assert_eq!(invalidate(&mut c, C, true), Ok(()));
    // That the connection ended is known to A a little later.
    c.run_for(10 * MS);
    c.heal();
    assert!(c.answer(id, 10 * SECOND).is_some());
    assert!(said(&c, A, "counts from here on"), "the life that is over");
    assert_eq!(replace(&mut c, A, C), Ok(()));
    c.until_fed(A);
    c.conclude();
}

#[test]
fn what_a_power_cut_took_from_a_store_is_not_taken_for_there_when_the_log_is_given_up() {
    // The table of sums has what was applied last, the store has lost it, and what would mend that goes with the log.
    let mut cut = 0;
    for tenths in 0..40 {
        let mut c = serving(tenths, Options::default());
        c.must_write(A, 0, 0, 60);
        c.until_fed(A);
        c.run_for(SECOND);
        c.must_write(A, 0, 10, 20);
        // It begins to write to its store; the flush of that takes longer than the one of the sums.
        (c.nodes[C].slow[STORE], c.nodes[C].slow[SUMS]) = (20, 1);
        let before = c.nodes[C].view.applied;
        assert!(c.run_until(5 * SECOND, |c| !c.is_flushed(C)));
        c.run_for(tenths * MS);
        cut += usize::from(c.nodes[C].view.applied == before);
        c.crash(C, POWER);
        (c.nodes[C].slow[STORE], c.nodes[C].slow[SUMS]) = (1, 1);
        c.restart(C);
        assert!(c.run_until(5 * SECOND, |c| c.nodes[C].view.primary.is_some()));
        assert_eq!(invalidate(&mut c, C, false), Ok(()));
        c.until_follows(A, C);
        assert!((0..60).all(|block| !c.is_bad(C, 0, block)), "{tenths}");
        c.conclude();
    }
    assert!(cut > 0);
}
