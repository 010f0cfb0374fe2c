//! Who may serve while nodes are away, and when it goes on.

use replicator::OnNoQuorum;
use replicator::io::AdminCommand;
use replicator::view::{Health, Suspended};

use super::*;

fn io_error(nodes: usize) -> Options {
    Options {
        on_no_quorum: OnNoQuorum::IoError,
        ..of_nodes(nodes)
    }
}

#[test]
fn quorum() {
    // Peers leave one after the other. As long as a majority is there everything is answered, then nothing, and when one
    // returns everything is again.
    for nodes in [3, 4, 5] {
        let mut c = serving(nodes as u64, io_error(nodes));
        let majority = nodes / 2 + 1;
        for away in 1..nodes {
            c.crash(nodes - away, POWER);
            c.run_for(4 * SECOND);
            let left = nodes - away;
            let write = c.write(A, 0, 3, 1);
            let read = c.read(A, 0, 3, 1);
            let wanted = if left >= majority {
                Outcome::Done
            } else {
                Outcome::Error
            };
            for id in [write, read] {
                assert_eq!(c.outcome(id, SECOND), Some(wanted), "{left} of {nodes}");
            }
            let view = &c.nodes[A].view;
            assert_eq!(view.quorum, left >= majority);
            let health = if left >= majority {
                Health::Degraded
            } else {
                Health::Down
            };
            assert_eq!(view.health, health);
        }
        for node in 1..majority {
            c.restart(node);
        }
        assert!(c.run_until(5 * SECOND, |c| c.nodes[A].view.quorum));
        c.must_write(A, 0, 4, 1);
        c.conclude();
    }
    // Both peers go at the same time, around a write: whatever is answered stays.
    for offset in 0..40 {
        let mut c = serving(offset, io_error(3));
        c.cut_both(A, B);
        let write = c.write(A, 0, 3, 1);
        c.run_for(offset * 50 * US);
        c.cut_both(A, C);
        let answered = c.outcome(write, 4 * SECOND);
        assert!(answered.is_some(), "nothing waits for ever");
        c.must_promote(B);
        c.read_all(B);
        c.heal();
        c.conclude();
    }
}

#[test]
fn quorum_degraded_join() {
    // Four nodes need three. The third one to come makes the difference, whichever it is.
    for joins in [C, D] {
        let mut c = serving(5, io_error(4));
        c.must_write(A, 0, 3, 2);
        c.until_fed(A);
        c.crash(C, POWER);
        c.crash(D, KILL);
        c.run_for(2 * SECOND);
        let failed = c.write(A, 0, 3, 1);
        assert_eq!(c.outcome(failed, SECOND), Some(Outcome::Error));
        c.restart_and_feed(A, joins);
        assert!(c.run_until(SECOND, |c| c.nodes[A].view.quorum));
        c.must_write(A, 0, 3, 1);
        // One of the others goes, and the quorum with it; then it is the last one's turn.
        c.crash(B, POWER);
        c.run_for(2 * SECOND);
        let failed = c.write(A, 0, 3, 1);
        assert_eq!(c.outcome(failed, SECOND), Some(Outcome::Error));
        c.restart_and_feed(A, C + D - joins);
        assert!(c.run_until(SECOND, |c| c.nodes[A].view.quorum));
        c.must_write(A, 0, 3, 1);
        c.conclude();
    }
}

#[test]
fn quorum_failover_reconnect() {
    // The network fails over A, B takes over, and A's first contact afterwards is C, who was Secondary all the time.
    for seed in 0..10 {
        let mut c = serving(seed, io_error(3));
        c.must_write(A, 0, 3, 2);
        c.isolate(A);
        let lost = c.write(A, 0, 5, 3);
        assert_eq!(c.outcome(lost, 3 * SECOND), Some(Outcome::Error));
        c.must_promote(B);
        c.must_write(B, 0, 4, 20);
        c.heal_link(A, C);
        c.run_for(3 * SECOND);
        c.must_write(B, 0, 5, 1);
        c.heal_link(A, B);
        c.until_fed(B);
        assert!(said(&c, A, "are cut"));
        c.conclude();
    }
}

#[test]
fn quorum_isolate_primary() {
    // One peer is lost and noticed, then the other one, silently; what is written then is not acknowledged. The rest goes
    // on elsewhere, and A returns without a split brain: it drops what nobody was told of.
    for seed in 0..10 {
        let mut c = serving(seed, io_error(3));
        c.must_write(A, 0, 3, 2);
        c.cut_both(A, B);
        assert!(c.run_until(5 * SECOND, |c| !c.connected(A, B)));
        c.must_write(A, 0, 3, 1);
        c.cut_both(A, C);
        let lost = c.write(A, 0, 3, 1);
        assert_eq!(c.outcome(lost, 3 * SECOND), Some(Outcome::Error));
        c.must_demote(A);
        c.must_promote(B);
        c.must_write(B, 0, 4, 1);
        c.heal();
        c.until_fed(B);
        assert!(said(&c, A, "are cut"));
        assert!((0..3).all(|n| !said(&c, n, "rolled back")));
        c.conclude();
    }
    // The others are as quick as they can be: A's lease must be over all the same.
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.start_clients(2, 3, MS);
        c.run_for(50 * MS);
        c.isolate(A);
        let isolated = c.now;
        c.must_promote(if seed % 2 == 0 { B } else { C });
        assert!(c.now - isolated >= 800 * MS, "the lease still ran");
        assert_eq!(c.nodes[A].view.suspended, Suspended::Quorum);
        c.stop_clients();
        c.conclude();
    }
}

