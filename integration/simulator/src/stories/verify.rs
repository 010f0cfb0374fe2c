//! Verifications: they find what is wrong, and nothing else; they mend it; and they survive whatever happens meanwhile.

use replicator::view::FindingKind;
use replicator::wire::frame::Verified;

use super::*;
use crate::drive::{META, STORE};

const VERIFY: AdminCommand = AdminCommand::Verify {
    repair: false,
    bytes_per_second: 0,
};
const REPAIR: AdminCommand = AdminCommand::Verify {
    repair: true,
    bytes_per_second: 0,
};
const SLOWLY: AdminCommand = AdminCommand::Verify {
    repair: true,
    bytes_per_second: 2 << 20,
};

/// Everything was written, applied and flushed on all nodes.
fn at_rest(seed: u64, options: Options) -> Cluster {
    let mut c = serving(seed, options);
    c.must_write(A, 0, 0, 40);
    c.run_for(SECOND);
    c.must_write(A, 0, 0, 40);
    c.must_write(A, 1, 0, 5);
    c.until_fed(A);
    c.run_for(SECOND);
    c
}

/// Waits for the end of the verification that a node runs.
fn ended(c: &mut Cluster, node: usize) -> Verified {
    let over = |c: &Cluster| {
        let verify = &c.nodes[node].view.verify;
        verify.running.is_none() && verify.by.is_none()
    };
    assert!(
        c.run_until(100 * SECOND, over),
        "{:?}",
        c.nodes[node].view.verify
    );
    let (by, verified) = c.nodes[node].view.verify.last.expect("it has ended");
    assert_eq!(by, node_id(node));
    // The others hear of it.
    c.run_for(20 * MS);
    verified
}

fn verified(c: &mut Cluster, node: usize, command: AdminCommand) -> Verified {
    assert_eq!(c.command(node, command), Ok(()));
    ended(c, node)
}

#[test]
fn what_is_bad_is_named_and_then_mended_on_whatever_node_it_is() {
    for (seed, bad) in (0..).zip([A, B, C]) {
        for by in [A, B] {
            let mut c = at_rest(seed, Options::default());
            c.nodes[bad].disks.stores[0].rot(3, 20_000);
            c.nodes[bad].disks.stores[0].spoil(17);
            let first = verified(&mut c, by, VERIFY);
            assert_eq!((first.bad, first.left, first.missed), (2, 2, 0));
            assert!(first.finished && !first.is_clean());
            let found = [(bad, 3, FindingKind::Bad), (bad, 17, FindingKind::Bad)];
            assert_eq!(c.found(by), found);
            assert!(
                c.nodes[bad].disks.stores[0].is_harmed(3),
                "it was only to look"
            );
            let second = verified(&mut c, by, REPAIR);
            assert_eq!((second.bad, second.left), (2, 0));
            assert!(second.is_clean());
            assert!(!c.nodes[bad].disks.stores[0].is_harmed(3));
            assert!(!c.nodes[bad].disks.stores[0].is_harmed(17));
            let third = verified(&mut c, by, VERIFY);
            assert_eq!((third.bad, third.differing), (0, 0));
            assert!(third.is_clean());
            // All peers know of it.
            c.run_for(SECOND);
            let told = c.nodes[C].view.verify.last;
            assert_eq!(told, Some((node_id(by), third)));
            c.conclude();
        }
    }
}

#[test]
fn what_nobody_has_keeps_no_other_block_from_being_mended() {
    // One lost block, or more of them than are seen to at once, before one of which there are good copies.
    for (seed, lost) in (50..).zip([1, 13, 30]) {
        let mut c = at_rest(seed, Options::default());
        for node in [A, B, C] {
            for block in 0..lost {
                c.nodes[node].disks.stores[0].rot(block, 20_000);
            }
        }
        c.nodes[B].disks.stores[0].rot(lost, 20_000);
        c.nodes[B].disks.stores[0].spoil(lost + 2);
        let repaired = verified(&mut c, A, REPAIR);
        assert!(repaired.finished && repaired.missed == 0);
        assert_eq!((repaired.bad, repaired.left), (3 * lost + 2, 3 * lost));
        assert!(!c.nodes[B].disks.stores[0].is_harmed(lost));
        assert!(!c.nodes[B].disks.stores[0].is_harmed(lost + 2));
    }
}

