//! Fencing (protocol F1): from dead, frozen, cut off, and busy Primaries to what must not be said. Data nodes have the first
//! numbers.

use super::*;
use crate::drive::META;

const LEASE: u64 = 1000 * MS;

impl Cluster {
    fn begin_fence(&mut self, node: usize, peer: usize, time: u64) -> u64 {
        let (deadline, peer) = (self.deadline(node, time), node_id(peer));
        self.admin(node, AdminCommand::Fence { peer, deadline })
    }

    fn fences(&mut self, node: usize, peer: usize, time: u64) -> AdminResult {
        let (deadline, peer) = (self.deadline(node, time), node_id(peer));
        self.command(node, AdminCommand::Fence { peer, deadline })
    }

    fn unfences(&mut self, node: usize, peer: usize) -> AdminResult {
        let (deadline, peer) = (self.deadline(node, 5 * SECOND), node_id(peer));
        self.command(node, AdminCommand::Unfence { peer, deadline })
    }

    fn fails_over(&mut self, node: usize) -> AdminResult {
        let deadline = self.deadline(node, 8 * SECOND);
        self.command(node, AdminCommand::Failover { deadline })
    }

    fn knows_fenced(&self, node: usize, peer: usize) -> bool {
        if node == peer {
            return self.nodes[node].view.fenced;
        }
        self.peer_view(node, peer).fenced
    }
}

fn two_and_a_witness() -> Options {
    Options {
        nodes: 2,
        witnesses: 1,
        drop_after_ms: 1500,
        ..Options::default()
    }
}

fn is_fenced(result: &AdminResult) -> bool {
    matches!(result, Err(AdminError::NoQuorum(why)) if why.contains("is fenced"))
}

#[test]
fn a_dead_primary_is_fenced_within_its_lease_and_stays_so_when_it_is_back() {
    for power in [POWER, KILL] {
        let mut c = serving(1, of_nodes(3));
        c.must_write(A, 0, 3, 2);
        c.crash(A, power);
        let begun = c.now;
        assert_eq!(c.fences(B, A, 8 * SECOND), Ok(()));
        assert!(c.now - begun < LEASE + 500 * MS, "{}", c.now - begun);
        c.must_promote(B);
        c.must_write(B, 0, 9, 1);
        // It is fed, and has everything: but it is not promoted, whoever is gone.
        c.restart_and_feed(B, A);
        assert!(c.knows_fenced(A, A) && c.knows_fenced(C, A));
        c.crash(B, power);
        let refused = c.promote(A, 4 * SECOND);
        assert!(is_fenced(&refused), "{refused:?}");
        assert_eq!(c.unfences(C, A), Ok(()));
        c.ends_on(A);
    }
}

