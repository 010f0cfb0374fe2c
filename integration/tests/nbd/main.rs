//! A running `repld` against the NBD protocol: every option, command, flag and error that it implements, in and out of
//! order, and what no client should send. P9 (bad input is an answer).

// NBD's integers are big-endian, and the bytes here are said by hand.
#![allow(clippy::big_endian_bytes)]

mod raw;

use std::path::PathBuf;

use integration::{MIB, Scene, small};
use raw::*;
use tools::demo::stop_cleanly;

const DB_BYTES: u64 = 16 * MIB;
const MIB32: u32 = 1 << 20;

struct Served {
    scene: Scene,
    socket: PathBuf,
}

impl Served {
    fn new() -> Self {
        let scene = Scene::serving(small());
        let socket = scene.cluster.nbd_socket(0);
        Self { scene, socket }
    }

    fn open(&self, structured: bool) -> Raw {
        Raw::open(&self.socket, b"db", structured)
    }

    /// Whoever was treated badly, others are served, and all stores are equal in the end.
    fn ends_well(self) {
        let answer = self.open(false).call(READ, 0, (0, 1));
        assert_eq!(answer.error, 0);
        let mut scene = self.scene;
        stop_cleanly(&mut scene.cluster, 0).unwrap_or_else(|error| panic!("{error}"));
        for volume in ["db", "recordings"] {
            let store = |node| std::fs::read(scene.cluster.store(node, volume)).expect("a store");
            let first = store(0);
            assert!((1..3).all(|node| store(node) == first), "{volume} differs");
        }
    }
}

#[test]
fn options_are_answered_in_any_order_and_the_stream_stays_in_step() {
    let served = Served::new();
    let long = [b'x'; 4097];
    let good: &[&[u8]] = &[b"base:allocation"];
    let junk = [&contexts(b"db", good)[..], b"junk"].concat();
    let mut raw = Raw::new(&served.socket);
    // Two rounds: before STRUCTURED_REPLY, and after it.
    for structured in [false, true] {
        let with = |code: &[u32]| {
            if structured {
                code.to_vec()
            } else {
                vec![INVALID]
            }
        };
        let cases: Vec<(u32, Vec<u8>, Vec<u32>)> = vec![
            (99, vec![], vec![UNSUP]),
            (u32::MAX, vec![7; 60_000], vec![UNSUP]),
            (0, vec![], vec![UNSUP]),
            (PEEK_EXPORT, b"db".to_vec(), vec![UNSUP]),
            (STARTTLS, vec![], vec![POLICY]),
            (STARTTLS, vec![1], vec![INVALID]),
            (EXTENDED_HEADERS, vec![], vec![UNSUP]),
            (STRUCTURED_REPLY, vec![0], vec![INVALID]),
            (LIST, vec![], vec![SERVER, SERVER, ACK]),
            (LIST, vec![0], vec![INVALID]),
            (INFO, vec![], vec![INVALID]),
            (INFO, query(b"db", &[]), vec![INFO_REPLY, INFO_REPLY, ACK]),
            (
                INFO,
                query(b"db", &[1, 1, 9]),
                vec![INFO_REPLY, INFO_REPLY, INFO_REPLY, ACK],
            ),
            (INFO, [query(b"db", &[3]), vec![0]].concat(), vec![INVALID]),
            (INFO, [&[0xff; 4][..], b"db\0\0"].concat(), vec![INVALID]),
            (INFO, query(b"d\0b", &[]), vec![INVALID]),
            (GO, query(&long, &[]), vec![INVALID]),
            (GO, query(&long[1..], &[]), vec![UNKNOWN]),
            (GO, query(b"", &[]), vec![UNKNOWN]),
            (GO, query(b"db2", &[]), vec![UNKNOWN]),
            (LIST_META, contexts(b"db", &[]), with(&[META, ACK])),
            (
                LIST_META,
                contexts(b"db", &[b"base:", b"x:y"]),
                with(&[META, ACK]),
            ),
            (LIST_META, contexts(b"db", &[b"x:y"]), with(&[ACK])),
            (LIST_META, contexts(b"no", &[]), with(&[UNKNOWN])),
            (SET_META, contexts(b"db", good), with(&[META, ACK])),
            (SET_META, contexts(b"db", &[b"base:"]), with(&[ACK])),
            (SET_META, junk.clone(), vec![INVALID]),
            (SET_META, vec![0xff; 500], vec![INVALID]),
            (SET_META, contexts(&long, good), vec![INVALID]),
            (SET_META, contexts(b"db", &[&long]), vec![INVALID]),
        ];
        for (option, data, codes) in cases {
            assert_eq!(
                raw.ask(option, &data),
                codes,
                "option {option}, {structured}"
            );
        }
        assert_eq!(raw.ask(STRUCTURED_REPLY, b""), [ACK]);
    }
    // The last choice of a context failed, so there is none.
    assert_eq!(
        raw.ask(GO, &query(b"db", &[])),
        [INFO_REPLY, INFO_REPLY, ACK]
    );
    assert_eq!(raw.call(STATUS, 0, (0, 512)).error, INVAL);
    assert_eq!(raw.call(READ, DF, (0, 512)).data, [0; 512]);
    drop(raw);
    served.ends_well();
}

