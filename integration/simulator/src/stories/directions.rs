//! Whose data goes where when logs differ.

use super::*;

#[test]
fn peer_acks() {
    // While all is well the Secondaries have the same, and know it to be committed.
    for seed in 0..20 {
        let mut c = serving(seed, Options::default());
        for block in 0..10 {
            c.must_write(A, 0, block, 3);
        }
        let settled = |c: &Cluster| {
            let end = c.log_of(A);
            end.0 == end.1 && c.log_of(B) == end && c.log_of(C) == end
        };
        assert!(c.run_until(100 * MS, settled));
        // The Primary goes in the middle of a write: the next one sends what may differ, not what is known to be equal.
        c.write(A, 0, 3, 20);
        c.run_for(seed * 60 * US);
        c.crash(A, POWER);
        c.must_promote(B);
        c.until_follows(B, C);
        assert!(c.sent(B, C) < 30, "{} blocks", c.sent(B, C));
        c.conclude();
    }
}

#[test]
fn resync_reconciliation() {
    // The Secondaries are at different places of the log when the Primary dies; either of them may be promoted next.
    for ahead in [B, C] {
        for next in [B, C] {
            for seed in 0..10 {
                let behind = B + C - ahead;
                let mut c = serving(seed, Options::default());
                c.must_write(A, 0, 0, 8);
                c.until_fed(A);
                c.cut(A, behind);
                for block in 0..5 {
                    c.must_write(A, 0, block, 2);
                }
                // And one that the other one has and A does not know of.
                c.break_after(A, ahead, APPEND);
                let doubt = c.write(A, 0, 3, 1);
                c.until_snagged();
                c.crash(A, POWER);
                c.run_for(seed * MS);
                assert_eq!(c.outcome(doubt, 0), Some(Outcome::Dropped));
                assert!(c.log_of(ahead).0 > c.log_of(behind).0 + 3);
                c.must_promote(next);
                c.read_all(next);
                c.until_follows(next, B + C - next);
                c.read_all(next);
                c.heal();
                c.restart_and_feed(next, A);
                c.conclude();
            }
        }
    }
}

#[test]
fn resync_based_on_disk_states() {
    // All logs are equal. However nodes stop, and whoever is promoted, nothing is cut and nothing is sent again.
    for stop in 0..4 {
        for next in [A, B, C] {
            let mut c = serving(3, Options::default());
            c.must_write(A, 0, 0, 200);
            c.until_fed(A);
            c.must_demote(A);
            c.run_for(SECOND);
            for node in [A, B, C] {
                match stop {
                    0 => c.reset(node, (node + 1) % 3),
                    1 => c.crash(node, KILL),
                    2 => c.crash(node, POWER),
                    _ if node == next => c.crash(node, POWER),
                    _ => {}
                }
            }
            c.run_for(100 * MS);
            for node in [A, B, C] {
                if !c.up(node) {
                    c.restart(node);
                }
            }
            let before: Vec<u64> = [A, B, C].iter().map(|&n| c.sent(next, n)).collect();
            c.must_promote(next);
            c.until_fed(next);
            for node in [A, B, C] {
                assert!(!said(&c, node, "are cut"));
                // The record that both have in common is sent, to show that it is; and the epoch record.
                assert!(c.sent(next, node) - before[node] < 10);
            }
            c.conclude();
        }
    }
}

/// Three generations, and every node has something that no other has: A the oldest, B the middle, C the newest. Nobody
/// sees anybody, and C is still Primary.
fn generations(seed: u64) -> (Cluster, [u64; 3]) {
    let mut c = serving(seed, Options::default());
    c.must_write(A, 0, 0, 12);
    c.until_fed(A);
    let mut tails = [0; 3];
    for (node, next) in [(A, B), (B, C), (C, A)] {
        c.isolate(node);
        tails[node] = c.write(node, 0, 2 + node as u64, 3);
        assert_eq!(c.outcome(tails[node], 1500 * MS), None);
        if node == C {
            break;
        }
        c.must_demote(node);
        c.heal_link(next, (next + 1) % 3);
        c.must_promote(next);
        c.must_write(next, 0, 6, 2 + node as u64);
    }
    // C was promoted with A's help: A's oldest generation is history, and it has C's but for the end.
    for (a, b) in [(A, B), (A, C), (B, C)] {
        c.cut_both(a, b);
    }
    c.run_for(SECOND);
    (c, tails)
}

#[test]
fn resync_downstream_upstream() {
    // The two older ones meet first; then the newest comes, whose last write nobody was told of.
    for seed in 0..5 {
        for next in [A, B] {
            let (mut c, tails) = generations(seed);
            c.heal_link(A, B);
            c.must_promote(next);
            c.until_follows(next, A + B - next);
            c.must_write(next, 0, 4, 2);
            c.heal();
            c.until_fed(next);
            for node in [A, B, C] {
                assert!(said(&c, node, "are cut"), "{node}");
            }
            assert!(
                tails
                    .iter()
                    .all(|id| c.outcomes.get(id) != Some(&Outcome::Done))
            );
            c.conclude();
        }
    }
}

#[test]
fn resync_upstream_downstream() {
    // The newest meets the middle one: it goes on where it was, and its last write is answered. Then the oldest comes.
    for seed in 0..5 {
        let (mut c, tails) = generations(seed);
        c.heal_link(B, C);
        assert_eq!(c.outcome(tails[C], 5 * SECOND), Some(Outcome::Done));
        c.until_follows(C, B);
        assert!(said(&c, B, "are cut"));
        c.heal();
        c.until_fed(C);
        assert_eq!(c.outcome(tails[B], 0), Some(Outcome::Dropped));
        c.conclude();
    }
}

#[test]
fn resync_source_becomes_target() {
    // A feeds B when it is interrupted: before B was told anything, in the middle, at the end. C, who knows of neither,
    // meets B. Who was the source has to take what C has, or C what A has; they agree.
    for kind in [APPEND, HEARTBEAT, ACK] {
        for after in [false, true] {
            for seed in 0..4 {
                let (mut c, _) = generations(seed);
                c.heal_link(A, B);
                let way = if kind as usize == ACK as usize {
                    (B, A)
                } else {
                    (A, B)
                };
                c.begin_promote(A, 5 * SECOND);
                if after {
                    c.break_after(way.0, way.1, kind);
                } else {
                    c.break_before(way.0, way.1, kind);
                }
                c.until_snagged();
                c.cut_both(A, B);
                c.heal_link(B, C);
                c.must_promote(C);
                c.must_write(C, 0, 4, 2);
                c.read_all(C);
                c.heal();
                c.until_fed(C);
                c.conclude();
            }
        }
    }
}

#[test]
fn resync_chain_close() {
    // A and C see each other through B only. B passes nothing on: C has to wait until the chain is closed, and is sent
    // what it lacks, once.
    for seed in 0..5 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 200);
        c.until_fed(A);
        c.reset(A, C);
        c.cut_both(A, C);
        assert!(c.run_until(5 * SECOND, |c| !c.connected(A, C)));
        let before = c.sent(A, C);
        c.must_write(A, 0, 3, 30);
        c.run_for(SECOND);
        assert!(c.log_of(C).0 < c.log_of(A).0);
        assert_eq!(c.sent(B, C), 0);
        c.heal_link(A, C);
        c.until_follows(A, C);
        assert!((30..300).contains(&(c.sent(A, C) - before)));
        assert_eq!(c.sent(B, C), 0);
        c.conclude();
    }
}
