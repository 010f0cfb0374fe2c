use std::ops::Range;

use super::*;
use crate::journal::batch::{Kind, descriptors};
use crate::journal::testing::{Chain, Disk, Made, RING_BLOCKS, superblock};

mod crashes;

/// The epoch's record and writes of 1 to 4 blocks, six batches in all.
fn log_of(chain: &mut Chain) -> Vec<Made> {
    let mut made = vec![chain.epoch(1)];
    made.extend([1, 3, 2, 1, 4].map(|blocks| chain.write(blocks)));
    made
}

fn six() -> Vec<Made> {
    log_of(&mut Chain::new())
}

/// A superblock that says: applied through batch `applied`, acknowledged through batch `acked`.
fn node(log: &[Made], applied: Option<usize>, acked: Option<usize>) -> Superblock {
    let mut superblock = superblock();
    if let Some(applied) = applied {
        superblock.applied = log[applied].floor();
        superblock.committed = superblock.applied.id.seq;
        superblock.epochs.push(RecordId {
            epoch: log[0].header.epoch,
            seq: Seq(1),
        });
        superblock.config = Some(crate::meta::config::ConfigAt {
            at: log[0].header.last_id(),
            config: crate::journal::testing::config(1),
        });
    }
    if let Some(acked) = acked {
        superblock.acked = log[acked].header.last_id();
    }
    superblock
}

/// What every scan has to keep to, whatever it finds.
fn scanned(superblock: &Superblock, disk: &mut Disk) -> Scanned {
    let found = scan(superblock, disk);
    let parts = &found.parts;
    let mut at = (parts.start.id.seq, parts.start.position);
    for entry in &parts.entries {
        assert_eq!((entry.first, entry.position), (at.0.next(), at.1));
        at = (entry.last, entry.end());
    }
    let floor = match parts.applied_entries.checked_sub(1) {
        Some(last) => parts.entries[last].id(),
        None => parts.start.id,
    };
    assert_eq!(floor, superblock.applied.id);
    let unapplied = &parts.entries[parts.applied_entries..];
    let records: usize = unapplied.iter().map(|e| usize::from(e.records)).sum();
    assert_eq!(parts.descriptors.len(), records);
    assert!(found.committed >= superblock.applied.id.seq && found.committed <= at.0);
    assert!(at.1 - parts.start.position <= RING_BLOCKS);
    found
}

fn end_of(found: &Scanned) -> RecordId {
    let parts = &found.parts;
    parts.entries.last().map_or(parts.start.id, Entry::id)
}

/// The row, the decision and how many batches of `log` the scan took.
fn verdict(found: &Scanned, log: &[Made]) -> (char, Decision, usize) {
    let end = end_of(found);
    let taken = log.iter().take_while(|m| m.header.last_id() <= end).count();
    (found.end.label, found.end.decision, taken)
}

#[test]
fn the_table_says_something_about_every_combination() {
    let rows = [
        // seen, then (acknowledged, survivors): (no, no), (no, yes), (yes, no), (yes, yes)
        (Seen::Next, "AAAA"),
        (Seen::NextTorn, "FJBB"),
        (Seen::Blank, "DHBB"),
        (Seen::Stale, "EIBB"),
        (Seen::Garbage, "GJBB"),
        (Seen::Unreadable, "CCBB"),
    ];
    let mut reached = String::new();
    for (seen, labels) in rows {
        let cases = [(false, false), (false, true), (true, false), (true, true)];
        for ((acknowledged, survivors), label) in cases.into_iter().zip(labels.chars()) {
            let case = decide(seen, acknowledged, survivors);
            assert_eq!(case.label, label, "{seen:?} {acknowledged} {survivors}");
            reached.push(label);
            let lossless = case.decision != Decision::Damaged;
            assert!(
                !(acknowledged && seen != Seen::Next && lossless),
                "what was acknowledged is never cut"
            );
        }
    }
    for (index, case) in CASES.iter().enumerate() {
        assert!(reached.contains(case.label), "row {} is dead", case.label);
        assert!(CASES[..index].iter().all(|c| c.label != case.label));
    }
}

