use super::TransmissionEvent as E;
use super::*;
use crate::nbd::wire::request;

const SIZE: u64 = 1 << 30;
const MIB: u32 = 1 << 20;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

fn phase() -> Transmission {
    Transmission::new(SIZE, Terms::default(), 64 << 20)
}

/// A phase of a client that has agreed on all that there is.
fn rich_phase() -> Transmission {
    let terms = Terms {
        structured: true,
        allocation: true,
    };
    Transmission::new(SIZE, terms, 64 << 20)
}

fn bytes(command: u16, flags: u16, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    request(
        command,
        CommandFlags::from_wire(flags),
        Cookie(0xc00c1e),
        offset,
        len,
    )
}

/// What a request comes to when nothing follows it.
fn judge(command: u16, flags: u16, offset: u64, len: u32) -> E {
    judge_in(&mut phase(), command, flags, (offset, len))
}

fn judge_in(phase: &mut Transmission, command: u16, flags: u16, (offset, len): (u64, u32)) -> E {
    let (taken, event) = phase.step(&bytes(command, flags, offset, len));
    assert_eq!(taken, REQUEST_BYTES);
    event
}

/// What a request comes to that is rejected, if at all, after `payload_bytes` more.
fn judge_payload(request: &[u8], payload_bytes: u32) -> E {
    judge_payload_in(&mut phase(), request, payload_bytes)
}

fn judge_payload_in(phase: &mut Transmission, request: &[u8], payload_bytes: u32) -> E {
    let (_, event) = phase.step(request);
    if payload_bytes == 0 {
        return event;
    }
    assert_eq!(event, E::NeedInput);
    let payload = vec![0x25; payload_bytes as usize];
    let most = payload.len() - 1;
    assert_eq!(phase.step(&payload[..most]), (most, E::NeedInput));
    let (taken, event) = phase.step(&payload[most..]);
    assert_eq!(taken, 1);
    event
}

fn accepted(op: Op) -> E {
    E::Request(Request {
        cookie: Cookie(0xc00c1e),
        op,
    })
}

/// The error, if it is one and comes with a sentence.
fn error_of(event: E) -> Option<NbdError> {
    match event {
        E::Reject {
            cookie: Cookie(0xc00c1e),
            error,
            text,
        } if !text.is_empty() => Some(error),
        _ => None,
    }
}

fn read(offset: u64, len: u32) -> E {
    let whole = false;
    accepted(Op::Read { offset, len, whole })
}

#[test]
fn requests_within_the_export_become_operations() {
    let (offset, len, fua, no_hole) = (SIZE - 512, 512, false, false);
    let cases = [
        (READ, 0, read(offset, len)),
        (READ, FUA, read(offset, len)),
        (WRITE, 0, accepted(Op::Write { offset, len, fua })),
        (
            WRITE,
            FUA,
            accepted(Op::Write {
                offset,
                len,
                fua: true,
            }),
        ),
        (TRIM, 0, accepted(Op::Trim { offset, len, fua })),
        (
            TRIM,
            FUA,
            accepted(Op::Trim {
                offset,
                len,
                fua: true,
            }),
        ),
        (
            ZEROES,
            0,
            accepted(Op::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
            }),
        ),
        (
            ZEROES,
            NO_HOLE,
            accepted(Op::WriteZeroes {
                offset,
                len,
                fua,
                no_hole: true,
            }),
        ),
        (
            ZEROES,
            FUA,
            accepted(Op::WriteZeroes {
                offset,
                len,
                fua: true,
                no_hole,
            }),
        ),
    ];
    for (command, flags, event) in cases {
        assert_eq!(judge(command, flags, offset, len), event);
    }
    assert_eq!(judge(FLUSH, 0, 0, 0), accepted(Op::Flush));
    assert_eq!(judge(FLUSH, FUA, 0, 0), accepted(Op::Flush));
}

