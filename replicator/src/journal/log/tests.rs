use proptest::prelude::*;

use super::*;
use crate::journal::batch::{DESCRIPTORS_MAX, descriptors};
use crate::journal::testing::{Chain, Made, RING_BLOCKS};

mod model;

fn empty(ring_blocks: u64, descriptors_max: usize) -> Log<u64> {
    let parts = LogParts {
        ring_blocks,
        start: Tail::default(),
        entries: Vec::new(),
        applied_entries: 0,
        applied: AppliedFloor::default(),
        descriptors: Vec::new(),
        epochs: EpochHistory::new(),
        configs: Vec::new(),
        tables: vec![TableAt::default()],
    };
    Log::new(parts, descriptors_max)
}

fn add(log: &mut Log<u64>, made: &Made) -> u64 {
    let records: Vec<_> = descriptors(&made.bytes, &made.header).flatten().collect();
    let config = crate::journal::batch::config_of(&made.bytes, &made.header);
    let buffer = made.header.first.0;
    log.append(&made.header, records.into_iter(), config, buffer)
}

fn id(epoch: u64, seq: u64) -> RecordId {
    RecordId {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    }
}

fn history(firsts: &[(u64, u64)]) -> EpochHistory {
    firsts.iter().map(|&(epoch, seq)| id(epoch, seq)).collect()
}

#[test]
fn places_follow_each_other() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    assert_eq!(log.tail(), Tail::default());
    for (number, blocks) in (1..).zip([1, 5, 384]) {
        let made = chain.write(blocks);
        assert_eq!(add(&mut log, &made), number - 1);
        assert_eq!(log.tail(), chain.tail);
        assert_eq!(log.next_number(), number);
        assert_eq!(log.tail_before(number), chain.tail);
    }
    assert_eq!(log.tail_before(0), Tail::default());
    assert_eq!(log.used_bytes(), (3 + 390) * BLOCK_BYTES_U64);
    assert_eq!(log.ring_bytes(), RING_BLOCKS * BLOCK_BYTES_U64);
}

