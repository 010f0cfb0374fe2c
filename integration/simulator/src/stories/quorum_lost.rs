//! A Primary that lost its majority meets those who went on.

use replicator::AckPolicy;
use replicator::OnNoQuorum;

use super::*;

#[test]
fn quorum_suspend_failover_busy() {
    // I/O is under way when the quorum is lost; it waits. Another node is promoted and writes; the suspended one meets it,
    // ceases to be Primary, and its clients are dropped, not answered.
    for seed in 0..10 {
        for reaches in [B, C] {
            let mut c = serving(seed, Options::default());
            c.must_write(A, 0, 0, 12);
            let writes: Vec<u64> = (0..10).map(|i| c.write(A, 0, i, 2)).collect();
            c.run_for(seed * 50 * US);
            c.isolate(A);
            let reads: Vec<u64> = (0..10).map(|i| c.read(A, 0, i, 2)).collect();
            c.run_for(1200 * MS);
            let under_way: Vec<u64> = [writes, reads].concat();
            let open: Vec<u64> = under_way
                .into_iter()
                .filter(|id| !c.outcomes.contains_key(id))
                .collect();
            assert!(!open.is_empty());
            c.must_promote(B);
            c.must_write(B, 0, 3, 2);
            c.run_for(100 * MS);
            assert!(open.iter().all(|id| !c.outcomes.contains_key(id)));
            c.heal_link(A, reaches);
            c.run_for(4 * SECOND);
            c.heal();
            let dropped = |c: &Cluster| {
                open.iter()
                    .all(|id| c.outcomes.get(id) == Some(&Outcome::Dropped))
            };
            assert!(c.run_until(10 * SECOND, dropped));
            assert!(!c.nodes[A].view.serving);
            c.conclude();
        }
    }
}

#[test]
fn quorum_multi_volume() {
    // The disk of one volume fails at the Primary: both volumes move to another node together, neither stays behind.
    for volume in [0, 1] {
        let mut c = serving(volume as u64, Options::default());
        c.must_write(A, 0, 3, 2);
        c.must_write(A, 1, 3, 2);
        c.run_for(SECOND);
        c.fails_next_store_write(A);
        c.must_write(A, volume, 5, 1);
        let failed = |c: &Cluster| c.nodes[A].view.failed;
        assert!(c.run_until(10 * SECOND, failed), "it is applied in the end");
        for v in [0, 1] {
            let refused = c.write(A, v, 6, 1);
            assert_eq!(c.outcome(refused, SECOND), Some(Outcome::Dropped));
        }
        c.must_promote(B);
        c.must_write(B, 0, 7, 1);
        c.must_write(B, 1, 7, 1);
        c.read_all(B);
        c.conclude();
    }
}

#[test]
fn quorate_data_divergence() {
    // In each stage another node is away while the rest writes, and the one who was away before is needed for it.
    for policy in [AckPolicy::Majority, AckPolicy::All] {
        let mut c = serving(
            13,
            Options {
                ack: policy,
                ..Options::default()
            },
        );
        let mut primary = A;
        for round in 0..9 {
            let away = round % 3;
            if primary == away {
                c.must_demote(primary);
                primary = (away + 1) % 3;
                c.must_promote(primary);
            }
            c.crash(away, round % 2 == 0);
            c.must_write(primary, 0, 3, 1 + round as u64);
            c.must_write(primary, 1, round as u64, 2);
            c.read_all(primary);
            c.restart(away);
        }
        c.conclude();
    }
}

#[test]
fn split_brain() {
    // Two halves of two nodes: neither can do anything alone, whoever was Primary.
    for seed in 0..10 {
        let mut c = serving(seed, of_nodes(2));
        c.must_write(A, 0, 3, 2);
        c.cut_both(A, B);
        let write = c.write(A, 0, 3, 1);
        let refused = c.promote(B, 4 * SECOND);
        assert!(no_quorum(&refused), "{refused:?}");
        assert_eq!(c.outcome(write, 0), None);
        c.heal();
        assert_eq!(c.outcome(write, 10 * SECOND), Some(Outcome::Done));
        c.conclude();
    }
    // Three nodes, and both sides of the cut write as much as they can: one side's writes are answered, and both sides
    // agree in the end which.
    for seed in 0..10 {
        let mut c = serving(
            seed,
            Options {
                on_no_quorum: OnNoQuorum::IoError,
                ..Options::default()
            },
        );
        c.isolate(A);
        let alone: Vec<u64> = (0..20).map(|i| c.write(A, 0, i, 1)).collect();
        c.must_promote(B);
        for i in 0..20 {
            c.must_write(B, 0, i, 1);
        }
        assert!(
            alone
                .iter()
                .all(|&id| c.outcome(id, 0) == Some(Outcome::Error))
        );
        c.heal();
        c.until_fed(B);
        // Everybody knows what happened to whom: A's writes were cut.
        assert!(said(&c, A, "are cut"));
        let known = |c: &Cluster| {
            (0..3).all(|n| {
                let view = &c.nodes[n].view;
                view.primary == Some(node_id(B)) && view.disk_state == DiskState::UpToDate
            })
        };
        assert!(c.run_until(SECOND, known));
        c.conclude();
    }
}