#[test]
fn byte_granular_requests_are_served() {
    assert_eq!(judge(READ, 0, 1, 1), read(1, 1));
    let op = Op::Write {
        offset: 4095,
        len: 2,
        fua: false,
    };
    assert_eq!(judge(WRITE, 0, 4095, 2), accepted(op));
}

#[test]
fn flush_ignores_its_reserved_fields() {
    assert_eq!(judge(FLUSH, 0, u64::MAX, u32::MAX), accepted(Op::Flush));
}

#[test]
fn ranges_past_the_end_get_the_error_of_their_command() {
    let ranges = [
        (SIZE - 511, 512),
        (SIZE, 1),
        (SIZE + 1, 0),
        (u64::MAX - 511, 512),
        (u64::MAX, 1),
    ];
    for (offset, len) in ranges {
        for (command, error, payload_bytes) in [
            (READ, NbdError::Inval, 0),
            (WRITE, NbdError::NoSpc, len),
            (TRIM, NbdError::Inval, 0),
            (ZEROES, NbdError::NoSpc, 0),
        ] {
            let event = judge_payload(&bytes(command, 0, offset, len), payload_bytes);
            assert_eq!(error_of(event), Some(error), "{command} at {offset}+{len}");
        }
    }
}

#[test]
fn payloads_over_the_maximum_are_rejected_and_skipped_or_fatal() {
    let max = 32 * MIB;
    assert_eq!(judge(READ, 0, 0, max), read(0, max));
    let op = Op::Write {
        offset: 0,
        len: max,
        fua: false,
    };
    assert_eq!(judge(WRITE, 0, 0, max), accepted(op));
    for len in [max + 1, max + 512, 64 * MIB] {
        assert_eq!(error_of(judge(READ, 0, 0, len)), Some(NbdError::Inval));
        let event = judge_payload(&bytes(WRITE, 0, 0, len), len);
        assert_eq!(error_of(event), Some(NbdError::Inval));
    }
    for len in [64 * MIB + 1, 0xffff_fe00, u32::MAX] {
        assert_eq!(error_of(judge(READ, 0, 0, len)), Some(NbdError::Inval));
        for flags in [0, 0x80] {
            let reason = FatalReason::PayloadTooLong { len };
            assert_eq!(judge(WRITE, flags, 0, len), E::Fatal(reason));
        }
    }
}

#[test]
fn a_small_skip_limit_does_not_cut_into_what_is_served() {
    let len = 32 * MIB;
    let (_, event) = Transmission::new(SIZE, Terms::default(), 0).step(&bytes(WRITE, 0, 0, len));
    assert_eq!(
        event,
        accepted(Op::Write {
            offset: 0,
            len,
            fua: false
        })
    );
}

#[test]
fn trims_and_zeroes_may_be_longer_than_any_payload() {
    let (size, len) = (8 << 30, u32::MAX - 511);
    for command in [TRIM, ZEROES] {
        let (_, event) =
            Transmission::new(size, Terms::default(), 0).step(&bytes(command, 0, 512, len));
        assert!(matches!(event, E::Request(_)), "{event:?}");
        let (_, event) =
            Transmission::new(u64::from(len), Terms::default(), 0).step(&bytes(command, 0, 1, len));
        assert!(matches!(event, E::Reject { .. }), "{event:?}");
    }
}

#[test]
fn flags_that_do_not_belong_to_the_command_are_invalid() {
    let own = |command| match command {
        READ => DF,
        ZEROES => NO_HOLE | FAST_ZERO,
        STATUS => REQ_ONE,
        _ => 0,
    };
    for command in [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS] {
        for bit in 0..16 {
            let flag = 1 << bit;
            if flag == FUA || own(command) & flag != 0 {
                continue;
            }
            let payload_bytes = if command == WRITE { 512 } else { 0 };
            for flags in [flag, flag | FUA, flag | own(command)] {
                let request = bytes(command, flags, 0, 512);
                let event = judge_payload_in(&mut rich_phase(), &request, payload_bytes);
                assert_eq!(
                    error_of(event),
                    Some(NbdError::Inval),
                    "{command} {flags:#x}"
                );
            }
        }
        let payload_bytes = if command == WRITE { 512 } else { 0 };
        for flags in [0, FUA, own(command), FUA | own(command)] {
            let event = judge_in(&mut rich_phase(), command, flags, (0, 512));
            let good = matches!(event, E::Request(_) | E::Done { .. });
            assert!(good, "{command} {flags:#x} {payload_bytes} {event:?}");
        }
    }
}

