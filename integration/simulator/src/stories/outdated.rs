//! Who has the newest data, who only thinks so.

use replicator::view::Health;

use super::*;

#[test]
fn outdate_early() {
    // A no longer reaches B, and B does not notice. A goes on with C. B must not go on from what it has: C is needed, and
    // what it has is fetched.
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 3, 2);
        c.until_fed(A);
        c.cut(A, B);
        c.must_write(A, 0, 3, 40);
        c.must_write(A, 1, 3, 2);
        assert!(c.connected(B, A), "it has not noticed");
        c.crash(A, POWER);
        c.cut_both(B, C);
        let refused = c.promote(B, 3 * SECOND);
        assert!(no_quorum(&refused), "{refused:?}");
        c.heal_link(B, C);
        c.must_promote(B);
        c.read_all(B);
        c.heal();
        c.restart_and_feed(B, A);
        c.conclude();
    }
}

#[test]
fn outdate_not_all() {
    // The Primary loses C, and writes with B. Then B is lost too: C alone is asked, and is nobody's Primary; with B it is,
    // and has what B has.
    for nodes_up in [[C, B], [B, C]] {
        let mut c = serving(21, Options::default());
        c.must_write(A, 0, 3, 2);
        c.until_fed(A);
        c.cut_both(A, C);
        assert!(c.run_until(5 * SECOND, |c| !c.connected(A, C)));
        assert_eq!(c.peer_disk(A, C), DiskState::DUnknown);
        assert_eq!(c.nodes[A].view.health, Health::Degraded);
        c.must_write(A, 0, 3, 9);
        c.crash(A, POWER);
        c.crash(B, POWER);
        let refused = c.promote(C, 3 * SECOND);
        assert!(no_quorum(&refused), "{refused:?}");
        assert_eq!(c.nodes[C].view.disk_state, DiskState::Consistent);
        c.crash(C, POWER);
        for node in nodes_up {
            c.restart(node);
            c.run_for(SECOND);
        }
        assert_eq!(c.nodes[C].view.disk_state, DiskState::Outdated);
        c.ends_on(C);
    }
}

#[test]
fn outdate() {
    // A Primary that C can not see writes with B. C sees B, and stops calling its own data the newest; its health says so.
    let mut c = serving(22, Options::default());
    c.must_write(A, 0, 3, 2);
    c.until_fed(A);
    c.cut_both(A, C);
    assert!(c.run_until(5 * SECOND, |c| !c.connected(C, A)));
    for round in 0..3 {
        c.must_write(A, 0, 3, 9);
        c.run_for(SECOND);
        let view = &c.nodes[C].view;
        assert_eq!(view.disk_state, DiskState::Outdated, "round {round}");
        assert_ne!(view.health, Health::Ok);
    }
    assert!(c.promote(C, SECOND).is_err());
    // A's last words are B's to tell; then C has the newest again, and may be promoted.
    c.must_demote(A);
    c.ends_on(C);
}

#[test]
fn lost_primary_after_no_writes() {
    // A is promoted, writes nothing, and is lost to C first, then to all. Nobody is left in a state that it can not leave.
    for demotes in [false, true] {
        for promoted in [B, C] {
            let mut c = serving(23, of_nodes(4));
            c.must_write(A, 0, 3, 2);
            c.must_demote(A);
            c.must_promote(A);
            c.cut_both(A, C);
            assert!(c.run_until(5 * SECOND, |c| !c.connected(C, A)));
            if demotes {
                c.must_demote(A);
            }
            c.crash(A, POWER);
            c.must_promote(promoted);
            let well = |c: &Cluster| {
                [B, C, D]
                    .iter()
                    .all(|&n| c.nodes[n].view.disk_state == DiskState::UpToDate)
            };
            assert!(c.run_until(SECOND, well));
            c.heal();
            c.restart_and_feed(promoted, A);
            c.conclude();
        }
    }
}

#[test]
fn revert_older_data() {
    // A's disks are put back to an older state while nothing was written since its peers saw it (nothing is lost), or
    // after something was: then it counts for nothing until it has caught up.
    for written in [false, true] {
        let mut c = serving(24, Options::default());
        c.must_write(A, 0, 3, 2);
        c.must_demote(A);
        c.must_promote(B);
        c.until_fed(B);
        c.run_for(SECOND);
        c.crash(A, KILL);
        let snapshot = c.snapshot(A);
        c.restart_and_feed(B, A);
        if written {
            c.must_write(B, 0, 3, 3);
            let end = Some(c.nodes[B].view.durable);
            assert!(c.run_until(SECOND, |c| c.peer_view(B, A).durable == end));
        }
        c.crash(A, KILL);
        c.roll_back(A, snapshot);
        c.restart_and_feed(B, A);
        assert_eq!(said(&c, A, "it was rolled back"), written);
        assert_eq!(said(&c, A, "is whole again"), written);
        c.nodes[A].hurt = false;
        c.conclude();
    }
}

#[test]
fn day0_uuid_diskful_primary() {
    day0(2);
}

#[test]
fn day0_uuid_three_node() {
    day0(3);
}

/// Nothing but the first promotion has happened. A node that returns with new disks looks like one that was just created,
/// as all of them did; it is not taken for one of them.
fn day0(nodes: usize) {
    for written in [false, true] {
        let mut c = serving(nodes as u64, of_nodes(nodes));
        if written {
            c.must_write(A, 0, 3, 2);
        }
        let new = nodes - 1;
        c.crash(new, KILL);
        c.wipe(new);
        c.restart(new);
        let met =
            |c: &Cluster| c.connected(A, new) && c.peer_disk(A, new) == DiskState::Inconsistent;
        assert!(c.run_until(5 * SECOND, met));
        c.run_for(2 * SECOND);
        assert_eq!(c.nodes[new].view.disk_state, DiskState::Inconsistent);
        assert_eq!(c.nodes[A].view.quorum, nodes == 3);
        // Without A it can not make anybody Primary, itself or the third node.
        c.crash(A, KILL);
        for node in 1..nodes {
            let refused = c.promote(node, 3 * SECOND);
            assert!(refused.is_err());
        }
        c.restart(A);
        if nodes == 3 {
            c.must_promote(B);
            c.read_all(B);
        }
        assert_eq!(c.oracle.judge(), Ok(()));
    }
}
