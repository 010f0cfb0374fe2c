//! The rules of the protocol where witnesses take part, one short story each. Data nodes have the first numbers.

use replicator::io::{AdminCommand, AdminError};
use replicator::view::{ConnectionState, DiskState, ReplicationState, Role, Suspended};

use super::rules::{said, serving};
use crate::harness::*;

fn cluster(nodes: usize, witnesses: usize) -> Cluster {
    serving(Options {
        nodes,
        witnesses,
        ..Options::default()
    })
}

fn crash_all(c: &mut Cluster, nodes: &[usize]) {
    nodes.iter().for_each(|&n| c.crash(n, true));
}

fn restart_all(c: &mut Cluster, nodes: &[usize]) {
    nodes.iter().for_each(|&n| c.restart(n));
}

/// The epoch of the config that a witness holds.
fn told(c: &Cluster, witness: usize) -> Option<u64> {
    c.witness_config(witness).map(|at| at.epoch.0)
}

#[test]
fn witnesses_are_told_the_first_config_and_every_later_one() {
    let mut c = cluster(3, 2);
    c.must_write(0, 0, 3, 2);
    assert!(c.run_until(SECOND, |c| c.fed(0)));
    assert_eq!([told(&c, 3), told(&c, 4)], [Some(1); 2]);
    let view = &c.nodes[0].view;
    assert_eq!(view.health_reason, "");
    for peer in &view.peers[2..] {
        assert_eq!(peer.role, Role::Witness);
        assert_eq!(peer.disk_state, DiskState::Diskless);
        assert_eq!(peer.connection, ConnectionState::Connected);
        assert_eq!(peer.replication, ReplicationState::Established);
        assert_eq!((peer.durable, peer.behind_bytes), (None, None));
    }
    let view = &c.nodes[3].view;
    assert_eq!(view.role, Role::Witness);
    assert_eq!(view.primary.map(|n| n.0), Some(0));
    assert!(view.quorum);
    assert_eq!(view.health_reason, "");
    // One that was away is told when it is back.
    c.crash(4, true);
    assert_eq!(c.command(0, AdminCommand::Demote), Ok(()));
    assert_eq!(c.promote(1, SECOND), Ok(()));
    c.run_for(SECOND);
    assert_eq!([told(&c, 3), told(&c, 4)], [Some(2), Some(1)]);
    c.restart(4);
    assert!(c.run_until(SECOND, |c| told(c, 4) == Some(2)));
    c.conclude();
}

#[test]
fn a_witness_is_never_primary() {
    let mut c = cluster(3, 2);
    let refused = c.promote(3, SECOND);
    let Err(AdminError::Failed(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("is a witness"), "{why}");
    assert_eq!(c.command(3, AdminCommand::Demote), Ok(()));
    assert_eq!(c.command(3, AdminCommand::Drain), Ok(()));
    c.conclude();
}

#[test]
fn the_first_promotion_needs_the_witnesses_too() {
    let mut c = Cluster::new(
        3,
        Options {
            witnesses: 1,
            ..Options::default()
        },
    );
    c.run_for(SECOND);
    c.crash(3, false);
    let refused = c.promote(0, 2 * SECOND);
    assert!(
        matches!(refused, Err(AdminError::NoQuorum(_))),
        "{refused:?}"
    );
    c.restart(3);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.conclude();
}

#[test]
fn a_first_promotion_that_was_broken_off_is_completed_later() {
    // With one data node the votes of the witnesses are needed, who may know nothing yet.
    for tenths in 0..60 {
        let mut c = Cluster::new(
            tenths,
            Options {
                nodes: 1 + usize::from(tenths % 3 == 0),
                witnesses: 2,
                ..Options::default()
            },
        );
        c.run_for(SECOND);
        let deadline = c.deadline(0, 5 * SECOND);
        c.admin(0, AdminCommand::Promote { deadline });
        c.run_for(tenths * MS / 10);
        c.crash(0, true);
        c.restart(0);
        c.run_for(SECOND);
        let result = c.promote(0, 5 * SECOND);
        assert_eq!(result, Ok(()), "stopped after {tenths} tenths");
        c.conclude();
    }
}

#[test]
fn the_grants_of_witnesses_do_not_stand_for_data() {
    let mut c = cluster(3, 2);
    // What is acknowledged now is in the journals of two data nodes, and not in the third's.
    c.cut(0, 2);
    c.cut(2, 0);
    c.must_write(0, 0, 3, 2);
    crash_all(&mut c, &[0, 1]);
    let refused = c.promote(2, 5 * SECOND);
    assert!(
        matches!(refused, Err(AdminError::NoQuorum(_))),
        "{refused:?}"
    );
    c.restart(1);
    assert_eq!(c.promote(2, 5 * SECOND), Ok(()));
    c.read_all(2);
    c.conclude();
}

#[test]
fn the_lease_is_kept_with_the_votes_of_witnesses() {
    let mut c = cluster(3, 2);
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    let epoch = c.nodes[0].view.epoch;
    crash_all(&mut c, &[1, 2]);
    c.run_for(3 * SECOND);
    assert_eq!(c.nodes[0].view.suspended, Suspended::No);
    let read = c.read(0, 0, 3, 2);
    assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done));
    // They hold no data: nothing is acknowledged.
    let write = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(write, 2 * SECOND), None);
    c.crash(3, true);
    c.run_for(2 * SECOND);
    assert_eq!(c.nodes[0].view.suspended, Suspended::Quorum);
    restart_all(&mut c, &[1, 2]);
    assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
    assert_eq!(c.nodes[0].view.epoch, epoch);
    c.conclude();
}

