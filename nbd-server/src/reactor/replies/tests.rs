use replicator::memory::{Memory, Purpose};

use super::*;
use crate::nbd::{EXTENTS_MAX, Extent};
use crate::reactor::pool::PoolSizes;

const COOKIE: Cookie = Cookie(7);

fn pool() -> Pool {
    Pool::new(&PoolSizes {
        client_blocks: 256,
        edge_blocks: 1,
        core_blocks: 1,
        apply_blocks: 1,
        peer_blocks: 1,
        connection_blocks: 4,
    })
    .unwrap()
}

/// A buffer with `bytes` from its `start` on.
fn data(pool: &mut Pool, start: usize, bytes: &[u8]) -> Data {
    let blocks = (start + bytes.len()).div_ceil(BLOCK_BYTES) as u32;
    let mut buffer = pool.alloc(Purpose::Client, blocks).unwrap();
    buffer.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    Data {
        buffer,
        start,
        length: bytes.len(),
        blocks,
    }
}

/// Everything that waits, as it is sent, and what it gives back.
fn sent(replies: &mut Replies) -> (Vec<u8>, u32) {
    let (mut bytes, mut blocks) = (Vec::new(), 0);
    while !replies.is_empty() {
        let mut segments = Segments::new();
        replies.fill(&mut segments);
        assert!(!segments.is_empty());
        for segment in segments {
            let from = segment.start..segment.start + segment.length;
            bytes.extend_from_slice(&segment.buffer.bytes()[from]);
        }
        blocks += replies.sent();
    }
    (bytes, blocks)
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// The chunks of the answer to a read: offset, length, the data or nothing for a hole, whether it is the last.
fn chunks(mut bytes: &[u8]) -> Vec<(u64, usize, Option<&[u8]>, bool)> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(number(&bytes[..4]), 0x668e_33ef);
        assert_eq!(number(&bytes[8..16]), COOKIE.0);
        let last = number(&bytes[4..6]) == 1;
        let (payload, rest) = bytes[20..].split_at(number(&bytes[16..20]) as usize);
        let offset = number(&payload[..8]);
        chunks.push(match number(&bytes[6..8]) {
            1 => (offset, payload.len() - 8, Some(&payload[8..]), last),
            2 => (offset, number(&payload[8..]) as usize, None, last),
            other => panic!("chunk of type {other}"),
        });
        bytes = rest;
    }
    chunks
}

#[test]
fn chunks_of_a_read_are_what_was_read() {
    let mut pool = pool();
    // Which of the blocks hold something, and where the read begins and ends within them.
    for pattern in 0..64_u32 {
        for (head, tail) in [(0, 0), (1, 0), (4095, 4095), (100, 3000)] {
            for whole in [false, true] {
                let mut bytes = vec![0; 6 * BLOCK_BYTES];
                for (at, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
                    block[2048] = (pattern >> at & 1) as u8;
                }
                let bytes = &bytes[head..6 * BLOCK_BYTES - tail];
                let offset = (1 << 40) + head as u64;
                let mut replies = Replies::new(&pool, true).unwrap();
                let place = Place {
                    offset,
                    first: true,
                    last: true,
                    whole,
                };
                let data = data(&mut pool, head, bytes);
                let blocks = data.blocks;
                let unsent = replies.read(COOKIE, place, data);
                let (stream, given_back) = sent(&mut replies);
                assert_eq!(unsent + given_back, blocks);
                let chunks = chunks(&stream);
                assert!((1..=CHUNKS_MAX).contains(&chunks.len()));
                let (mut seen, mut at) = (Vec::new(), offset);
                for (index, (from, length, data, last)) in chunks.iter().enumerate() {
                    assert_eq!(*from, at);
                    match data {
                        Some(data) => seen.extend_from_slice(data),
                        None => seen.resize(seen.len() + length, 0),
                    }
                    at += *length as u64;
                    assert_eq!(*last, index + 1 == chunks.len());
                }
                assert_eq!(seen, bytes);
                let data_chunks = chunks.iter().filter(|c| c.2.is_some()).count();
                assert!(!whole || (chunks.len(), data_chunks) == (1, 1));
                let nothing = bytes.iter().all(|&byte| byte == 0);
                assert!(whole || nothing == (data_chunks == 0));
            }
        }
    }
    let all = pool.total_blocks(Purpose::Client);
    assert_eq!(pool.free_blocks(Purpose::Client), all);
}

#[test]
fn without_chunks_a_read_is_one_header_and_its_data() {
    let mut pool = pool();
    let mut replies = Replies::new(&pool, false).unwrap();
    for (first, bytes) in [(true, [0; 9]), (false, [3; 9])] {
        let place = Place {
            offset: 0,
            first,
            last: !first,
            whole: false,
        };
        let data = data(&mut pool, 5, &bytes);
        assert_eq!(replies.read(COOKIE, place, data), 0);
    }
    let mut expected = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    expected.extend([[0; 9], [3; 9]].concat());
    assert_eq!(sent(&mut replies), (expected, 2));
}

#[test]
fn any_number_of_the_longest_heads_is_sent_in_order() {
    let pool = pool();
    let mut replies = Replies::new(&pool, true).unwrap();
    for round in 0..40 {
        let extent = Extent {
            len: round,
            status: 0,
        };
        let extents = std::iter::repeat_n(extent, EXTENTS_MAX).collect();
        replies.status(COOKIE, Box::new(extents));
        replies.done(COOKIE);
        replies.error(COOKIE, NbdError::Io, "no");
    }
    let (mut bytes, mut types) = (sent(&mut replies).0, Vec::new());
    while !bytes.is_empty() {
        types.push(number(&bytes[6..8]));
        bytes.drain(..20 + number(&bytes[16..20]) as usize);
    }
    assert_eq!(types, [5, 0, 0x8001].repeat(40));
}