#[test]
fn what_was_not_agreed_on_is_invalid() {
    let error = |structured, allocation, command, flags| {
        let terms = Terms {
            structured,
            allocation,
        };
        let mut phase = Transmission::new(SIZE, terms, 0);
        error_of(judge_in(&mut phase, command, flags, (0, 512)))
    };
    let invalid = Some(NbdError::Inval);
    assert_eq!(error(false, false, READ, DF), invalid);
    assert_eq!(error(true, false, READ, DF), None);
    for flags in [0, REQ_ONE] {
        assert_eq!(error(false, false, STATUS, flags), invalid);
        assert_eq!(error(true, false, STATUS, flags), invalid);
        assert_eq!(error(true, true, STATUS, flags), None);
    }
}

#[test]
fn reads_in_one_piece_have_a_limit_of_their_own() {
    let judge = |offset, len| judge_in(&mut rich_phase(), READ, DF, (offset, len));
    for len in [1, 65_536, MIB] {
        let (offset, whole) = (SIZE - u64::from(len), true);
        assert_eq!(
            judge(offset, len),
            accepted(Op::Read { offset, len, whole })
        );
    }
    assert_eq!(error_of(judge(0, MIB + 1)), Some(NbdError::Overflow));
    assert_eq!(error_of(judge(0, 32 * MIB)), Some(NbdError::Overflow));
    assert_eq!(error_of(judge(0, 32 * MIB + 1)), Some(NbdError::Inval));
    assert_eq!(error_of(judge(SIZE, 2 * MIB)), Some(NbdError::Inval));
}

#[test]
fn the_status_of_any_range_of_the_export_may_be_asked_for() {
    let judge = |flags, offset, len| judge_in(&mut rich_phase(), STATUS, flags, (offset, len));
    for (flags, one) in [(0, false), (REQ_ONE, true)] {
        for (offset, len) in [(0, 1), (SIZE - 1, 1), (0, SIZE as u32), (4095, 70_000_000)] {
            let op = Op::BlockStatus { offset, len, one };
            assert_eq!(judge(flags, offset, len), accepted(op));
        }
        for (offset, len) in [
            (0, 0),
            (SIZE, 0),
            (SIZE, 1),
            (1, SIZE as u32),
            (0, u32::MAX),
            (0, u32::MAX - 511),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
        ] {
            let error = error_of(judge(flags, offset, len));
            assert_eq!(error, Some(NbdError::Inval), "{offset}+{len}");
        }
    }
    // On an export that is large enough the longest question is one like any other.
    let terms = Terms {
        structured: true,
        allocation: true,
    };
    for len in [u32::MAX, u32::MAX - 511] {
        let mut phase = Transmission::new(8 << 30, terms, 0);
        let event = judge_in(&mut phase, STATUS, 0, (512, len));
        let (offset, one) = (512, false);
        assert_eq!(event, accepted(Op::BlockStatus { offset, len, one }));
    }
}

#[test]
fn cache_has_an_answer_and_no_effect() {
    let done = E::Done {
        cookie: Cookie(0xc00c1e),
    };
    for (offset, len) in [(0, 0), (0, 1), (SIZE - 7, 7), (0, SIZE as u32), (SIZE, 0)] {
        assert_eq!(judge(CACHE, 0, offset, len), done);
        assert_eq!(judge(CACHE, FUA, offset, len), done);
    }
    for (offset, len) in [(SIZE, 1), (0, u32::MAX), (u64::MAX - 511, 512)] {
        let error = error_of(judge(CACHE, 0, offset, len));
        assert_eq!(error, Some(NbdError::Inval), "{offset}+{len}");
    }
}