#[test]
fn a_record_is_found_in_its_batch() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    let write = (crate::journal::batch::Kind::Write, 0, 3, 1);
    for records in [1, 3, 2] {
        let made = chain.make(&vec![write; records]);
        add(&mut log, &made);
    }
    let found: Vec<_> = (0..8).map(|seq| log.number_of(Seq(seq))).collect();
    let expected = [
        None,
        Some(0),
        Some(1),
        Some(1),
        Some(1),
        Some(2),
        Some(2),
        None,
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_batch_across_the_end_of_the_ring_has_two_parts() {
    let log = empty(100, 10);
    let byte = |block: u64| (LABEL_BLOCKS + block) * BLOCK_BYTES_U64;
    let parts = |position, blocks| log.ring_parts(position, blocks).collect::<Vec<_>>();
    assert_eq!(parts(0, 1), [(byte(0), 0, 1)]);
    assert_eq!(parts(95, 5), [(byte(95), 0, 5)]);
    assert_eq!(parts(95, 6), [(byte(95), 0, 5), (byte(0), 5, 1)]);
    assert_eq!(parts(299, 3), [(byte(99), 0, 1), (byte(0), 1, 2)]);
    assert_eq!(parts(300, 100), [(byte(0), 0, 100)]);
}

#[test]
fn there_is_room_for_what_recovery_does_not_need() {
    let mut log = empty(100, 3);
    let mut chain = Chain::new();
    assert!(log.has_room(100, 1, 0) && !log.has_room(101, 1, 0));
    assert!(log.has_room(36, 1, 64) && !log.has_room(37, 1, 64));
    assert!(log.has_room(1, 3, 0) && !log.has_room(1, 4, 0));
    for _ in 0..2 {
        add(&mut log, &chain.write(44));
    }
    assert!(log.has_room(10, 1, 0) && !log.has_room(11, 1, 0));
    log.set_durable(2);
    log.set_applied(1);
    // Applied, but a crash would still begin before it.
    assert!(!log.has_room(11, 1, 0));
    let floor = log.applied_floor();
    assert_eq!(floor.position, 45);
    log.set_floor_position(floor.position);
    assert!(log.has_room(55, 1, 0) && !log.has_room(56, 1, 0));
    // The batch that the new one overwrites is no longer in the log.
    add(&mut log, &chain.write(54));
    assert_eq!((log.first_number(), log.start().position), (1, 45));
    assert_eq!(log.entry(0).map(|e| e.position), None);
    assert_eq!(log.number_of(Seq(1)), None);
}

/// Batches of one block fill the list of batches before they fill the ring.
#[test]
fn many_small_batches_wait_until_a_crash_needs_the_oldest_no_longer() {
    let mut log = empty(RING_BLOCKS, 1 << 20);
    let mut chain = Chain::new();
    let zero = crate::journal::batch::Kind::Zero {
        may_deallocate: true,
    };
    let mut batches = 0;
    while log.has_room(1, 1, CONTROL_RESERVE_BLOCKS) {
        add(&mut log, &chain.make(&[(zero, 0, 0, 1)]));
        batches += 1;
    }
    assert_eq!(batches, RING_BLOCKS / 2);
    log.set_durable(batches);
    log.set_applied(batches);
    assert!(!log.has_room(1, 1, 0), "the superblock does not say so yet");
    log.set_floor_position(log.applied_floor().position);
    assert!(log.has_room(1, 1, 0));
    add(&mut log, &chain.make(&[(zero, 0, 0, 1)]));
    assert_eq!(log.first_number(), 1);
}

#[test]
fn a_cut_takes_epochs_configs_and_records_with_it() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    for made in [
        chain.epoch(1),
        chain.write(2),
        chain.epoch(2),
        chain.write(1),
        chain.epoch(4),
    ] {
        add(&mut log, &made);
    }
    log.set_durable(5);
    log.set_applied(1);
    assert_eq!(log.unapplied().len(), 4);
    assert!(log.contains(id(4, 5)) && log.contains(id(2, 3)) && !log.contains(id(2, 5)));
    log.cut_after(Seq(5));
    assert_eq!(log.tail().id, id(4, 5));
    log.cut_after(Seq(3));
    assert_eq!(log.tail().id, id(2, 3));
    assert_eq!(log.epochs()[..], history(&[(1, 1), (2, 3)])[..]);
    assert_eq!(log.configs().len(), 2);
    assert_eq!(log.unapplied().len(), 2);
    assert_eq!((log.durable_number(), log.durable_id()), (3, id(2, 3)));
    assert!(!log.contains(id(2, 4)) && !log.contains(id(4, 5)));
    log.cut_after(Seq(1));
    assert_eq!(log.tail().id, id(1, 1));
    assert_eq!(log.config().map(|c| c.at), Some(id(1, 1)));
    // What comes next takes the place and the number of what was cut.
    chain.tail = log.tail();
    assert_eq!(add(&mut log, &chain.epoch(5)), 1);
    assert_eq!(log.entry(1).map(|e| e.position), Some(2));
}

#[test]
#[should_panic(expected = "what is applied is never cut")]
fn what_is_applied_is_never_cut() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    add(&mut log, &chain.write(1));
    log.set_durable(1);
    log.set_applied(1);
    log.cut_after(Seq(0));
}

#[test]
#[should_panic(expected = "a batch is cut as a whole")]
fn a_batch_is_never_cut_in_two() {
    let mut log = empty(RING_BLOCKS, 100);
    let write = (crate::journal::batch::Kind::Write, 0, 3, 1);
    add(&mut log, &Chain::new().make(&[write; 3]));
    log.cut_after(Seq(2));
}

#[test]
#[should_panic(expected = "a batch is chained to the one before it")]
fn a_batch_with_the_name_of_the_next_and_another_past_is_not_taken() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    add(&mut log, &chain.write(1));
    chain.tail.checksum ^= 1;
    add(&mut log, &chain.write(1));
}

#[test]
fn the_config_at_a_floor_is_the_last_one_below() {
    let mut log = empty(RING_BLOCKS, 100);
    let mut chain = Chain::new();
    assert_eq!(log.config_at(Seq(0)), None);
    for made in [
        chain.epoch(1),
        chain.write(2),
        chain.epoch(2),
        chain.write(1),
    ] {
        add(&mut log, &made);
    }
    let at = |log: &Log<u64>, seq| log.config_at(Seq(seq)).map(|c| c.at.seq.0);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|seq| at(&log, seq)),
        [None, Some(1), Some(1), Some(3), Some(3)],
        "a config counts from its record on"
    );
    assert_eq!(log.epochs_until(Seq(2))[..], history(&[(1, 1)])[..]);
    log.set_durable(4);
    log.set_applied(2);
    assert_eq!(log.configs().len(), 2);
    log.set_applied(3);
    assert_eq!(log.configs().len(), 1);
    assert_eq!(at(&log, 3), Some(3));
}