/// A node's stores and their checksums are both put back to what they were before the last writes, so that they fit each other.
fn with_an_old_copy(seed: u64, node: usize, options: Options) -> Cluster {
    let mut c = at_rest(seed, options);
    let old = c.nodes[node].disks.copy();
    c.must_write(A, 0, 2, 1);
    c.must_write(A, 0, 30, 2);
    c.until_fed(A);
    c.run_for(SECOND);
    c.crash(node, KILL);
    c.nodes[node].disks.stores = old.stores;
    c.nodes[node].disks.sums = old.sums;
    for block in [2, 30, 31] {
        c.nodes[node].disks.stores[0].taint(block);
    }
    (c.nodes[node].hurt, c.nodes[node].sums_rotted) = (true, true);
    c.run_for(3 * SECOND);
    c.restart(node);
    c
}

#[test]
fn copies_that_differ_are_told_apart_by_what_most_nodes_have() {
    for (seed, old) in (10..).zip([A, B, C]) {
        let mut c = with_an_old_copy(seed, old, Options::default());
        c.run_for(SECOND);
        c.must_promote(A);
        c.until_fed(A);
        c.run_for(SECOND);
        let first = verified(&mut c, A, VERIFY);
        assert_eq!((first.bad, first.differing, first.left), (0, 3, 3));
        let differs = |block| (old, block, FindingKind::Differs);
        assert_eq!(c.found(A), [differs(2), differs(30), differs(31)]);
        let second = verified(&mut c, A, REPAIR);
        assert_eq!((second.differing, second.left), (3, 0));
        assert!(second.is_clean());
        assert!(verified(&mut c, B, VERIFY).is_clean());
        // What is mended is so after a power cut, too.
        c.run_for(2 * SECOND);
        c.crash(old, POWER);
        c.run_for(3 * SECOND);
        c.restart(old);
        c.run_for(SECOND);
        c.must_promote(A);
        c.until_fed(A);
        let last = verified(&mut c, A, VERIFY);
        assert!(last.is_clean(), "{last:?} {:?}", c.found(A));
        c.read_all(A);
    }
}

#[test]
fn of_two_copies_that_of_the_primary_is_right() {
    let mut c = with_an_old_copy(20, B, of_nodes(2));
    c.until_fed(A);
    c.run_for(SECOND);
    let first = verified(&mut c, B, REPAIR);
    assert_eq!((first.differing, first.left), (3, 0));
    assert!(verified(&mut c, A, VERIFY).is_clean());
}

#[test]
fn pages_of_checksums_that_are_lost_are_had_again() {
    let mut c = at_rest(30, Options::default());
    let pages: Vec<u64> = c.nodes[B].disks.sums.written().map(|(b, _)| b).collect();
    for page in pages {
        c.nodes[B].disks.sums.rot(page, 9999);
    }
    c.nodes[B].sums_rotted = true;
    c.crash(B, POWER);
    c.restart(B);
    c.until_fed(A);
    c.run_for(SECOND);
    assert!(c.nodes[B].view.integrity.sums_pages_lost > 0);
    let first = verified(&mut c, A, VERIFY);
    // Of the small volume's page there was one version: a table without it says that the volume was never written.
    assert_eq!((first.bad, first.differing, first.left), (5, 600, 605));
    assert!(
        c.found(A)
            .iter()
            .all(|&(n, _, kind)| (n, kind) == (B, FindingKind::Unknown))
    );
    assert!(verified(&mut c, A, REPAIR).is_clean());
    let third = verified(&mut c, A, VERIFY);
    assert_eq!((third.differing, third.is_clean()), (0, true));
    c.conclude();
}

