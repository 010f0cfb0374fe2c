//! The rules of the protocol, one short story each.

use replicator::io::{AdminCommand, AdminError};
use replicator::view::{DiskState, Suspended};
use replicator::{AckPolicy, OnNoQuorum};

use crate::harness::*;

/// Three nodes, the first of them Primary.
pub(crate) fn serving(options: Options) -> Cluster {
    let mut c = Cluster::new(7, options);
    c.run_for(SECOND);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c
}

pub(crate) fn said(c: &Cluster, node: usize, what: &str) -> bool {
    c.lines.iter().any(|(n, l)| *n == node && l.contains(what))
}

#[test]
fn the_first_promotion_needs_all_nodes() {
    let mut c = Cluster::new(1, Options::default());
    c.run_for(SECOND);
    c.crash(2, false);
    let refused = c.promote(0, 2 * SECOND);
    assert!(
        matches!(refused, Err(AdminError::NoQuorum(_))),
        "{refused:?}"
    );
    c.restart(2);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.conclude();
}

#[test]
fn the_first_promotion_is_over_at_once_and_a_write_is_acknowledged() {
    let mut c = Cluster::new(1, Options::default());
    c.run_for(SECOND);
    let before = c.now;
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.must_write(0, 0, 3, 2);
    c.must_write(0, 0, 100, 255);
    assert!(c.now - before < SECOND / 5);
    c.read_all(0);
    c.conclude();
}

#[test]
fn a_first_promotion_that_was_broken_off_is_completed_later() {
    for tenths in 0..60 {
        let mut c = Cluster::new(tenths, Options::default());
        c.run_for(SECOND);
        let deadline = c.deadline(0, 5 * SECOND);
        c.admin(0, AdminCommand::Promote { deadline });
        c.run_for(tenths * MS / 10);
        c.crash(0, true);
        // Sometimes another node goes on where the first one was stopped, before it is back.
        if tenths % 2 == 0 {
            let _ = c.promote(1, SECOND);
        }
        c.restart(0);
        c.run_for(SECOND);
        let refused = c.promote(1 + usize::from(tenths % 3 == 0), 5 * SECOND);
        assert_eq!(
            refused,
            Ok(()),
            "stopped after {tenths} tenths of a millisecond"
        );
        c.conclude();
    }
}

#[test]
fn failover_after_a_crash_waits_for_the_lease_and_keeps_what_was_acknowledged() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    let crashed = c.now;
    c.crash(0, true);
    let early = c.promote(1, 300 * MS);
    assert!(matches!(early, Err(AdminError::NoQuorum(_))), "{early:?}");
    assert_eq!(c.promote(1, 5 * SECOND), Ok(()));
    let waited = c.now - crashed;
    // The last heartbeat was at most a fifth of a lease before the crash.
    assert!((800 * MS..2 * SECOND).contains(&waited), "{waited}");
    c.read_all(1);
    c.conclude();
}

#[test]
fn after_a_clean_demotion_the_next_promotion_goes_at_once() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    assert_eq!(c.command(0, AdminCommand::Demote), Ok(()));
    let demoted = c.now;
    assert_eq!(c.promote(1, SECOND), Ok(()));
    assert!(c.now - demoted < 200 * MS);
    c.read_all(1);
    c.conclude();
}

#[test]
fn an_old_primary_that_returns_cuts_its_uncommitted_tail() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    c.isolate(0);
    let lost = c.write(0, 0, 3, 1);
    assert_eq!(c.outcome(lost, 1500 * MS), None);
    assert_eq!(c.promote(1, 5 * SECOND), Ok(()));
    c.must_write(1, 0, 4, 1);
    c.heal();
    assert!(c.run_until(20 * SECOND, |c| c.fed(1)));
    assert!(said(&c, 0, "are cut"));
    assert_eq!(c.outcome(lost, 0), Some(Outcome::Dropped));
    c.conclude();
}

#[test]
fn without_a_majority_io_waits_and_goes_on_in_the_same_epoch() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    let epoch = c.nodes[0].view.epoch;
    c.isolate(0);
    c.run_for(1200 * MS);
    let write = c.write(0, 0, 9, 1);
    let read = c.read(0, 0, 3, 1);
    assert_eq!(c.outcome(write, SECOND), None);
    assert_eq!(c.outcome(read, 0), None);
    assert_eq!(c.nodes[0].view.suspended, Suspended::Quorum);
    c.heal();
    assert_eq!(c.outcome(write, 10 * SECOND), Some(Outcome::Done));
    assert_eq!(c.outcome(read, 10 * SECOND), Some(Outcome::Done));
    assert_eq!(c.nodes[0].view.epoch, epoch);
    c.conclude();
}

#[test]
fn without_a_majority_io_fails_if_the_policy_says_so() {
    let mut c = serving(Options {
        on_no_quorum: OnNoQuorum::IoError,
        ..Options::default()
    });
    c.isolate(0);
    let early = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(early, 2 * SECOND), Some(Outcome::Error));
    let late = c.read(0, 0, 9, 1);
    assert_eq!(c.outcome(late, 2 * SECOND), Some(Outcome::Error));
    c.heal();
    c.run_for(SECOND);
    c.must_write(0, 0, 9, 1);
    c.conclude();
}

