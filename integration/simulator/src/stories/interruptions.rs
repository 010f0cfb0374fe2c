//! Catching up is interrupted, at all the worst moments.

use replicator::AckPolicy;

use super::*;
use crate::drive::KINDS;

/// C was away while A wrote; it has just been started again.
fn catching_up(seed: u64) -> Cluster {
    let mut c = serving(seed, Options::default());
    c.must_write(A, 0, 0, 12);
    c.until_fed(A);
    c.crash(C, POWER);
    for block in 0..40 {
        c.must_write(A, 0, block, 20);
    }
    c.must_write(A, 1, 3, 2);
    c.restart(C);
    c
}

#[test]
fn resync_finish() {
    // The acknowledgement that would end it is lost with the connection, up to three times. It ends all the same, and the
    // next time that C is away is not forgotten.
    for lost in 1..4 {
        for seed in 0..5 {
            let mut c = catching_up(seed);
            for _ in 0..lost {
                c.break_before(C, A, ACK);
                c.until_snagged();
            }
            c.until_follows(A, C);
            c.crash(C, POWER);
            c.must_write(A, 0, 3, 9);
            c.restart_and_feed(A, C);
            c.crash(A, POWER);
            c.ends_on(C);
        }
    }
}

#[test]
fn resync_missed_end_no_bits() {
    // Nothing was missed, and the acknowledgement that says so is lost: nothing is sent but the record that shows it.
    for seed in 0..5 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 0, 200);
        c.must_write(A, 0, 3, 1);
        c.until_fed(A);
        let before = c.sent(A, C);
        c.reset(A, C);
        c.break_before(C, A, ACK);
        c.until_snagged();
        c.until_follows(A, C);
        c.run_for(100 * MS);
        let sent = c.sent(A, C) - before;
        assert!(sent <= 8, "{sent} blocks");
        c.conclude();
    }
}

/// Ways to interrupt what goes on between two nodes.
const WAYS: u64 = 6;

fn interrupt(c: &mut Cluster, way: u64, node: usize) {
    let peer = A + C - node;
    match way {
        0 => c.reset(A, C),
        1 => c.disconnect(node, peer),
        2 | 3 => {
            c.cut_both(A, C);
            c.run_for(if way == 2 { 100 * MS } else { 4 * SECOND });
            c.heal_link(A, C);
        }
        _ => c.crash(node, way == 5),
    }
}

fn resume(c: &mut Cluster, way: u64, node: usize) {
    match way {
        1 => c.connect(A, C),
        4 | 5 => c.restart(node),
        _ => {}
    }
}

#[test]
fn resync_interrupt_variants() {
    for way in 0..WAYS {
        for node in [C, A] {
            for busy in [false, true] {
                for offset in [0, 4, 15] {
                    let mut c = catching_up(way * 10 + offset);
                    c.big_percent = 0;
                    c.nodes[C].slow[0] = 10;
                    if busy {
                        c.start_clients(2, 3, 10 * MS);
                    }
                    c.run_until(SECOND, |c| c.connected(A, C));
                    c.run_for(offset * MS);
                    interrupt(&mut c, way, node);
                    if c.up(A) {
                        resume(&mut c, way, node);
                    } else {
                        // The source is gone: another one goes on.
                        c.must_promote(B);
                        c.until_follows(B, C);
                        resume(&mut c, way, node);
                    }
                    let primary = c.primary().expect("one serves");
                    c.until_follows(primary, C);
                    c.stop_clients();
                    c.conclude();
                }
            }
        }
    }
}

#[test]
fn resync_interrupt_conflict() {
    // Clients overwrite, at the Primary, what is just being sent to C, whose stores are slow; the connection breaks at the
    // batches and acknowledgements in between.
    for seed in 0..10 {
        let mut c = catching_up(seed);
        c.nodes[C].slow = [5, 100, 5, 5, 5];
        for round in 0..5 {
            if round % 2 == 0 {
                c.break_before(A, C, APPEND);
            } else {
                c.break_after(C, A, ACK);
            }
            for block in 0..12 {
                c.write(A, 0, 40 - 3 * block, 3);
            }
            c.until_snagged();
        }
        c.nodes[C].slow = [1; KINDS];
        c.until_follows(A, C);
        c.crash(A, POWER);
        c.ends_on(C);
    }
}

#[test]
fn resync_multiple_interrupt() {
    // Two that catch up are interrupted twice; then they meet each other before they meet the source again.
    for seed in 0..5 {
        let mut c = serving(seed, of_nodes(5));
        c.must_write(A, 0, 0, 12);
        c.until_fed(A);
        c.crash(D, POWER);
        c.crash(E, KILL);
        for block in 0..40 {
            c.must_write(A, 0, block, 20);
        }
        c.restart(D);
        c.restart(E);
        for _ in 0..2 {
            c.break_after(A, D, APPEND);
            c.break_after(A, E, APPEND);
            c.until_snagged();
        }
        for node in [D, E] {
            for other in [A, B, C] {
                c.reset(node, other);
                c.cut_both(node, other);
            }
        }
        c.run_for(4 * SECOND);
        assert!(c.connected(D, E));
        let refused = c.promote(D, SECOND);
        assert!(no_quorum(&refused), "{refused:?}");
        c.must_write(A, 0, 5, 5);
        c.heal();
        c.until_follows(A, D);
        c.until_follows(A, E);
        c.conclude();
    }
}