/// Protocol C1, with the ends that its wording is about.
#[test]
fn the_last_common_record_is_in_the_newest_shared_epoch_at_its_nearer_end() {
    /// The first records of its epochs, and its tail.
    type Side = (&'static [(u64, u64)], (u64, u64));
    type Row = (Side, Side, Option<(u64, u64)>);
    let table: [Row; 10] = [
        // Equal, behind, ahead.
        ((&[(1, 1)], (1, 9)), (&[(1, 1)], (1, 9)), Some((1, 9))),
        ((&[(1, 1)], (1, 9)), (&[(1, 1)], (1, 5)), Some((1, 5))),
        ((&[(1, 1)], (1, 5)), (&[(1, 1)], (1, 9)), Some((1, 5))),
        // A tail that a newer epoch left out.
        (
            (&[(1, 1), (2, 6)], (2, 8)),
            (&[(1, 1)], (1, 9)),
            Some((1, 5)),
        ),
        // Behind by an epoch.
        (
            (&[(1, 1), (2, 6)], (2, 8)),
            (&[(1, 1)], (1, 3)),
            Some((1, 3)),
        ),
        // Both went on from the same record in epochs of their own.
        (
            (&[(1, 1), (3, 6)], (3, 8)),
            (&[(1, 1), (2, 4)], (2, 20)),
            Some((1, 3)),
        ),
        // The newest shared epoch is not the newest of either.
        (
            (&[(1, 1), (2, 4), (5, 9)], (5, 9)),
            (&[(1, 1), (2, 4), (3, 7)], (3, 8)),
            Some((2, 6)),
        ),
        // An epoch of the same number that began elsewhere is not the same.
        (
            (&[(1, 1), (2, 4)], (2, 9)),
            (&[(1, 1), (2, 5)], (2, 9)),
            Some((1, 3)),
        ),
        // Nothing in common.
        ((&[(2, 4)], (2, 9)), (&[(3, 4)], (3, 9)), None),
        ((&[], (0, 0)), (&[(1, 1)], (1, 9)), None),
    ];
    for (index, (mine, theirs, expected)) in table.into_iter().enumerate() {
        let (a, b) = (history(mine.0), history(theirs.0));
        let (a_tail, b_tail) = (id(mine.1.0, mine.1.1), id(theirs.1.0, theirs.1.1));
        let expected = expected.map(|(epoch, seq)| id(epoch, seq));
        assert_eq!(last_common(&a, a_tail, &b, b_tail), expected, "row {index}");
        assert_eq!(last_common(&b, b_tail, &a, a_tail), expected, "row {index}");
    }
}

/// A log as a list of the epochs of its records.
fn history_of(records: &[u64]) -> (EpochHistory, RecordId) {
    let mut history = EpochHistory::new();
    for (seq, &epoch) in (1..).zip(records) {
        if history.last().is_none_or(|last| last.epoch.0 < epoch) {
            history.push(id(epoch, seq));
        }
    }
    let tail = records
        .last()
        .map_or(RecordId::NONE, |&epoch| id(epoch, records.len() as u64));
    (history, tail)
}

proptest! {
    /// Logs as the protocol makes them: each epoch's Primary goes on from some prefix of an earlier one's log.
    #[test]
    fn two_logs_are_equal_up_to_the_last_common_record(
        reigns in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..5), 1..12),
        ends in any::<[(prop::sample::Index, prop::sample::Index); 2]>(),
    ) {
        let mut logs: Vec<Vec<u64>> = vec![Vec::new()];
        for (epoch, (from, cut, records)) in (1..).zip(reigns) {
            let from = &logs[from.index(logs.len())];
            let mut log = from[..cut.index(from.len() + 1)].to_vec();
            log.resize(log.len() + records, epoch);
            logs.push(log);
        }
        let [mine, theirs] = ends.map(|(log, cut)| {
            let log = &logs[log.index(logs.len())];
            &log[..cut.index(log.len() + 1)]
        });
        let same = mine.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let expected = same.checked_sub(1).map(|last| id(mine[last], same as u64));
        let ((a, a_tail), (b, b_tail)) = (history_of(mine), history_of(theirs));
        prop_assert_eq!(last_common(&a, a_tail, &b, b_tail), expected);
    }
}
