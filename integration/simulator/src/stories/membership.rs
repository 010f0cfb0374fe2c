//! Changes of the membership (protocol M1 to M6, P6, D4, F2, F3), one short story each. Data nodes have the first numbers.

use replicator::view::{Membership, ReplicationState, Suspended};

use super::*;

pub(super) const DROP_AFTER_MS: u32 = 1500;

pub(super) fn options(nodes: usize, witnesses: usize) -> Options {
    Options {
        nodes,
        witnesses,
        drop_after_ms: DROP_AFTER_MS,
        ..Options::default()
    }
}

fn failed(result: &AdminResult, text: &str) -> bool {
    matches!(result, Err(AdminError::Failed(why)) if why.contains(text))
}

impl Cluster {
    pub(super) fn drops(&mut self, node: usize, peer: usize) -> AdminResult {
        let (deadline, peer) = (self.deadline(node, 5 * SECOND), node_id(peer));
        self.command(node, AdminCommand::Drop { peer, deadline })
    }

    fn returns(&mut self, node: usize, peer: usize) -> AdminResult {
        let (deadline, peer) = (self.deadline(node, 5 * SECOND), node_id(peer));
        self.command(node, AdminCommand::Return { peer, deadline })
    }

    pub(super) fn replaces(&mut self, node: usize, peer: usize) -> AdminResult {
        let (deadline, peer) = (self.deadline(node, 5 * SECOND), node_id(peer));
        self.command(node, AdminCommand::Replace { peer, deadline })
    }

    fn confirms(&mut self, node: usize, peer: usize) -> AdminResult {
        let peer = node_id(peer);
        self.command(node, AdminCommand::ConfirmStopped { peer })
    }

    pub(super) fn stands(&self, node: usize, peer: usize) -> Membership {
        self.peer_view(node, peer).membership
    }

    pub(super) fn until_stands(&mut self, node: usize, peer: usize, how: Membership) {
        let stands = |c: &Cluster| c.stands(node, peer) == how && !c.nodes[node].view.changing;
        let stood = self.run_until(20 * SECOND, stands);
        assert!(stood, "{:?}", self.nodes[node].view);
    }

    /// A node's disks are lost, and it is created anew.
    fn loses_its_disks(&mut self, node: usize) {
        self.crash(node, POWER);
        self.wipe(node);
        self.restart(node);
        self.run_for(SECOND);
    }
}

#[test]
fn two_data_nodes_and_a_witness_go_on_after_the_primary_is_lost() {
    for power in [POWER, KILL] {
        let mut c = serving(1, options(2, 1));
        c.must_write(A, 0, 3, 2);
        c.crash(A, power);
        c.must_promote(B);
        assert_eq!(c.stands(B, A), Membership::Dropped);
        c.must_write(B, 0, 9, 2);
        c.read_all(B);
        // The old one returns by itself, and counts again.
        c.restart_and_feed(B, A);
        c.until_stands(B, A, Membership::Full);
        c.must_write(B, 0, 12, 2);
        // So that now it can go on alone, and B not without it.
        c.crash(B, power);
        c.must_promote(A);
        c.read_all(A);
        c.must_write(A, 0, 15, 1);
        c.restart_and_feed(A, B);
        c.conclude();
    }
}

#[test]
fn two_data_nodes_and_a_witness_go_on_after_the_secondary_is_lost() {
    let mut c = serving(2, options(2, 1));
    c.must_write(A, 0, 3, 2);
    c.crash(B, POWER);
    let write = c.write(A, 0, 9, 1);
    assert_eq!(c.outcome(write, SECOND), None, "it is not dropped at once");
    assert_eq!(c.outcome(write, 3 * SECOND), Some(Outcome::Done));
    assert_eq!(c.stands(A, B), Membership::Dropped);
    assert!(c.nodes[A].view.health_reason.contains("dropped"));
    // Now it is A alone that has everything: B may not be promoted without it.
    c.crash(A, POWER);
    c.restart(B);
    let refused = c.promote(B, 3 * SECOND);
    assert!(refused.is_err(), "{refused:?}");
    c.restart(A);
    c.must_promote(A);
    c.until_stands(A, B, Membership::Full);
    c.read_all(A);
    c.conclude();
}