#[test]
fn whoever_reads_a_block_that_a_verification_mends_gets_no_error_while_its_neighbours_are_written()
{
    for seed in 320..330 {
        let mut c = at_rest(seed, Options::default());
        c.nodes[A].disks.sums.rot(0, 9999);
        c.nodes[A].disks.sums.rot(64, 9999);
        c.nodes[A].sums_rotted = true;
        c.crash(A, POWER);
        c.restart(A);
        c.must_promote(A);
        c.until_fed(A);
        c.run_for(SECOND);
        assert!(c.nodes[A].view.integrity.sums_pages_lost > 0);
        let before = c.nodes[A].view.integrity.bad_blocks;
        assert_eq!(c.command(B, REPAIR), Ok(()));
        let asks = |c: &Cluster| c.nodes[A].view.integrity.bad_blocks > before;
        assert!(c.run_until(10 * SECOND, asks), "seed {seed}");
        // Nobody's answer fits any more, since a record nearby is newer than what was compared. A's own copies are right.
        c.write(A, 0, 2, 1);
        let near = [0, 1].into_iter().chain(4..12);
        let reads: Vec<u64> = near.map(|block| c.read(A, 0, block, 1)).collect();
        for id in reads {
            let outcome = c.outcome(id, 20 * SECOND);
            assert_eq!(outcome, Some(Outcome::Done), "seed {seed}");
        }
        assert!(ended(&mut c, B).is_clean());
        assert_eq!(c.nodes[A].view.integrity.lost_blocks, 0);
        c.conclude();
    }
}

#[test]
fn sums_that_may_be_old_are_told_of_only_where_the_store_confirms_them() {
    // One of the two slots of B's page rots: that of the version before, or the newest one.
    for (slot, newest) in [(0, false), (64, true)] {
        let mut c = at_rest(35, Options::default());
        c.must_write(A, 0, 2, 1);
        c.must_write(A, 0, 30, 2);
        c.until_fed(A);
        c.run_for(SECOND);
        c.nodes[B].disks.sums.rot(slot, 9999);
        c.nodes[B].sums_rotted = true;
        c.crash(B, POWER);
        c.restart(B);
        c.until_fed(A);
        // With two copies, and without a Primary, nobody knows which is right but by that.
        c.crash(A, POWER);
        let first = verified(&mut c, C, VERIFY);
        let found = c.found(C);
        if newest {
            assert_eq!((first.bad, first.differing), (3, 0), "{found:?}");
            let bad = [2, 30, 31].map(|block| (B, block, FindingKind::Bad));
            assert_eq!(found, bad);
        } else {
            assert_eq!((first.bad, first.differing), (0, 0), "{found:?}");
        }
        // Also as Primary B is not right where its store says otherwise.
        c.must_promote(B);
        let second = verified(&mut c, B, REPAIR);
        assert_eq!((second.left, second.missed), (0, 1 << A), "{second:?}");
        assert!(c.found(B).iter().all(|&(n, ..)| n == B));
        c.restart_and_feed(B, A);
        assert!(verified(&mut c, A, VERIFY).is_clean());
        c.conclude();
    }
}

#[test]
fn under_load_it_finds_what_is_bad_and_nothing_else() {
    for seed in 40..46 {
        let mut c = at_rest(seed, Options::default());
        c.start_clients(3, 6, 2 * MS);
        c.run_for(SECOND);
        for by in [A, B, C] {
            let quiet = verified(&mut c, by, VERIFY);
            assert_eq!((quiet.bad, quiet.differing), (0, 0), "seed {seed}");
            assert!(quiet.is_clean(), "seed {seed}: {quiet:?}");
        }
        c.nodes[B].disks.stores[0].misdirect(1, 590);
        let found = verified(&mut c, C, REPAIR);
        // A client may just have written there.
        assert!(found.bad <= 1 && found.is_clean(), "seed {seed}: {found:?}");
        c.stop_clients();
        c.conclude();
    }
}

#[test]
fn one_at_a_time_and_it_can_be_stopped() {
    let mut c = at_rest(50, Options::default());
    assert_eq!(c.command(A, SLOWLY), Ok(()));
    c.run_for(50 * MS);
    for node in [A, B] {
        assert!(matches!(
            c.command(node, VERIFY),
            Err(AdminError::Failed(_))
        ));
    }
    assert_eq!(c.nodes[B].view.verify.by, Some(node_id(A)));
    assert!(matches!(
        c.command(B, AdminCommand::StopVerify),
        Err(AdminError::Failed(_))
    ));
    assert_eq!(c.command(A, AdminCommand::StopVerify), Ok(()));
    let stopped = ended(&mut c, A);
    assert!(!stopped.finished && !stopped.is_clean());
    assert_eq!(c.command(A, AdminCommand::StopVerify), Ok(()));
    c.run_for(SECOND);
    assert!(verified(&mut c, B, VERIFY).is_clean());
    c.conclude();
}

