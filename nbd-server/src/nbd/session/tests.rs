use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::nbd::protocol::{CommandFlags, Cookie};
use crate::nbd::testing::*;
use crate::nbd::wire::request;
use crate::nbd::{Op, Request};

/// Options of all kinds, mostly well-formed.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(b"db".to_vec()),
        Just(b"recordings".to_vec()),
        Just(Vec::new()),
        vec(any::<u8>(), 0..20),
    ];
    let data = prop_oneof![
        3 => (name.clone(), vec(0_u16..6, 0..5)).prop_map(|(name, infos)| query(&name, &infos)),
        3 => (name, vec(any_query(), 0..4)).prop_map(|(name, queries)| {
            let queries: Vec<_> = queries.iter().map(Vec::as_slice).collect();
            contexts(&name, &queries)
        }),
        1 => Just(Vec::new()),
        1 => vec(any::<u8>(), 0..40),
    ];
    let codes = prop_oneof![4 => 3_u32..12, 1 => 0_u32..3, 1 => any::<u32>()];
    prop_oneof![
        20 => (codes.clone(), data).prop_map(|(code, data)| option(code, &data)),
        1 => (codes, any::<u32>()).prop_map(|(code, len)| option_header(code, len)),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// Names of metadata contexts, mostly of the one that there is.
fn any_query() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(b"base:allocation".to_vec()),
        1 => Just(b"base:".to_vec()),
        1 => vec(any::<u8>(), 0..20),
    ]
}

/// Requests of all kinds, mostly well-formed, with their payloads.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => 0_u16..2, 1 => any::<u16>()];
    let offset = prop_oneof![4 => 0_u64..8192, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0_u32..600, 1 => any::<u32>()];
    (0_u16..10, flags, offset, len).prop_map(|(command, flags, offset, len)| {
        let flags = CommandFlags::from_wire(flags);
        let mut bytes = request(command, flags, Cookie(offset), offset, len).to_vec();
        if command == 1 && len < 600 {
            bytes.extend(std::iter::repeat_n(0x25, len as usize));
        }
        bytes
    })
}

/// Cuts `input` into pieces of the given lengths, over and over.
fn pieces<'a>(input: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = input;
    let mut pieces = Vec::new();
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, tail) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

/// All events but `NeedInput` of the transmission phase; payloads of writes are taken out.
fn transmit(session: &mut Session, pieces: &[&[u8]]) -> Vec<TransmissionEvent> {
    let mut events = Vec::new();
    let mut payload_left = 0;
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let payload = rest.len().min(payload_left);
            payload_left -= payload;
            rest = &rest[payload..];
            if payload_left > 0 {
                break;
            }
            let (taken, event) = session.next_request(rest);
            rest = &rest[taken..];
            match event {
                TransmissionEvent::NeedInput => {
                    assert!(rest.is_empty());
                    break;
                }
                TransmissionEvent::Disconnect | TransmissionEvent::Fatal(_) => {
                    events.push(event);
                    return events;
                }
                TransmissionEvent::Request(Request {
                    op: Op::Write { len, .. },
                    ..
                }) => {
                    payload_left = len as usize;
                }
                _ => {}
            }
            events.push(event);
        }
    }
    events
}

