use std::os::unix::fs::FileExt;

use super::*;
use crate::nbd::EXTENTS_MAX;

const BLOCK: u64 = BLOCK_BYTES_U64;
const HOLE: u32 = STATE_HOLE | STATE_ZERO;

/// A store of 512-byte pieces: those that are data.
struct Pieces(Vec<bool>);

impl Sparse for Pieces {
    fn data_from(&self, from: u64) -> Result<Option<u64>, Errno> {
        let found = (from / 512..self.0.len() as u64).find(|&at| self.0[at as usize]);
        Ok(found.map(|at| (at * 512).max(from)))
    }

    fn hole_from(&self, from: u64) -> Result<u64, Errno> {
        let found = (from / 512..self.0.len() as u64).find(|&at| !self.0[at as usize]);
        Ok(found.map_or(self.0.len() as u64 * 512, |at| (at * 512).max(from)))
    }
}

/// A store that can not say.
struct Dumb;

impl Sparse for Dumb {
    fn data_from(&self, _: u64) -> Result<Option<u64>, Errno> {
        Err(Errno::EINVAL)
    }

    fn hole_from(&self, _: u64) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }
}

fn question(offset: u64, len: u32, cover: &[(u64, u64, Holds)]) -> Question {
    let part = |&(start, blocks, holds): &(u64, u64, Holds)| Unapplied {
        start,
        blocks,
        holds,
    };
    Question {
        client: 0,
        volume: VolumeId(0),
        offset,
        len,
        one: false,
        cover: cover.iter().map(part).collect(),
    }
}

fn told(question: &Question, store: &impl Sparse) -> Vec<(u32, u32)> {
    let extents = map(question, Some(store));
    extents.iter().map(|e| (e.len, e.status)).collect()
}

fn zeroes(may_deallocate: bool) -> Holds {
    Holds::Zeroes { may_deallocate }
}

#[test]
fn without_unapplied_data_the_store_has_the_word() {
    let store = Pieces([vec![false; 16], vec![true; 8], vec![false; 8]].concat());
    let all = question(0, 16384, &[]);
    assert_eq!(told(&all, &store), [(8192, HOLE), (4096, 0), (4096, HOLE)]);
    // Odd ranges begin and end where they were asked for.
    let odd = question(8191, 3, &[]);
    assert_eq!(told(&odd, &store), [(1, HOLE), (2, 0)]);
    let tail = question(16383, 1, &[]);
    assert_eq!(told(&tail, &store), [(1, HOLE)]);
}

#[test]
fn a_store_that_can_not_say_is_all_data() {
    assert_eq!(told(&question(7, 100_000, &[]), &Dumb), [(100_000, 0)]);
    let nothing: Option<&Dumb> = None;
    let extents = map(&question(0, 512, &[]), nothing);
    assert_eq!((extents[0].len, extents[0].status), (512, 0));
}

#[test]
fn what_the_store_lacks_covers_its_holes() {
    let store = Pieces(vec![false; 8 * 64]);
    let cover = [
        (1, 1, Holds::Anything),
        (2, 2, zeroes(true)),
        (5, 1, zeroes(false)),
        (6, 1, Holds::Anything),
    ];
    let block = BLOCK as u32;
    let all = question(0, 8 * block, &cover);
    let expected = [
        (block, HOLE),
        (block, 0),
        (3 * block, HOLE),
        (block, STATE_ZERO),
        (block, 0),
        (block, HOLE),
    ];
    assert_eq!(told(&all, &store), expected);
    // A part that begins before the range and one that ends after it.
    let part = question(BLOCK + 100, 100, &cover[..1]);
    assert_eq!(told(&part, &store), [(100, 0)]);
    let one = Question { one: true, ..all };
    assert_eq!(told(&one, &store), [(block, HOLE)]);
}

#[test]
fn a_map_ends_where_the_core_was_not_asked_any_more() {
    let store = Pieces(vec![false; 8 * 1000]);
    let cover: Vec<_> = (0..COVER_MAX as u64)
        .map(|at| (2 * at, 1, Holds::Anything))
        .collect();
    let extents = told(&question(0, 1000 * BLOCK as u32, &cover), &store);
    let bytes: u64 = extents.iter().map(|&(len, _)| u64::from(len)).sum();
    assert_eq!(bytes, (2 * COVER_MAX as u64 - 1) * BLOCK);
    assert_eq!(extents.len(), 2 * COVER_MAX - 1);
}

#[test]
fn a_map_has_a_bound_and_can_be_continued() {
    let store = Pieces((0..4096).map(|at| at % 2 == 0).collect());
    let (mut at, mut seen) = (0, 0);
    while at < 4096 * 512 {
        let extents = told(&question(at, 4096 * 512 - at as u32, &[]), &store);
        assert!((1..=EXTENTS_MAX).contains(&extents.len()));
        for (len, status) in extents {
            assert_eq!((len, status), (512, if seen % 2 == 0 { 0 } else { HOLE }));
            at += u64::from(len);
            seen += 1;
        }
    }
    assert_eq!(seen, 4096);
}

#[test]
fn the_longest_question_has_an_answer() {
    let store = Pieces(vec![]);
    let all = question(0, u32::MAX, &[]);
    assert_eq!(told(&all, &store), [(u32::MAX, HOLE)]);
    let far = question(u64::MAX >> 1, u32::MAX, &[]);
    assert_eq!(told(&far, &Dumb), [(u32::MAX, 0)]);
}

#[test]
fn the_thread_looks_at_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let file = File::create(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    let bell = Arc::new(EventFd::new().unwrap());
    let mapper = Mapper::start(&[Some(path)], Arc::clone(&bell)).unwrap();
    for client in 0..CLIENTS_MAX as u32 {
        let question = question(0, 4 << 20, &[(256, 4, Holds::Anything)]);
        mapper.ask(Question { client, ..question });
    }
    let mut clients = Vec::new();
    while clients.len() < CLIENTS_MAX {
        bell.read().unwrap();
        while let Some(Mapped { client, extents }) = mapper.answered() {
            let sum: u64 = extents.iter().map(|e| u64::from(e.len)).sum();
            assert_eq!(sum, 4 << 20);
            // Whatever this filesystem knows of holes: where there is data it shows none.
            let mut at = 0;
            for extent in &*extents {
                let to = at + u64::from(extent.len);
                let overlaps = at < (1 << 20) + 4096 && to > 1 << 20;
                assert!(extent.status == 0 || !overlaps, "{extents:?}");
                at = to;
            }
            clients.push(client);
        }
    }
    clients.sort_unstable();
    assert_eq!(clients, (0..CLIENTS_MAX as u32).collect::<Vec<_>>());
}