#[test]
fn commands_that_are_not_offered_are_invalid_and_have_no_payload() {
    for command in [8, 9, 100, u16::MAX] {
        assert_eq!(error_of(judge(command, 0, 0, 512)), Some(NbdError::Inval));
        assert_eq!(
            error_of(judge(command, 0, u64::MAX, u32::MAX)),
            Some(NbdError::Inval)
        );
    }
}

#[test]
fn requests_about_nothing_succeed_at_once() {
    for command in [READ, WRITE, TRIM, ZEROES] {
        for offset in [0, 7, SIZE] {
            assert_eq!(
                judge(command, FUA, offset, 0),
                E::Done {
                    cookie: Cookie(0xc00c1e)
                }
            );
        }
    }
}

#[test]
fn an_empty_export_has_no_byte_to_read() {
    let (_, event) = Transmission::new(0, Terms::default(), 0).step(&bytes(READ, 0, 0, 1));
    assert_eq!(error_of(event), Some(NbdError::Inval));
}

#[test]
fn a_request_without_its_magic_number_is_fatal_for_good() {
    let mut phase = phase();
    let mut garbage = bytes(READ, 0, 0, 512);
    garbage[0] ^= 0x80;
    let (_, event) = phase.step(&garbage);
    assert_eq!(event, E::Fatal(FatalReason::BadMagic(0xa560_9513)));
    assert_eq!(phase.step(&bytes(READ, 0, 0, 512)), (0, event));
}

#[test]
fn nothing_is_taken_after_disc() {
    let mut phase = phase();
    let input = [
        bytes(WRITE, 0, 0, 0),
        bytes(DISC, 0xffff, 1, 1),
        bytes(READ, 0, 0, 1),
    ]
    .concat();
    assert_eq!(
        phase.step(&input),
        (
            28,
            E::Done {
                cookie: Cookie(0xc00c1e)
            }
        )
    );
    assert_eq!(phase.step(&input[28..]), (28, E::Disconnect));
    assert_eq!(phase.step(&input[56..]), (0, E::Disconnect));
}

#[test]
fn a_rejected_write_is_answered_after_its_payload_however_that_arrives() {
    let payload = bytes(DISC, 0, 0, 0).repeat(20);
    let len = payload.len() as u32;
    let input = [
        &bytes(WRITE, 0, SIZE, len)[..],
        &payload,
        &bytes(READ, 0, 0, 9),
    ]
    .concat();
    for piece_bytes in [1, 2, 27, 28, 29, 100, input.len()] {
        let mut phase = phase();
        let mut events = Vec::new();
        for piece in input.chunks(piece_bytes) {
            let mut rest = piece;
            loop {
                let (taken, event) = phase.step(rest);
                rest = &rest[taken..];
                match event {
                    E::NeedInput => break,
                    event => events.push(event),
                }
            }
            assert!(rest.is_empty());
        }
        assert_eq!(events.len(), 2, "pieces of {piece_bytes}");
        assert_eq!(error_of(events[0]), Some(NbdError::NoSpc));
        assert_eq!(events[1], read(0, 9));
    }
}

#[test]
fn after_an_accepted_write_the_payload_is_left_to_the_caller() {
    let mut phase = phase();
    let input = [&bytes(WRITE, 0, 0, 5)[..], b"abcde", &bytes(READ, 0, 0, 9)].concat();
    let (taken, event) = phase.step(&input);
    assert_eq!(
        (taken, event),
        (
            28,
            accepted(Op::Write {
                offset: 0,
                len: 5,
                fua: false
            })
        )
    );
    let (taken, event) = phase.step(&input[28 + 5..]);
    assert_eq!((taken, event), (28, read(0, 9)));
}