proptest! {
    #[test]
    fn a_negotiation_does_not_depend_on_how_its_bytes_arrive(
        flags in prop_oneof![8 => Just(3_u32), 1 => 0_u32..8],
        options in vec(any_option(), 0..8),
        lengths in vec(1_usize..50, 1..10),
    ) {
        let input = [client_flags(flags), options.concat()].concat();
        let whole = negotiate(&table(), &input);
        for lengths in [&[1][..], &lengths] {
            let mut session = Session::new(Limits::default());
            let cut = negotiate_pieces(&mut session, &table(), pieces(&input, lengths));
            prop_assert_eq!(&cut.output, &whole.output);
            prop_assert_eq!(&cut.events, &whole.events);
            prop_assert_eq!(cut.terms, whole.terms);
            prop_assert!(whole.rest.starts_with(&cut.rest));
        }
    }

    #[test]
    fn a_transmission_does_not_depend_on_how_its_bytes_arrive(
        requests in vec(any_request(), 0..12),
        lengths in vec(1_usize..90, 1..10),
    ) {
        let input = requests.concat();
        let start = || Session::transmitting(ExportIndex(0), 8192, Limits::default());
        let whole = transmit(&mut start(), &[&input]);
        for lengths in [&[1][..], &lengths] {
            prop_assert_eq!(&transmit(&mut start(), &pieces(&input, lengths)), &whole);
        }
    }

    #[test]
    fn accepted_requests_lie_within_the_export(
        size_bytes in prop_oneof![0_u64..5000, any::<u64>()],
        terms in any::<(bool, bool)>().prop_map(|(structured, allocation)| Terms {
            structured,
            allocation,
        }),
        command in 0_u16..10,
        flags in 0_u16..32,
        offset in prop_oneof![0_u64..6000, any::<u64>()],
        len in prop_oneof![0_u32..6000, any::<u32>()],
    ) {
        let bytes = request(command, CommandFlags::from_wire(flags), Cookie(1), offset, len);
        let mut session =
            Session::transmitting_on(ExportIndex(0), size_bytes, terms, Limits::default());
        let (_, event) = session.next_request(&bytes);
        if let TransmissionEvent::Request(Request { op, .. }) = event {
            match op {
                Op::Flush => {}
                Op::Read { offset, len, .. }
                | Op::BlockStatus { offset, len, .. }
                | Op::Write { offset, len, .. }
                | Op::Trim { offset, len, .. }
                | Op::WriteZeroes { offset, len, .. } => {
                    prop_assert!(len > 0);
                    prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(size_bytes));
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_session_panic_or_spin(
        tls in any::<bool>(),
        flags in prop_oneof![4 => Just(3_u32), 1 => any::<u32>()],
        options in vec(any_option(), 0..6),
        garbage in vec(any::<u8>(), 0..300),
        lengths in vec(1_usize..50, 1..10),
    ) {
        let limits = Limits::default();
        let mut session =
            if tls { Session::requiring_tls(limits) } else { Session::new(limits) };
        let input = [client_flags(flags), options.concat(), garbage].concat();
        let end = negotiate_pieces(&mut session, &table(), pieces(&input, &lengths));
        transmit(&mut session, &[&end.rest]);
    }

    #[test]
    fn no_bytes_make_a_transmission_panic(garbage in vec(any::<u8>(), 0..300)) {
        let mut session = Session::transmitting(ExportIndex(0), 8192, Limits::default());
        transmit(&mut session, &[&garbage]);
    }
}

#[test]
fn bytes_after_go_belong_to_transmission() {
    let read = request(0, CommandFlags::NONE, Cookie(5), 512, 512);
    let go = option(7, &query(b"recordings", &[]));
    let input = [&client_flags(FIXED_NO_ZEROES)[..], &go, &read].concat();
    let mut session = Session::new(Limits::default());
    assert_eq!(session.export(), None);
    let transcript = negotiate_pieces(&mut session, &table(), [input.as_slice()]);
    assert_eq!(session.export(), Some(ExportIndex(1)));
    let (taken, event) = session.next_request(&transcript.rest);
    let op = Op::Read {
        offset: 512,
        len: 512,
        whole: false,
    };
    assert_eq!(
        (taken, event),
        (
            28,
            TransmissionEvent::Request(Request {
                cookie: Cookie(5),
                op
            })
        )
    );
}

#[test]
fn the_calls_of_the_other_phase_do_nothing() {
    let mut session = Session::new(Limits::default());
    let fatal = TransmissionEvent::Fatal(FatalReason::NotInTransmission);
    assert_eq!(session.next_request(&[0; 28]), (0, fatal));
    let mut session = Session::transmitting(ExportIndex(0), 512, Limits::default());
    let repeated = NegotiationEvent::Transmission {
        export: ExportIndex(0),
    };
    assert_eq!(session.negotiate(&[0; 28], &table()), (0, repeated));
}

#[test]
fn output_is_bounded_by_one_answer() {
    let list = option(3, b"");
    let input = [client_flags(FIXED_NO_ZEROES), list.repeat(50)].concat();
    let mut session = Session::new(Limits::default());
    session.advance_output(usize::MAX);
    let (taken, event) = session.negotiate(&input, &table());
    assert_eq!((taken, event), (4 + list.len(), NegotiationEvent::Send));
    let waiting = session.output().len();
    assert_eq!(
        session.negotiate(&input[taken..], &table()),
        (0, NegotiationEvent::Send)
    );
    assert_eq!(session.output().len(), waiting);
}

#[test]
fn a_session_can_move_to_the_thread_that_serves_requests() {
    fn movable<T: Send + 'static>(_: &T) {}
    movable(&Session::new(Limits::default()));
    movable(&Terms::default());
    // It is small enough to be kept by value in a table of connections.
    assert!(size_of::<Session>() <= 256);
}
