//! Disks that fail, and disks that hang.

use replicator::view::Health;

use super::*;
use crate::drive::{JOURNAL, STORE};

fn failed(c: &Cluster, node: usize) -> bool {
    c.nodes[node].view.failed
}

fn fails_next_write(c: &mut Cluster, node: usize, journal: bool) {
    if journal {
        c.fails_next_journal_write(node);
    } else {
        c.fails_next_store_write(node);
    }
}

#[test]
fn io_errors() {
    // At a Secondary: clients notice nothing, the node steps aside and says why, and catches up after its restart.
    for journal in [true, false] {
        for seed in 0..5 {
            let mut c = serving(seed, Options::default());
            c.must_write(A, 0, 0, 200);
            c.must_write(A, 0, 3, 1);
            c.until_fed(A);
            c.run_for(SECOND);
            fails_next_write(&mut c, C, journal);
            c.must_write(A, 0, 3, 2);
            assert!(c.run_until(10 * SECOND, |c| failed(c, C)));
            assert_eq!(c.nodes[C].view.health, Health::Down);
            assert!(c.run_until(SECOND, |c| !c.connected(A, C)));
            assert_eq!(c.nodes[A].view.health, Health::Degraded);
            let before = c.sent(A, C);
            c.must_write(A, 0, 4, 20);
            c.must_write(A, 1, 4, 2);
            let refused = c.promote(C, SECOND);
            assert!(matches!(refused, Err(AdminError::Failed(_))));
            c.crash(C, KILL);
            c.restart_and_feed(A, C);
            assert!(c.sent(A, C) - before < 100, "not all of it again");
            c.conclude();
        }
    }
    // At the Primary: it answers nothing any more, another one goes on with all that was acknowledged.
    for journal in [true, false] {
        for seed in 0..5 {
            let mut c = serving(seed, Options::default());
            c.must_write(A, 0, 0, 12);
            c.start_clients(2, 3, 2 * MS);
            c.run_for(100 * MS);
            fails_next_write(&mut c, A, journal);
            assert!(c.run_until(10 * SECOND, |c| failed(c, A)));
            c.stop_clients();
            let late = c.read(A, 0, 0, 1);
            assert_eq!(c.outcome(late, SECOND), Some(Outcome::Dropped));
            c.must_promote(B);
            c.read_all(B);
            c.crash(A, KILL);
            c.restart_and_feed(B, A);
            c.conclude();
        }
    }
}

#[test]
fn a_disk_that_hangs_is_seen_at_the_node_and_at_the_primary() {
    for which in [JOURNAL, STORE] {
        let mut c = serving(3, Options::default());
        c.must_write(A, 0, 0, 12);
        c.until_fed(A);
        c.nodes[C].hung_until[which] = c.now + 8 * SECOND;
        c.must_write(A, 0, 0, 12);
        let seen = |c: &Cluster| {
            c.nodes[C].view.disk_state == DiskState::Failed
                && c.nodes[C].view.health == Health::Down
                && c.peer_disk(A, C) == DiskState::Failed
                && c.nodes[A].view.health == Health::Degraded
        };
        assert!(c.run_until(6 * SECOND, seen), "{:?}", c.nodes[A].view);
        // It did not step aside, and is whole again when its disk is.
        assert!(!failed(&c, C) && c.connected(A, C));
        c.must_write(A, 0, 4, 12);
        assert!(c.run_until(12 * SECOND, |c| c.peer_disk(A, C) == DiskState::UpToDate));
        assert!(!c.nodes[C].view.disks_hang);
        c.conclude();
    }
}