#[test]
fn resync_target_promote() {
    // Who catches up is refused while the Primary lives. When that dies, it may be promoted, at whatever point it was: it
    // fetches the rest first.
    for offset in 0..30 {
        let mut c = catching_up(offset);
        c.nodes[C].slow[0] = 20;
        c.run_until(SECOND, |c| c.connected(C, A));
        c.run_for(offset * MS);
        let refused = c.promote(C, SECOND);
        assert!(other_primary(&refused), "{refused:?}");
        c.crash(A, POWER);
        c.must_promote(C);
        c.read_all(C);
        c.until_follows(C, B);
        c.restart_and_feed(C, A);
        c.conclude();
    }
}

#[test]
fn resync_target_promote_interrupt() {
    // The connection over which the rest is fetched breaks, before or after a question or an answer.
    for (from, kind) in [(C, FETCH), (B, FETCHED)] {
        for after in [false, true] {
            for before in 0..3 {
                let mut c = catching_up(before);
                c.cut_both(A, C);
                c.crash(A, POWER);
                let promoted = c.begin_promote(C, 8 * SECOND);
                for _ in 0..before {
                    c.break_after(B, C, FETCHED);
                    c.until_snagged();
                }
                if after {
                    c.break_after(from, B + C - from, kind);
                } else {
                    c.break_before(from, B + C - from, kind);
                }
                c.until_snagged();
                assert_eq!(c.answer(promoted, 8 * SECOND), Some(Ok(())));
                c.read_all(C);
                c.conclude();
            }
        }
    }
}

#[test]
fn resync_target_primary() {
    // A was away and catches up with B; before it is done B goes, and A is promoted. Then B meets what it fed.
    for offset in 0..20 {
        let mut c = serving(offset, Options::default());
        c.must_write(A, 0, 0, 12);
        c.isolate(A);
        c.must_promote(B);
        for block in 0..40 {
            c.must_write(B, 0, block, 20);
        }
        c.heal_link(A, B);
        c.run_until(5 * SECOND, |c| c.nodes[A].view.primary == Some(node_id(B)));
        c.run_for(offset * MS);
        c.isolate(B);
        c.heal_link(A, C);
        c.must_promote(A);
        c.read_all(A);
        c.must_write(A, 0, 7, 2);
        c.heal();
        c.until_fed(A);
        c.conclude();
    }
}

#[test]
fn switch_sync_source() {
    // A feeds two nodes and dies when the quick one is done and the slow one is not. The quick one goes on feeding it.
    for seed in 0..5 {
        let mut c = serving(seed, of_nodes(5));
        c.must_write(A, 0, 0, 12);
        c.until_fed(A);
        c.crash(D, POWER);
        c.crash(E, POWER);
        for block in 0..40 {
            c.must_write(A, 0, block, 20);
        }
        c.restart(D);
        c.restart(E);
        c.run_until(SECOND, |c| c.nodes[E].view.primary == Some(node_id(A)));
        c.nodes[E].slow[0] = 300;
        c.until_follows(A, D);
        assert_eq!(c.nodes[E].view.disk_state, DiskState::Outdated);
        c.crash(A, POWER);
        c.must_promote(D);
        c.nodes[E].slow[0] = 1;
        c.until_follows(D, E);
        assert!(c.sent(D, E) > 0);
        c.read_all(D);
        c.conclude();
    }
}

#[test]
fn suspend_resume_io() {
    // A write is under way when A loses its peers: neither has it, or C has it and A does not know. It waits; the peers
    // return in either order, B perhaps after a crash. It is answered once, and everybody has it.
    for policy in [AckPolicy::Majority, AckPolicy::All] {
        for c_has_it in [false, true] {
            for first in [B, C] {
                for down in [None, Some(KILL), Some(POWER)] {
                    let mut c = serving(
                        5,
                        Options {
                            ack: policy,
                            ..Options::default()
                        },
                    );
                    c.must_write(A, 0, 0, 12);
                    c.until_fed(A);
                    c.cut_both(A, B);
                    if c_has_it {
                        c.break_before(C, A, ACK);
                    } else {
                        c.break_before(A, C, APPEND);
                    }
                    let write = c.write(A, 0, 3, 2);
                    c.until_snagged();
                    c.cut_both(A, C);
                    assert_eq!(c.outcome(write, 2 * SECOND), None);
                    if let Some(power) = down {
                        c.crash(B, power);
                        c.run_for(100 * MS);
                    }
                    c.heal_link(A, first);
                    if first == B && down.is_some() {
                        c.restart(B);
                    }
                    assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
                    c.heal();
                    if !c.up(B) {
                        c.restart(B);
                    }
                    c.until_follows(A, B);
                    c.until_follows(A, C);
                    c.read_all(A);
                    c.conclude();
                }
            }
        }
    }
}
