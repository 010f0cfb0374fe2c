//! Nodes come, connect, leave and return.

use replicator::io::AdminCommand;
use replicator::view::{ConnectionState, DiskState};

use super::*;

#[test]
fn connect() {
    for nodes in 1..=5 {
        let mut c = Cluster::new(1, of_nodes(nodes));
        let all = |c: &Cluster| {
            (0..nodes).all(|n| {
                let peers = &c.nodes[n].view.peers;
                peers.len() == nodes - 1
                    && peers
                        .iter()
                        .all(|p| p.connection == ConnectionState::Connected)
            })
        };
        assert!(c.run_until(SECOND, all), "{nodes} nodes do not meet");
        // Nothing has been promoted yet: nobody holds anything, and everybody says so.
        assert!((0..nodes).all(|n| c.nodes[n].view.disk_state == DiskState::Inconsistent));
        c.must_promote(nodes - 1);
        c.must_write(nodes - 1, 0, 3, 2);
        c.until_fed(nodes - 1);
        assert!((0..nodes).all(|n| c.nodes[n].view.disk_state == DiskState::UpToDate));
        assert!(all(&c));
        c.conclude();
    }
}

#[test]
fn connect_abort() {
    // A and B break off in the middle of getting to know each other, C has both. Nothing of the attempt is left behind:
    // each of them can be promoted.
    for (from, to) in [(A, B), (B, A)] {
        for promoted in [A, B, C] {
            let mut c = serving(3, Options::default());
            c.must_demote(A);
            c.reset(A, B);
            c.break_before(from, to, REPORT);
            c.until_snagged();
            c.cut_both(A, B);
            c.must_promote(promoted);
            c.must_write(promoted, 0, 3, 2);
            c.conclude();
        }
    }
}

#[test]
fn concurrent_disconnect() {
    for tenths in 0..30 {
        let mut c = serving(tenths, Options::default());
        c.must_demote(A);
        c.must_promote(C);
        let write = c.write(C, 0, 3, 100);
        let (a, b) = (node_id(A), node_id(B));
        c.admin(A, AdminCommand::Disconnect { peer: b });
        c.run_for(tenths * MS / 10);
        c.admin(C, AdminCommand::Disconnect { peer: a });
        assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
        let alone = |c: &Cluster| {
            [(A, B), (C, A)]
                .iter()
                .all(|&(n, p)| c.peer_view(n, p).connection == ConnectionState::StandAlone)
        };
        assert!(c.run_until(SECOND, alone));
        c.must_write(C, 0, 4, 1);
        assert_eq!(c.peer_disk(C, B), DiskState::UpToDate);
        c.connect(A, B);
        c.connect(A, C);
        c.until_fed(C);
        c.conclude();
    }
}

#[test]
fn attach_concurrent() {
    for writes in [false, true] {
        // Two of five return at the same time, with and without something to catch up with.
        let mut c = serving(5, of_nodes(5));
        c.must_write(A, 0, 0, 8);
        c.until_fed(A);
        c.crash(D, KILL);
        c.crash(E, POWER);
        if writes {
            c.must_write(A, 0, 4, 200);
            c.must_write(A, 1, 4, 40);
        }
        c.restart(D);
        c.restart(E);
        let back = |c: &Cluster| {
            [D, E].iter().all(|&n| {
                c.peer_disk(A, n) == DiskState::UpToDate
                    && c.nodes[n].view.disk_state == DiskState::UpToDate
            })
        };
        assert!(c.run_until(10 * SECOND, back));
        c.conclude();
    }
}

#[test]
fn upgrade() {
    // Every node is stopped and started in turn, the Primary last and after a handover; clients see to it that each
    // one has something to catch up with.
    let mut c = serving(11, Options::default());
    c.start_clients(2, 3, 5 * MS);
    for node in [C, B] {
        assert_eq!(c.command(node, AdminCommand::Drain), Ok(()));
        c.crash(node, KILL);
        c.run_for(300 * MS);
        let errors = c.outcomes.values().filter(|o| **o != Outcome::Done);
        assert_eq!(errors.count(), 0, "clients noticed");
        c.restart_and_feed(A, node);
    }
    c.must_demote(A);
    c.must_promote(B);
    assert_eq!(c.command(A, AdminCommand::Drain), Ok(()));
    c.crash(A, KILL);
    c.run_for(300 * MS);
    c.restart_and_feed(B, A);
    c.conclude();
}

#[test]
fn uuid_send_receive_race() {
    // What C said of itself is under way while its log goes on; whoever gets it late must not feed C from there, nor
    // take C for one that was rolled back.
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.must_write(A, 0, 3, 2);
        c.reset(A, C);
        c.hold(C, A, REPORT);
        c.until_snagged();
        c.must_demote(A);
        c.must_promote(B);
        for block in 0..10 {
            c.must_write(B, 0, block, 20);
        }
        c.until_fed(B);
        c.must_demote(B);
        c.must_promote(A);
        c.must_write(A, 0, 7, 1);
        c.heal();
        let back = |c: &Cluster| c.connected(A, C) && c.peer_disk(A, C) == DiskState::UpToDate;
        assert!(c.run_until(10 * SECOND, back));
        assert!((0..3).all(|n| !said(&c, n, "rolled back")));
        c.conclude();
    }
}

#[test]
fn a_voter_that_the_first_reign_never_reached_hears_of_it_from_the_others() {
    // B takes the first config while it is connected to C, and then the Primary dies for good: C must be told on the connection that
    // stands, or nobody can ever be promoted again.
    let mut c = Cluster::new(3, of_nodes(3));
    c.run_for(SECOND);
    c.hold(A, C, APPEND);
    assert_eq!(c.promote(A, 5 * SECOND), Ok(()));
    c.must_write(A, 0, 3, 2);
    c.crash(A, POWER);
    c.run_for(4 * SECOND);
    c.must_promote(B);
    c.must_write(B, 0, 4, 2);
    c.conclude();
}