#[test]
fn a_node_that_was_away_catches_up_while_writes_go_on() {
    let mut c = serving(Options::default());
    c.big_percent = 1;
    c.crash(2, true);
    c.start_clients(2, 3, 5 * MS);
    c.run_for(2 * SECOND);
    c.restart(2);
    assert!(c.run_until(5 * SECOND, |c| c.fed(0)));
    assert!(!c.is_too_far(0, 2));
    c.conclude();
}

#[test]
fn a_node_past_the_journal_is_outdated_and_is_refused() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 0, 4);
    c.crash(2, false);
    for i in 0..40 {
        c.must_write(0, 0, i * 5, 255);
    }
    c.nodes[2].hung_until[crate::drive::STAGE] = c.now + 100 * SECOND;
    c.restart(2);
    c.run_for(2 * SECOND);
    assert_eq!(c.nodes[2].view.disk_state, DiskState::Outdated);
    assert_eq!(c.command(0, AdminCommand::Demote), Ok(()));
    let refused = c.promote(2, 2 * SECOND);
    assert!(matches!(refused, Err(AdminError::NoData(_))), "{refused:?}");
    assert_eq!(c.promote(1, 2 * SECOND), Ok(()));
    c.conclude();
}

#[test]
fn a_wiped_node_counts_for_nothing() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    c.crash(2, false);
    c.wipe(2);
    c.restart(2);
    c.run_for(SECOND);
    c.must_write(0, 0, 3, 2);
    c.crash(1, false);
    let write = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(write, 3 * SECOND), None);
    let refused = c.promote(2, 2 * SECOND);
    assert!(refused.is_err(), "{refused:?}");
    c.restart(1);
    assert_eq!(c.outcome(write, 10 * SECOND), Some(Outcome::Done));
    c.crash(0, false);
    // With the wiped one there is no majority; the vote of its former life is void.
    assert!(c.promote(1, 4 * SECOND).is_err());
    c.restart(0);
    assert_eq!(c.promote(1, 5 * SECOND), Ok(()));
    c.read_all(1);
    assert_eq!(c.oracle.judge(), Ok(()));
}

#[test]
fn a_primary_takes_a_higher_epoch_than_a_promotion_that_failed() {
    let mut won_back = 0;
    for tenths in 0..100 {
        let mut c = serving(Options::default());
        c.isolate(0);
        c.run_for(1500 * MS);
        // The promise that this node is asked for is lost, not late.
        c.reset(0, 2);
        let write = c.write(0, 0, 9, 1);
        let epoch = c.nodes[0].view.epoch;
        let deadline = c.deadline(2, 5 * SECOND);
        c.admin(2, AdminCommand::Promote { deadline });
        // Somewhere between the question and the epoch record.
        c.run_for(tenths * MS / 10);
        c.crash(2, true);
        c.heal();
        c.run_for(3 * SECOND);
        let same = c.outcome(write, 0) == Some(Outcome::Done);
        if same && c.nodes[0].view.epoch > epoch {
            won_back += 1;
        }
        c.conclude();
    }
    assert!(won_back > 0, "no promise was left behind");
}

#[test]
fn a_frozen_primary_answers_nothing_after_its_lease() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 0, 4);
    c.freeze(0, 4 * SECOND);
    let read = c.read(0, 0, 0, 4);
    let write = c.write(0, 0, 2, 1);
    assert_eq!(c.promote(1, 3 * SECOND), Ok(()));
    c.must_write(1, 0, 0, 4);
    assert_eq!(c.outcome(read, 10 * SECOND), Some(Outcome::Dropped));
    assert_eq!(c.outcome(write, SECOND), Some(Outcome::Dropped));
    c.conclude();
}

#[test]
fn a_full_journal_holds_writers_back_and_recovers() {
    let mut c = serving(Options::default());
    c.nodes.iter_mut().for_each(|n| n.slow[1] = 5000);
    let writes: Vec<u64> = (0..40).map(|i| c.write(0, 0, i, 255)).collect();
    c.run_for(SECOND);
    let waiting = |c: &Cluster| {
        let open = |id: &&u64| !c.outcomes.contains_key(id);
        writes.iter().filter(open).count()
    };
    assert!(waiting(&c) > 20, "only {} wait", waiting(&c));
    c.nodes.iter_mut().for_each(|n| n.slow[1] = 1);
    let all = c.run_until(60 * SECOND, |c| waiting(c) == 0);
    assert!(all, "{} writes still wait", waiting(&c));
    assert!(c.outcomes.values().all(|o| *o == Outcome::Done));
    c.conclude();
}