#[test]
fn two_data_nodes_and_a_witness_go_on_without_the_witness_while_both_are_there() {
    let mut c = serving(3, options(2, 1));
    c.crash(2, POWER);
    c.run_for(5 * SECOND);
    c.must_write(A, 0, 3, 2);
    assert_eq!(c.stands(A, B), Membership::Full);
    c.crash(B, POWER);
    let write = c.write(A, 0, 9, 1);
    assert_eq!(
        c.outcome(write, 8 * SECOND),
        None,
        "one of three is too few"
    );
    assert_eq!(c.nodes[A].view.suspended, Suspended::Quorum);
    c.restart(2);
    assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
    c.restart_and_feed(A, B);
    c.conclude();
}

#[test]
fn a_member_that_hangs_is_dropped_and_returns() {
    let mut c = serving(4, options(2, 1));
    c.must_write(A, 0, 3, 2);
    c.nodes[B].hung_until[JOURNAL] = c.now + 6 * SECOND;
    c.must_write(A, 0, 9, 1);
    assert_eq!(c.stands(A, B), Membership::Dropped);
    assert!(c.connected(A, B));
    c.until_stands(A, B, Membership::Full);
    assert!(c.now > 6 * SECOND);
    c.conclude();
}

#[test]
fn four_data_nodes_and_a_witness_go_on_with_two() {
    let mut c = serving(5, options(4, 1));
    c.must_write(A, 0, 3, 2);
    c.crash(C, POWER);
    c.must_write(A, 0, 5, 1);
    c.run_for(4 * SECOND);
    assert_eq!(c.stands(A, C), Membership::Full, "three are enough without");
    c.crash(D, POWER);
    c.must_write(A, 0, 9, 1);
    c.crash(A, KILL);
    c.restart(C);
    c.restart(D);
    // Whoever can be promoted has what was acknowledged.
    let promoted = [B, C, D]
        .into_iter()
        .find(|&n| c.promote(n, 4 * SECOND) == Ok(()));
    c.read_all(promoted.expect("somebody can be"));
    c.conclude();
}

#[test]
fn nobody_is_dropped_where_policy_says_no() {
    let mut c = serving(
        6,
        Options {
            drop_after_ms: 0,
            ..options(2, 1)
        },
    );
    c.crash(B, POWER);
    let write = c.write(A, 0, 9, 1);
    assert_eq!(c.outcome(write, 8 * SECOND), None);
    c.crash(A, POWER);
    c.restart(B);
    assert!(no_quorum(&c.promote(B, 5 * SECOND)));
    c.restart(A);
    c.must_promote(A);
    c.conclude();
}

#[test]
fn an_operator_drops_a_node_and_returns_it() {
    let mut c = serving(7, options(3, 0));
    c.must_write(A, 0, 3, 2);
    assert!(other_primary(&c.drops(B, C)));
    assert!(failed(&c.drops(A, A), "is Primary"));
    assert_eq!(c.drops(A, C), Ok(()));
    assert_eq!(c.drops(A, C), Ok(()), "it is already");
    assert_eq!(c.stands(A, C), Membership::Out);
    assert_eq!(c.peer_view(A, C).replication, ReplicationState::Off);
    c.must_write(A, 0, 9, 2);
    // It does not return by itself, also not to the next Primary, and can not be promoted.
    c.run_for(5 * SECOND);
    c.must_demote(A);
    c.must_promote(B);
    assert_eq!(c.stands(B, C), Membership::Out);
    assert!(c.promote(C, SECOND).is_err());
    // A node may be dropped until one is left, which has everything.
    assert_eq!(c.drops(B, A), Ok(()));
    c.must_write(B, 0, 11, 1);
    assert_eq!(c.returns(B, A), Ok(()));
    assert_eq!(c.returns(B, C), Ok(()));
    assert_eq!(c.stands(B, C), Membership::Full);
    c.crash(A, POWER);
    c.must_write(B, 0, 12, 2);
    c.restart_and_feed(B, A);
    c.conclude();
}

