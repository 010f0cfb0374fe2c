//! Random logs, random crashes: what was acknowledged is there again.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::journal::testing::JOURNAL_BYTES;

/// A ring with batches all over it, and the batch that ends it.
fn old_ring() -> &'static (Disk, Chain, Made) {
    static RING: OnceLock<(Disk, Chain, Made)> = OnceLock::new();
    RING.get_or_init(|| {
        let mut chain = Chain::new();
        let log = more_than_a_lap(&mut chain, 3500);
        (Disk::with(&log), chain, log[log.len() - 1].clone())
    })
}

/// What the crash left of a batch that was in flight.
#[derive(Clone, Debug)]
enum Fate {
    Whole,
    Lost,
    /// These sectors made it.
    Torn(Vec<bool>),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Whole),
        Just(Fate::Lost),
        proptest::collection::vec(any::<bool>(), 8..64).prop_map(Fate::Torn),
    ]
}

fn write(disk: &mut Disk, made: &Made, fate: &Fate) {
    match fate {
        Fate::Whole => disk.put(made),
        Fate::Lost => {}
        Fate::Torn(sectors) => {
            for (index, sector) in made.bytes.chunks(512).enumerate() {
                if sectors[index % sectors.len()] {
                    let block = disk.block(made.position + index as u64 / 8);
                    block[index % 8 * 512..][..512].copy_from_slice(sector);
                }
            }
        }
    }
}

/// Sizes of batches and what the crash leaves of each that was in flight; which are applied, known to the superblock as
/// acknowledged, and acknowledged; whether the ring was in use before.
#[derive(Clone, Debug)]
struct Story {
    batches: Vec<(u32, Fate)>,
    applied: usize,
    known: usize,
    acked: usize,
    used: bool,
}

prop_compose! {
    fn story()(
        batches in proptest::collection::vec((1u32..40, fate()), 1..30),
        marks in any::<[prop::sample::Index; 3]>(),
        used in prop::bool::weighted(0.3),
    ) -> Story {
        let mut marks = marks.map(|m| m.index(batches.len() + 1));
        marks.sort_unstable();
        let [applied, known, acked] = marks;
        Story { batches, applied, known, acked, used }
    }
}

/// The disk as the crash leaves it, the superblock, and the batches.
fn play(story: &Story) -> (Disk, Superblock, Vec<Made>) {
    let mut superblock = superblock();
    let (mut disk, mut chain) = if story.used {
        let (disk, chain, last) = old_ring();
        superblock.applied = last.floor();
        superblock.epochs.push(RecordId {
            epoch: Epoch(1),
            seq: Seq(1),
        });
        (disk.clone(), chain.clone())
    } else {
        (Disk::blank(), Chain::new())
    };
    let mut log = Vec::new();
    for (index, (blocks, fate)) in story.batches.iter().enumerate() {
        // Its maker knew of no more than this node has durable by then.
        chain.committed = if index < story.acked {
            chain.tail.id.seq
        } else {
            log.get(story.acked.wrapping_sub(1))
                .map_or(superblock.applied.id.seq, |m: &Made| m.header.last())
        };
        let made = if index == 0 && !story.used {
            chain.epoch(1)
        } else {
            chain.write(*blocks)
        };
        let fate = if index < story.acked {
            &Fate::Whole
        } else {
            fate
        };
        write(&mut disk, &made, fate);
        log.push(made);
    }
    if let Some(applied) = story.applied.checked_sub(1) {
        superblock.applied = log[applied].floor();
        superblock.epochs = std::iter::once(RecordId {
            epoch: Epoch(1),
            seq: Seq(1),
        })
        .collect();
    }
    superblock.acked = match story.known.checked_sub(1) {
        Some(known) => log[known].header.last_id(),
        None => superblock.applied.id,
    };
    superblock.committed = superblock.applied.id.seq;
    (disk, superblock, log)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_was_acknowledged_survives_any_crash(story in story()) {
        let (mut disk, superblock, log) = play(&story);
        let found = scanned(&superblock, &mut disk);
        prop_assert_eq!(found.damaged_until, RecordId::NONE);
        let (_, decision, taken) = verdict(&found, &log);
        prop_assert!(decision != Decision::Damaged);
        prop_assert!(taken >= story.acked);
        // A batch is taken if it and all before it made it, and only then.
        let unapplied = &found.parts.entries[found.parts.applied_entries..];
        prop_assert_eq!(unapplied.len(), taken - story.applied);
        for (entry, made) in unapplied.iter().zip(&log[story.applied..]) {
            prop_assert_eq!(entry.id(), made.header.last_id());
            prop_assert_eq!(entry.checksum, made.header.checksum);
            prop_assert_eq!(entry.position, made.position);
        }
        for entry in &found.parts.entries {
            let bytes: Vec<u8> = (entry.position..entry.end())
                .flat_map(|position| disk.block(position).to_vec())
                .collect();
            prop_assert_eq!(batch::verify(&bytes).map(|h| h.checksum), Ok(entry.checksum));
        }
    }

    #[test]
    fn rot_in_what_the_superblock_knows_to_be_acknowledged_is_never_cut(
        story in story(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let (mut disk, superblock, log) = play(&story);
        let at_risk = &log[story.applied..story.known];
        prop_assume!(!at_risk.is_empty());
        let bytes: usize = at_risk.iter().map(|m| m.bytes.len()).sum();
        let at = at.index(bytes);
        let place = at_risk[0].position + (at / BLOCK_BYTES) as u64;
        disk.block(place)[at % BLOCK_BYTES] ^= flip;
        let found = scanned(&superblock, &mut disk);
        let hit = log.iter().position(|m| m.end() > place).unwrap();
        prop_assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, hit));
        prop_assert!(found.damaged_until >= superblock.acked);
    }

    #[test]
    fn no_bytes_in_the_ring_make_it_panic(
        story in story(),
        scribbles in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>()), 1..40),
        floor in any::<bool>(),
    ) {
        let (mut disk, mut superblock, log) = play(&story);
        let from = log[0].position;
        for (at, bytes) in scribbles {
            let at = at.index(100 * BLOCK_BYTES - 8);
            let block = disk.block(from + (at / BLOCK_BYTES) as u64);
            let at = (at % BLOCK_BYTES).min(BLOCK_BYTES - 8);
            block[at..at + 8].copy_from_slice(&bytes);
        }
        if floor {
            superblock.applied.checksum ^= 1;
        }
        prop_assert_eq!(superblock.journal_bytes, JOURNAL_BYTES);
        scanned(&superblock, &mut disk);
    }
}