#[test]
fn handshakes_that_can_not_go_on_end() {
    let served = Served::new();
    for flags in [4, 7, 1 << 31] {
        Raw::with_flags(&served.socket, flags).ends();
    }
    for option in [LIST, GO, STRUCTURED_REPLY, 99] {
        let mut old = Raw::with_flags(&served.socket, 0);
        old.send_option(option, b"");
        old.ends();
    }
    let mut raw = Raw::new(&served.socket);
    raw.send(b"IHAVEOPU\0\0\0\x03\0\0\0\0");
    raw.ends();
    for option in [LIST, GO, SET_META, 99] {
        for len in [65_537_u32, 0x7fff_ffff, u32::MAX] {
            let mut raw = Raw::new(&served.socket);
            let head = [big(u64::from(option), 4), big(u64::from(len), 4)].concat();
            raw.send(&[&b"IHAVEOPT"[..], &head].concat());
            raw.ends();
        }
    }
    let mut raw = Raw::new(&served.socket);
    assert_eq!(raw.ask(ABORT, b"bye"), [ACK]);
    raw.ends();
    // One that leaves without a word, at every byte.
    let whole = [
        &b"\0\0\0\x03IHAVEOPT\0\0\0\x07"[..],
        &string(&query(b"db", &[3])),
    ]
    .concat();
    for end in 0..whole.len() {
        Raw::greeted(&served.socket).send(&whole[..end]);
    }
    served.ends_well();
}

#[test]
fn export_name_opens_or_closes() {
    let served = Served::new();
    for (flags, zeroes) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut raw = Raw::with_flags(&served.socket, flags);
        raw.send_option(EXPORT_NAME, b"db");
        let answer = raw.take(10 + zeroes);
        assert_eq!(number(&answer[..8]), DB_BYTES);
        assert_eq!(answer[8..10], [0x0d, 0x6d]);
        assert!(answer[10..].iter().all(|&byte| byte == 0));
        assert_eq!(raw.call(READ, 0, (0, 10)).data, [0; 10]);
    }
    for name in [
        &b""[..],
        b"no",
        b"d\0b",
        b"\xff",
        &[b'x'; 4096],
        &[b'x'; 4097],
    ] {
        let mut raw = Raw::new(&served.socket);
        raw.send_option(EXPORT_NAME, name);
        raw.ends();
    }
    // What was agreed on before holds.
    let mut raw = Raw::new(&served.socket);
    raw.ask(STRUCTURED_REPLY, b"");
    raw.ask(SET_META, &contexts(b"db", &[b"base:allocation"]));
    raw.send_option(EXPORT_NAME, b"db");
    assert_eq!(raw.take(10)[8..], [0x0d, 0xed]);
    assert_eq!(raw.call(STATUS, 0, (0, 512)).extents, [(512, 3)]);
    drop(raw);
    served.ends_well();
}