#[test]
fn a_blank_ring_is_an_empty_log() {
    let found = scanned(&superblock(), &mut Disk::blank());
    assert_eq!(verdict(&found, &[]), ('D', Decision::End, 0));
    assert_eq!(end_of(&found), RecordId::NONE);
    assert!(!found.demoted && found.parts.epochs.is_empty() && found.parts.configs.is_empty());
}

#[test]
fn a_clean_end_loses_nothing() {
    let log = six();
    for applied in [None, Some(0), Some(3), Some(5)] {
        for acked in [None, Some(5)] {
            let found = scanned(&node(&log, applied, acked), &mut Disk::with(&log));
            assert_eq!(verdict(&found, &log), ('D', Decision::End, 6));
            assert_eq!(found.damaged_until, RecordId::NONE);
            assert_eq!(found.parts.entries.len(), 6);
            assert_eq!(found.parts.applied_entries, applied.map_or(0, |a| a + 1));
            assert_eq!(found.parts.start, Tail::default());
            assert_eq!(found.parts.epochs[..], [log[0].header.last_id()]);
            let configs: Vec<_> = found.parts.configs.iter().map(|c| c.at).collect();
            assert_eq!(configs, [log[0].header.last_id()]);
            let unapplied = log[applied.map_or(0, |a| a + 1)..].iter();
            let records: Vec<_> = unapplied
                .flat_map(|m| descriptors(&m.bytes, &m.header).flatten())
                .collect();
            assert_eq!(found.parts.descriptors, records);
        }
    }
}

#[test]
fn the_committed_floor_is_the_greatest_that_anything_says() {
    let mut chain = Chain::new();
    let mut log = vec![chain.epoch(1), chain.write(1)];
    chain.committed = Seq(2);
    log.push(chain.write(1));
    let found = scanned(&superblock(), &mut Disk::with(&log));
    assert_eq!(found.committed, Seq(2));

    let mut superblock = node(&log, Some(0), Some(2));
    assert_eq!(
        scanned(&superblock, &mut Disk::with(&log)).committed,
        Seq(2)
    );
    superblock.committed = Seq(3);
    assert_eq!(
        scanned(&superblock, &mut Disk::with(&log)).committed,
        Seq(3)
    );
    // A floor beyond the log that is left is of no use.
    let found = scanned(&superblock, &mut Disk::with(&log[..2]));
    assert_eq!(
        (found.committed, found.end.decision),
        (Seq(2), Decision::Damaged)
    );
}

#[test]
fn a_demotion_is_known_when_it_is_the_end_and_committed() {
    let mut chain = Chain::new();
    let mut log = vec![chain.epoch(1), chain.write(1), chain.demote()];
    let mut superblock = node(&log, Some(1), Some(2));
    assert!(!scanned(&superblock, &mut Disk::with(&log)).demoted);
    superblock.committed = Seq(3);
    assert!(scanned(&superblock, &mut Disk::with(&log)).demoted);
    // Also when the stores have it already.
    let drained = node(&log, Some(2), Some(2));
    assert!(scanned(&drained, &mut Disk::with(&log)).demoted);
    // Not when somebody was promoted after it.
    log.push(chain.epoch(2));
    assert!(!scanned(&drained, &mut Disk::with(&log)).demoted);
    superblock.committed = Seq(4);
    assert!(!scanned(&superblock, &mut Disk::with(&log)).demoted);
}