#[test]
fn a_peer_that_was_away_is_compared_when_it_is_back() {
    let mut c = at_rest(60, Options::default());
    c.nodes[C].disks.stores[0].rot(5, 1);
    c.crash(C, KILL);
    c.run_for(SECOND);
    assert_eq!(c.command(A, REPAIR), Ok(()));
    c.run_for(3 * SECOND);
    assert!(
        c.nodes[A].view.verify.running.is_some(),
        "it waits a little"
    );
    c.restart(C);
    let whole = ended(&mut c, A);
    assert_eq!((whole.bad, whole.left, whole.missed), (1, 0, 0));
    // One that does not come back is named.
    c.crash(C, KILL);
    c.run_for(SECOND);
    let part = verified(&mut c, A, REPAIR);
    assert!(part.finished && !part.is_clean());
    assert_eq!(part.missed, 1 << C);
    c.restart(C);
    c.conclude();
}

#[test]
fn it_goes_on_over_a_promotion_and_ends_with_its_node() {
    let mut c = at_rest(70, Options::default());
    assert_eq!(c.command(B, SLOWLY), Ok(()));
    c.run_for(300 * MS);
    c.crash(A, POWER);
    c.run_for(SECOND);
    c.must_promote(C);
    c.restart(A);
    assert!(ended(&mut c, B).is_clean());
    // With its node it is gone, and somebody else can begin anew.
    assert_eq!(c.command(B, SLOWLY), Ok(()));
    c.run_for(300 * MS);
    c.crash(B, KILL);
    c.restart(B);
    c.until_fed(C);
    c.run_for(6 * SECOND);
    assert_eq!(c.nodes[B].view.verify.ended, 0);
    assert!(verified(&mut c, C, VERIFY).is_clean());
    c.conclude();
}

#[test]
fn a_witness_and_a_node_that_holds_nothing_say_why_they_can_not() {
    let options = Options {
        nodes: 2,
        witnesses: 1,
        ..Options::default()
    };
    let mut c = serving(80, options);
    assert!(matches!(c.command(2, VERIFY), Err(AdminError::Failed(t)) if t.contains("witness")));
    assert!(verified(&mut c, A, VERIFY).is_clean());
    let mut fresh = Cluster::new(81, Options::default());
    fresh.run_for(SECOND);
    assert!(matches!(
        fresh.command(A, VERIFY),
        Err(AdminError::Failed(_))
    ));
}

#[test]
fn whoever_does_not_get_to_its_answers_is_asked_on_and_keeps_its_connection() {
    // Each question is given up after a while, and C still has all of them.
    let mut c = at_rest(31, Options::default());
    c.nodes[C].hung_until[STORE] = c.now + 150 * SECOND;
    assert_eq!(c.command(A, VERIFY), Ok(()));
    let until = c.now + 150 * SECOND;
    while c.now < until {
        assert!(c.connected(A, C), "at {}", c.now);
        c.run_for(SECOND);
    }
    let asked = c.nodes[A].view.verify.running.is_some();
    assert!(asked, "{:?}", c.nodes[A].view.verify);
    let verified = ended(&mut c, A);
    assert_eq!(
        (verified.bad, verified.missed, verified.finished),
        (0, 0, true)
    );
    c.conclude();
}

#[test]
fn a_disk_that_keeps_nothing_is_found_while_its_block_is_written_over() {
    // The record about it may be in B's log and not in its store yet: what that held before does not matter, what it holds then does.
    for moment in 0..40 {
        for worn in [true, false] {
            let mut c = at_rest(90, Options::default());
            let store = &mut c.nodes[B].disks.stores[0];
            if worn {
                store.wear_out(3);
            } else {
                store.spoil(3);
            }
            let write = c.write(A, 0, 3, 1);
            c.run_for(moment * 250 * US);
            let first = verified(&mut c, A, VERIFY);
            assert_eq!(c.outcome(write, SECOND), Some(Outcome::Done));
            let found = c.found(A);
            if worn {
                assert_eq!((first.bad, first.left, first.missed), (1, 1, 0));
            }
            let bad = [(B, 3, FindingKind::Bad)];
            assert!(found == bad || !worn && found.is_empty(), "{found:?}");
            let second = verified(&mut c, A, REPAIR);
            assert_eq!(second.is_clean(), !worn, "{second:?}");
            c.nodes[B].disks.stores[0].renew();
            c.conclude();
        }
    }
}