#[test]
fn a_secondary_tells_what_there_is_and_opens_nothing() {
    let served = Served::new();
    let socket = served.scene.cluster.nbd_socket(1);
    let primary = served.scene.cluster.name(0).to_owned();
    let mut raw = Raw::new(&socket);
    assert_eq!(raw.ask(LIST, b""), [SERVER, SERVER, ACK]);
    assert_eq!(raw.ask(STRUCTURED_REPLY, b""), [ACK]);
    let set = contexts(b"db", &[b"base:allocation"]);
    for (option, data) in [
        (INFO, query(b"db", &[])),
        (GO, query(b"db", &[])),
        (LIST_META, set.clone()),
        (SET_META, set),
    ] {
        raw.send_option(option, &data);
        let (code, text) = raw.option_reply(option);
        assert_eq!(code, POLICY);
        assert!(String::from_utf8(text).is_ok_and(|text| text.contains(&primary)));
    }
    raw.send_option(EXPORT_NAME, b"db");
    raw.ends();
    served.ends_well();
}

#[test]
fn every_command_has_its_flags_its_range_and_its_errors() {
    let served = Served::new();
    for structured in [false, true] {
        let mut raw = served.open(structured);
        let all = [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS];
        let own = |command| match command {
            READ if structured => DF,
            ZEROES => NO_HOLE | FAST_ZERO,
            STATUS => REQ_ONE,
            _ => 0,
        };
        let mut call = |command, flags, range: (u64, u32)| {
            if command == WRITE {
                raw.write(flags, range.0, &vec![9; range.1 as usize])
            } else {
                raw.call(command, flags, range)
            }
        };
        for command in all {
            let offered = command != STATUS || structured;
            for bit in 0..16 {
                let flag = 1 << bit;
                let fine = offered && (flag == FUA || own(command) & flag != 0);
                let error = if fine { 0 } else { INVAL };
                let answer = call(command, flag, (4096, 512));
                assert_eq!(answer.error, error, "{command} {flag:#x}");
                assert_eq!(!answer.text.is_empty(), structured && error != 0);
            }
            if offered {
                assert_eq!(call(command, own(command) | FUA, (4095, 2)).error, 0);
            }
        }
        for command in [RESIZE, 9, 77, u16::MAX] {
            assert_eq!(call(command, 0, (0, 512)).error, INVAL);
            assert_eq!(call(command, 0, (u64::MAX, u32::MAX)).error, INVAL);
        }
        // Ranges: at the end, across it, near 2^64, of the greatest lengths, of nothing.
        for command in all {
            if command == FLUSH || (command == STATUS && !structured) {
                continue;
            }
            let outside = if matches!(command, WRITE | ZEROES) {
                NOSPC
            } else {
                INVAL
            };
            assert_eq!(call(command, 0, (DB_BYTES - 512, 512)).error, 0);
            for range in [
                (DB_BYTES - 511, 512),
                (DB_BYTES, 1),
                (DB_BYTES + 1, 0),
                (u64::MAX - 511, 512),
                (u64::MAX, 1),
                (1 << 63, 4096),
            ] {
                if command == STATUS && range.1 == 0 {
                    continue;
                }
                assert_eq!(
                    call(command, 0, range).error,
                    outside,
                    "{command} {range:?}"
                );
            }
            if command != WRITE {
                for len in [u32::MAX, u32::MAX - 511, 1 << 31] {
                    let answer = call(command, 0, (0, len)).error;
                    assert_eq!(answer, outside, "{command} of {len}");
                }
            }
            for offset in [0, 5, DB_BYTES] {
                let error = if command == STATUS { INVAL } else { 0 };
                assert_eq!(call(command, 0, (offset, 0)).error, error, "{command}");
            }
        }
        assert_eq!(call(FLUSH, FUA, (u64::MAX, u32::MAX)).error, 0);
        // Payloads at the limit and over it; the connection goes on.
        let big = 32 * MIB32;
        for len in [big, big + 1, big + 512] {
            let error = if len == big { NOSPC } else { INVAL };
            assert_eq!(call(WRITE, 0, (0, len)).error, error);
            assert_eq!(call(READ, 0, (0, len)).error, INVAL);
        }
        if structured {
            assert_eq!(call(READ, DF, (1, MIB32)).content_chunks, 1);
            assert_eq!(call(READ, DF, (1, MIB32 + 1)).error, OVERFLOW);
        }
        assert_eq!(call(READ, 0, (0, 16 * MIB32)).error, 0);
    }
    served.ends_well();
}

