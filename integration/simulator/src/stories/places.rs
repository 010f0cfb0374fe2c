//! Places of the table of volumes that were one volume's, and are another one's then: no node's store is ever taken for that of
//! another volume, and a node that was away keeps what it has of the former one for as long as that is its image.

use replicator::io::AdminCommand;
use replicator::types::BLOCK_BYTES;
use replicator::view::ReplicationState;

use super::volumes::{failed, fill_the_journal};
use super::*;
use crate::disk::LITTER;
use crate::drive::{JOURNAL, META};

impl Cluster {
    /// A volume of 100 blocks with something in it.
    pub(super) fn has_a_third_volume(&mut self) {
        let id = self.add_volume(A, "v2", 100, 5 * SECOND);
        assert_eq!(self.answered(id), Ok(()));
        self.must_write(A, 2, 90, 10);
    }

    /// Asks for a volume of another name, which gets the place of the third one.
    fn adds_another(&mut self) -> u64 {
        self.add_volume(A, "other", 200, 10 * SECOND)
    }

    fn all_have_the_other(mut self, id: u64) {
        assert_eq!(self.answered(id), Ok(()));
        self.must_write(A, 2, 150, 10);
        self.run_for(2 * SECOND);
        assert!((A..=C).all(|n| self.blocks_at(n, 2) == 200));
        self.conclude();
    }
}