/// What a crash leaves of the last batch if it got through this far, over zeroes and over old bytes.
#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let log = six();
    let last = &log[5];
    for old in [0, 0xaa] {
        let mut blank = Disk::with(&log[..5]);
        blank.put_at(last.position, &vec![old; last.bytes.len()]);
        let superblock = node(&log, Some(1), Some(4));
        for sectors in 0..=last.bytes.len() / 512 {
            let mut disk = blank.clone();
            disk.put_at(last.position, &last.bytes[..sectors * 512]);
            let expected = match (old, sectors) {
                (_, 40) => ('D', Decision::End, 6),
                (0, 0) => ('D', Decision::End, 5),
                (0, _) | (_, 8..) => ('F', Decision::Cut, 5),
                _ => ('G', Decision::Cut, 5),
            };
            let found = scanned(&superblock, &mut disk);
            assert_eq!(verdict(&found, &log), expected, "{old} {sectors}");
            assert_eq!(found.damaged_until, RecordId::NONE);
        }
        // The other way round: the end is there, the beginning is not.
        for sectors in 1..last.bytes.len() / 512 {
            let mut disk = Disk::with(&log);
            disk.put_at(last.position, &vec![0x55; sectors * 512]);
            let found = scanned(&superblock, &mut disk);
            assert_eq!(verdict(&found, &log), ('G', Decision::Cut, 5));
        }
    }
}

#[test]
fn a_torn_write_that_was_acknowledged_is_damage() {
    let log = six();
    let mut disk = Disk::with(&log[..5]);
    let found = scanned(&node(&log, Some(1), Some(5)), &mut disk);
    assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, 5));
    assert_eq!(found.damaged_until, log[5].header.last_id());
}

#[test]
fn an_acknowledged_record_is_missed_behind_the_uncut_tail_of_an_older_epoch() {
    // Batches 4 and 5 of epoch 1 were cut for two of epoch 2, which were acknowledged and which the disk has lost: the older
    // ones are still there, chained, and as long.
    let mut chain = Chain::new();
    let old = log_of(&mut chain);
    let mut lost = chain.clone();
    (lost.tail, lost.epoch) = (old[3].tail(), Epoch(2));
    let lost = [lost.epoch(2), lost.write(2)];
    assert_eq!(lost[1].header.last(), old[5].header.last());
    for acked in &lost {
        let mut superblock = node(&old, Some(1), None);
        superblock.acked = acked.header.last_id();
        superblock.committed = superblock.acked.seq;
        let found = scanned(&superblock, &mut Disk::with(&old));
        assert_eq!(verdict(&found, &old), ('B', Decision::Damaged, 6));
        assert_eq!(found.damaged_until, acked.header.last_id());
        // It is those that were committed, and not the ones with their numbers.
        assert_eq!(found.committed, superblock.applied.id.seq);
    }
}

#[test]
fn rot_below_what_was_acknowledged_is_damage() {
    let log = six();
    let acked = node(&log, Some(1), Some(4));
    for (batch, byte) in [
        (2, 0),
        (2, 100),
        (2, 5000),
        (3, 0),
        (3, 4100),
        (4, 20),
        (4, 8191),
    ] {
        let mut disk = Disk::with(&log);
        let place = log[batch].position + byte as u64 / BLOCK_BYTES_U64;
        disk.block(place)[byte % BLOCK_BYTES] ^= 0x10;
        let found = scanned(&acked, &mut disk);
        assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, batch));
        // What is still there behind the damage may have been acknowledged too.
        assert_eq!(found.damaged_until, log[5].header.last_id());
    }
}

#[test]
fn damage_lasts_until_the_log_reaches_beyond_it() {
    let log = six();
    let mut superblock = node(&log, Some(1), Some(4));
    superblock.damaged_until = log[4].header.last_id();
    let found = scanned(&superblock, &mut Disk::with(&log[..4]));
    assert_eq!(found.damaged_until, log[4].header.last_id());
    // Nothing at the end proves it, and still it is remembered.
    superblock.acked = log[2].header.last_id();
    let found = scanned(&superblock, &mut Disk::with(&log[..4]));
    assert_eq!(verdict(&found, &log), ('D', Decision::End, 4));
    assert_eq!(found.damaged_until, log[4].header.last_id());
    let found = scanned(&superblock, &mut Disk::with(&log[..5]));
    assert_eq!(found.damaged_until, RecordId::NONE);
    // An earlier damage that reached further counts on.
    superblock.damaged_until.seq = Seq(50);
    let mut disk = Disk::with(&log);
    disk.block(log[2].position)[9] ^= 1;
    let found = scanned(&superblock, &mut disk);
    assert_eq!(found.damaged_until.seq, Seq(50));
}