#[test]
fn what_would_cost_the_quorum_is_refused() {
    let mut c = serving(8, options(3, 0));
    c.crash(C, POWER);
    c.run_for(4 * SECOND);
    assert!(no_quorum(&c.drops(A, B)));
    // The one that is gone is not needed.
    assert_eq!(c.drops(A, C), Ok(()));
    c.restart(C);
    c.run_for(2 * SECOND);
    assert_eq!(c.stands(A, C), Membership::Out);
    assert!(failed(&c.replaces(A, C), "return"));
    assert_eq!(c.returns(A, C), Ok(()));
    c.conclude();
}

#[test]
fn a_wiped_node_is_replaced_and_counts() {
    let mut c = serving(9, options(3, 0));
    c.must_write(A, 0, 3, 200);
    c.loses_its_disks(C);
    assert_eq!(c.stands(A, C), Membership::Out);
    assert!(failed(&c.returns(A, C), "replctl replace"));
    assert_eq!(c.replaces(A, C), Ok(()));
    assert_eq!(c.stands(A, C), Membership::Full);
    // Its vote and its journal are one of two now.
    c.crash(B, POWER);
    c.must_write(A, 0, 9, 2);
    c.crash(A, POWER);
    c.restart(B);
    c.must_promote(C);
    c.read_all(C);
    c.restart_and_feed(C, A);
    c.conclude();
}

#[test]
fn a_node_is_replaced_whatever_breaks_off() {
    for tenths in 0..40 {
        let mut c = serving(tenths, options(3, 0));
        c.must_write(A, 0, 3, 50);
        c.loses_its_disks(C);
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
        c.admin(A, AdminCommand::Replace { peer, deadline });
        c.run_for(tenths * MS / 4);
        let broken = [A, B, C][usize::try_from(tenths % 3).unwrap_or(0)];
        c.crash(broken, POWER);
        c.run_for(SECOND);
        c.restart(broken);
        c.run_for(2 * SECOND);
        if c.primary().is_none() {
            c.must_promote(if tenths % 2 == 0 { A } else { B });
        }
        let primary = c.primary().expect("there is one");
        c.must_write(primary, 0, 9, 2);
        // The command is repeated where the first one was not heard.
        assert_eq!(c.replaces(primary, C), Ok(()), "after {tenths}");
        assert_eq!(c.stands(primary, C), Membership::Full);
        c.conclude();
    }
}

#[test]
fn a_wiped_witness_is_replaced() {
    let mut c = serving(10, options(2, 1));
    c.must_write(A, 0, 3, 2);
    c.loses_its_disks(2);
    assert_eq!(c.stands(A, 2), Membership::Out);
    assert_eq!(c.replaces(A, 2), Ok(()));
    c.until_fed(A);
    c.run_for(SECOND);
    c.crash(A, POWER);
    c.must_promote(B);
    c.read_all(B);
    c.restart_and_feed(B, A);
    c.conclude();
}

#[test]
fn a_joining_node_counts_for_nothing() {
    let mut c = serving(11, options(3, 0));
    c.must_write(A, 0, 3, 2);
    c.loses_its_disks(C);
    // It is fed, and what it acknowledges does not get back.
    c.cut(C, A);
    let (deadline, peer) = (c.deadline(A, 2 * SECOND), node_id(C));
    let id = c.admin(A, AdminCommand::Replace { peer, deadline });
    let answer = c.answer(id, 5 * SECOND).expect("an answer");
    assert!(answer.is_err(), "{answer:?}");
    c.heal();
    c.run_for(5 * SECOND);
    c.until_stands(A, C, Membership::Full);
    c.conclude();
}