#[test]
fn a_volume_comes_and_goes_and_another_one_takes_its_place() {
    for seed in 0..3 {
        let mut c = serving(seed, Options::default());
        c.start_clients(2, 3, MS);
        c.has_a_third_volume();
        c.run_for(100 * MS);
        let id = c.remove_volume(A, 2, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
        let gone = c.read(A, 2, 90, 1);
        assert_eq!(c.outcome(gone, SECOND), Some(Outcome::Dropped));
        c.crash(B, false);
        c.run_for(SECOND);
        c.restart(B);
        c.run_for(4 * SECOND);
        c.until_fed(A);
        let id = c.add_volume(A, "v2", 200, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
        let read = c.read(A, 2, 80, 30);
        assert_eq!(c.outcome(read, SECOND), Some(Outcome::Done), "zeroes");
        c.must_write(A, 2, 150, 10);
        c.conclude();
    }
}

#[test]
fn a_place_is_given_to_another_volume_once_what_was_there_is_put_aside() {
    for seed in 0..20 {
        let mut c = serving(seed, Options::default());
        c.start_clients(2, 3, MS);
        c.has_a_third_volume();
        // One of them comes to it all later.
        c.nodes[C].hung_until[META] = c.now + 400 * MS;
        let id = c.remove_volume(A, 2, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
        let id = c.adds_another();
        c.all_have_the_other(id);
    }
}

#[test]
fn whoever_has_not_heard_yet_that_a_volume_is_gone_gives_its_place_to_nobody() {
    for seed in 0..10 {
        let mut c = serving(seed, Options::default());
        c.has_a_third_volume();
        c.run_for(SECOND);
        // C is behind by more than it is sent in advance, so the removal is not on its way there.
        c.nodes[C].hung_until[JOURNAL] = c.now + 1500 * MS;
        for _ in 0..6 {
            c.must_write(A, 0, 50, 250);
        }
        let id = c.remove_volume(A, 2, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
        let id = c.adds_another();
        c.run_for(300 * MS);
        assert!(
            !c.admin_results.contains_key(&id),
            "C has to have come to it"
        );
        c.all_have_the_other(id);
    }
}

/// C is in its resync, and what it has is older than what A did meanwhile: two volumes have changed their places.
fn in_resync_of_others(seed: u64) -> Cluster {
    let mut c = serving(seed, Options::default());
    c.has_a_third_volume();
    // More than once each page of the table of checksums is written.
    for _ in 0..3 {
        c.must_write(A, 1, 0, 5);
        c.must_write(A, 2, 90, 10);
        c.until_fed(A);
        c.run_for(SECOND);
    }
    assert_eq!(c.drops(A, C), Ok(()));
    c.crash(C, POWER);
    for volume in [1, 2] {
        let id = c.remove_volume(A, volume, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
    }
    // One of them is back at the other one's place, and that one is another volume's.
    for name in [
        "v2",
        if seed.is_multiple_of(2) {
            "v1"
        } else {
            "other"
        },
    ] {
        let id = c.add_volume(A, name, 200, 10 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
    }
    c.must_write(A, 1, 3, 5);
    c.must_write(A, 2, 150, 10);
    fill_the_journal(&mut c);
    c.restart(C);
    c.run_for(SECOND);
    let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
    c.admin(A, AdminCommand::Return { peer, deadline });
    let pulls = |c: &Cluster| c.peer_view(A, C).replication == ReplicationState::SyncSource;
    assert!(c.run_until(5 * SECOND, pulls));
    c
}

#[test]
fn a_resync_gives_the_places_of_its_image_away_when_it_is_whole() {
    for seed in 0..6 {
        let mut c = in_resync_of_others(seed);
        assert_eq!(c.blocks_at(C, 2), 100);
        c.until_resynced();
        let moved = |c: &Cluster| (A..=C).all(|n| [1, 2].map(|v| c.blocks_at(n, v)) == [200; 2]);
        assert!(c.run_until(20 * SECOND, moved));
        c.run_for(SECOND);
        // What is known of the former volumes is not taken for what is known of these.
        c.crash(C, POWER);
        c.restart(C);
        c.until_follows(A, C);
        c.crash(A, POWER);
        c.must_promote(C);
        c.read_all(C);
        assert!(!said(&c, C, "is bad"), "nothing was harmed");
        c.restart(A);
        c.conclude();
    }
}

#[test]
fn whoever_crashes_in_such_a_resync_has_the_one_image_or_the_other() {
    for tenths in 0..40 {
        let mut c = in_resync_of_others(tenths);
        c.run_for(tenths * 150 * US);
        c.crash(C, tenths % 3 == 0);
        c.restart(C);
        c.until_resynced();
        c.run_for(SECOND);
        c.read_all(A);
        c.crash(A, POWER);
        c.must_promote(C);
        c.read_all(C);
        c.restart(A);
        c.conclude();
    }
}

#[test]
fn forced_in_the_midst_of_it_a_node_has_the_volumes_that_are_gone() {
    let mut olds = 0;
    for tenths in 0..30 {
        let mut c = in_resync_of_others(tenths);
        c.run_for(tenths * 200 * US);
        c.crash(A, POWER);
        c.crash(B, POWER);
        if tenths % 2 == 0 {
            c.crash(C, POWER);
            c.restart(C);
        }
        c.run_for(5 * SECOND);
        let id = c.force(C, 30 * SECOND);
        assert_eq!(c.answer(id, 40 * SECOND), Some(Ok(())), "after {tenths}");
        olds += u32::from(c.blocks_at(C, 2) == 100);
        c.read_all(C);
        c.must_write(C, 2, 80, 15);
        c.read_all(C);
        c.conclude();
    }
    assert!(olds > 10, "{olds}");
}

#[test]
fn a_node_that_can_not_have_the_stores_of_others_stays_at_its_image_until_it_can() {
    for tenths in 0..20 {
        let mut c = in_resync_of_others(tenths);
        c.nodes[C].no_room = tenths % 2 == 0;
        assert!(c.run_until(20 * SECOND, |c| c.nodes[C].merges.is_some()));
        c.nodes[C].no_room = tenths % 3 > 0;
        c.until_resynced();
        c.run_for(SECOND);
        c.crash(A, POWER);
        c.must_promote(C);
        c.read_all(C);
        c.restart(A);
        c.conclude();
    }
}

#[test]
fn room_that_was_made_for_a_change_that_did_not_come_is_looked_at_anew() {
    for seed in 0..6 {
        let mut c = serving(seed, Options::default());
        c.nodes[B].no_room = true;
        let id = c.add_volume(A, "v2", 100, 5 * SECOND);
        let refused = c.answered(id);
        assert!(failed(&refused, "bob"), "{refused:?}");
        c.run_for(SECOND);
        // Who was told that nothing is changed uses the devices for something else.
        for node in [A, C] {
            c.nodes[node].disks.stores[2].hold(5, vec![LITTER; BLOCK_BYTES]);
        }
        c.nodes[B].no_room = false;
        match seed % 3 {
            0 => {}
            1 => {
                c.must_demote(A);
                c.must_promote(C);
            }
            _ => {
                // It does not count while the change comes, and is not asked.
                c.isolate(C);
                assert_eq!(c.drops(A, C), Ok(()));
                c.heal();
            }
        }
        let primary = if seed % 3 == 1 { C } else { A };
        let id = c.add_volume(primary, "v2", 100, 5 * SECOND);
        assert_eq!(c.answered(id), Ok(()));
        if seed % 3 == 2 {
            let (deadline, peer) = (c.deadline(A, 30 * SECOND), node_id(C));
            let returned = c.command(A, AdminCommand::Return { peer, deadline });
            assert_eq!(returned, Ok(()));
        }
        let all = |c: &Cluster| (A..=C).all(|n| c.blocks_at(n, 2) == 100);
        assert!(c.run_until(10 * SECOND, all));
        for node in A..=C {
            let found = c.nodes[node].disks.stores[2].block(5);
            let foreign = found.is_some_and(|b| b.contains(&LITTER));
            assert!(!foreign, "{seed}: node {node}");
        }
        c.conclude();
    }
}
