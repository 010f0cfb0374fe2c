//! A disk that does not keep what is put back: clients have a peer's copy each time, and the node says so.

use replicator::view::Health;

use super::*;

/// Everything was written, applied and flushed on all nodes, and some blocks of A's store can not be read any more.
fn worn(seed: u64, blocks: std::ops::Range<u64>) -> Cluster {
    let mut c = serving(seed, Options::default());
    c.must_write(A, 0, 0, 128);
    c.must_write(A, 0, 128, 128);
    c.until_fed(A);
    c.run_for(SECOND);
    for block in blocks {
        c.nodes[A].disks.stores[0].wear_out(block);
    }
    c
}

fn reads(c: &mut Cluster, block: u64, blocks: u64) -> Option<Outcome> {
    let id = c.read(A, 0, block, blocks);
    c.outcome(id, 20 * SECOND)
}

/// The disk is replaced, or the heads moved elsewhere.
fn end(mut c: Cluster) {
    c.nodes[A].disks.stores[0].renew();
    c.run_for(61 * SECOND);
    c.conclude();
}

#[test]
fn a_block_that_stays_unreadable_is_answered_from_a_peer_each_time() {
    let mut c = worn(1, 3..4);
    for _ in 0..20 {
        assert_eq!(reads(&mut c, 3, 1), Some(Outcome::Done));
        assert_eq!(reads(&mut c, 0, 40), Some(Outcome::Done));
    }
    assert!(said(&c, A, "does not keep what it is given"));
    let view = &c.nodes[A].view;
    assert_eq!(view.health, Health::Degraded);
    assert!(view.health_reason.contains("replace its disk"));
    assert_eq!(view.integrity.lost_blocks, 0);
    assert!(view.serving);
    // It is not written to again and again.
    assert!(view.integrity.repaired_blocks <= 4, "{:?}", view.integrity);
    end(c);
}

#[test]
fn more_bad_blocks_than_are_seen_to_at_once_are_read_in_one_piece() {
    let mut c = worn(2, 5..250);
    for _ in 0..4 {
        assert_eq!(reads(&mut c, 0, 256), Some(Outcome::Done));
    }
    assert_eq!(c.nodes[A].view.integrity.lost_blocks, 0);
    end(c);
}

#[test]
fn a_write_of_a_part_of_a_block_that_stays_unreadable_keeps_the_rest_of_it() {
    let mut c = worn(3, 3..6);
    c.start_clients(2, 3, 2 * MS);
    for _ in 0..10 {
        // Both ends lie in such blocks.
        let write = c.request(
            A,
            crate::client::Kind::Write { owned: false },
            0,
            3 * 4 + 1..5 * 4 + 3,
        );
        assert_eq!(c.outcome(write, 20 * SECOND), Some(Outcome::Done));
        assert_eq!(reads(&mut c, 0, 40), Some(Outcome::Done));
        c.run_for(SECOND);
    }
    c.stop_clients();
    end(c);
}

#[test]
fn without_a_peer_it_is_an_error_and_with_one_again_it_is_not() {
    let mut c = worn(4, 3..4);
    for _ in 0..5 {
        assert_eq!(reads(&mut c, 3, 1), Some(Outcome::Done));
    }
    // B is too far behind to say anything of it; C is away.
    c.crash(C, POWER);
    c.run_for(SECOND);
    assert_eq!(reads(&mut c, 3, 1), Some(Outcome::Done), "B has it");
    c.restart(C);
    c.until_fed(A);
    assert_eq!(reads(&mut c, 3, 1), Some(Outcome::Done));
    let mut alone = serving(5, of_nodes(1));
    alone.must_write(A, 0, 0, 8);
    alone.run_for(SECOND);
    alone.nodes[A].disks.stores[0].wear_out(3);
    assert_eq!(reads(&mut alone, 3, 1), Some(Outcome::Error));
    assert_eq!(reads(&mut alone, 4, 3), Some(Outcome::Done));
    end(c);
}

#[test]
fn a_copy_that_is_lent_is_not_mistaken_for_a_newer_one() {
    // Writes to the neighbourhood and to the block itself come and are applied while copies are on their way.
    for seed in 0..20 {
        let mut c = worn(seed, 2..5);
        for round in 0..8 {
            let read = c.read(A, 0, 0, 8);
            let part = c.request(
                A,
                crate::client::Kind::Write { owned: true },
                0,
                3 * 4 + 1..3 * 4 + 2,
            );
            c.run_for(round * 300 * US);
            c.must_write(A, 0, 3 + round % 2, 1);
            c.must_write(A, 0, 9, 2);
            for id in [read, part] {
                assert_eq!(c.outcome(id, 20 * SECOND), Some(Outcome::Done));
            }
        }
        end(c);
    }
}