#[test]
fn a_drop_that_another_loss_overtakes_is_taken_back() {
    // C is being dropped, and B dies before that is committed: neither A and B nor A and C are a majority of both configs.
    let mut taken_back = 0;
    for delay in 0..12 {
        let mut c = serving(delay, options(3, 1));
        c.must_write(A, 0, 3, 2);
        c.run_for(SECOND);
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
        c.admin(A, AdminCommand::Drop { peer, deadline });
        c.run_for(delay * 100 * US);
        c.crash(B, POWER);
        let write = c.write(A, 0, 9, 1);
        let done = c.outcome(write, 15 * SECOND) == Some(Outcome::Done);
        let dropped = c.stands(A, C) == Membership::Out && !c.nodes[A].view.changing;
        assert!(done || dropped, "delay {delay}: {:?}", c.nodes[A].view);
        taken_back += usize::from(said(&c, A, "is taken back"));
        c.restart(B);
        c.until_fed(A);
        c.conclude();
    }
    assert!(taken_back > 0);
}

#[test]
fn nothing_is_committed_past_a_change_that_is_taken_back() {
    // C is being dropped, and A loses all others. When they are back its lease runs before any of them has what A has.
    let mut taken_back = 0;
    for delay in 0..24 {
        let mut c = serving(delay, options(3, 2));
        c.must_write(A, 0, 3, 2);
        c.run_for(SECOND);
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
        c.admin(A, AdminCommand::Drop { peer, deadline });
        c.run_for(delay * 50 * US);
        c.isolate(A);
        c.write(A, 0, 9, 40);
        c.write(A, 0, 70, 80);
        c.run_for(6 * SECOND);
        c.nodes[B].slow[JOURNAL] = 10;
        c.heal();
        if delay % 2 == 0 {
            c.isolate(D);
        }
        c.run_for(6 * SECOND);
        taken_back += usize::from(said(&c, A, "is taken back"));
        c.heal();
        c.nodes[B].slow[JOURNAL] = 1;
        c.must_write(A, 0, 11, 1);
        c.conclude();
    }
    assert!(taken_back > 0);
}

#[test]
fn a_change_is_committed_by_the_next_primary() {
    for tenths in 0..40 {
        let mut c = serving(tenths, options(3, 1));
        c.must_write(A, 0, 3, 2);
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
        c.admin(A, AdminCommand::Drop { peer, deadline });
        c.run_for(tenths * MS / 10);
        c.crash(A, POWER);
        c.must_promote(B);
        c.read_all(B);
        c.must_write(B, 0, 9, 2);
        c.restart(A);
        c.until_stands(B, A, Membership::Full);
        if c.stands(B, C) == Membership::Out {
            assert_eq!(c.returns(B, C), Ok(()));
        }
        c.conclude();
    }
}

#[test]
fn a_promotion_that_leaves_one_out_may_break_off_anywhere() {
    for tenths in 0..60 {
        let mut c = serving(tenths, options(2, 1));
        c.must_write(A, 0, 3, 2);
        c.crash(A, POWER);
        c.begin_promote(B, 5 * SECOND);
        c.run_for(900 * MS + tenths * 4 * MS);
        c.crash(B, POWER);
        c.restart(A);
        // Either of them has it, unless B went on alone already.
        if c.promote(A, 4 * SECOND).is_err() {
            c.restart(B);
            c.must_promote(B);
        } else {
            c.restart(B);
        }
        let primary = c.primary().expect("there is one");
        c.read_all(primary);
        c.until_stands(primary, 1 - primary, Membership::Full);
        c.conclude();
    }
}

#[test]
fn two_nodes_alone_stop_until_somebody_answers_for_it_that_the_other_is_off() {
    let mut c = serving(12, options(2, 0));
    c.must_write(A, 0, 3, 2);
    assert!(failed(&c.confirms(A, B), "connected"));
    c.crash(B, POWER);
    let write = c.write(A, 0, 9, 1);
    assert_eq!(c.outcome(write, 8 * SECOND), None);
    assert_eq!(c.confirms(A, B), Ok(()));
    assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
    // That holds over a restart: it was durable before anything relied on it.
    c.crash(A, POWER);
    c.restart(A);
    c.must_promote(A);
    c.must_write(A, 0, 12, 2);
    // B alone knows that it does not know.
    c.crash(A, POWER);
    c.restart(B);
    assert!(no_quorum(&c.promote(B, 3 * SECOND)));
    assert_eq!(c.confirms(B, A), Ok(()));
    assert!(
        no_quorum(&c.promote(B, 3 * SECOND)),
        "A may have gone on alone"
    );
    c.restart(A);
    c.must_promote(A);
    // It returns by itself.
    c.until_stands(A, B, Membership::Full);
    c.read_all(A);
    c.conclude();
}

