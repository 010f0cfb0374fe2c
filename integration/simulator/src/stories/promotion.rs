//! Who becomes Primary, and what comes between.

use replicator::io::AdminCommand;
use replicator::view::{DiskState, Health, Role, Suspended};

use super::*;

#[test]
fn switch_primaries() {
    for nodes in [2, 3, 5] {
        let mut c = serving(nodes as u64, of_nodes(nodes));
        for round in 1..=3 * nodes {
            let (old, new) = ((round - 1) % nodes, round % nodes);
            c.must_write(old, 0, round as u64, 3);
            c.must_demote(old);
            let demoted = c.now;
            c.must_promote(new);
            assert!(c.now - demoted < SECOND / 4, "a handover waits for nothing");
            c.read_all(new);
            let seen = |c: &Cluster| {
                (0..nodes).all(|n| {
                    let role = if n == new {
                        Role::Primary
                    } else {
                        Role::Secondary
                    };
                    c.nodes[n].view.role == role && c.nodes[n].view.primary == Some(node_id(new))
                })
            };
            assert!(c.run_until(SECOND, seen));
        }
        c.conclude();
    }
}

#[test]
fn concurrent_promote_demote() {
    for tenths in 0..40 {
        let mut c = serving(tenths, Options::default());
        c.start_clients(1, 3, MS);
        c.run_for(20 * MS);
        // B wants to be Primary around the time at which A ceases to be.
        let (demote, promote);
        if tenths % 2 == 0 {
            demote = c.admin(A, AdminCommand::Demote);
            c.run_for(tenths * MS / 10);
            promote = c.begin_promote(B, 5 * SECOND);
        } else {
            promote = c.begin_promote(B, 5 * SECOND);
            c.run_for(tenths * MS / 10);
            demote = c.admin(A, AdminCommand::Demote);
        }
        assert_eq!(c.answer(demote, 5 * SECOND), Some(Ok(())));
        let promoted = c.answer(promote, 8 * SECOND).expect("an answer");
        c.run_for(20 * MS);
        c.stop_clients();
        if promoted.is_err() {
            assert!(other_primary(&promoted), "{promoted:?}");
            c.must_promote(B);
        }
        assert_eq!(c.primary(), Some(B));
        assert!(!c.nodes[A].view.serving);
        c.conclude();
    }
}

#[test]
fn double_promote_diskless() {
    // While C is away another node is promoted and demoted twice. (No node of ours is diskless.)
    for writes in [false, true] {
        let mut c = serving(2, Options::default());
        c.must_write(A, 0, 3, 2);
        c.until_fed(A);
        c.isolate(C);
        for _ in 0..2 {
            c.must_demote(A);
            c.must_promote(A);
            if writes {
                c.must_write(A, 0, 3, 1);
            }
        }
        c.must_demote(A);
        c.heal();
        c.must_promote(C);
        c.read_all(C);
        c.until_fed(C);
        c.conclude();
    }
}

#[test]
fn may_promote() {
    // With every set of links cut: a node that says that it is well can be promoted, one that says that it is down can not.
    let links = [(A, B), (A, C), (B, C)];
    let mut seen = [0, 0];
    for set in 0..8 {
        for node in [A, B, C] {
            let mut c = serving(set, Options::default());
            c.must_write(A, 0, 3, 2);
            c.must_demote(A);
            for (i, &(a, b)) in links.iter().enumerate() {
                if set >> i & 1 == 1 {
                    c.cut_both(a, b);
                }
            }
            c.run_for(4 * SECOND); // A silent peer is noticed.
            let health = c.nodes[node].view.health;
            let well = health == Health::Ok;
            assert!(well || health == Health::Down);
            assert_eq!(c.nodes[node].view.disk_state == DiskState::UpToDate, well);
            let promoted = c.promote(node, SECOND);
            assert_eq!(promoted.is_ok(), well, "{node}, cut {set:b}: {promoted:?}");
            seen[usize::from(well)] += 1;
            c.conclude();
        }
    }
    // Each node is cut off by two of the eight sets.
    assert_eq!(seen, [6, 18]);
}

#[test]
fn promote_while_connecting() {
    for tenths in 0..50 {
        let mut c = serving(tenths, Options::default());
        c.must_write(A, 0, 3, 2);
        c.must_demote(A);
        c.crash(C, KILL);
        c.reset(A, B);
        c.run_for(MS);
        c.restart(C);
        c.run_for(tenths * 2 * MS);
        let promoted = c.begin_promote(C, 8 * SECOND);
        assert_eq!(c.answer(promoted, 8 * SECOND), Some(Ok(())));
        c.read_all(C);
        c.conclude();
    }
}

#[test]
fn two_primaries_reject() {
    let mut c = serving(4, Options::default());
    c.must_write(A, 0, 3, 2);
    for node in [B, C] {
        let before = c.now;
        let refused = c.promote(node, 5 * SECOND);
        assert!(other_primary(&refused), "{refused:?}");
        assert!(c.now - before < SECOND / 2, "it is refused at once");
    }
    // A loses contact, and B takes over. Whomever A meets first, it serves nobody, and B is not disturbed.
    for first in [B, C] {
        let mut c = serving(4, Options::default());
        c.isolate(A);
        c.must_promote(B);
        c.must_write(B, 0, 3, 2);
        let epoch = c.nodes[B].view.epoch;
        c.heal_link(A, first);
        c.run_for(5 * SECOND);
        // Only B itself, or a majority, convinces it that its reign is over.
        let view = &c.nodes[A].view;
        assert!(!view.serving || (first == C && view.suspended == Suspended::Quorum));
        assert!(c.promote(A, 2 * SECOND).is_err());
        c.must_write(B, 0, 4, 1);
        c.heal();
        c.until_fed(B);
        assert!(other_primary(&c.promote(A, 2 * SECOND)));
        assert_eq!(c.nodes[B].view.epoch, epoch);
        assert!(c.nodes[B].view.serving);
        c.conclude();
    }
}