#[test]
fn a_hole_among_writes_in_flight_is_cut() {
    let log = six();
    let superblock = node(&log, Some(0), Some(2));
    let mut disk = Disk::with(log.iter().filter(|m| m.header.first != Seq(4)));
    let found = scanned(&superblock, &mut disk);
    assert_eq!(verdict(&found, &log), ('H', Decision::Cut, 3));
    assert_eq!(found.damaged_until, RecordId::NONE);

    disk.put_at(log[3].position, &log[3].bytes[..512]);
    let found = scanned(&superblock, &mut disk);
    assert_eq!(verdict(&found, &log), ('J', Decision::Cut, 3));
    disk.put_at(log[3].position, &log[1].bytes);
    let found = scanned(&superblock, &mut disk);
    assert_eq!(verdict(&found, &log), ('I', Decision::Cut, 3));
    disk.block(log[3].position).fill(7);
    let found = scanned(&superblock, &mut disk);
    assert_eq!(verdict(&found, &log), ('J', Decision::Cut, 3));
}

#[test]
fn a_floor_known_to_a_batch_in_flight_proves_nothing_of_this_disk() {
    let mut chain = Chain::new();
    let mut log = vec![chain.epoch(1), chain.write(1), chain.write(1)];
    chain.committed = Seq(2);
    log.push(chain.write(1));
    let superblock = node(&log, Some(0), Some(0));
    let mut disk = Disk::with([&log[0], &log[2], &log[3]]);
    let found = scanned(&superblock, &mut disk);
    // The peers committed record 2; this node may never have had it durable, nor said so.
    assert_eq!(verdict(&found, &log), ('H', Decision::Cut, 1));
    let mut disk = Disk::with([&log[0], &log[1], &log[3]]);
    let found = scanned(&superblock, &mut disk);
    assert_eq!(verdict(&found, &log), ('H', Decision::Cut, 2));
}

#[test]
fn a_hole_that_was_durable_before_a_later_batch_began_is_damage() {
    let mut chain = Chain::new();
    let mut log = vec![chain.epoch(1)];
    while chain.tail.position < 2 + INFLIGHT_BLOCKS_MAX {
        log.push(chain.write(200));
    }
    let superblock = node(&log, Some(0), Some(0));
    let found = scanned(
        &superblock,
        &mut Disk::with([&log[0]].into_iter().chain(&log[2..])),
    );
    assert_eq!(
        verdict(&found, &log),
        ('H', Decision::Cut, 1),
        "all of it fits in flight"
    );
    log.push(chain.write(1));
    let found = scanned(
        &superblock,
        &mut Disk::with([&log[0]].into_iter().chain(&log[2..])),
    );
    assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, 1));
    assert_eq!(found.damaged_until, chain.tail.id);
}

/// Batches until the ring was overwritten once and `blocks` more.
fn more_than_a_lap(chain: &mut Chain, blocks: u64) -> Vec<Made> {
    let mut log = vec![chain.epoch(1)];
    while chain.tail.position < RING_BLOCKS + blocks {
        log.push(chain.write(1 + (chain.tail.id.seq.0 % 23) as u32));
    }
    log
}

#[test]
fn bytes_of_an_earlier_lap_end_the_log() {
    // Behind the end there is a batch of the first lap, then the middle of one.
    for (blocks, expected) in [(2, 'E'), (1, 'G')] {
        let mut chain = Chain::new();
        let mut log = vec![chain.epoch(1), chain.write(3)];
        while chain.tail.position < RING_BLOCKS {
            let room = RING_BLOCKS - chain.tail.position;
            log.push(chain.write(if room > 100 {
                99
            } else {
                u32::try_from(room).unwrap() - 1
            }));
        }
        let lap = log.len();
        log.push(chain.write(blocks - 1 + 4));
        let (end, again) = (log[lap].clone(), log[1].clone());
        assert_eq!(end.position, RING_BLOCKS);
        let mut disk = Disk::with(&log);
        if expected == 'E' {
            disk.put_at(end.end(), &again.bytes);
        }
        let found = scanned(&node(&log, Some(lap - 1), None), &mut disk);
        let decision = if expected == 'E' {
            Decision::End
        } else {
            Decision::Cut
        };
        assert_eq!(verdict(&found, &log), (expected, decision, lap + 1));
        assert_eq!(found.damaged_until, RecordId::NONE);
    }
}