#[test]
fn streams_that_make_no_sense_any_more_end_and_disturb_nobody() {
    let served = Served::new();
    for structured in [false, true] {
        for len in [64 * MIB32 + 1, u32::MAX - 511, u32::MAX] {
            for offset in [0, u64::MAX] {
                let mut raw = served.open(structured);
                raw.send_request(WRITE, 0, 1, (offset, len));
                raw.ends();
            }
        }
        let mut raw = served.open(structured);
        raw.send(&[0xff; 28]);
        raw.ends();
        // One that leaves in the midst of a payload: nothing of it is written.
        let mut raw = served.open(structured);
        raw.send_request(WRITE, 0, 1, (0, 100_000));
        raw.send(&[0xee; 50_000]);
        drop(raw);
        assert_eq!(
            served.open(structured).call(READ, 0, (0, 100_000)).data,
            [0; 100_000]
        );
    }
    served.ends_well();
}

#[test]
fn a_goodbye_right_behind_requests_does_not_cost_their_replies() {
    let served = Served::new();
    for structured in [false, true] {
        for round in 0..20_u64 {
            let mut raw = served.open(structured);
            let mut bytes = Vec::new();
            let head = |command, flags, cookie, range: (u64, u32)| {
                let flags = nbd_server::nbd::protocol::CommandFlags::from_wire(flags);
                let cookie = nbd_server::nbd::Cookie(cookie);
                nbd_server::nbd::wire::request(command, flags, cookie, range.0, range.1)
            };
            bytes.extend(head(WRITE, 0, 1, (round * 70_000, 70_000)));
            bytes.extend([round as u8 + 1; 70_000]);
            bytes.extend(head(WRITE, FUA, 2, (8 * MIB + round, 1)));
            bytes.push(1);
            bytes.extend(head(READ, 0, 3, (12 * MIB, 3_000_000)));
            bytes.extend(head(ZEROES, 0, 4, (9 * MIB, MIB32)));
            if structured {
                bytes.extend(head(STATUS, 0, 5, (0, DB_BYTES as u32)));
            }
            bytes.extend(head(DISC, 0, 6, (0, 0)));
            bytes.extend(head(READ, 0, 7, (0, 1)));
            raw.send(&bytes);
            let expected = if structured { 5 } else { 4 };
            let mut cookies: Vec<u64> = (0..expected)
                .map(|_| {
                    let range = |cookie| {
                        if cookie == 3 {
                            (12 * MIB, 3_000_000)
                        } else {
                            (0, 0)
                        }
                    };
                    let (cookie, answer) = raw.reply(range);
                    assert_eq!(answer.error, 0);
                    cookie
                })
                .collect();
            cookies.sort_unstable();
            assert_eq!(cookies, (1..=expected).collect::<Vec<_>>());
            raw.ends();
            let data = served
                .open(structured)
                .call(READ, 0, (round * 70_000, 70_000));
            assert_eq!(data.data, [round as u8 + 1; 70_000]);
        }
    }
    served.ends_well();
}

