//! The oracle accepts what a correct device may do, and nothing else.

use super::*;

const SIZE: u64 = 1 << 20;

fn stamp(counter: u64) -> Content {
    Content::Written(Stamp { stream: 1, counter })
}

/// A device in memory that does what it is told, and the oracle beside it.
struct Pair {
    device: Vec<u8>,
    oracle: Oracle,
}

impl Pair {
    fn new() -> Self {
        Self {
            device: vec![0; SIZE as usize],
            oracle: Oracle::new(SIZE),
        }
    }

    fn put(&mut self, range: Range<u64>, content: Content) {
        let slice = &mut self.device[range.start as usize..range.end as usize];
        match content {
            Content::Zeroes => slice.fill(0),
            Content::Written(stamp) => stamp.fill(range.start, slice),
        }
    }

    fn write(&mut self, range: Range<u64>, content: Content) {
        let id = self.oracle.begin(range.clone(), content);
        self.put(range.clone(), content);
        self.oracle.acknowledge(range, id);
    }

    fn losses(&mut self) -> Vec<Loss> {
        let device = std::mem::take(&mut self.device);
        let losses = self.oracle.settle(0, &device);
        self.device = device;
        losses
    }
}

#[test]
fn bytes_follow_from_the_stamp_and_the_place() {
    let stamp = Stamp {
        stream: 3,
        counter: 77,
    };
    let mut whole = vec![0; 1000];
    stamp.fill(4093, &mut whole);
    assert!(stamp.matches(4093, &whole));
    for (from, to) in [(0, 1000), (1, 999), (7, 8), (13, 14), (500, 777)] {
        let mut part = vec![0; to - from];
        stamp.fill(4093 + from as u64, &mut part);
        assert_eq!(part, whole[from..to]);
    }
    whole[999] ^= 1;
    assert!(!stamp.matches(4093, &whole));
    whole[999] ^= 1;
    assert!(
        !Stamp {
            stream: 3,
            counter: 78
        }
        .matches(4093, &whole)
    );
    assert!(
        !Stamp {
            stream: 4,
            counter: 77
        }
        .matches(4093, &whole)
    );
}

#[test]
fn an_untouched_volume_is_zeroes() {
    let mut pair = Pair::new();
    assert_eq!(pair.losses(), []);
    pair.device[70_000] = 1;
    assert_eq!(pair.losses().len(), 1);
}

#[test]
fn acknowledged_writes_are_found_and_a_planted_lost_write_is_detected() {
    let mut pair = Pair::new();
    for i in 0..100 {
        let start = i * 9973;
        pair.write(start..start + 100 + i * 7, stamp(i));
    }
    assert_eq!(pair.losses(), []);
    // Write 100 is acknowledged, and the device forgets it.
    let id = pair.oracle.begin(5000..5300, stamp(100));
    pair.oracle.acknowledge(5000..5300, id);
    let losses = pair.losses();
    assert_eq!(losses.iter().map(|loss| loss.length).sum::<u64>(), 300);
    assert!(losses.iter().all(|loss| loss.legal == [stamp(100)]));
    assert_eq!(losses[0].offset, 5000);
}

#[test]
fn a_taken_back_write_is_named_as_stale() {
    let mut pair = Pair::new();
    pair.write(0..8192, stamp(1));
    pair.write(0..8192, stamp(2));
    pair.put(0..8192, stamp(1));
    let losses = pair.losses();
    assert_eq!(losses.len(), 1);
    assert_eq!(losses[0].found, Found::Stale(stamp(1)));
}

#[test]
fn a_write_in_flight_may_have_happened_or_not() {
    for happened in [false, true] {
        let mut pair = Pair::new();
        pair.write(0..4096, stamp(1));
        pair.oracle.begin(0..4096, stamp(2));
        if happened {
            pair.put(0..4096, stamp(2));
        }
        pair.oracle.give_up_all();
        assert_eq!(pair.losses(), []);
    }
}

#[test]
fn an_unanswered_write_may_be_torn_between_blocks_but_not_inside_one() {
    let mut pair = Pair::new();
    let id = pair.oracle.begin(1000..20_000, stamp(1));
    pair.oracle.give_up(1000..20_000, id);
    pair.put(4096..8192, stamp(1));
    pair.put(16384..20_000, stamp(1));
    assert_eq!(pair.losses(), []);

    let mut pair = Pair::new();
    let id = pair.oracle.begin(1000..20_000, stamp(1));
    pair.oracle.give_up(1000..20_000, id);
    pair.put(4096..6000, stamp(1));
    assert_eq!(pair.losses().len(), 1);
}