#[test]
fn the_cut_tail_of_an_older_epoch_is_not_the_log() {
    let mut chain = Chain::new();
    let mut log = log_of(&mut chain);
    log.extend([chain.write(1), chain.write(1)]);
    let old = Disk::with(&log);
    let mut newer = chain.clone();
    newer.tail = log[3].tail();
    log.truncate(4);
    // Behind the new end begins a batch of the cut tail, or the middle of one; others follow.
    log.push(newer.epoch(2));
    for (label, decision) in [('E', Decision::End), ('G', Decision::Cut)] {
        if label == 'G' {
            log.push(newer.write(1));
        }
        let mut disk = old.clone();
        log[4..].iter().for_each(|made| disk.put(made));
        let found = scanned(&node(&log, Some(1), None), &mut disk);
        assert_eq!(verdict(&found, &log), (label, decision, log.len()));
        assert_eq!(found.damaged_until, RecordId::NONE);
        let epochs = found.parts.epochs.iter().map(|e| (e.epoch.0, e.seq.0));
        assert!(epochs.eq([(1, 1), (2, 5)]));
    }
}

#[test]
fn a_batch_with_the_right_name_and_another_past_is_not_taken() {
    let log = six();
    let mut other = Chain::new();
    other.tail = log[3].tail();
    other.tail.checksum ^= 1;
    let mut disk = Disk::with(&log[..4]);
    disk.put(&other.write(1));
    let found = scanned(&node(&log, Some(1), Some(3)), &mut disk);
    assert_eq!(verdict(&found, &log), ('E', Decision::End, 4));
}

#[test]
fn a_batch_that_went_astray_is_not_taken() {
    let log = six();
    // Batch 3 was written where batch 4 belongs, and its own place kept what it had.
    let mut disk = Disk::with(&log[..3]);
    disk.put_at(log[4].position, &log[3].bytes);
    let found = scanned(&node(&log, Some(1), Some(3)), &mut disk);
    assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, 3));
    assert_eq!(found.damaged_until, log[3].header.last_id());
    let found = scanned(&node(&log, Some(1), Some(2)), &mut disk);
    assert_eq!(verdict(&found, &log), ('D', Decision::End, 3));
}

#[test]
fn the_batches_of_another_resource_or_history_are_not_the_log() {
    let log = six();
    for (uuid, history) in [(99, 0), (0, 99)] {
        let mut foreign = Chain::new();
        foreign.uuid.0 += uuid;
        foreign.history.0 += history;
        let theirs = log_of(&mut foreign);
        let found = scanned(&superblock(), &mut Disk::with(&theirs));
        assert_eq!(verdict(&found, &log), ('E', Decision::End, 0));
        // Chained to one of ours it is not ours either, nor does it prove that ours went on.
        let mut disk = Disk::with(&log[..4]);
        foreign.tail = log[3].tail();
        disk.put(&foreign.write(1));
        disk.put(&foreign.write(1));
        let found = scanned(&node(&log, Some(1), None), &mut disk);
        assert_eq!(verdict(&found, &log), ('E', Decision::End, 4));
    }
}

#[test]
fn a_log_goes_on_across_the_end_of_the_ring() {
    for before in 1..12 {
        let mut chain = Chain::at(3 * RING_BLOCKS - before);
        let log = log_of(&mut chain);
        let mut disk = Disk::with(&log);
        let mut superblock = superblock();
        superblock.applied.position = log[0].position;
        let found = scanned(&superblock, &mut disk);
        assert_eq!(verdict(&found, &log), ('D', Decision::End, 6));
        for applied in 0..6 {
            let found = scanned(&node(&log, Some(applied), Some(5)), &mut disk);
            assert_eq!(verdict(&found, &log), ('D', Decision::End, 6));
            assert_eq!(found.parts.applied_entries, applied + 1);
        }
    }
}