#[test]
fn stress_connect_and_2pc() {
    for seed in 0..20 {
        let mut c = serving(seed, Options::default());
        c.must_demote(A);
        for _ in 0..10 {
            let promotions: Vec<u64> = [A, B, C]
                .iter()
                .map(|&n| c.begin_promote(n, 4 * SECOND))
                .collect();
            for _ in 0..3 {
                let (a, b) = [(A, B), (A, C), (B, C)][c.rng.turns.index(3)];
                c.reset(a, b);
                let wait = c.rng.turns.below(60 * MS);
                c.run_for(wait);
            }
            let results: Vec<AdminResult> = promotions
                .iter()
                .map(|&id| c.answer(id, 10 * SECOND).expect("an answer"))
                .collect();
            assert!(
                results.iter().any(Result::is_ok) || results.iter().any(other_primary),
                "nobody won: {results:?}"
            );
            let there = c.run_until(5 * SECOND, |c| c.primary().is_some());
            assert!(there, "nobody is Primary: {results:?}");
            let primary = c.primary().expect("it was just there");
            c.must_write(primary, 0, 3, 1);
            c.must_demote(primary);
        }
        c.conclude();
    }
}

#[test]
fn twopc_abort_connect() {
    // The connection over which a promotion is agreed breaks at each of its steps; B's other connection is cut, so that A
    // is the only one who can help. The next attempt, B's own or A's, is not held up by what is left of the first.
    let steps = [
        (B, ASK),
        (A, ANSWER),
        (B, PROMISE),
        (A, GRANT),
        (B, APPEND),
        (A, ACK),
        (B, HEARTBEAT),
        (A, HEARTBEAT_ACK),
    ];
    for (step, (from, kind)) in steps.into_iter().enumerate() {
        for after in [false, true] {
            for next in [A, B] {
                let mut c = serving(step as u64, Options::default());
                c.must_write(A, 0, 3, 2);
                c.must_demote(A);
                c.isolate(C);
                let to = A + B - from;
                if after {
                    c.break_after(from, to, kind);
                } else {
                    c.break_before(from, to, kind);
                }
                let first = c.begin_promote(B, 3 * SECOND);
                c.until_snagged();
                if next == A {
                    c.must_demote(B);
                }
                c.must_promote(next);
                c.must_write(next, 0, 4, 1);
                if next == B {
                    assert_eq!(c.answer(first, SECOND), Some(Ok(())));
                }
                c.conclude();
            }
        }
    }
}

#[test]
fn twopc_conflict_one_initiator() {
    // Two nodes seek promises at the same time: one of them wins, the other is told who, and everybody can go on.
    let mut won = [0, 0];
    for tenths in 0..50 {
        let mut c = serving(tenths, Options::default());
        c.must_demote(A);
        let b = c.begin_promote(B, 5 * SECOND);
        c.run_for(tenths * MS / 10);
        let second = c.begin_promote(C, 5 * SECOND);
        let (b, second) = (c.answer(b, 6 * SECOND), c.answer(second, 6 * SECOND));
        let (b, second) = (b.expect("an answer"), second.expect("an answer"));
        let (winner, loser) = if b.is_ok() { (B, &second) } else { (C, &b) };
        assert!(b.is_ok() != second.is_ok(), "{b:?} {second:?}");
        assert!(other_primary(loser), "{loser:?}");
        assert_eq!(c.primary(), Some(winner));
        won[winner - B] += 1;
        c.must_write(winner, 0, 3, 1);
        c.conclude();
    }
    assert!(won[0] > 0 && won[1] > 0, "no race: {won:?}");
}

#[test]
fn twopc_timeout() {
    // The promises that B gets never arrive, and nobody is told that the connections are dead. B's attempt fails within its
    // time; the promises made to it keep nobody from promising C.
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.must_demote(A);
        c.hold(A, B, GRANT);
        c.hold(C, B, GRANT);
        let before = c.now;
        let first = c.begin_promote(B, SECOND);
        c.until_snagged();
        let refused = c.answer(first, 3 * SECOND).expect("an answer");
        assert!(no_quorum(&refused), "{refused:?}");
        assert!(c.now - before < 3 * SECOND / 2);
        let before = c.now;
        c.must_promote(C);
        assert!(c.now - before < SECOND);
        c.must_write(C, 0, 3, 1);
        // What was held up arrives, and changes nothing.
        c.heal();
        c.run_for(SECOND);
        assert_eq!(c.primary(), Some(C));
        assert!(!c.nodes[B].view.serving);
        c.must_write(C, 0, 4, 1);
        c.conclude();
    }
}

#[test]
fn a_demote_record_says_nothing_of_a_later_reign_also_after_a_restart() {
    for seed in 0..4 {
        // Long enough for a restart.
        let options = Options {
            lease_ms: 4000,
            ..Options::default()
        };
        let mut c = serving(seed, options);
        c.must_write(A, 0, 3, 2);
        c.until_fed(A);
        c.must_demote(A);
        c.run_for(SECOND);
        // C supports B's lease, and has no record of its reign.
        c.nodes[C].hung_until[JOURNAL] = c.now + 60 * SECOND;
        c.must_promote(B);
        c.cut_both(A, B);
        c.run_for(12 * SECOND);
        c.crash(C, KILL);
        c.nodes[C].hung_until[JOURNAL] = c.now;
        c.restart(C);
        // Whether that lease is over only time can tell.
        let id = c.begin_promote(A, 8 * SECOND);
        c.answer(id, 20 * SECOND);
        c.heal();
        c.conclude();
    }
}
