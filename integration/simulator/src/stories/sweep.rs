//! Every byte of a node's metadata is flipped, one after the other: superblocks, the journal's label and headers, the table of checksums, of
//! the stores and of what a resync has staged. The node finds what it had, or less and says so, or does not start and says what
//! to do; and whatever it starts from, it ends with everything and the right bytes (P6, P9).

use replicator::meta::superblock::{COPIES, copy_offset};
use replicator::recover::{RecoverError, Recovered, read_superblock, recover};
use replicator::store::sums::{self, BlockSum, GROUP_BLOCKS, SumTable, Table};
use replicator::types::*;

use super::*;
use crate::disk::{Disk, Reading};
use crate::drive::Flight;

/// Which of C's disks.
type DiskOfC = fn(&mut Cluster) -> &mut Disk;

/// What a node that is down would start from.
fn found(c: &Cluster, node: usize) -> Result<Recovered, RecoverError> {
    let n = &c.nodes[node];
    let (mut meta, mut journal) = (Reading(&n.disks.meta), Reading(&n.disks.journal));
    recover(
        &mut meta,
        &mut journal,
        &mut Reading(&n.disks.sums),
        &n.config,
    )
}

fn says_what_to_do(error: &RecoverError) {
    let text = error.to_string().to_lowercase();
    let advice = ["wipe", "create", "run "];
    assert!(advice.iter().any(|a| text.contains(a)), "{text}");
}

/// A bit of a byte, another one for each.
fn bit(byte: usize) -> usize {
    byte * 8 + byte % 7
}

/// Runs with a bit of each chosen byte of some blocks flipped, and flips it back.
fn with_each(
    c: &mut Cluster,
    disk: impl Fn(&mut Cluster) -> &mut Disk,
    blocks: &[u64],
    bytes: impl Iterator<Item = usize>,
    mut look: impl FnMut(&Cluster, usize),
) {
    for byte in bytes {
        for turn in 0..2 {
            for &block in blocks {
                disk(c).rot(block, bit(byte));
            }
            if turn == 0 {
                look(c, byte);
            }
        }
    }
}

fn meta_of_c(c: &mut Cluster) -> &mut Disk {
    &mut c.nodes[C].disks.meta
}

fn sums_of_c(c: &mut Cluster) -> &mut Disk {
    &mut c.nodes[C].disks.sums
}

fn journal_of_c(c: &mut Cluster) -> &mut Disk {
    &mut c.nodes[C].disks.journal
}

/// C is down after some writes, with records in its journal that are not in its stores yet if it is `busy`.
fn down(busy: bool) -> Cluster {
    let mut c = serving(1, Options::default());
    c.must_write(A, 0, 0, 40);
    c.must_write(A, 1, 0, 5);
    c.until_fed(A);
    c.run_for(SECOND);
    if busy {
        c.nodes[C].slow[crate::drive::STORE] = 20_000;
        for block in 0..6 {
            c.must_write(A, 0, 3 * block, 2);
        }
        c.until_fed(A);
    }
    // No write of the superblock is under way.
    assert!(c.run_until(SECOND, is_settled));
    c.crash(C, KILL);
    c.nodes[C].slow[crate::drive::STORE] = 1;
    c
}

/// Whether all copies of C's superblock are the same.
fn is_whole(c: &Cluster) -> bool {
    let read = read_superblock(&mut Reading(&c.nodes[C].disks.meta));
    read.is_ok_and(|chosen| chosen.whole)
}

/// The same, and none is being written.
fn is_settled(c: &Cluster) -> bool {
    !c.nodes[C].flights.values().any(Flight::is_of_meta) && is_whole(c)
}

/// C is down in the midst of a resync, of which it has saved something.
fn down_in_resync() -> Cluster {
    for tenths in 0..400 {
        let mut c = super::resync::some_time_into_it(1, tenths);
        c.crash(C, KILL);
        // Else a write of the superblock was under way.
        if !is_whole(&c) {
            continue;
        }
        let staged = found(&c, C)
            .is_ok_and(|r| r.superblock.resync.is_some_and(|m| !m.merging) && r.staged.is_some());
        if staged && c.nodes[C].disks.sums.written().count() > 4 {
            return c;
        }
    }
    panic!("it never saved anything");
}

