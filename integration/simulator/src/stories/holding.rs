//! Writes held for an operator who copies the stores. Whenever a node says that it holds them, the harness compares its
//! stores, and those of the peers that it vouches for, with what was committed; and while it holds them, none may change.

use replicator::AckPolicy;
use replicator::io::AdminCommand;
use replicator::view::{Health, Suspended};

use super::*;
use crate::client::Kind;
use crate::drive::STORE;
use crate::oracle::UNITS_PER_BLOCK;

impl Cluster {
    fn begin_suspend(&mut self, node: usize, time: u64) -> u64 {
        let deadline = self.deadline(node, time);
        self.admin(node, AdminCommand::SuspendIo { deadline })
    }

    fn suspend(&mut self, node: usize, time: u64) -> AdminResult {
        let deadline = self.deadline(node, time);
        self.command(node, AdminCommand::SuspendIo { deadline })
    }

    fn resume(&mut self, node: usize) -> AdminResult {
        self.command(node, AdminCommand::ResumeIo)
    }

    /// Whether the store of a node has all that the Primary has committed, as the Primary and the node itself say.
    fn has_applied(&self, primary: usize, node: usize) -> bool {
        let committed = self.nodes[primary].view.committed;
        let told = node == primary || self.peer_view(primary, node).applied >= Some(committed);
        told && self.nodes[node].view.applied >= committed
    }

    pub(super) fn is_flushed(&self, node: usize) -> bool {
        let store = &self.nodes[node].disks.stores[0];
        store.unflushed_before(u64::MAX).next().is_none()
    }
}

fn failed(result: &AdminResult, why: &str) -> bool {
    matches!(result, Err(AdminError::Failed(text)) if text.contains(why))
}

#[test]
fn consistent_snapshots() {
    // Both volumes are written to, in all kinds of pieces, and held again and again: each time all stores are what was
    // committed, and rest.
    for policy in [AckPolicy::Majority, AckPolicy::All] {
        for seed in 0..2 {
            let options = Options {
                ack: policy,
                ..Options::default()
            };
            let mut c = serving(seed, options);
            c.start_clients(4, 4, MS / 2);
            let mut end = c.nodes[A].view.admitted;
            for round in 0..8 {
                c.run_for(20 * MS * (round + 1));
                assert_eq!(c.suspend(A, 5 * SECOND), Ok(()));
                let view = &c.nodes[A].view;
                assert!(view.admitted > end, "there is a load");
                assert_eq!(view.suspended, Suspended::User);
                assert_eq!(view.health, Health::Degraded);
                end = view.admitted;
                assert!((A..=C).all(|n| c.has_applied(A, n)));
                assert!((A..=C).all(|n| c.is_flushed(n)));
                c.run_for(600 * MS);
                assert_eq!(c.nodes[A].view.admitted, end);
                let read = c.read(A, 0, round % 4, 3);
                assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
                assert_eq!(c.resume(A), Ok(()));
                assert_eq!(c.nodes[A].view.suspended, Suspended::No);
            }
            c.conclude();
        }
    }
}

#[test]
fn suspend_io_bdev_freeze() {
    // Every kind of request: reads and flushes are answered, whatever changes blocks waits; then it is done, in order.
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 40);
        assert_eq!(c.suspend(A, 5 * SECOND), Ok(()));
        let partial = Kind::Write {
            owned: seed % 2 == 0,
        };
        let held = [
            c.write(A, 0, 3, 1),
            c.write(A, 0, 0, 32),
            c.request(A, partial, 0, 3 * UNITS_PER_BLOCK + 1..5 * UNITS_PER_BLOCK),
            c.zero(A, 0, 8, 4),
        ];
        let read = c.read(A, 0, 0, 12);
        let flush = c.request(A, Kind::Flush, 0, 0..UNITS_PER_BLOCK);
        assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
        assert_eq!(c.outcome(flush, SECOND), Some(Outcome::Done));
        // Again is no mistake, and says the same.
        assert_eq!(c.suspend(A, SECOND), Ok(()));
        assert!(held.iter().all(|id| !c.outcomes.contains_key(id)));
        assert_eq!(c.resume(A), Ok(()));
        for id in held {
            assert_eq!(c.outcome(id, SECOND), Some(Outcome::Done));
        }
        assert_eq!(c.resume(A), Ok(()), "nothing is held any more");
        c.conclude();
    }
}