#[test]
fn a_slow_peer_costs_nothing_unless_all_must_acknowledge() {
    for (ack, waits) in [(AckPolicy::Majority, false), (AckPolicy::All, true)] {
        let mut c = serving(Options {
            ack,
            ..Options::default()
        });
        assert!(c.run_until(SECOND, |c| c.fed(0)));
        c.nodes[2].slow[0] = 1000;
        let write = c.write(0, 0, 9, 1);
        let quick = c.outcome(write, 30 * MS).is_some();
        assert_eq!(quick, !waits, "{ack:?}");
        assert_eq!(c.outcome(write, 10 * SECOND), Some(Outcome::Done));
        // One that has died holds writes up until its connection times out.
        c.crash(2, true);
        let write = c.write(0, 0, 9, 1);
        let quick = c.outcome(write, 500 * MS).is_some();
        assert_eq!(quick, !waits, "{ack:?}");
        assert_eq!(c.outcome(write, 4 * SECOND), Some(Outcome::Done));
        c.conclude();
    }
}

#[test]
fn rot_in_an_acknowledged_record_is_noticed_and_mended_by_catching_up() {
    let mut c = serving(Options::default());
    c.nodes[2].slow[1] = 20_000;
    for block in 0..60 {
        c.must_write(0, 0, block, 1);
    }
    c.run_for(100 * MS);
    c.crash(2, false);
    // Behind the label and the epoch record lies the first write's header.
    c.rot_journal(2, 3 * 4096);
    c.nodes[2].slow[1] = 1;
    c.cut(0, 2);
    c.cut(2, 0);
    c.restart(2);
    c.run_for(100 * MS);
    assert!(said(&c, 2, "counts for nothing"));
    c.heal();
    assert!(c.run_until(10 * SECOND, |c| said(c, 2, "is whole again")));
    c.nodes[2].hurt = false;
    c.conclude();
}

#[test]
fn a_node_that_was_rolled_back_counts_for_nothing_until_it_has_caught_up() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(2, false);
    let snapshot = c.snapshot(2);
    c.restart(2);
    assert!(c.run_until(5 * SECOND, |c| c.fed(0)));
    for block in 0..5 {
        c.must_write(0, 0, block, 1);
    }
    c.run_for(SECOND);
    c.crash(2, false);
    c.roll_back(2, snapshot);
    c.restart(2);
    assert!(c.run_until(10 * SECOND, |c| said(c, 2, "is whole again")));
    assert!(said(&c, 2, "it was rolled back"));
    c.nodes[2].hurt = false;
    c.conclude();
}

#[test]
fn a_cut_tail_is_not_taken_for_a_rollback() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    // The old Primary's tail is known to a peer that did not take it for committed.
    c.isolate(0);
    let lost = c.write(0, 0, 3, 1);
    assert_eq!(c.outcome(lost, 1500 * MS), None);
    c.crash(1, false);
    c.net.cut.remove(&(0, 2));
    c.run_for(100 * MS);
    c.crash(2, false);
    c.restart(1);
    c.restart(2);
    c.isolate(0);
    assert_eq!(c.promote(1, 8 * SECOND), Ok(()));
    c.heal();
    assert!(c.run_until(20 * SECOND, |c| c.fed(1)));
    assert!((0..3).all(|n| !said(&c, n, "rolled back")));
    c.conclude();
}

#[test]
fn a_read_waits_for_the_uncommitted_write_that_it_overlaps() {
    let mut c = serving(Options::default());
    c.must_write(0, 0, 0, 4);
    c.run_for(SECOND);
    c.isolate(0);
    let write = c.write(0, 0, 2, 1);
    c.run_for(10 * MS);
    let over = c.read(0, 0, 0, 4);
    let beside = c.read(0, 0, 3, 1);
    // The lease still runs: what no failover can take back is answered, the other is not.
    assert_eq!(c.outcome(beside, 300 * MS), Some(Outcome::Done));
    assert_eq!(c.outcome(over, 300 * MS), None);
    assert_eq!(c.promote(1, 5 * SECOND), Ok(()));
    c.heal();
    assert_eq!(c.outcome(over, 10 * SECOND), Some(Outcome::Dropped));
    assert_eq!(c.outcome(write, 0), Some(Outcome::Dropped));
    c.conclude();
}

#[test]
fn a_promotion_during_a_demotion_begins_when_that_is_over() {
    let mut c = serving(Options::default());
    c.start_clients(2, 4, MS);
    c.run_for(100 * MS);
    c.isolate(0);
    c.run_for(10 * MS);
    let demote = c.admin(0, AdminCommand::Demote);
    let deadline = c.deadline(0, 8 * SECOND);
    let promote = c.admin(0, AdminCommand::Promote { deadline });
    c.run_for(10 * MS);
    c.heal();
    let both = [demote, promote];
    let answered = |c: &Cluster| {
        both.iter()
            .all(|id| c.admin_results.get(id) == Some(&Ok(())))
    };
    assert!(c.run_until(10 * SECOND, answered));
    assert!(c.nodes[0].view.serving);
    c.conclude();
}
