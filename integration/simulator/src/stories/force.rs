//! A node is told to go on alone (D2): it serves what it has, in a history of its own, and the others never hear of that history.

use replicator::types::BLOCK_BYTES_U64;
use replicator::view::{ConnectionState, Health};

use super::resync::fill_the_journal;
use super::*;
use crate::drive::{STAGE, STORE};

/// Forces a node and waits for the answer.
fn forced(c: &mut Cluster, node: usize) -> AdminResult {
    let id = c.force(node, 8 * SECOND);
    c.answer(id, 20 * SECOND).expect("an answer")
}

/// A goes on alone, since B and C are gone.
fn alone(seed: u64) -> Cluster {
    let mut c = serving(seed, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.crash(B, POWER);
    c.crash(C, POWER);
    c.run_for(4 * SECOND);
    assert!(no_quorum(&c.promote(A, SECOND)));
    assert_eq!(forced(&mut c, A), Ok(()));
    c
}

fn until_apart(c: &mut Cluster, node: usize, peer: usize) {
    let apart = |c: &Cluster| c.peer_view(node, peer).connection == ConnectionState::StandAlone;
    assert!(c.run_until(5 * SECOND, apart), "{node} {peer}");
}

#[test]
fn the_last_of_three_goes_on_alone_and_the_others_without_it() {
    let mut c = alone(1);
    assert!(said(&c, A, "goes on alone"));
    c.must_write(A, 0, 4, 2);
    let alone = c.log_of(A);
    // The others come back. They are a majority of the old history, and nothing of the new one reaches them.
    c.restart(B);
    c.restart(C);
    c.must_promote(B);
    c.must_write(B, 0, 5, 2);
    for (node, peer) in [(A, B), (A, C), (B, A), (C, A)] {
        until_apart(&mut c, node, peer);
        c.run_for(300 * MS);
        let view = &c.nodes[node].view;
        assert_eq!(view.health, Health::Degraded);
        assert!(view.health_reason.contains("another history"));
    }
    c.must_write(A, 0, 6, 2);
    assert!(c.log_of(A) > alone);
    // Told to talk to each other again, they say the same again.
    c.connect(A, B);
    c.run_for(3 * SECOND);
    assert!(!c.connected(A, B) && !c.connected(B, A));
    c.conclude();
}

#[test]
fn who_gave_its_data_up_for_a_forced_node_is_met_again_when_an_operator_admits_it() {
    let mut c = alone(3);
    c.restart(B);
    for (node, peer) in [(A, B), (B, A)] {
        until_apart(&mut c, node, peer);
    }
    let replace = |c: &mut Cluster| {
        let (deadline, peer) = (c.deadline(A, SECOND), node_id(B));
        let result = c.command(A, AdminCommand::Replace { peer, deadline });
        c.run_for(2 * SECOND);
        result
    };
    let refused = replace(&mut c);
    assert!(
        matches!(&refused, Err(AdminError::Failed(why)) if why.contains("another history")),
        "{refused:?}"
    );
    assert!(!c.connected(A, B), "it has its data still");
    c.nodes[B].renews = true;
    let (deadline, insists) = (c.deadline(B, SECOND), true);
    let given_up = c.command(B, AdminCommand::Invalidate { deadline, insists });
    assert_eq!(given_up, Ok(()));
    assert!(!c.connected(A, B), "nobody told that node");
    replace(&mut c).expect_err("it is met first");
    assert!(c.connected(A, B));
}

/// A serves five nodes, then all others are lost, and it goes on alone; B, C and D come back and go on without it. E, made anew, is
/// nobody's yet.
fn two_worlds(seed: u64, before: impl FnOnce(&mut Cluster)) -> Cluster {
    let mut c = serving(seed, of_nodes(5));
    c.must_write(A, 0, 3, 2);
    before(&mut c);
    for node in [B, C, D, E] {
        c.crash(node, POWER);
    }
    c.run_for(4 * SECOND);
    assert_eq!(forced(&mut c, A), Ok(()));
    for node in [B, C, D] {
        c.restart(node);
    }
    c.must_promote(B);
    c.wipe(E);
    c
}

fn fences(c: &mut Cluster, node: usize, peer: usize) {
    let (deadline, peer) = (c.deadline(node, 5 * SECOND), node_id(peer));
    let fence = AdminCommand::Fence { peer, deadline };
    assert_eq!(c.command(node, fence), Ok(()));
}

/// E hears what nodes of one world have to say, and meets the others only then.
fn hears_first(c: &mut Cluster, first: usize, others: &[usize]) {
    for &other in others {
        c.cut_both(other, E);
    }
    c.restart(E);
    assert!(c.run_until(10 * SECOND, |c| c.connected(E, first)));
    c.run_for(SECOND);
    c.heal();
    for &other in others {
        assert!(c.run_until(10 * SECOND, |c| c.connected(E, other)));
    }
    c.run_for(2 * SECOND);
}

#[test]
fn who_is_alone_is_not_fenced_by_what_a_blank_node_heard_of_the_others() {
    let mut c = two_worlds(4, |_| ());
    fences(&mut c, B, A);
    hears_first(&mut c, B, &[A]);
    c.must_write(A, 0, 6, 2);
    c.conclude();
}

#[test]
fn a_fence_of_the_others_is_not_ended_by_what_a_blank_node_heard_of_who_is_alone() {
    // A forgets that D is fenced, since its history is a new one; B and C do not, also when E becomes one of theirs.
    let mut c = two_worlds(5, |c| fences(c, A, D));
    hears_first(&mut c, A, &[B, C, D]);
    let (deadline, peer) = (c.deadline(B, 5 * SECOND), node_id(E));
    let replace = AdminCommand::Replace { peer, deadline };
    assert_eq!(c.command(B, replace), Ok(()));
    c.until_follows(B, E);
    c.run_for(2 * SECOND);
    assert!(c.peer_view(B, D).fenced && c.peer_view(C, D).fenced);
    assert!(c.nodes[D].view.fenced && c.peer_view(E, D).fenced);
    c.conclude();
}

/// E is to join B's world, and is in a resync: it has no log yet.
fn joins_slowly(seed: u64) -> Cluster {
    let mut c = two_worlds(seed, |_| ());
    fill_the_journal(&mut c, B);
    c.cut_both(A, E);
    c.restart(E);
    assert!(c.run_until(10 * SECOND, |c| c.connected(E, B)));
    c.run_for(SECOND);
    slow_down(&mut c, 300);
    let (deadline, peer) = (c.deadline(B, 30 * SECOND), node_id(E));
    c.admin(B, AdminCommand::Replace { peer, deadline });
    assert!(c.run_until(10 * SECOND, |c| said(c, E, "needs a resync")));
    c
}

fn slow_down(c: &mut Cluster, times: u64) {
    c.nodes[E].slow[STORE] = times;
    c.nodes[E].slow[STAGE] = times;
}

#[test]
fn who_is_to_join_one_world_does_not_follow_the_other() {
    for tenths in 0..10 {
        let mut c = joins_slowly(tenths);
        c.run_for(tenths * 20 * MS);
        c.heal();
        c.run_for(3 * SECOND);
        assert!(!c.connected(A, E), "{tenths}");
        slow_down(&mut c, 1);
        c.until_follows(B, E);
        c.must_write(A, 0, 6, 2);
        c.conclude();
    }
}

#[test]
fn who_was_to_join_a_world_that_is_lost_gives_that_up() {
    let mut c = joins_slowly(7);
    for node in [B, C, D] {
        c.crash(node, POWER);
    }
    slow_down(&mut c, 1);
    c.heal();
    until_apart(&mut c, A, E);
    c.nodes[E].renews = true;
    let (deadline, insists) = (c.deadline(E, SECOND), true);
    let given_up = c.command(E, AdminCommand::Invalidate { deadline, insists });
    assert_eq!(given_up, Ok(()));
    let (deadline, peer) = (c.deadline(A, SECOND), node_id(E));
    c.command(A, AdminCommand::Replace { peer, deadline })
        .expect_err("it is met first");
    c.run_for(2 * SECOND);
    assert!(c.connected(A, E));
}

#[test]
fn what_is_forced_stays_so_over_restarts() {
    let mut c = serving(2, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.isolate(B);
    c.run_for(4 * SECOND);
    assert_eq!(forced(&mut c, B), Ok(()));
    c.must_write(B, 0, 4, 2);
    c.heal();
    for power in [POWER, KILL] {
        c.crash(B, power);
        c.restart(B);
        c.run_for(2 * SECOND);
        assert!(!c.connected(A, B));
        // No force is needed any more, and nobody else.
        c.must_promote(B);
        c.must_write(B, 0, 5, 2);
    }
    c.conclude();
}

#[test]
fn what_was_under_way_is_part_of_the_new_history_and_is_reported() {
    let mut c = serving(3, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.isolate(A);
    let id = c.write(A, 0, 7, 2);
    c.run_for(4 * SECOND);
    assert_eq!(c.outcomes.get(&id), None);
    let (durable, committed) = c.log_of(A);
    assert!(durable > committed);
    assert_eq!(forced(&mut c, A), Ok(()));
    assert_eq!(c.outcomes.get(&id), Some(&Outcome::Dropped));
    assert!(said(&c, A, "were not known to be committed"));
    assert!(c.log_of(A).1 > durable);
    c.must_promote(B);
    c.must_write(B, 0, 8, 2);
    c.heal();
    c.conclude();
}

#[test]
fn a_crash_in_the_midst_leaves_one_history_or_the_other() {
    let mut alone = 0;
    let lives = 60;
    for seed in 0..lives {
        let mut c = serving(seed, of_nodes(3));
        c.start_clients(1, 3, 2 * MS);
        c.run_for(100 * MS);
        let node = usize::try_from(seed % 3).expect("small");
        c.isolate(node);
        // Also while the reign, or the lease that it heard of, is not over yet.
        c.run_for(seed % 7 * 700 * MS);
        c.force(node, 4 * SECOND);
        c.run_for(seed * 40 * US);
        c.crash(node, POWER);
        c.restart(node);
        alone += u64::from(c.is_exile(node));
        c.heal();
        c.run_for(SECOND);
        c.conclude();
    }
    assert!(
        (lives / 10..lives * 9 / 10).contains(&alone),
        "{alone} of {lives}"
    );
}

#[test]
fn a_damaged_journal_is_no_obstacle() {
    let mut c = serving(5, of_nodes(3));
    // The superblock knows of records that the stores lack.
    c.nodes[A].hung_until[STORE] = c.now + 9 * SECOND;
    c.must_write(A, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(A, POWER);
    c.nodes[A].hung_until[STORE] = 0;
    c.crash(C, POWER);
    let newest = c.nodes[A].disks.journal.written().map(|(b, _)| b).max();
    c.rot_journal(A, newest.expect("records") * BLOCK_BYTES_U64);
    c.restart(A);
    c.isolate(A);
    c.run_for(SECOND);
    let id = c.begin_promote(A, SECOND);
    assert!(c.answer(id, 5 * SECOND).expect("an answer").is_err());
    assert!(said(&c, A, "damaged or missing"));
    assert_eq!(forced(&mut c, A), Ok(()));
    assert!(said(&c, A, "are given up"));
    assert_eq!(c.nodes[A].view.health, Health::Degraded);
    c.must_write(A, 0, 4, 2);
}

#[test]
fn it_is_refused_where_it_can_only_be_a_mistake() {
    // A Primary is there.
    let mut c = serving(6, of_nodes(3));
    assert!(other_primary(&forced(&mut c, B)));
    assert_eq!(forced(&mut c, A), Ok(()));
    assert!(!c.is_exile(A) && !c.is_exile(B));
    c.must_write(A, 0, 3, 2);
    c.conclude();
    // There is nothing to go on with.
    let mut c = Cluster::new(6, of_nodes(3));
    c.run_for(SECOND);
    assert!(matches!(forced(&mut c, A), Err(AdminError::NoData(_))));
    // A witness has no data.
    let mut c = serving(
        6,
        Options {
            witnesses: 1,
            ..of_nodes(2)
        },
    );
    assert!(matches!(forced(&mut c, C), Err(AdminError::Failed(_))));
    c.conclude();
}

#[test]
fn one_that_is_alone_can_be_forced_again() {
    let mut c = serving(7, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.isolate(C);
    c.run_for(4 * SECOND);
    for block in 4..8 {
        c.crash(C, POWER);
        c.restart(C);
        assert_eq!(forced(&mut c, C), Ok(()));
        c.must_write(C, 0, block, 2);
    }
    c.heal();
    c.conclude();
}

#[test]
fn two_that_are_forced_do_not_meet() {
    let mut c = serving(8, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.isolate(A);
    c.isolate(B);
    c.run_for(4 * SECOND);
    let ids = [A, B].map(|n| c.force(n, 8 * SECOND));
    for id in ids {
        assert_eq!(c.answer(id, 10 * SECOND), Some(Ok(())));
    }
    c.must_write(A, 0, 4, 2);
    c.must_write(B, 0, 5, 2);
    c.heal();
    c.run_for(4 * SECOND);
    assert!(!c.connected(A, B) && !c.connected(B, A) && !c.connected(C, A));
    c.conclude();
}