#[test]
fn a_store_with_what_was_applied_before_a_power_cut_is_no_image_of_less() {
    // C has applied what B never got, and its superblock has not come to say so. B compares as of its own last record.
    let mut ahead = 0;
    for tenths in 0..20 {
        let mut c = at_rest(tenths, of_nodes(4));
        c.must_write(A, 0, 0, 40);
        assert!(c.run_until(50 * MS, |c| c.log_of(B) == c.log_of(A)));
        let common = c.nodes[B].view.durable;
        c.isolate(B);
        c.must_write(A, 0, 60, 40);
        // The superblock of C comes to know what is committed.
        let (deadline, peer) = (c.deadline(A, 5 * SECOND), node_id(D));
        let dropped = c.command(A, AdminCommand::Drop { peer, deadline });
        assert_eq!(dropped, Ok(()));
        c.run_for(10 * MS + tenths * MS);
        let floor = c.nodes[C].view.applied;
        c.nodes[C].slow[META] = 3000;
        let applies = |c: &Cluster| c.nodes[C].view.applied > floor;
        assert!(c.run_until(2 * SECOND, applies));
        for node in [A, C, D] {
            c.crash(node, POWER);
        }
        c.nodes[C].slow[META] = 1;
        let alone = |c: &Cluster| [A, C, D].iter().all(|&n| !c.connected(B, n));
        assert!(c.run_until(8 * SECOND, alone));
        c.heal();
        c.restart(C);
        // It is asked before it comes to apply anything again.
        assert!(c.run_until(150 * MS, |c| c.connected(B, C)));
        ahead += usize::from(floor < common && c.nodes[C].view.applied == floor);
        let part = verified(&mut c, B, VERIFY);
        assert!(part.finished, "{part:?}");
        assert_eq!(part.differing, 0);
        c.restart(A);
        c.restart(D);
        c.conclude();
    }
    assert!(ahead > 0);
}

/// B is alone, and has a record about block 3 of which nobody knows whether it is committed.
fn with_an_open_record(seed: u64) -> Cluster {
    let mut c = at_rest(seed, Options::default());
    c.crash(C, KILL);
    c.run_for(SECOND);
    c.hold(B, A, ACK);
    let write = c.write(A, 0, 3, 1);
    c.run_for(100 * MS);
    assert_eq!(c.outcome(write, MS), None);
    c.crash(A, KILL);
    c.net.snags.clear();
    c.heal();
    c
}

/// C is back, B becomes Primary, and A comes: then all can be compared.
fn is_clean_with_the_others(mut c: Cluster) {
    c.must_promote(B);
    c.restart_and_feed(B, A);
    c.until_fed(B);
    assert!(verified(&mut c, B, VERIFY).is_clean());
    c.conclude();
}

#[test]
fn what_may_or_may_not_be_written_over_is_not_called_sound() {
    let mut c = with_an_open_record(91);
    c.nodes[B].disks.stores[0].spoil(3);
    let alone = verified(&mut c, B, VERIFY);
    assert_eq!((alone.bad, alone.missed), (0, 1 << A | 1 << B | 1 << C));
    c.restart(C);
    is_clean_with_the_others(c);
}

#[test]
fn a_record_that_may_never_be_committed_does_not_keep_it_from_its_end() {
    for others in [false, true] {
        let mut c = with_an_open_record(92);
        if others {
            c.restart(C);
        }
        let part = verified(&mut c, B, VERIFY);
        assert!(part.finished && part.missed & 1 << B != 0, "{part:?}");
        if !others {
            c.restart(C);
        }
        is_clean_with_the_others(c);
    }
}
