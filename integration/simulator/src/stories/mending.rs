//! Damage that a node has to live with, or mend.

use replicator::io::AdminCommand;
use replicator::meta::superblock::copy_offset;
use replicator::types::BLOCK_BYTES_U64;

use super::*;

#[test]
fn a_copy_of_the_superblock_that_rots_is_mended_at_the_next_start() {
    let mut c = serving(1, Options::default());
    c.must_write(A, 0, 3, 2);
    c.run_for(SECOND);
    for copy in [0, 3, 1, 2] {
        c.crash(B, true);
        let block = copy_offset(copy) / BLOCK_BYTES_U64;
        c.nodes[B].disks.meta.rot(block, 4711);
        c.restart(B);
        c.run_for(SECOND);
        assert!(c.superblock_is_settled(B), "copy {copy} is still damaged");
    }
    c.conclude();
}

#[test]
fn old_records_that_can_not_be_read_cost_the_peer_that_needs_them_and_nobody_else() {
    for rotten in [false, true] {
        let mut c = serving(1, Options::default());
        c.must_write(A, 0, 3, 2);
        c.run_for(SECOND);
        c.crash(C, false);
        for block in 0..40 {
            c.must_write(A, 0, block, 1);
        }
        c.run_for(5 * SECOND);
        let all = c.nodes[A].view.committed;
        assert_eq!(c.nodes[A].view.applied, all, "all is applied");
        // The label, and before these the first promotion's records: some of what was written since is bad.
        for block in 20..24 {
            if rotten {
                c.nodes[A].disks.journal.rot(block, 4711);
            } else {
                c.nodes[A].disks.journal.spoil(block);
            }
        }
        c.nodes[A].hurt = true;
        c.restart(C);
        assert!(c.run_until(10 * SECOND, |c| c.is_too_far(A, C)));
        c.must_write(A, 0, 9, 1);
        assert!(said(&c, A, "can not be read back"));
        // The other node has what is needed.
        assert!(c.promote(B, SECOND).is_err());
        assert_eq!(c.command(A, AdminCommand::Demote), Ok(()));
        assert_eq!(c.promote(B, 5 * SECOND), Ok(()));
        assert!(c.run_until(10 * SECOND, |c| c.fed(B) && !c.is_too_far(B, C)));
        c.conclude();
    }
}
