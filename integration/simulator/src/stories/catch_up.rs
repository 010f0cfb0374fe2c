//! Nodes that were away get what they lack.

use replicator::io::AdminCommand;

use super::*;
use crate::drive::KINDS;

#[test]
fn resync() {
    // Nodes leave one after the other, with a write between; the first to leave is the first to return. Each is sent what
    // it lacks, and nobody else is sent anything.
    let mut c = serving(1, of_nodes(5));
    c.must_write(A, 0, 0, 8);
    c.until_fed(A);
    c.crash(E, KILL);
    c.must_write(A, 0, 3, 100);
    c.crash(D, KILL);
    c.must_write(A, 0, 50, 20);
    for (node, lacks) in [(E, 120), (D, 20)] {
        let before: Vec<u64> = (0..5).map(|n| c.sent(A, n)).collect();
        c.restart_and_feed(A, node);
        let got: Vec<u64> = (0..5).map(|n| c.sent(A, n) - before[n]).collect();
        // The last batch that it has is sent again, and each batch has a header.
        assert!((lacks + 1..lacks + 130).contains(&got[node]), "{got:?}");
        assert_eq!(got[B] + got[C], 0, "{got:?}");
    }
    c.conclude();
}

#[test]
fn uuid_detach_resync() {
    // A node's disk fails while the Primary writes. It returns with the same disk and lacks what was written since.
    let mut c = serving(2, Options::default());
    c.must_write(A, 0, 0, 200);
    // The last batch that it has is sent again: a small one.
    c.must_write(A, 0, 0, 1);
    let has_all = |c: &Cluster| c.nodes[C].view.durable == c.nodes[A].view.admitted;
    assert!(c.run_until(SECOND, has_all));
    c.fails_next_journal_write(C);
    c.must_write(A, 0, 3, 1);
    let failed = |c: &Cluster| c.nodes[C].view.failed;
    assert!(c.run_until(SECOND, failed));
    c.must_write(A, 0, 3, 30);
    c.crash(C, KILL);
    let before = c.sent(A, C);
    c.restart_and_feed(A, C);
    assert!((30..100).contains(&(c.sent(A, C) - before)));
    c.conclude();
}

#[test]
fn uuid_disconnect_resync() {
    // A node is disconnected by either end's operator, or its connection is torn, while the Primary writes.
    for how in 0..3 {
        let mut c = serving(3, Options::default());
        c.must_write(A, 0, 0, 200);
        c.must_write(A, 0, 3, 1);
        c.until_fed(A);
        match how {
            0 => c.disconnect(A, C),
            1 => c.disconnect(C, A),
            _ => {
                c.reset(A, C);
                c.cut_both(A, C);
            }
        }
        assert!(c.run_until(5 * SECOND, |c| !c.connected(A, C)));
        let before = c.sent(A, C);
        c.must_write(A, 0, 3, 30);
        assert_eq!(c.sent(A, C), before);
        match how {
            0 | 1 => c.connect(A, C),
            _ => c.heal_link(A, C),
        }
        c.until_follows(A, C);
        assert!((30..100).contains(&(c.sent(A, C) - before)));
        c.conclude();
    }
}

#[test]
fn resync_after_primary_crash() {
    // The Primary crashes in the middle of writes, another one is promoted and not written to, and the first one returns.
    for seed in 0..30 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 8);
        for block in 0..20 {
            c.write(A, 0, block, 3);
        }
        c.run_for(seed * 100 * US);
        c.crash(A, seed % 3 > 0);
        let next = if seed % 2 == 0 { B } else { C };
        c.must_promote(next);
        c.restart_and_feed(next, A);
        c.until_fed(next);
        assert!((0..3).all(|n| c.nodes[n].view.disk_state == DiskState::UpToDate));
        c.conclude();
    }
}

#[test]
fn resync_discard() {
    // What was trimmed while a node was away reads as zeroes there, and is not sent as zeroes.
    let mut c = serving(4, Options::default());
    c.must_write(A, 0, 0, 200);
    c.must_write(A, 0, 200, 200);
    c.until_fed(A);
    c.crash(C, POWER);
    let zeroed = c.zero(A, 0, 10, 380);
    assert_eq!(c.outcome(zeroed, SECOND), Some(Outcome::Done));
    c.must_write(A, 0, 20, 1);
    let before = c.sent(A, C);
    c.restart_and_feed(A, C);
    assert!(
        c.sent(A, C) - before < 250,
        "one old batch and two small ones"
    );
    c.must_demote(A);
    c.ends_on(C);
}

#[test]
fn resync_double_target() {
    // Two nodes catch up at the same time while clients write. Each gets its own, at its own pace.
    for seed in 0..5 {
        let mut c = serving(seed, of_nodes(5));
        c.big_percent = 2;
        c.crash(D, POWER);
        c.start_clients(2, 3, 5 * MS);
        c.run_for(300 * MS);
        c.crash(E, KILL);
        c.run_for(300 * MS);
        c.nodes[E].slow = [30; KINDS];
        c.restart(D);
        c.restart(E);
        c.until_follows(A, D);
        c.until_follows(A, E);
        c.stop_clients();
        c.conclude();
    }
}