/// C is down in a merge: what it has staged is its image.
fn down_in_merge() -> Cluster {
    let mut c = super::resync::in_resync(1);
    // Its stores take their time.
    c.nodes[C].slow[crate::drive::STORE] = 300;
    let merges = |c: &Cluster| c.nodes[C].merges.is_some() && is_settled(c);
    assert!(c.run_until(20 * SECOND, merges));
    c.crash(C, KILL);
    c.nodes[C].slow[crate::drive::STORE] = 1;
    c
}

fn superblocks(mut c: Cluster) {
    let sound = found(&c, C).expect("it can start").superblock;
    let block = |copy: usize| copy_offset(copy) / BLOCK_BYTES_U64;
    for harmed in [&[0][..], &[3], &[0, 1], &[2, 3], &[0, 1, 2], &[0, 1, 2, 3]] {
        let blocks: Vec<u64> = harmed.iter().map(|&copy| block(copy)).collect();
        let left = COPIES - harmed.len();
        with_each(&mut c, meta_of_c, &blocks, 0..BLOCK_BYTES, |c, byte| {
            let read = read_superblock(&mut Reading(&c.nodes[C].disks.meta));
            match read {
                Ok(chosen) => {
                    assert!(left >= 2 && !chosen.whole, "byte {byte} of {harmed:?}");
                    assert_eq!(chosen.superblock, sound, "byte {byte} of {harmed:?}");
                }
                Err(error) => {
                    assert!(left < 2, "byte {byte} of {harmed:?}: {error}");
                    says_what_to_do(&error.into());
                }
            }
        });
    }
}

#[test]
fn every_byte_of_the_superblocks() {
    superblocks(down(true));
    superblocks(down_in_resync());
    superblocks(down_in_merge());
}

#[test]
fn every_byte_of_the_journals_label() {
    let mut c = down(true);
    let tail = |r: &Recovered| r.scanned.parts.entries.last().map(|e| e.id());
    let sound = tail(&found(&c, C).expect("it can start"));
    with_each(
        &mut c,
        journal_of_c,
        &[0],
        0..BLOCK_BYTES,
        |c, byte| match found(c, C) {
            Ok(recovered) => {
                assert!(byte >= 44, "byte {byte}");
                assert_eq!(tail(&recovered), sound);
            }
            Err(error) => {
                assert!(byte < 44, "byte {byte}: {error}");
                says_what_to_do(&error);
            }
        },
    );
}

#[test]
fn every_byte_of_the_journals_batches() {
    let mut c = down(true);
    let sound = found(&c, C).expect("it can start");
    let parts = &sound.scanned.parts;
    let named = |r: &Recovered, from: Seq| -> Vec<(RecordId, u32)> {
        let entries = r.scanned.parts.entries.iter();
        entries
            .filter(|e| e.last > from)
            .map(|e| (e.id(), e.checksum))
            .collect()
    };
    let applied = parts.applied.id.seq;
    let (all, unapplied) = (named(&sound, Seq(0)), named(&sound, applied));
    assert!(unapplied.len() > 2 && all.len() > unapplied.len());
    let ring = parts.ring_blocks;
    let places: Vec<_> = parts
        .entries
        .iter()
        .map(|e| (e.position, e.blocks, e.last))
        .collect();
    let acked = sound.superblock.acked.seq;
    for (position, blocks, last) in places {
        for nth in 0..u64::from(blocks) {
            let block = 1 + (position + nth) % ring;
            // Of payload, which is all alike, some.
            let header = nth == 0 && (last == applied || last > applied && last.0 <= applied.0 + 2);
            let step = if header { 1 } else { 61 };
            with_each(
                &mut c,
                journal_of_c,
                &[block],
                (0..BLOCK_BYTES).step_by(step),
                |c, byte| {
                    let what = format!("byte {byte} of block {nth} of the batch up to {last}");
                    let now = found(c, C).unwrap_or_else(|e| panic!("{what}: {e}"));
                    let damaged = now.scanned.damaged_until != RecordId::NONE;
                    let left = named(&now, applied);
                    if last <= applied {
                        // It is in the stores: nothing is missing but a part of what a peer could be fed from.
                        assert_eq!(left, unapplied, "{what}");
                        assert!(!damaged, "{what}");
                        return;
                    }
                    assert!(unapplied.starts_with(&left), "{what}");
                    let end = left.last().map_or(applied, |(id, _)| id.seq);
                    assert!(end < last, "{what} is not noticed");
                    assert!(
                        damaged || end >= acked,
                        "{what}: an acknowledged record is missing, and it does not say so"
                    );
                },
            );
        }
    }
}