#[test]
fn with_ack_all_a_disk_that_hangs_stalls_writes_only_until_its_node_says_so() {
    let options = Options {
        ack: replicator::replica::AckPolicy::All,
        ..Options::default()
    };
    let mut c = serving(3, options);
    c.must_write(A, 0, 0, 12);
    c.until_fed(A);
    c.nodes[C].hung_until[JOURNAL] = c.now + 20 * SECOND;
    let first = c.write(A, 0, 0, 12);
    assert_eq!(c.outcome(first, SECOND), None, "all have to have it");
    assert_eq!(c.outcome(first, 4 * SECOND), Some(Outcome::Done));
    for block in 0..20 {
        let write = c.write(A, 0, block, 3);
        assert_eq!(c.outcome(write, 30 * MS), Some(Outcome::Done));
    }
    c.run_for(20 * SECOND);
    c.until_fed(A);
    c.conclude();
}

#[test]
fn disk_timeout() {
    // A disk hangs for seconds: a Secondary's journal or store, or the Primary's own journal. Writes are answered by the
    // others. What hung is there in the end.
    for (node, which) in [(C, JOURNAL), (C, STORE), (A, JOURNAL)] {
        let mut c = serving(4, Options::default());
        c.must_write(A, 0, 0, 12);
        c.until_fed(A);
        c.nodes[node].hung_until[which] = c.now + 5 * SECOND;
        for block in 0..30 {
            let write = c.write(A, 0, block, 3);
            assert_eq!(c.outcome(write, 30 * MS), Some(Outcome::Done));
        }
        c.run_for(6 * SECOND);
        c.until_fed(A);
        c.read_all(A);
        c.conclude();
    }
    // The Primary's store hangs: reads wait, writes do not, until the disk answers again.
    let mut c = serving(4, Options::default());
    c.must_write(A, 0, 0, 12);
    c.run_for(5 * SECOND); // It is applied, and so read from the store.
    c.nodes[A].hung_until[STORE] = c.now + 5 * SECOND;
    let read = c.read(A, 0, 3, 2);
    for block in 20..40 {
        let write = c.write(A, 0, block, 3);
        assert_eq!(c.outcome(write, 30 * MS), Some(Outcome::Done));
    }
    assert_eq!(c.outcome(read, 0), None);
    assert_eq!(c.outcome(read, 6 * SECOND), Some(Outcome::Done));
    c.conclude();
    // A journal that hangs while its node catches up: nobody waits for that.
    let mut c = serving(5, Options::default());
    c.crash(C, POWER);
    c.must_write(A, 0, 0, 100);
    c.nodes[C].hung_until[JOURNAL] = c.now + 5 * SECOND;
    c.restart(C);
    c.run_for(SECOND);
    for block in 0..30 {
        let write = c.write(A, 0, block, 3);
        assert_eq!(c.outcome(write, 30 * MS), Some(Outcome::Done));
    }
    assert_ne!(c.peer_disk(A, C), DiskState::UpToDate);
    c.until_follows(A, C);
    c.conclude();
}

#[test]
fn a_write_that_waits_for_the_rest_of_its_block_is_overtaken_by_none_about_that_block() {
    // Its client may be gone by the time the disk answers, and another one have an answer for what it would take back.
    let partial = crate::client::Kind::Write { owned: false };
    for first in [12..14, 10..14, 14..23] {
        let mut c = serving(4, Options::default());
        c.must_write(A, 0, 0, 12);
        c.run_for(5 * SECOND); // It is applied, and so read from the store.
        c.nodes[A].hung_until[STORE] = c.now + SECOND;
        let first = c.request(A, partial, 0, first);
        c.run_for(5 * MS);
        let later = c.write(A, 0, 3, 1);
        let zeroes = c.zero(A, 0, 2, 4);
        let large = c.write(A, 0, 0, 40);
        let elsewhere = c.write(A, 0, 100, 3);
        assert_eq!(c.outcome(elsewhere, 30 * MS), Some(Outcome::Done));
        for overtaken in [later, zeroes, large] {
            assert_eq!(c.outcome(overtaken, 100 * MS), None);
        }
        for id in [first, later, zeroes, large] {
            assert_eq!(c.outcome(id, 3 * SECOND), Some(Outcome::Done));
        }
        c.read_all(A);
        c.conclude();
    }
}