#[test]
fn what_can_not_be_read_is_damage() {
    let log = six();
    let blocks: Range<u64> = log[2].position..log[3].end();
    for block in blocks {
        let mut disk = Disk::with(&log);
        disk.unreadable.insert(LABEL_BLOCKS + block);
        let taken = if block < log[3].position { 2 } else { 3 };
        let found = scanned(&node(&log, Some(0), Some(0)), &mut disk);
        assert_eq!(verdict(&found, &log), ('C', Decision::Damaged, taken));
        assert_eq!(found.seen, Seen::Unreadable);
        assert_eq!(found.damaged_until, log[5].header.last_id());
        let found = scanned(&node(&log, Some(0), Some(5)), &mut disk);
        assert_eq!(verdict(&found, &log), ('B', Decision::Damaged, taken));
    }
}

#[test]
fn a_fault_past_the_end_hides_nothing_and_costs_few_reads() {
    let log = six();
    for distance in [1, 2, 3, 100, 900, 3000] {
        let mut disk = Disk::with(&log);
        disk.unreadable
            .insert(LABEL_BLOCKS + log[5].end() + distance);
        let found = scanned(&node(&log, Some(1), Some(5)), &mut disk);
        assert_eq!(verdict(&found, &log), ('D', Decision::End, 6));
        assert!(disk.reads < 6000, "{} reads", disk.reads);
    }
    // A disk that gives nothing at all is not asked for every block of the ring.
    let mut disk = Disk::with(&log);
    disk.unreadable.extend(0..=RING_BLOCKS);
    let found = scanned(&node(&log, Some(1), Some(1)), &mut disk);
    assert_eq!(found.end.decision, Decision::Damaged);
    assert!(disk.reads < 400, "{} reads", disk.reads);
}

#[test]
fn history_reaches_back_as_far_as_the_ring_holds_it() {
    for more in [0, 1, 40, 2000] {
        let mut chain = Chain::new();
        let log = more_than_a_lap(&mut chain, more);
        let mut disk = Disk::with(&log);
        let floor = log.len() - 5;
        let found = scanned(&node(&log, Some(floor), Some(floor)), &mut disk);
        assert_eq!(end_of(&found), chain.tail.id);
        let oldest = found.parts.start.position;
        let whole = log
            .iter()
            .find(|m| m.position + RING_BLOCKS >= chain.tail.position);
        assert_eq!(oldest, whole.unwrap().position);
        assert!(disk.reads < 50, "{} reads", disk.reads);
    }
}

#[test]
fn history_ends_where_a_write_past_the_end_took_a_payload() {
    let mut chain = Chain::new();
    let log = more_than_a_lap(&mut chain, 100);
    let mut disk = Disk::with(&log);
    let superblock = node(&log, Some(log.len() - 2), None);
    let before = scanned(&superblock, &mut disk).parts.start.position;
    let hit = log
        .iter()
        .find(|m| m.position > before + 300 && m.blocks() > 2)
        .unwrap();
    disk.block(hit.position + 1).fill(3);
    let found = scanned(&superblock, &mut disk);
    assert_eq!(found.parts.start.position, hit.end());
    assert_eq!(end_of(&found), chain.tail.id);
}

#[test]
fn a_chain_of_many_epochs_keeps_the_newest() {
    let mut chain = Chain::new();
    let mut log: Vec<_> = (1..=70).map(|epoch| chain.epoch(epoch)).collect();
    log.push(chain.make(&[(
        Kind::Zero {
            may_deallocate: true,
        },
        0,
        5,
        9,
    )]));
    let found = scanned(&superblock(), &mut Disk::with(&log));
    let epochs: Vec<_> = found.parts.epochs.iter().map(|e| e.epoch.0).collect();
    assert_eq!(epochs, (7..=70).collect::<Vec<_>>());
    assert_eq!(found.parts.configs.len(), 70);
}