/// What is known of groups that a damaged slot leaves: what was, or what makes it be asked about again.
fn expect_no_more(sound: &SumTable, now: &SumTable, applied: Seq, what: &str) {
    for v in 0..sound.volumes() {
        let volume = VolumeId(v);
        for group in 0..sound.groups(volume) {
            let (then, changed) = (sound.changed(volume, group), now.changed(volume, group));
            let doubted = changed != then;
            assert!(
                !doubted || changed == applied,
                "{what}: {changed} for {then}"
            );
            let blocks =
                group * GROUP_BLOCKS..((group + 1) * GROUP_BLOCKS).min(sound.blocks(volume));
            for block in blocks {
                let (then, sum) = (sound.sum(volume, block), now.sum(volume, block));
                assert!(
                    doubted || sum == then || sum == BlockSum::UNKNOWN || changed == applied,
                    "{what}: block {block}"
                );
            }
        }
    }
}

fn checksums(mut c: Cluster) {
    let sound = found(&c, C).expect("it can start");
    let applied = sound.superblock.applied.id.seq;
    let pages: Vec<u64> = c.nodes[C].disks.sums.written().map(|(b, _)| b).collect();
    assert!(pages.len() >= 2);
    let sizes = || c_sizes();
    for page in pages {
        with_each(&mut c, sums_of_c, &[page], 0..BLOCK_BYTES, |c, byte| {
            let what = format!("byte {byte} of page {page}");
            // The scan of the journal has nothing to do with it.
            let disk = &mut Reading(&c.nodes[C].disks.sums);
            if !is_of_staged(page) {
                let (now, _) = SumTable::load(Table::Stores, sizes(), disk, applied);
                expect_no_more(&sound.sums, &now, applied, &what);
            } else if let Some(staged) = &sound.staged {
                // Nothing that was not staged is taken for staged.
                let (now, _) = SumTable::load(Table::Staged, sizes(), disk, Seq(0));
                expect_no_more(staged, &now, Seq(0), &what);
            }
        });
    }
}

fn c_sizes() -> impl Iterator<Item = u64> {
    Options::default()
        .volumes
        .into_iter()
        .map(|blocks| blocks * BLOCK_BYTES_U64)
}

/// Whether a block of the file of checksums is of the table of what is staged.
fn is_of_staged(block: u64) -> bool {
    let at = block * BLOCK_BYTES_U64;
    let mut areas = sums::areas(Table::Staged, c_sizes());
    areas.any(|(from, bytes)| (from..from + bytes).contains(&at))
}

#[test]
fn every_byte_of_the_checksums() {
    checksums(down(false));
    checksums(down(true));
    checksums(down_in_resync());
}

/// Whether two tables say the same.
fn is_same(one: &SumTable, other: &SumTable) -> bool {
    one.volumes() == other.volumes()
        && (0..one.volumes()).map(VolumeId).all(|volume| {
            one.blocks(volume) == other.blocks(volume)
                && (0..one.blocks(volume)).all(|b| one.sum(volume, b) == other.sum(volume, b))
                && (0..one.groups(volume))
                    .all(|g| one.changed(volume, g) == other.changed(volume, g))
        })
}