#[test]
fn quorum_lost_uuid() {
    // B is away. A is promoted with C and writes; what would tell C of that is lost, and so is A. Then B and C meet: they
    // may go on only from what A may have acknowledged.
    let frames = [APPEND, HEARTBEAT];
    for (i, kind) in frames.into_iter().enumerate() {
        for skipped in 0..4 {
            let mut c = serving(i as u64, Options::default());
            c.must_write(A, 0, 3, 2);
            c.until_fed(A);
            c.must_demote(A);
            c.isolate(B);
            c.start_clients(1, 2, MS / 2);
            c.begin_promote(A, 3 * SECOND);
            c.run_for(skipped * 2 * MS);
            c.break_before(A, C, kind);
            c.until_snagged();
            c.isolate(A);
            c.run_for(200 * MS);
            c.stop_clients();
            c.heal_link(B, C);
            c.must_promote(B);
            assert!(c.nodes[A].view.epoch < c.nodes[B].view.epoch);
            c.must_write(B, 0, 4, 1);
            c.read_all(B);
            c.heal();
            c.until_fed(B);
            c.conclude();
        }
    }
}

#[test]
fn quorum_tiebreaker() {
    // The link between A and B is cut, C sees both. A goes on, and B gets nothing, however often C is asked.
    let mut c = serving(6, Options::default());
    c.big_percent = 0;
    c.start_clients(1, 2, 50 * MS);
    c.cut_both(A, B);
    for _ in 0..3 {
        let refused = c.promote(B, 3 * SECOND);
        assert!(refused.is_err());
        assert_eq!(c.primary(), Some(A));
    }
    c.must_write(A, 0, 3, 1);
    let epoch = c.nodes[A].view.epoch;
    // C changes sides while B asks: as long as A may answer, B does not serve (the checkers look), and then it does.
    let promoted = c.begin_promote(B, 5 * SECOND);
    c.cut_both(A, C);
    let read = c.read(A, 0, 3, 1);
    assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
    assert_eq!(c.answer(promoted, 6 * SECOND), Some(Ok(())));
    let late = c.read(A, 0, 3, 1);
    assert_eq!(c.outcome(late, SECOND), None);
    // And back again: the old Primary gets C, and still nothing.
    c.heal_link(A, C);
    c.cut_both(B, C);
    assert_eq!(c.outcome(late, 400 * MS), None);
    c.must_promote(A);
    assert!(c.nodes[A].view.epoch > epoch);
    c.read_all(A);
    c.conclude();
}

#[test]
fn quorum_suspend_timeout() {
    // D is away and C's journal hangs, so that two of the three that are needed have what is written. It is answered as
    // soon as C's journal works again, or D returns.
    for thaws in [false, true] {
        let mut c = serving(8, of_nodes(4));
        c.crash(D, POWER);
        c.run_for(100 * MS);
        c.nodes[C].slow[0] = 5_000;
        let write = c.write(A, 0, 3, 2);
        c.run_for(MS);
        c.nodes[C].slow[0] = if thaws { 1 } else { 1_000_000 };
        assert_eq!(c.outcome(write, 300 * MS), None);
        if !thaws {
            c.restart(D);
        }
        // What hung in C's journal may take as long as ten of its writes did then.
        assert_eq!(c.outcome(write, 20 * SECOND), Some(Outcome::Done));
        c.must_write(A, 0, 3, 1);
        if !thaws {
            // What still hangs in C is given up with its process.
            c.crash(C, KILL);
            c.nodes[C].slow[0] = 1;
        }
        c.conclude();
    }
}

#[test]
fn quorum_suspended_cancel() {
    // While I/O waits for a majority the operator may end it: the clients are dropped, within a lease.
    let mut c = serving(9, Options::default());
    c.must_write(A, 0, 3, 2);
    c.isolate(A);
    c.run_for(1500 * MS);
    let write = c.write(A, 0, 4, 1);
    let read = c.read(A, 0, 3, 1);
    assert_eq!(c.outcome(write, SECOND), None);
    assert_eq!(c.outcome(read, 0), None);
    let before = c.now;
    let demote = c.admin(A, AdminCommand::Demote);
    assert_eq!(c.outcome(write, 100 * MS), Some(Outcome::Dropped));
    assert_eq!(c.outcome(read, 100 * MS), Some(Outcome::Dropped));
    assert_eq!(c.answer(demote, 5 * SECOND), Some(Ok(())));
    assert!(c.now - before < 1500 * MS);
    assert!(!c.nodes[A].view.serving);
    // It has said so to nobody: the others wait for the lease, which is over already.
    c.must_promote(B);
    c.heal();
    c.conclude();
}