#[test]
fn resync_finish2() {
    // One of two that catch up is done earlier. That changes nothing for the other one, which is done later.
    let mut c = serving(6, of_nodes(5));
    c.crash(D, KILL);
    c.crash(E, KILL);
    for block in 0..40 {
        c.must_write(A, 0, block, 50);
    }
    c.restart(D);
    c.restart(E);
    c.run_until(SECOND, |c| c.nodes[E].view.primary == Some(node_id(A)));
    c.nodes[E].slow[0] = 300;
    c.until_follows(A, D);
    assert!(c.connected(A, E) && c.peer_disk(A, E) == DiskState::Outdated);
    assert!(!c.is_too_far(A, E));
    assert_eq!(c.nodes[E].view.disk_state, DiskState::Outdated);
    assert_eq!(c.nodes[D].view.disk_state, DiskState::UpToDate);
    c.nodes[E].slow[0] = 1;
    c.until_follows(A, E);
    assert_eq!(c.nodes[D].view.disk_state, DiskState::UpToDate);
    c.conclude();
}

#[test]
fn busy_resync() {
    // Clients leave no pause, and the node that returns gets there all the same.
    for seed in 0..5 {
        let mut c = serving(seed, Options::default());
        c.big_percent = 0;
        c.crash(C, POWER);
        c.start_clients(2, 8, MS);
        c.run_for(500 * MS);
        c.restart(C);
        let before = c.oracle.acknowledged;
        c.until_follows(A, C);
        assert!(c.oracle.acknowledged > before, "clients were not held up");
        c.stop_clients();
        c.conclude();
    }
}

#[test]
fn busy_resync_start() {
    // Writes are under way at the moment at which a returning node is connected.
    for tenths in 0..40 {
        let mut c = serving(tenths, Options::default());
        c.reset(A, C);
        c.cut_both(A, C);
        assert!(c.run_until(5 * SECOND, |c| !c.connected(A, C)));
        c.must_write(A, 0, 0, 30);
        c.heal_link(A, C);
        c.run_until(SECOND, |c| c.connected(C, A));
        c.run_for(tenths * 50 * US);
        let writes: Vec<u64> = (0..30).map(|i| c.write(A, 0, i, 2)).collect();
        c.until_follows(A, C);
        for id in writes {
            assert_eq!(c.outcome(id, SECOND), Some(Outcome::Done));
        }
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn brief_resync_oos() {
    // A very short time away: writes come before, during and after; the reports or the first batch are late.
    for (i, (from, kind)) in [(C, REPORT), (A, REPORT), (A, APPEND), (C, ACK)]
        .into_iter()
        .enumerate()
    {
        for offset in 0..10 {
            let mut c = serving(i as u64 * 10 + offset, Options::default());
            c.must_write(A, 0, 0, 8);
            c.until_fed(A);
            c.write(A, 0, 3, 2);
            c.run_for(offset * 60 * US);
            c.reset(A, C);
            c.write(A, 0, 4, 2);
            c.hold(from, A + C - from, kind);
            c.until_snagged();
            for block in 0..8 {
                c.write(A, 0, block, 1);
                c.run_for(offset * 20 * US);
            }
            c.heal();
            c.write(A, 0, 5, 2);
            c.until_follows(A, C);
            // C's copy is the one that counts now.
            c.crash(A, POWER);
            c.ends_on(C);
        }
    }
}

#[test]
fn write_during_resync() {
    // The node that catches up is slow. Writes go on at their own pace, and it gets there.
    for which in [0, 1] {
        let mut c = serving(9, Options::default());
        c.must_write(A, 0, 0, 8);
        c.until_fed(A);
        c.crash(C, POWER);
        for block in 0..30 {
            c.must_write(A, 0, block, 60);
        }
        c.nodes[C].slow[which] = 300;
        c.restart(C);
        for block in 0..40 {
            let write = c.write(A, 0, block, 2);
            assert_eq!(c.outcome(write, 30 * MS), Some(Outcome::Done));
        }
        c.nodes[C].slow[which] = 1;
        c.until_follows(A, C);
        c.conclude();
    }
}

#[test]
fn resync_to_older() {
    // First C is stopped cleanly, then B. C is the first one back, and older; B returns to what both have by then.
    let mut c = serving(10, Options::default());
    c.must_write(A, 0, 3, 2);
    for node in [C, B] {
        assert_eq!(c.command(node, AdminCommand::Drain), Ok(()));
        c.crash(node, KILL);
        let write = c.write(A, 0, 3 + node as u64, 7);
        let done = c.outcome(write, SECOND) == Some(Outcome::Done);
        assert_eq!(done, node == C, "alone it answers nothing");
    }
    c.run_for(SECOND);
    let waits = c.write(A, 0, 8, 1);
    assert_eq!(c.outcome(waits, SECOND), None);
    c.restart_and_feed(A, C);
    assert_eq!(c.outcome(waits, SECOND), Some(Outcome::Done));
    c.restart_and_feed(A, B);
    c.until_fed(A);
    c.crash(A, POWER);
    c.ends_on(B);
}