#[test]
fn what_was_read_once_has_to_stay() {
    let mut pair = Pair::new();
    pair.write(0..4096, stamp(1));
    let id = pair.oracle.begin(0..4096, stamp(2));
    pair.oracle.give_up(0..4096, id);
    assert_eq!(pair.oracle.undecided(), 1);
    assert_eq!(pair.losses(), []);
    assert_eq!(pair.oracle.undecided(), 0);
    // The unanswered write arrives after all.
    pair.put(0..4096, stamp(2));
    assert_eq!(pair.losses().len(), 1);
}

#[test]
fn writes_that_overlap_in_time_may_end_in_any_order() {
    for last in [1, 2] {
        let mut pair = Pair::new();
        let first = pair.oracle.begin(0..8192, stamp(1));
        let second = pair.oracle.begin(0..8192, stamp(2));
        pair.oracle.acknowledge(0..8192, second);
        pair.oracle.acknowledge(0..8192, first);
        pair.put(0..8192, stamp(last));
        assert_eq!(pair.losses(), []);
    }
    // But neither may be missing.
    let mut pair = Pair::new();
    let first = pair.oracle.begin(0..8192, stamp(1));
    let second = pair.oracle.begin(0..8192, stamp(2));
    pair.oracle.acknowledge(0..8192, first);
    pair.oracle.acknowledge(0..8192, second);
    assert_eq!(pair.losses().len(), 2);
}

#[test]
fn an_acknowledged_write_survives_a_later_one_that_failed() {
    let mut pair = Pair::new();
    pair.write(0..4096, stamp(1));
    let id = pair.oracle.begin(0..4096, stamp(2));
    pair.oracle.give_up(0..4096, id);
    pair.put(0..4096, Content::Zeroes);
    assert_eq!(pair.losses().len(), 1);
}

#[test]
fn zeroes_are_a_content() {
    let mut pair = Pair::new();
    pair.write(0..65536, stamp(1));
    pair.write(4096..8192, Content::Zeroes);
    assert_eq!(pair.losses(), []);
    pair.put(4096..8192, stamp(1));
    assert_eq!(pair.losses()[0].found, Found::Stale(stamp(1)));
}

#[test]
fn a_read_among_writes_checks_what_was_still() {
    let mut pair = Pair::new();
    pair.write(0..4096, stamp(1));
    pair.write(4096..8192, stamp(2));
    let since = pair.oracle.now();
    // A write of the second block begins after the read was sent, and it sees the old bytes.
    let data = pair.device[..8192].to_vec();
    pair.write(4096..8192, stamp(3));
    assert_eq!(pair.oracle.check_since(since, 0, &data), (vec![], 4096));
    // The first block was still: stale bytes there are found.
    let mut data = data;
    data[0] ^= 1;
    let (losses, checked) = pair.oracle.check_since(since, 0, &data);
    assert_eq!((losses.len(), checked), (1, 4096));
}

#[test]
fn random_histories_of_a_correct_device_pass_and_one_forgotten_write_shows() {
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(random) % below
    };
    let (mut visible, mut detected) = (0, 0);
    for round in 0..60 {
        let mut pair = Pair::new();
        let forgotten = next(200);
        let mut shadow = vec![0u64; SIZE as usize / 512];
        let mut flying: Vec<(Range<u64>, WriteId, u64)> = Vec::new();
        for i in 0..200u64 {
            let start = next(SIZE / 512 - 64) * 512;
            let range = start..start + (1 + next(64)) * 512;
            let id = pair.oracle.begin(range.clone(), stamp(i));
            flying.push((range, id, i));
            // Answer in random order; the device applies at the answer, or gives the write up.
            while flying.len() as u64 > next(4) {
                let (range, id, counter) = flying.swap_remove(next(flying.len() as u64) as usize);
                let sectors = range.start as usize / 512..range.end as usize / 512;
                if next(10) == 0 {
                    pair.oracle.give_up(range, id);
                    continue;
                }
                pair.oracle.acknowledge(range.clone(), id);
                if counter != forgotten {
                    pair.put(range, stamp(counter));
                }
                shadow[sectors].fill(counter + 1);
            }
        }
        pair.oracle.give_up_all();
        let losses = pair.losses();
        if !shadow.contains(&(forgotten + 1)) {
            assert_eq!(
                losses,
                [],
                "round {round}: nothing of the forgotten write has to be there"
            );
            continue;
        }
        visible += 1;
        // Where it overlapped in time with another write, that one's bytes are legal too.
        detected += u32::from(!losses.is_empty());
    }
    assert!(
        visible > 10 && detected * 10 >= visible * 8,
        "{detected} of {visible}"
    );
}