#[test]
fn the_table_of_what_is_staged_once_it_is_the_image() {
    let mut c = down_in_merge();
    let sound = found(&c, C).expect("it can start");
    let sound = sound.staged.expect("it is staged");
    let pages = c.nodes[C].disks.sums.written().map(|(b, _)| b);
    let pages: Vec<u64> = pages.filter(|&b| is_of_staged(b)).collect();
    let (mut goes_on, mut refused) = (0, 0);
    for (nth, page) in pages.into_iter().enumerate() {
        // Only one of its slots is the newest, and of what that says nothing else is known. Of the other pages, some bytes.
        let step = if nth == 0 { 7 } else { 397 };
        let bytes = (0..BLOCK_BYTES).step_by(step);
        with_each(&mut c, sums_of_c, &[page], bytes, |c, byte| {
            match found(c, C) {
                Ok(now) => {
                    let now = now.staged.expect("it is the image");
                    assert!(is_same(&now, &sound), "byte {byte} of page {page}");
                    goes_on += 1;
                }
                Err(error) => {
                    says_what_to_do(&error);
                    refused += 1;
                }
            }
        });
    }
    assert!(refused > 0, "{goes_on} {refused}");
}

/// Starts C, which may not be able to; else it ends with everything, and its bytes are right.
fn whole_life(mut c: Cluster, what: &str) {
    c.nodes[C].hurt = true;
    let starts = found(&c, C);
    c.restart(C);
    match starts {
        Err(error) => {
            says_what_to_do(&error);
            assert!(c.nodes[C].ruined, "{what}");
        }
        Ok(_) => {
            c.until_follows(A, C);
            // C is Primary, and gives all of it.
            c.must_write(A, 0, 9, 2);
            c.until_fed(A);
            c.must_demote(A);
            assert_eq!(c.promote(C, 8 * SECOND), Ok(()), "{what}");
            c.read_all(C);
        }
    }
    c.conclude();
}

/// A bit is flipped in one place after the other, and each time the node lives on to the end.
fn whatever_is_flipped(begin: fn() -> Cluster) {
    // A copy of the superblock, a page of each table in each slot, the label, the headers of a batch that is applied and of one that is not.
    let c = begin();
    let sound = found(&c, C).expect("it can start");
    let (parts, ring) = (&sound.scanned.parts, sound.scanned.parts.ring_blocks);
    let mut places: Vec<(DiskOfC, u64)> = vec![(meta_of_c, 0), (journal_of_c, 0)];
    let ends = [parts.entries.first(), parts.entries.last()];
    places.extend(ends.into_iter().flatten().map(|e| {
        let disk: DiskOfC = journal_of_c;
        (disk, 1 + e.position % ring)
    }));
    let sums_from = places.len();
    let pages = c.nodes[C].disks.sums.written().map(|(b, _)| b);
    places.extend(pages.map(|b| {
        let disk: DiskOfC = sums_of_c;
        (disk, b)
    }));
    for (nth, (disk, block)) in places.into_iter().enumerate() {
        let byte = [0, 130, 20, 70, 700][nth % 5];
        let mut c = begin();
        disk(&mut c).rot(block, bit(byte));
        c.nodes[C].sums_rotted = nth >= sums_from;
        let table = if is_of_staged(block) {
            "staged"
        } else {
            "first"
        };
        whole_life(
            c,
            &format!("place {nth}, block {block} ({table}), byte {byte}"),
        );
    }
}

#[test]
fn whatever_is_flipped_a_busy_node_ends_with_everything_or_does_not_start() {
    whatever_is_flipped(|| down(true));
}

#[test]
fn whatever_is_flipped_a_node_in_its_merge_ends_with_everything_or_does_not_start() {
    whatever_is_flipped(down_in_merge);
}