#[test]
fn replies_find_their_requests_in_any_order_and_with_one_cookie() {
    let served = Served::new();
    for structured in [false, true] {
        let mut raw = served.open(structured);
        let sizes = [1_u32, 4096, 20_000, 300_000];
        for round in 0..30_u64 {
            let len = sizes[round as usize % 4];
            raw.send_request(WRITE, 0, round, (round * 300_000, len));
            raw.send(&vec![round as u8 + 1; len as usize]);
        }
        for _ in 0..30 {
            assert_eq!(raw.reply(|_| (0, 0)).1.error, 0);
        }
        for round in 0..30_u64 {
            raw.send_request(READ, 0, round, (round * 300_000, sizes[round as usize % 4]));
        }
        for _ in 0..30 {
            let range = |round: u64| (round * 300_000, sizes[round as usize % 4]);
            let (round, answer) = raw.reply(range);
            assert!(answer.data.iter().all(|&byte| byte == round as u8 + 1));
        }
        // The same cookie many times at once: its owner gets as many answers.
        for _ in 0..100 {
            raw.send_request(FLUSH, 0, 5, (0, 0));
        }
        for _ in 0..100 {
            assert_eq!(raw.reply(|_| (0, 0)), (5, Answer::default()));
        }
    }
    served.ends_well();
}

/// A small generator, so that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_map_never_calls_a_hole_what_was_written() {
    let served = Served::new();
    let mut dice = Dice(2026);
    let (mut writer, mut mapper) = (served.open(true), served.open(true));
    let mut model = vec![0_u8; DB_BYTES as usize];
    let (mut holes, mut zero_bytes) = (0_u64, 0_u64);
    for round in 0..1500_u64 {
        let len = match dice.below(3) {
            0 => 1 + dice.below(10_000),
            1 => 4096 * (1 + dice.below(8)),
            _ => 4096 * (1 + dice.below(100)),
        };
        let align = if dice.below(2) == 0 { 4096 } else { 1 };
        let offset = dice.below(DB_BYTES - len) / align * align;
        let range = offset as usize..(offset + len) as usize;
        let answer = match dice.below(5) {
            0 | 1 => {
                let value = round as u8 | 1;
                model[range].fill(value);
                writer.write(0, offset, &vec![value; len as usize])
            }
            kind => {
                model[range].fill(0);
                let (command, flags) =
                    [(TRIM, 0), (ZEROES, 0), (ZEROES, NO_HOLE)][kind as usize - 2];
                writer.call(command, flags, (offset, len as u32))
            }
        };
        assert_eq!(answer.error, 0);
        // Another connection maps what was answered on the first, around where it happened and elsewhere.
        let begin = if dice.below(2) == 0 {
            offset
        } else {
            dice.below(DB_BYTES - 1)
        };
        let want = (1 + dice.below(2 * MIB)).min(DB_BYTES - begin);
        let one = if dice.below(4) == 0 { REQ_ONE } else { 0 };
        let answer = mapper.call(STATUS, one, (begin, want as u32));
        assert!(!answer.extents.is_empty() && (one == 0 || answer.extents.len() == 1));
        let mut at = begin;
        for &(len, status) in &answer.extents {
            let end = at + u64::from(len);
            assert!(len > 0 && end <= begin + want && status <= 3);
            if status != 0 {
                let part = &model[at as usize..end as usize];
                assert_ne!(status & 2, 0, "a hole that reads as something");
                assert!(
                    part.iter().all(|&byte| byte == 0),
                    "round {round}: {at}+{len}"
                );
                holes += 1;
                zero_bytes += u64::from(len);
            }
            at = end;
        }
    }
    assert!(holes > 100 && zero_bytes > 10 * MIB, "{holes} {zero_bytes}");
    let answer = mapper.call(READ, 0, (0, DB_BYTES as u32));
    assert!(answer.data == model);
    drop((writer, mapper));
    served.ends_well();
}