#[test]
fn resync_snapshot() {
    // C is far behind when writes are held: nobody waits for it. It goes on catching up, at a point in time of its own, and
    // has everything while they are still held.
    for seed in 0..5 {
        let mut c = serving(seed, Options::default());
        c.cut_both(A, C);
        assert!(c.run_until(10 * SECOND, |c| !c.connected(A, C)));
        for _ in 0..20 {
            c.must_write(A, 0, 5, 100);
        }
        assert_eq!(c.suspend(A, 5 * SECOND), Ok(()));
        assert!(c.has_applied(A, A) && c.has_applied(A, B) && !c.has_applied(A, C));
        c.heal();
        c.until_follows(A, C);
        assert!(c.run_until(2 * SECOND, |c| c.has_applied(A, C)));
        assert_eq!(c.resume(A), Ok(()));
        c.conclude();
    }
}

#[test]
fn a_slow_store_ends_an_attempt_to_hold_writes_and_a_slow_peer_does_not() {
    for slow in [A, B] {
        let mut c = serving(7, Options::default());
        c.must_write(A, 0, 0, 60);
        c.nodes[slow].hung_until[STORE] = c.now + 4 * SECOND;
        let held = c.begin_suspend(A, SECOND);
        c.run_for(100 * MS);
        let write = c.write(A, 0, 3, 1);
        assert_eq!(c.outcome(write, 500 * MS), None);
        let answer = c.answer(held, 600 * MS).expect("it has a deadline");
        if slow == A {
            assert!(failed(&answer, "in time"), "{answer:?}");
            assert_eq!(c.nodes[A].view.suspended, Suspended::No);
        } else {
            assert_eq!(answer, Ok(()));
            assert!(!c.has_applied(A, B) && c.has_applied(A, C));
            assert_eq!(c.resume(A), Ok(()));
        }
        assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn a_bad_block_that_is_known_is_mended_and_flushed_before_stores_rest() {
    // Whoever copies the stores copies the peer's copy with them, and no power cut takes it back.
    for tenths in 0..30 {
        let mut c = serving(tenths, Options::default());
        c.must_write(A, 0, 0, 60);
        c.until_fed(A);
        c.run_for(SECOND);
        for block in [3, 9] {
            c.nodes[A].disks.stores[0].rot(block, 4711);
        }
        let read = c.read(A, 0, 0, 12);
        // It is found out before the operator comes.
        c.run_for(MS + tenths * 100 * US);
        let known = c.nodes[A].view.integrity.bad_blocks;
        assert_eq!(c.suspend(A, 5 * SECOND), Ok(()));
        if known == 2 {
            assert!(c.is_flushed(A), "after {tenths} tenths of a ms");
            assert!([3, 9].iter().all(|&b| !c.is_bad(A, 0, b)));
        }
        assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
        assert_eq!(c.resume(A), Ok(()));
        c.conclude();
    }
}

#[test]
fn a_hold_ends_with_the_reign_and_its_operator_is_told() {
    // A promotion elsewhere, a demotion, a stop: who asks to resume then hears that the copy is worth nothing, once.
    for how in 0..3 {
        let mut c = serving(how, Options::default());
        c.must_write(A, 0, 3, 2);
        assert_eq!(c.suspend(A, 5 * SECOND), Ok(()));
        let write = c.write(A, 0, 3, 1);
        c.run_for(100 * MS);
        match how {
            0 => {
                c.isolate(A);
                c.run_for(2 * SECOND);
                c.must_promote(B);
                c.must_write(B, 0, 3, 1);
                // It can not know yet, and the stores still rest.
                assert_eq!(c.nodes[A].view.suspended, Suspended::User);
                assert!(!c.nodes[A].view.quorum);
                c.heal();
                assert!(c.run_until(5 * SECOND, |c| !c.nodes[A].view.serving));
            }
            1 => {
                c.must_demote(A);
                c.must_promote(A);
                c.must_write(A, 0, 3, 1);
            }
            _ => {
                c.crash(A, KILL);
                c.must_promote(B);
                c.restart_and_feed(B, A);
                c.must_write(B, 0, 3, 1);
            }
        }
        assert_eq!(c.outcome(write, 0), Some(Outcome::Dropped));
        assert_eq!(c.nodes[A].view.suspended, Suspended::No);
        let late = c.resume(A);
        match how {
            0 | 1 => assert!(failed(&late, "discard"), "{late:?}"),
            _ => assert!(other_primary(&late), "{late:?}"),
        }
        let again = c.resume(A);
        assert_eq!(again.is_ok(), how == 1, "{again:?}");
        c.conclude();
    }
}

#[test]
fn only_a_primary_with_a_majority_holds_writes() {
    let mut c = serving(3, Options::default());
    assert!(other_primary(&c.suspend(B, SECOND)));
    assert!(other_primary(&c.resume(B)));
    // Without a majority nothing that was admitted can be committed: it is tried until the deadline.
    c.isolate(A);
    let write = c.write(A, 0, 3, 1);
    c.run_for(2 * SECOND);
    let held = c.suspend(A, SECOND);
    assert!(no_quorum(&held), "{held:?}");
    assert_eq!(c.nodes[A].view.suspended, Suspended::Quorum);
    // The majority comes back in time.
    let begun = c.begin_suspend(A, 8 * SECOND);
    assert!(failed(&c.suspend(A, SECOND), "under way"));
    c.heal();
    assert_eq!(c.answer(begun, 6 * SECOND), Some(Ok(())));
    assert_eq!(c.outcome(write, 0), Some(Outcome::Done));
    // The majority goes while writes are held: reads wait, and go on with it; writes do not.
    let write = c.write(A, 0, 3, 1);
    c.isolate(A);
    c.run_for(2 * SECOND);
    let read = c.read(A, 0, 3, 1);
    assert_eq!(c.outcome(read, SECOND), None);
    assert_eq!(c.nodes[A].view.suspended, Suspended::User);
    assert_eq!(c.nodes[A].view.health, Health::Down);
    c.heal();
    assert_eq!(c.outcome(read, 5 * SECOND), Some(Outcome::Done));
    assert_eq!(c.outcome(write, SECOND), None);
    // Resuming in the midst of an attempt ends that.
    assert_eq!(c.resume(A), Ok(()));
    c.nodes[A].hung_until[STORE] = c.now + SECOND;
    c.must_write(A, 0, 3, 1);
    let begun = c.begin_suspend(A, 8 * SECOND);
    c.run_for(50 * MS);
    assert_eq!(c.resume(A), Ok(()));
    let ended = c.answer(begun, 0).expect("it is answered");
    assert!(failed(&ended, "resume-io"), "{ended:?}");
    assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
    assert_eq!(c.command(A, AdminCommand::Demote), Ok(()));
    let nobody = c.suspend(A, SECOND);
    assert!(failed(&nobody, "not Primary"), "{nobody:?}");
    c.conclude();
}

#[test]
fn a_node_that_was_dropped_is_not_waited_for() {
    let mut c = serving(13, Options::default());
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(C));
    assert_eq!(c.command(A, AdminCommand::Drop { peer, deadline }), Ok(()));
    // It is connected still, and is given nothing.
    c.must_write(A, 0, 9, 2);
    assert!(c.connected(A, C));
    let id = c.begin_suspend(A, 5 * SECOND);
    assert_eq!(c.answer(id, SECOND), Some(Ok(())));
    assert!([A, B].into_iter().all(|n| c.has_applied(A, n)));
    assert_eq!(c.resume(A), Ok(()));
    c.conclude();
}