#[test]
fn of_two_nodes_alone_a_return_that_breaks_off_is_taken_back_by_somebodys_word() {
    let mut stuck = 0;
    for tenths in 0..60 {
        let mut c = serving(tenths, options(2, 0));
        c.crash(B, KILL);
        c.run_for(3 * SECOND);
        assert_eq!(c.confirms(A, B), Ok(()));
        c.must_write(A, 0, 3, 2);
        c.restart(B);
        let changes = |c: &Cluster| c.nodes[A].view.changing;
        assert!(c.run_until(20 * SECOND, changes));
        c.run_for(tenths * MS / 20);
        c.crash(B, KILL);
        let write = c.write(A, 0, 9, 1);
        if c.outcome(write, 6 * SECOND).is_none() {
            stuck += 1;
            assert_eq!(c.confirms(A, B), Ok(()));
            assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
        }
        // What B has of it makes it no Primary: nobody but A knows whether that was taken back.
        c.crash(A, KILL);
        c.restart(B);
        assert!(no_quorum(&c.promote(B, 2 * SECOND)));
        assert_eq!(c.confirms(B, A), Ok(()));
        assert!(no_quorum(&c.promote(B, 2 * SECOND)));
        c.restart(A);
        c.must_promote(A);
        c.until_stands(A, B, Membership::Full);
        c.read_all(A);
        c.conclude();
    }
    assert!(stuck > 0);
}

#[test]
fn of_two_nodes_the_other_is_promoted_once_the_primary_is_confirmed_to_be_off() {
    let mut c = serving(13, options(2, 0));
    c.must_write(A, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(A, POWER);
    assert!(no_quorum(&c.promote(B, 4 * SECOND)));
    assert_eq!(c.confirms(B, A), Ok(()));
    // There is no lease to wait for.
    assert_eq!(c.promote(B, 300 * MS), Ok(()));
    c.read_all(B);
    c.must_write(B, 0, 9, 2);
    c.restart(A);
    c.until_stands(B, A, Membership::Full);
    c.must_write(B, 0, 12, 2);
    c.conclude();
}

#[test]
fn a_word_that_a_node_is_off_is_void_once_it_is_heard_of() {
    let mut c = serving(14, options(2, 0));
    c.must_write(A, 0, 3, 2);
    c.must_demote(A);
    c.crash(A, KILL);
    c.run_for(SECOND);
    assert_eq!(c.confirms(B, A), Ok(()));
    c.restart(A);
    c.run_for(2 * SECOND);
    assert!(said(&c, B, "is void"));
    c.crash(A, POWER);
    assert!(no_quorum(&c.promote(B, 4 * SECOND)));
    c.restart(A);
    c.must_promote(B);
    c.conclude();
}

#[test]
fn of_two_nodes_nobody_goes_by_a_change_that_the_other_may_not_know_of() {
    // A drops B, and goes off before B hears of it. B is promoted by somebody's word for that.
    let mut refused = 0;
    for tenths in 0..40 {
        let mut c = serving(tenths, options(2, 0));
        c.must_write(A, 0, 3, 2);
        c.run_for(SECOND);
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(B));
        c.admin(A, AdminCommand::Drop { peer, deadline });
        c.run_for(tenths * MS / 20);
        c.isolate(A);
        c.run_for(20 * MS);
        c.crash(A, POWER);
        c.run_for(3 * SECOND);
        assert_eq!(c.confirms(B, A), Ok(()));
        let promoted = c.promote(B, 5 * SECOND) == Ok(());
        if promoted {
            c.must_write(B, 0, 9, 2);
        }
        c.crash(B, POWER);
        c.heal();
        c.restart(A);
        let alone = c.promote(A, 2 * SECOND);
        assert!(!promoted || no_quorum(&alone), "{tenths}: {alone:?}");
        refused += usize::from(promoted && said(&c, A, "is dropped"));
        c.restart(B);
        c.conclude();
    }
    assert!(refused > 0);
}

