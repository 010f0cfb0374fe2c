//! A resync that is not given a block, since that is bad where it comes from: who waits for it, and for how long.

use super::renewal::{is_inconsistent, without_room};
use super::*;

/// C is in resync from A, in place; B, which has all, is away; a block that C lacks has rotted on A's disk.
fn held_up(seed: u64) -> Cluster {
    let mut c = without_room(seed);
    c.crash(B, POWER);
    c.nodes[A].disks.stores[0].rot(30, 77);
    assert!(c.run_until(10 * SECOND, |c| is_inconsistent(c, C)));
    c.run_for(5 * SECOND);
    assert!(is_inconsistent(&c, C));
    c
}

#[test]
fn nobody_who_is_there_has_the_block_and_it_goes_on_when_one_comes_who_has() {
    for seed in 0..4 {
        let mut c = held_up(seed);
        let began = c.now;
        // C counts for no commit, and A is no majority.
        let waits = c.write(A, 0, 400, 1);
        assert_eq!(c.outcome(waits, 3 * SECOND), None);
        assert!(c.bad_block_holds_up(&[A, C], began));
        assert!(!c.bad_block_holds_up(&[A, B, C], began), "B has it");
        assert!(!c.bad_block_holds_up(&[A, C], c.now + 1));
        c.restart(B);
        assert_eq!(c.outcome(waits, 10 * SECOND), Some(Outcome::Done));
        c.until_follows(A, C);
        assert!(!is_inconsistent(&c, C));
        c.conclude();
    }
}

#[test]
fn nobody_can_be_promoted_before_one_who_has_the_block_is_there() {
    // A's epoch record needs C, C needs the block, and that is on B alone: forcing A would be the operator's word that B's data
    // may be lost.
    let mut c = held_up(5);
    c.crash(A, POWER);
    c.restart(A);
    let began = c.now;
    for _ in 0..3 {
        let refused = c.promote(A, 3 * SECOND);
        assert!(
            matches!(refused, Err(AdminError::NoQuorum(_))),
            "{refused:?}"
        );
        let refused = c.promote(C, 3 * SECOND);
        assert!(matches!(refused, Err(AdminError::NoData(_))), "{refused:?}");
    }
    assert!(c.bad_block_holds_up(&[A, C], began));
    c.restart(B);
    c.must_promote(A);
    c.until_follows(A, C);
    assert!(!is_inconsistent(&c, C));
    c.conclude();
}