#[test]
fn two_data_nodes_and_a_witness_stay_whole_or_wait() {
    let mut c = cluster(2, 1);
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    let epoch = c.nodes[0].view.epoch;
    c.crash(1, true);
    let write = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(write, 3 * SECOND), None);
    assert_eq!(c.nodes[0].view.suspended, Suspended::No, "the lease runs");
    // The witness's vote is the Primary's: nobody else gets it.
    c.isolate(0);
    c.restart(1);
    let early = c.promote(1, 300 * MS);
    assert!(matches!(early, Err(AdminError::NoQuorum(_))), "{early:?}");
    c.heal();
    assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
    // The other node alone finds the votes and no majority of the members for its epoch record.
    c.crash(0, true);
    let alone = c.promote(1, 4 * SECOND);
    assert!(matches!(alone, Err(AdminError::NoQuorum(_))), "{alone:?}");
    assert_eq!(told(&c, 2), Some(epoch.0), "and tells no witness of it");
    c.restart(0);
    assert_eq!(c.promote(1, 5 * SECOND), Ok(()));
    assert!(c.nodes[1].view.epoch > epoch);
    c.read_all(1);
    c.conclude();
}

#[test]
fn one_data_node_and_two_witnesses_serve_while_one_of_these_is_there() {
    let mut c = cluster(1, 2);
    c.must_write(0, 0, 3, 2);
    c.crash(1, true);
    c.run_for(2 * SECOND);
    c.must_write(0, 0, 9, 1);
    c.crash(2, true);
    c.run_for(2 * SECOND);
    let write = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(write, SECOND), None);
    c.restart(2);
    assert_eq!(c.outcome(write, 5 * SECOND), Some(Outcome::Done));
    c.crash(0, true);
    c.restart(0);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.read_all(0);
    crash_all(&mut c, &[0, 2]);
    c.restart(0);
    let alone = c.promote(0, 3 * SECOND);
    assert!(matches!(alone, Err(AdminError::NoQuorum(_))), "{alone:?}");
    c.conclude();
}

#[test]
fn a_promotion_that_only_a_witness_knows_of_is_not_lost_sight_of() {
    let mut c = cluster(1, 2);
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(0, false);
    let snapshot = c.snapshot(0);
    c.restart(0);
    assert_eq!(c.promote(0, 5 * SECOND), Ok(()));
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    assert_eq!([told(&c, 1), told(&c, 2)], [Some(2); 2]);
    // The only log that has the second promotion is lost, and the witnesses have forgotten how far it reached.
    crash_all(&mut c, &[0, 1, 2]);
    c.roll_back(0, snapshot);
    restart_all(&mut c, &[0, 1, 2]);
    let refused = c.promote(0, 5 * SECOND);
    let Err(AdminError::NoData(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("the record of the latest config"), "{why}");
}

#[test]
fn a_wiped_witness_counts_for_nothing() {
    let mut c = cluster(3, 2);
    c.must_write(0, 0, 3, 2);
    c.crash(3, false);
    c.wipe(3);
    c.restart(3);
    c.run_for(SECOND);
    c.must_write(0, 0, 3, 2);
    assert_eq!(told(&c, 3), None);
    let view = &c.nodes[0].view.peers[2];
    assert_eq!(view.replication, ReplicationState::Off);
    // Three of five are there, and one of them is nobody.
    crash_all(&mut c, &[1, 4]);
    c.run_for(2 * SECOND);
    let write = c.write(0, 0, 9, 1);
    assert_eq!(c.outcome(write, SECOND), None);
    assert_eq!(c.nodes[0].view.suspended, Suspended::Quorum);
    c.crash(0, false);
    c.restart(0);
    let refused = c.promote(2, 4 * SECOND);
    assert!(
        matches!(refused, Err(AdminError::NoQuorum(_))),
        "{refused:?}"
    );
    c.restart(4);
    assert_eq!(c.promote(2, 5 * SECOND), Ok(()));
    c.read_all(2);
    assert_eq!(c.oracle.judge(), Ok(()));
}

#[test]
fn a_witness_that_was_rolled_back_counts_for_nothing_until_it_was_told_again() {
    let mut c = cluster(3, 2);
    c.must_write(0, 0, 3, 2);
    c.run_for(SECOND);
    c.crash(3, false);
    let snapshot = c.snapshot(3);
    c.restart(3);
    assert_eq!(c.command(0, AdminCommand::Demote), Ok(()));
    assert_eq!(c.promote(1, SECOND), Ok(()));
    assert!(c.run_until(SECOND, |c| told(c, 3) == Some(2)));
    c.run_for(SECOND);
    c.crash(3, false);
    c.roll_back(3, snapshot);
    c.restart(3);
    assert!(c.run_until(SECOND, |c| said(c, 3, "is whole again")));
    assert!(said(&c, 3, "it was rolled back"));
    assert_eq!(told(&c, 3), Some(2));
    c.nodes[3].hurt = false;
    c.conclude();
}
