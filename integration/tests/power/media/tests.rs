//! The rule itself: what must be there, what may be, and what can not.

use replicator::types::VolumeId;

use super::*;

const STORE: Part = Part::Store(VolumeId(0));

struct Disk {
    media: Media,
    next: u64,
}

impl Disk {
    fn new() -> Self {
        let media = Media::created(0);
        Self { media, next: 0 }
    }

    fn try_begin(&mut self, op: Op) -> Result<OpId, String> {
        let id = OpId(self.next);
        self.next += 1;
        self.media.step(&Step::Begin(id, Arc::new(op)))?;
        Ok(id)
    }

    fn begin(&mut self, op: Op) -> OpId {
        self.try_begin(op).unwrap()
    }

    fn end(&mut self, id: OpId, moved: u64) {
        self.media.step(&Step::End(id, Some(moved))).unwrap();
    }

    fn run(&mut self, op: Op) {
        let length = op.length();
        let id = self.begin(op);
        self.end(id, length);
    }

    /// What the first sectors of the store may hold after a cut: for each, its first byte in many tearings.
    fn outcomes(&mut self, sectors: usize) -> Vec<Vec<u8>> {
        let mut seen = vec![Vec::new(); sectors];
        for seed in 0..200 {
            let mut chance = Chance::new(seed);
            let fate = Fate::draw(&mut chance);
            let torn = self.media.tear(fate, &mut chance);
            for (sector, seen) in seen.iter_mut().enumerate() {
                seen.push(self.media.bytes(STORE)[sector * SECTOR]);
            }
            self.media.mend(torn);
        }
        for seen in &mut seen {
            seen.sort_unstable();
            seen.dedup();
        }
        seen
    }
}

fn write(sector: u64, sectors: usize, byte: u8, durable: bool) -> Op {
    Op {
        part: STORE,
        offset: sector * SECTOR as u64,
        durable,
        work: Work::Write(vec![byte; sectors * SECTOR]),
    }
}

fn flush() -> Op {
    Op {
        part: STORE,
        offset: 0,
        durable: true,
        work: Work::Flush,
    }
}

#[test]
fn a_durable_write_is_there_once_it_has_ended() {
    let mut disk = Disk::new();
    let id = disk.begin(write(0, 2, 7, true));
    assert_eq!(disk.outcomes(2), [[0, 7], [0, 7]]);
    disk.end(id, 2 * SECTOR as u64);
    assert_eq!(disk.outcomes(2), [[7], [7]]);
}

#[test]
fn of_a_write_that_fell_short_the_rest_may_be_anything() {
    let mut disk = Disk::new();
    let id = disk.begin(write(0, 2, 7, true));
    disk.end(id, SECTOR as u64);
    assert_eq!(disk.outcomes(2), [vec![7], vec![0, 7]]);
    disk.run(write(1, 1, 8, true));
    assert_eq!(disk.outcomes(2), [[7], [8]]);
}

#[test]
fn a_flush_makes_durable_what_had_ended_before_it_was_submitted() {
    let mut disk = Disk::new();
    disk.run(write(0, 1, 1, false));
    let slow = disk.begin(write(1, 1, 2, false));
    let flushing = disk.begin(flush());
    disk.end(slow, SECTOR as u64);
    disk.run(write(2, 1, 3, false));
    assert_eq!(disk.outcomes(3), [[0, 1], [0, 2], [0, 3]]);
    disk.end(flushing, 0);
    assert_eq!(disk.outcomes(3), [vec![1], vec![0, 2], vec![0, 3]]);
    disk.run(flush());
    assert_eq!(disk.outcomes(3), [[1], [2], [3]]);
}

#[test]
fn changes_of_a_sector_keep_their_order() {
    let mut disk = Disk::new();
    disk.run(write(0, 1, 1, false));
    disk.run(write(0, 1, 2, false));
    assert_eq!(disk.outcomes(1), [[0, 1, 2]]);
    disk.run(write(0, 1, 3, true));
    assert_eq!(disk.outcomes(1), [[3]]);
    // That flush covers the first two, which the third came after.
    disk.run(flush());
    assert_eq!(disk.outcomes(1), [[3]]);
    let length = SECTOR as u64;
    disk.run(Op {
        work: Work::Zero(length),
        ..write(0, 1, 0, false)
    });
    assert_eq!(disk.outcomes(1), [[0, 3]]);
}

#[test]
fn two_changes_of_a_sector_are_not_in_flight_at_once() {
    let mut disk = Disk::new();
    let id = disk.begin(write(0, 3, 1, false));
    assert!(disk.try_begin(write(2, 2, 2, true)).is_err());
    disk.end(id, 3 * SECTOR as u64);
    assert!(disk.try_begin(write(2, 2, 2, true)).is_ok());
}
