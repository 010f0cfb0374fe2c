//! Nodes that are lost, or given up, in the very moment in which they are to count again (protocol M4, M5, P6, C4).

use replicator::view::Membership;

use super::membership::{DROP_AFTER_MS, options};
use super::*;
use crate::drive::META;

impl Cluster {
    fn gives_up(&mut self, node: usize) -> AdminResult {
        let (deadline, insists) = (self.deadline(node, 10 * SECOND), false);
        self.command(node, AdminCommand::Invalidate { deadline, insists })
    }
}

/// A node that was dropped is to count again, as the last record says, which may not be committed yet.
fn returning(seed: u64, options: Options, back: usize) -> Cluster {
    let mut c = serving(seed, options);
    assert_eq!(c.drops(A, back), Ok(()));
    c.until_stands(A, back, Membership::Out);
    c.must_write(A, 0, 3, 2);
    let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(back));
    c.admin(A, AdminCommand::Return { peer, deadline });
    assert!(c.run_until(5 * SECOND, |c| said(c, A, "counts from here on")));
    c
}

#[test]
fn a_return_that_breaks_off_is_taken_back() {
    // B returns, and dies in the very moment in which it is to count again.
    let mut taken_back = 0;
    for tenths in 0..60 {
        let mut c = serving(tenths, options(2, 1));
        c.crash(B, POWER);
        c.must_write(A, 0, 3, 2);
        c.until_stands(A, B, Membership::Dropped);
        c.restart(B);
        let changes = |c: &Cluster| c.nodes[A].view.changing;
        assert!(c.run_until(20 * SECOND, changes));
        c.run_for(tenths * MS / 20);
        c.crash(B, POWER);
        let write = c.write(A, 0, 9, 1);
        assert_eq!(
            c.outcome(write, 15 * SECOND),
            Some(Outcome::Done),
            "{tenths}"
        );
        taken_back += usize::from(said(&c, A, "is taken back"));
        c.restart_and_feed(A, B);
        c.until_stands(A, B, Membership::Full);
        c.conclude();
    }
    assert!(taken_back > 0);
}

#[test]
fn a_return_that_only_witnesses_could_commit_is_taken_back() {
    // C is to count again, and dies for good. A and B are a majority of the members then, and of the voters only with witnesses, who
    // can not be told of a config before the node that it adds has it.
    let mut taken_back = 0;
    for (witnesses, policy) in [(1, DROP_AFTER_MS), (2, 0), (3, DROP_AFTER_MS)] {
        for tenths in 0..20 {
            let options = Options {
                drop_after_ms: policy,
                ..options(3, witnesses)
            };
            let mut c = returning(tenths, options, C);
            c.run_for(tenths * MS / 20);
            c.crash(C, POWER);
            c.must_write(A, 0, 9, 1);
            taken_back += usize::from(said(&c, A, "is taken back"));
            c.restart_and_feed(A, C);
            c.until_stands(A, C, Membership::Full);
            c.conclude();
        }
    }
    assert!(taken_back > 0);
}

#[test]
fn who_gives_its_data_up_while_it_is_to_count_again_holds_nobody_up() {
    // C gives its data up, is brought all of it, and gives it up once more.
    let mut pending = 0;
    for tenths in 0..40 {
        let mut c = serving(tenths, options(3, 3));
        c.must_write(A, 0, 3, 2);
        assert_eq!(c.gives_up(C), Ok(()));
        assert!(c.run_until(5 * SECOND, |c| said(c, A, "counts from here on")));
        c.run_for(tenths * MS / 20);
        pending += usize::from(c.nodes[A].view.changing);
        assert_eq!(c.gives_up(C), Ok(()), "{tenths}");
        c.must_write(A, 0, 9, 1);
        assert!(!said(&c, A, "is taken back"), "{tenths}");
        c.until_stands(A, C, Membership::Full);
        c.conclude();
    }
    assert!(pending > 0);
}

#[test]
fn who_was_dropped_by_an_operator_and_gives_its_data_up_is_not_admitted_by_itself() {
    let mut c = serving(7, options(3, 1));
    assert_eq!(c.drops(A, C), Ok(()));
    c.until_stands(A, C, Membership::Out);
    assert_eq!(c.gives_up(C), Ok(()));
    c.run_for(5 * SECOND);
    assert!(c.nodes[A].view.health_reason.contains("does not count"));
    assert_eq!(c.replaces(A, C), Ok(()));
    c.until_stands(A, C, Membership::Full);
    c.conclude();
}

#[test]
fn a_return_that_breaks_off_holds_up_no_promotion() {
    // A node is to count again, and is lost as soon as the record says so, with others. Whoever is left is a majority by the vote of a
    // witness, who can not be told of that record without the node.
    let mut left_out = 0;
    // With three data nodes the two that are left are a majority of them, and no policy is asked.
    for (nodes, back, lost, policy) in [
        (3, 2, &[2, 4][..], DROP_AFTER_MS),
        (3, 2, &[2, 4], 0),
        (4, 3, &[0, 3], DROP_AFTER_MS),
    ] {
        for tenths in 0..20 {
            let options = Options {
                drop_after_ms: policy,
                ..options(nodes, 2)
            };
            let mut c = returning(tenths, options, back);
            c.crash(back, POWER);
            c.run_for(tenths * MS / 5);
            c.crash(A, KILL);
            for &node in lost.iter().filter(|&&n| n != A && n != back) {
                c.crash(node, POWER);
            }
            if !lost.contains(&A) {
                c.restart(A);
            }
            c.must_promote(B);
            c.must_write(B, 0, 9, 2);
            left_out += usize::from(c.stands(B, back) == Membership::Dropped);
            for &node in lost {
                c.restart(node);
            }
            c.until_stands(B, A, Membership::Full);
            c.until_stands(B, back, Membership::Full);
            c.read_all(B);
            c.conclude();
        }
    }
    assert!(left_out > 0);
}

#[test]
fn a_promotion_waits_for_whose_return_is_pending_if_it_is_there() {
    // Its promise takes longer than those of the others, who would be enough with the vote of a witness.
    let mut pending = 0;
    for tenths in 0..20 {
        let mut c = returning(tenths, options(3, 2), C);
        c.run_for(tenths * MS / 5);
        c.crash(A, KILL);
        c.crash(4, POWER);
        c.restart(A);
        c.run_for(SECOND);
        pending += usize::from(c.nodes[B].view.durable > c.nodes[B].view.committed);
        c.nodes[C].slow[META] = 30;
        c.must_promote(B);
        assert_ne!(c.stands(B, C), Membership::Dropped, "{tenths}");
        c.nodes[C].slow[META] = 1;
        c.until_stands(B, C, Membership::Full);
        c.restart(4);
        c.until_fed(B);
        c.conclude();
    }
    assert!(pending > 0);
}