#[test]
fn a_frozen_primary_is_fenced_and_answers_nothing_when_it_thaws() {
    let mut c = serving(2, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    let read = c.read(A, 0, 3, 2);
    let write = c.write(A, 0, 5, 1);
    c.freeze(A, 5 * SECOND);
    let begun = c.now;
    assert_eq!(c.fences(C, A, 8 * SECOND), Ok(()));
    assert!(c.now - begun < LEASE + 500 * MS, "{}", c.now - begun);
    c.run_for(6 * SECOND);
    for id in [read, write] {
        assert_ne!(c.outcome(id, SECOND), Some(Outcome::Done));
    }
    assert!(!c.nodes[A].view.serving);
    c.conclude();
}

#[test]
fn a_busy_primary_steps_down_at_once_when_it_is_fenced() {
    let mut c = serving(3, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    for unit in 0..40 {
        c.write(A, 0, unit, 1);
    }
    let begun = c.now;
    assert_eq!(c.fences(B, A, 8 * SECOND), Ok(()));
    // It committed its demote record: nobody had to wait for its lease.
    assert!(c.now - begun < LEASE / 2, "{}", c.now - begun);
    assert!(!c.nodes[A].view.serving);
    c.ends_on(C);
}

#[test]
fn a_primary_that_only_one_node_still_reaches_is_fenced() {
    let mut c = serving(4, of_nodes(3));
    // B takes its heartbeats, and C fences it.
    c.cut_both(A, C);
    let begun = c.begin_fence(C, A, 8 * SECOND);
    assert_eq!(c.answer(begun, 9 * SECOND), Some(Ok(())));
    assert!(!c.nodes[A].view.serving);
    c.must_promote(C);
    c.conclude();
}

#[test]
fn what_is_not_sure_is_not_said() {
    let mut c = serving(5, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    // One of three can not know what the other two do.
    c.isolate(C);
    let refused = c.fences(C, A, 4 * SECOND);
    assert!(no_quorum(&refused), "{refused:?}");
    c.must_write(A, 0, 9, 2);
    c.heal();
    c.run_for(2 * SECOND);
    assert!(c.nodes[A].view.serving, "nothing came of it");
    let itself = c.fences(A, A, SECOND);
    assert!(matches!(itself, Err(AdminError::Failed(_))), "{itself:?}");
    c.conclude();
}

#[test]
fn who_has_no_data_of_the_resource_fences_nobody() {
    let mut c = Cluster::new(6, of_nodes(3));
    c.run_for(SECOND);
    let refused = c.fences(B, A, 2 * SECOND);
    assert!(matches!(refused, Err(AdminError::Failed(_))), "{refused:?}");
    c.must_promote(A);
    c.conclude();
}

#[test]
fn to_fence_a_secondary_disturbs_no_primary() {
    let mut c = serving(7, of_nodes(3));
    let epoch = c.nodes[A].view.epoch;
    for node in [A, B] {
        // Dead, and later alive; by the Primary, and by the other Secondary.
        let begun = c.now;
        c.crash(C, POWER);
        assert_eq!(c.fences(node, C, 4 * SECOND), Ok(()));
        assert!(c.now - begun < LEASE / 2);
        c.must_write(A, 0, 3, 1);
        c.restart_and_feed(A, C);
        assert!(c.knows_fenced(C, C));
        assert_eq!(c.fences(node, C, 4 * SECOND), Ok(()));
        assert_eq!(c.unfences(node, C), Ok(()));
        c.must_write(A, 0, 9, 1);
        assert_eq!(c.nodes[A].view.epoch, epoch);
    }
    c.must_demote(A);
    c.must_promote(C);
    c.conclude();
}

#[test]
fn two_nodes_alone_fence_by_a_confirmed_stop_only() {
    let mut c = serving(8, of_nodes(2));
    c.must_write(A, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(A, POWER);
    let refused = c.fences(B, A, 4 * SECOND);
    assert!(no_quorum(&refused), "{refused:?}");
    let peer = node_id(A);
    let confirmed = c.command(B, AdminCommand::ConfirmStopped { peer });
    assert_eq!(confirmed, Ok(()));
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.must_promote(B);
    c.must_write(B, 0, 9, 1);
    c.restart_and_feed(B, A);
    c.conclude();
}

#[test]
fn a_witness_fences_and_says_who_takes_over() {
    let mut c = serving(9, two_and_a_witness());
    c.must_write(A, 0, 3, 2);
    c.crash(A, POWER);
    let begun = c.now;
    assert_eq!(c.fails_over(2), Ok(()));
    assert!(c.now - begun < LEASE + SECOND, "{}", c.now - begun);
    assert!(c.nodes[B].view.serving);
    assert!(c.knows_fenced(B, A));
    c.read_all(B);
    c.restart_and_feed(B, A);
    c.conclude();
}

#[test]
fn a_failover_promotes_whoever_has_most() {
    let mut c = serving(10, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    // C misses what comes next.
    c.cut_both(A, C);
    c.run_for(100 * MS);
    c.must_write(A, 0, 9, 2);
    c.crash(A, POWER);
    c.run_for(200 * MS);
    assert_eq!(c.fails_over(C), Ok(()));
    assert_eq!(c.primary(), Some(B));
    c.read_all(B);
    c.heal();
    // From the node with the best data it is that one; a clean end needs no fence.
    c.restart_and_feed(B, A);
    assert_eq!(c.unfences(B, A), Ok(()));
    c.until_fed(B);
    c.must_demote(B);
    assert_eq!(c.fails_over(A), Ok(()));
    assert!(!c.knows_fenced(A, B));
    let refused = c.fails_over(c.primary().expect("there is one"));
    assert!(matches!(refused, Err(AdminError::Failed(_))), "{refused:?}");
    c.conclude();
}

#[test]
fn a_failover_takes_over_from_a_busy_primary() {
    let mut c = serving(11, of_nodes(3));
    for unit in 0..40 {
        c.write(A, 0, unit, 1);
    }
    assert_eq!(c.fails_over(B), Ok(()));
    let primary = c.primary().expect("there is one");
    assert_ne!(primary, A);
    c.read_all(primary);
    c.conclude();
}

#[test]
fn a_fence_outlives_the_power_of_all_nodes() {
    let mut c = serving(12, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    for node in [A, B, C] {
        c.crash(node, POWER);
    }
    for node in [A, B, C] {
        c.restart(node);
    }
    c.run_for(2 * SECOND);
    let refused = c.promote(A, 3 * SECOND);
    assert!(is_fenced(&refused), "{refused:?}");
    c.must_promote(B);
    c.conclude();
}

#[test]
fn the_end_of_a_fence_reaches_who_was_away_and_a_late_word_ends_no_later_fence() {
    let mut c = serving(13, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.must_promote(B);
    c.until_fed(B);
    // C was not there when it ended: it hears of it later.
    c.crash(C, KILL);
    assert_eq!(c.unfences(B, A), Ok(()));
    c.restart_and_feed(B, C);
    assert!(!c.knows_fenced(C, A));
    // An end that only one node knows of is not the end of the next fence.
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.run_for(SECOND);
    c.isolate(C);
    c.run_for(SECOND);
    let deadline = c.deadline(C, 2 * SECOND);
    let peer = node_id(A);
    let refused = c.command(C, AdminCommand::Unfence { peer, deadline });
    assert!(no_quorum(&refused), "{refused:?}");
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.heal();
    c.run_for(3 * SECOND);
    assert!((0..3).all(|n| c.knows_fenced(n, A)));
    c.conclude();
}

#[test]
fn whoever_is_let_go_late_is_not_let_go_of_a_later_fence() {
    let mut c = serving(15, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.run_for(SECOND);
    // It is asked where nobody can be reached, and the node is fenced once more meanwhile.
    c.isolate(C);
    let (deadline, peer) = (c.deadline(C, 20 * SECOND), node_id(A));
    let late = c.admin(C, AdminCommand::Unfence { peer, deadline });
    c.run_for(SECOND);
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.heal();
    let answer = c.answer(late, 20 * SECOND);
    assert!(
        matches!(&answer, Some(Err(AdminError::Failed(why))) if why.contains("otherwise")),
        "{answer:?}"
    );
    c.run_for(SECOND);
    assert!((0..3).all(|n| c.knows_fenced(n, A)));
    c.conclude();
}

#[test]
fn a_forced_node_is_fenced_no_more() {
    let mut c = serving(14, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    assert_eq!(c.fences(B, A, 4 * SECOND), Ok(()));
    c.crash(B, POWER);
    c.crash(C, POWER);
    c.run_for(2 * SECOND);
    let forced = c.force(A, 4 * SECOND);
    assert_eq!(c.answer(forced, 5 * SECOND), Some(Ok(())));
    assert!(!c.knows_fenced(A, A));
}

fn says(result: &AdminResult, text: &str) -> bool {
    matches!(result, Err(AdminError::Failed(why)) if why.contains(text))
}

#[test]
fn who_fences_keeps_its_data_and_who_gives_it_up_fences_nobody() {
    let mut c = serving(15, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    c.must_demote(A);
    c.run_for(SECOND);
    c.isolate(C);
    let fence = c.begin_fence(C, A, 2 * SECOND);
    c.run_for(10 * MS);
    let (deadline, insists) = (c.deadline(C, 8 * SECOND), true);
    let give_up = AdminCommand::Invalidate { deadline, insists };
    let refused = c.command(C, give_up);
    assert!(says(&refused, "wait for the end"), "{refused:?}");
    let missed = c.answer(fence, 3 * SECOND).expect("an answer");
    assert!(no_quorum(&missed), "{missed:?}");
    // The superblock that ends this life is long on its way.
    c.nodes[C].hung_until[META] = c.now + 3 * SECOND;
    let begun = c.admin(C, give_up);
    c.run_for(10 * MS);
    for refused in [c.fences(C, A, SECOND), c.fails_over(C)] {
        assert!(says(&refused, "given up"), "{refused:?}");
    }
    assert_eq!(c.answer(begun, 8 * SECOND), Some(Ok(())));
    c.heal();
    c.conclude();
}

#[test]
fn who_is_about_to_go_on_alone_fences_nobody() {
    let mut c = serving(16, of_nodes(3));
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    c.isolate(C);
    c.run_for(2 * SECOND);
    c.nodes[C].hung_until[META] = c.now + 3 * SECOND;
    let forced = c.force(C, 8 * SECOND);
    c.run_for(10 * MS);
    for refused in [c.fences(C, A, SECOND), c.fails_over(C)] {
        assert!(says(&refused, "goes on alone"), "{refused:?}");
    }
    assert_eq!(c.answer(forced, 8 * SECOND), Some(Ok(())));
    c.heal();
    c.conclude();
}