#[test]
fn of_two_nodes_a_wiped_one_is_replaced_after_it_was_confirmed_to_be_off() {
    let mut c = serving(15, options(2, 0));
    c.must_write(A, 0, 3, 20);
    c.crash(B, KILL);
    c.run_for(2 * SECOND);
    assert_eq!(c.confirms(A, B), Ok(()));
    c.must_write(A, 0, 9, 2);
    c.wipe(B);
    c.restart(B);
    c.run_for(2 * SECOND);
    assert_eq!(c.replaces(A, B), Ok(()));
    c.must_write(A, 0, 12, 2);
    c.must_demote(A);
    c.ends_on(B);
}

#[test]
fn who_belongs_to_nothing_yet_and_is_past_the_journal_comes_when_it_hears_what_it_belongs_to() {
    let mut c = Cluster::new(7, options(3, 0));
    c.run_for(SECOND);
    // C grants the first epoch, and is gone before it hears of its config.
    c.hold(A, C, APPEND);
    c.must_promote(A);
    c.crash(C, POWER);
    c.net.snags.clear();
    c.heal();
    super::resync::fill_the_journal(&mut c, A);
    // The newest config is one that may yet be lost, so C does not take it from A; it takes the first one from B.
    let (deadline, peer) = (c.deadline(A, SECOND), node_id(B));
    let drop = c.admin(A, AdminCommand::Drop { peer, deadline });
    c.crash(B, KILL);
    c.restart(C);
    c.run_for(2 * SECOND);
    assert!(c.answer(drop, 0).is_some_and(|a| a.is_err()) && c.nodes[A].view.changing);
    c.restart(B);
    c.until_fed(A);
    assert!(said(&c, C, "joined the resource's first config"));
    c.must_write(A, 0, 3, 2);
    c.conclude();
}

#[test]
fn a_node_that_returns_counts_only_once_it_has_what_was_written_meanwhile() {
    let mut c = serving(12, options(2, 0));
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    assert_eq!(c.drops(A, B), Ok(()));
    c.must_write(A, 0, 9, 40);
    let end = c.nodes[A].view.committed;
    // It was connected all the time, and takes nothing for a while.
    c.nodes[B].hung_until[JOURNAL] = c.now + 2 * SECOND;
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(B));
    let id = c.admin(A, AdminCommand::Return { peer, deadline });
    c.run_for(100 * MS);
    assert_eq!(c.stands(A, B), Membership::Joining);
    let write = c.write(A, 0, 50, 2);
    assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
    assert_eq!(c.answer(id, 5 * SECOND), Some(Ok(())));
    assert!(c.nodes[B].view.durable >= end);
    c.conclude();
}

#[test]
fn who_is_to_join_counts_without_the_record_by_which_another_one_came_to_count() {
    let mut c = serving(15, options(3, 0));
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    assert_eq!(c.drops(A, C), Ok(()));
    assert_eq!(c.drops(A, B), Ok(()));
    c.must_write(A, 0, 9, 2);
    // C has everything from before it was to join, and A hears of that late.
    c.hold(C, A, ACK);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    let id = c.admin(A, AdminCommand::Return { peer, deadline });
    c.until_snagged();
    let before = c.nodes[A].view.committed;
    // Meanwhile it takes nothing, and B comes to count.
    c.nodes[C].hung_until[JOURNAL] = c.now + SECOND;
    c.must_write(A, 0, 12, 2);
    assert_eq!(c.returns(A, B), Ok(()));
    assert_eq!(c.stands(A, C), Membership::Joining);
    c.heal();
    c.until_stands(A, C, Membership::Full);
    assert!(c.nodes[C].view.durable <= before, "it hangs still");
    assert_eq!(c.answer(id, SECOND), Some(Ok(())));
    c.must_write(A, 0, 15, 2);
    c.conclude();
}
