use super::*;
use crate::nbd::protocol::ReplyCode as C;
use crate::nbd::testing::*;
use crate::nbd::{ExportIndex, Limits, NegotiationEvent as E, Session};

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;

const STRUCTURED: u32 = 8;
const LIST_META: u32 = 9;
const SET_META: u32 = 10;

fn export_info(size: u64) -> Vec<u8> {
    export_info_with(size, 0xd6d)
}

fn export_info_with(size: u64, flags: u16) -> Vec<u8> {
    let info = ExportInfo {
        info: 0.into(),
        size: size.into(),
        flags: flags.into(),
    };
    info.as_bytes().to_vec()
}

const BLOCK_SIZES: [u8; 14] = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];

#[test]
fn greeting_offers_fixed_newstyle_without_zeroes_and_nothing_else() {
    let mut session = Session::new(Limits::default());
    assert_eq!(session.output(), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(session.negotiate(&[0; 4], &table()), (0, E::Send));
    session.advance_output(17);
    assert_eq!(session.negotiate(&[0; 4], &table()), (0, E::Send));
    assert_eq!(session.output(), [3]);
    session.advance_output(1);
    assert_eq!(session.negotiate(&[], &table()), (0, E::NeedInput));
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    for flags in [4, 1 << 31, 7, u32::MAX] {
        let end = negotiate(&table(), &client_flags(flags)).end();
        assert_eq!(end, E::Close(CloseReason::BadClientFlags(flags)));
    }
    for flags in 0..4 {
        assert_eq!(
            negotiate(&table(), &client_flags(flags)).end(),
            E::NeedInput
        );
    }
}

#[test]
fn a_client_without_fixed_newstyle_may_only_use_export_name() {
    for flags in [0, 2] {
        for code in [ABORT, LIST, 4, STARTTLS, INFO, GO, 8, 9, 10, 11, 99] {
            let input = [client_flags(flags), option(code, b"")].concat();
            let end = negotiate(&table(), &input).end();
            assert_eq!(end, E::Close(CloseReason::NotFixedNewstyle(code)));
        }
        let input = [client_flags(flags), option(EXPORT_NAME, b"db")].concat();
        let end = negotiate(&table(), &input).end();
        assert_eq!(
            end,
            E::Transmission {
                export: ExportIndex(0)
            }
        );
    }
}

#[test]
fn an_option_without_its_magic_number_ends_the_connection() {
    let mut input = option(LIST, b"");
    input[3] ^= 1;
    let end = negotiate_options(&table(), &input).end();
    assert!(matches!(end, E::Close(CloseReason::BadOptionMagic(_))));
}

/// Options that get one error and leave the stream in step: what follows is answered as usual.
#[test]
fn refused_options_are_skipped_and_the_stream_stays_in_step() {
    let long_name = [b'x'; 4097];
    let cases: Vec<(&str, u32, Vec<u8>, C)> = vec![
        ("unknown option", 99, vec![], C::ErrUnsup),
        (
            "unknown option with data",
            0xffff_ffff,
            vec![7; 5],
            C::ErrUnsup,
        ),
        (
            "unknown option, longest data",
            12,
            vec![7; 64 << 10],
            C::ErrUnsup,
        ),
        ("option 0", 0, vec![], C::ErrUnsup),
        ("PEEK_EXPORT", 4, b"db".to_vec(), C::ErrUnsup),
        ("STRUCTURED_REPLY with data", 8, vec![1], C::ErrInvalid),
        (
            "LIST_META_CONTEXT before STRUCTURED_REPLY",
            9,
            contexts(b"db", &[]),
            C::ErrInvalid,
        ),
        (
            "SET_META_CONTEXT before STRUCTURED_REPLY",
            10,
            contexts(b"db", &[b"base:allocation"]),
            C::ErrInvalid,
        ),
        ("EXTENDED_HEADERS", 11, vec![], C::ErrUnsup),
        ("STARTTLS without TLS", STARTTLS, vec![], C::ErrPolicy),
        ("STARTTLS with data", STARTTLS, vec![0], C::ErrInvalid),
        ("LIST with data", LIST, b"db".to_vec(), C::ErrInvalid),
        ("no data", INFO, vec![], C::ErrInvalid),
        ("five bytes", INFO, vec![0; 5], C::ErrInvalid),
        (
            "name longer than the data",
            INFO,
            vec![0, 0, 0, 3, b'd', b'b', 0, 0],
            C::ErrInvalid,
        ),
        (
            "name of 4 GiB",
            INFO,
            [&[0xff; 4][..], b"db\0\0"].concat(),
            C::ErrInvalid,
        ),
        (
            "requests cut off",
            INFO,
            vec![0, 0, 0, 2, b'd', b'b', 0, 2, 0, 3],
            C::ErrInvalid,
        ),
        (
            "65535 requests",
            INFO,
            vec![0, 0, 0, 2, b'd', b'b', 0xff, 0xff],
            C::ErrInvalid,
        ),
        (
            "junk at the end",
            INFO,
            [query(b"db", &[3]), vec![0]].concat(),
            C::ErrInvalid,
        ),
        (
            "name of 4097 bytes",
            INFO,
            query(&long_name, &[]),
            C::ErrInvalid,
        ),
        (
            "longest name",
            INFO,
            query(&long_name[1..], &[]),
            C::ErrUnknown,
        ),
        (
            "name of 256 bytes",
            INFO,
            query(&long_name[..256], &[]),
            C::ErrUnknown,
        ),
        (
            "name of 257 bytes",
            INFO,
            query(&long_name[..257], &[]),
            C::ErrUnknown,
        ),
        ("NUL in the name", INFO, query(b"db\0", &[]), C::ErrInvalid),
        ("bad UTF-8", INFO, query(b"\xc3(", &[]), C::ErrInvalid),
        ("another name", INFO, query(b"dbx", &[]), C::ErrUnknown),
        ("no default among two", INFO, query(b"", &[]), C::ErrUnknown),
    ];
    for (what, code, data, error) in cases {
        let codes = if code == INFO {
            vec![INFO, GO]
        } else {
            vec![code]
        };
        for code in codes {
            let input = [option(code, &data), option(LIST, b"")].concat();
            let transcript = negotiate_options(&table(), &input);
            let replies = transcript.replies();
            assert_eq!(transcript.end(), E::NeedInput, "{what}");
            assert_eq!((replies[0].0, replies[0].1), (code, error), "{what}");
            assert!(std::str::from_utf8(&replies[0].2).is_ok_and(|text| !text.is_empty()));
            assert_eq!(
                transcript.codes()[1..],
                [C::Server, C::Server, C::Ack],
                "{what}"
            );
        }
    }
}

#[test]
fn option_data_over_the_limit_ends_the_connection_unread() {
    for code in [ABORT, LIST, STARTTLS, INFO, GO, 8, 10, 99] {
        for len in [(64 << 10) + 1, 0x7fff_ffff, u32::MAX] {
            let transcript = negotiate_options(&table(), &option_header(code, len));
            let reason = CloseReason::OptionTooLong { option: code, len };
            assert_eq!(transcript.end(), E::Close(reason));
            assert!(transcript.output.is_empty());
        }
    }
}

#[test]
fn options_per_connection_are_counted() {
    let one = option(99, b"");
    let transcript = negotiate_options(&table(), &one.repeat(256));
    assert_eq!(
        (transcript.end(), transcript.codes().len()),
        (E::NeedInput, 256)
    );
    let transcript = negotiate_options(&table(), &one.repeat(300));
    assert_eq!(transcript.end(), E::Close(CloseReason::TooManyOptions(256)));
    assert_eq!(transcript.codes().len(), 256);
}

#[test]
fn abort_is_acknowledged_whatever_its_data() {
    for data in [&b""[..], b"bye"] {
        let transcript = negotiate_options(&table(), &option(ABORT, data));
        assert_eq!(transcript.end(), E::Close(CloseReason::Aborted));
        assert_eq!(transcript.replies(), [(ABORT, C::Ack, vec![])]);
    }
}

#[test]
fn list_shows_all_names_in_order_also_where_they_are_not_served() {
    for serving in [Ok(()), Err("pbx-b is Primary".to_owned())] {
        let mut table = table();
        table.set_serving(serving);
        let transcript = negotiate_options(&table, &option(LIST, b""));
        let expected = [
            (LIST, C::Server, b"\0\0\0\x02db".to_vec()),
            (LIST, C::Server, b"\0\0\0\x0arecordings".to_vec()),
            (LIST, C::Ack, vec![]),
        ];
        assert_eq!(transcript.replies(), expected);
    }
}

#[test]
fn go_answers_size_flags_and_block_sizes_then_starts_transmission() {
    let input = [option(GO, &query(b"db", &[])), b"next".to_vec()].concat();
    let transcript = negotiate_options(&table(), &input);
    let expected = [
        (GO, C::Info, export_info(DB_BYTES)),
        (GO, C::Info, BLOCK_SIZES.to_vec()),
        (GO, C::Ack, vec![]),
    ];
    assert_eq!(transcript.replies(), expected);
    assert_eq!(
        transcript.end(),
        E::Transmission {
            export: ExportIndex(0)
        }
    );
    assert_eq!(transcript.rest, b"next");
}

#[test]
fn go_never_pads_with_zeroes() {
    for flags in [1, 3] {
        let input = [client_flags(flags), option(GO, &query(b"db", &[]))].concat();
        assert_eq!(
            negotiate(&table(), &input).codes(),
            [C::Info, C::Info, C::Ack]
        );
    }
}

#[test]
fn info_answers_like_go_and_leaves_no_trace() {
    let info = option(INFO, &query(b"recordings", &[3]));
    let transcript = negotiate_options(&table(), &info);
    let expected = [
        (INFO, C::Info, export_info(1 << 20)),
        (INFO, C::Info, BLOCK_SIZES.to_vec()),
        (INFO, C::Ack, vec![]),
    ];
    assert_eq!(transcript.replies(), expected);
    assert_eq!(transcript.end(), E::NeedInput);

    let go = option(GO, &query(b"db", &[]));
    let after_info = negotiate_options(&table(), &[info, go.clone()].concat());
    let alone = negotiate_options(&table(), &go);
    assert_eq!(after_info.replies()[3..], alone.replies());
    assert_eq!(after_info.end(), alone.end());
}

#[test]
fn repeated_and_unknown_information_requests_are_harmless() {
    let data = query(b"db", &[3, 3, 1, 77, 2, 1, 0xffff]);
    let transcript = negotiate_options(&table(), &option(GO, &data));
    assert_eq!(transcript.codes(), [C::Info, C::Info, C::Info, C::Ack]);
    assert_eq!(transcript.replies()[1].2, b"\0\x01db");
}

#[test]
fn the_name_of_the_default_export_is_told_on_request() {
    let table = table_of(&[("db", 4096)]);
    let transcript = negotiate_options(&table, &option(GO, &query(b"", &[1])));
    assert_eq!(transcript.replies()[1].2, b"\0\x01db");
    assert_eq!(
        transcript.end(),
        E::Transmission {
            export: ExportIndex(0)
        }
    );
}

#[test]
fn where_exports_are_not_served_info_and_go_name_the_reason() {
    let mut table = table();
    table.set_serving(Err("pbx-a is Primary".to_owned()));
    for code in [INFO, GO] {
        for name in ["db", "", "nothing"] {
            let input = [option(code, &query(name.as_bytes(), &[])), option(99, b"")].concat();
            let transcript = negotiate_options(&table, &input);
            assert_eq!(
                transcript.replies()[0],
                (code, C::ErrPolicy, b"pbx-a is Primary".to_vec())
            );
            assert_eq!(transcript.codes()[1], C::ErrUnsup);
        }
        let nonsense = negotiate_options(&table, &option(code, b""));
        assert_eq!(nonsense.codes(), [C::ErrInvalid]);
    }
    let transcript = negotiate_options(&table, &option(EXPORT_NAME, b"db"));
    assert_eq!(transcript.end(), E::Close(CloseReason::NotServing));
    assert!(transcript.output.is_empty());
}

#[test]
fn serving_is_looked_at_anew_for_each_option() {
    let mut table = table();
    let mut session = Session::new(Limits::default());
    let go = option(GO, &query(b"db", &[]));
    table.set_serving(Err("no".to_owned()));
    let first = [client_flags(FIXED_NO_ZEROES), go.clone()].concat();
    negotiate_pieces(&mut session, &table, [first.as_slice()]);
    table.set_serving(Ok(()));
    let (taken, event) = session.negotiate(&go, &table);
    assert_eq!(
        (taken, event),
        (
            go.len(),
            E::Transmission {
                export: ExportIndex(0)
            }
        )
    );
}

#[test]
fn no_text_is_longer_than_the_protocol_allows() {
    let mut table = table();
    table.set_serving(Err("\u{e4}".repeat(4096)));
    let transcript = negotiate_options(&table, &option(GO, &query(b"db", &[])));
    let (_, code, text) = &transcript.replies()[0];
    assert_eq!((*code, text.len()), (C::ErrPolicy, 4096));
    table.set_serving(Err(format!("x{}", "\u{e4}".repeat(4096))));
    let transcript = negotiate_options(&table, &option(GO, &query(b"db", &[])));
    assert_eq!(transcript.replies()[0].2.len(), 4095);
}

#[test]
fn export_name_answers_size_and_flags_with_padding_unless_agreed_otherwise() {
    for (flags, padding) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let input = [client_flags(flags), option(EXPORT_NAME, b"recordings")].concat();
        let transcript = negotiate(&table(), &input);
        let mut expected = vec![0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d];
        expected.extend(std::iter::repeat_n(0, padding));
        assert_eq!(transcript.output, expected);
        assert_eq!(
            transcript.end(),
            E::Transmission {
                export: ExportIndex(1)
            }
        );
    }
}

#[test]
fn export_name_that_can_not_be_served_is_closed_without_a_word() {
    let cases: [(&[u8], CloseReason); 5] = [
        (b"nothing", CloseReason::UnknownExport),
        (b"", CloseReason::UnknownExport),
        (b"db\0", CloseReason::InvalidName),
        (b"\xff", CloseReason::InvalidName),
        (&[b'x'; 4097], CloseReason::InvalidName),
    ];
    for (name, reason) in cases {
        let transcript = negotiate_options(&table(), &option(EXPORT_NAME, name));
        assert_eq!(transcript.end(), E::Close(reason));
        assert!(transcript.output.is_empty());
    }
    let only = table_of(&[("db", 4096)]);
    let transcript = negotiate_options(&only, &option(EXPORT_NAME, b""));
    assert_eq!(
        transcript.end(),
        E::Transmission {
            export: ExportIndex(0)
        }
    );
}

#[test]
fn where_tls_is_required_nothing_is_told_or_opened_before_it() {
    let start = |options: &[u8]| {
        let mut session = Session::requiring_tls(Limits::default());
        let input = [&client_flags(FIXED_NO_ZEROES), options].concat();
        negotiate_pieces(&mut session, &table(), [input.as_slice()])
    };
    for code in [LIST, 4, INFO, GO, 8, 9, 10, 11, 99] {
        let transcript = start(&option(code, &query(b"db", &[])));
        assert_eq!(transcript.codes(), [C::ErrTlsReqd], "option {code}");
    }
    assert_eq!(start(&option(ABORT, b"")).codes(), [C::Ack]);
    assert_eq!(start(&option(STARTTLS, b"x")).codes(), [C::ErrInvalid]);
    let end = start(&option(EXPORT_NAME, b"db")).end();
    assert_eq!(end, E::Close(CloseReason::TlsRequired));
}

#[test]
fn bytes_in_the_clear_after_starttls_count_for_nothing() {
    let mut session = Session::requiring_tls(Limits::default());
    let injected = option(LIST, b"");
    let clear = [
        client_flags(FIXED_NO_ZEROES),
        option(STARTTLS, b""),
        injected,
    ]
    .concat();
    let transcript = negotiate_pieces(&mut session, &table(), [clear.as_slice()]);
    assert_eq!(transcript.end(), E::StartTls);
    assert_eq!(
        (transcript.codes(), transcript.rest),
        (vec![C::Ack], vec![])
    );

    let again = option(STARTTLS, b"");
    assert_eq!(session.negotiate(&again, &table()), (again.len(), E::Send));
    let end = session.output().len();
    session.advance_output(end);
    let go = option(GO, &query(b"db", &[]));
    let (_, event) = session.negotiate(&go, &table());
    assert_eq!(
        event,
        E::Transmission {
            export: ExportIndex(0)
        }
    );
}

/// What a client gets that has asked for structured replies and then sends these options.
fn after_structured(table: &ExportTable, options: &[Vec<u8>]) -> Transcript {
    let input = [option(STRUCTURED, b""), options.concat()].concat();
    let mut transcript = negotiate_options(table, &input);
    let ack: Vec<u8> = transcript.output.drain(..20).collect();
    assert_eq!(ack[8..], [0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
    transcript
}

fn go(name: &[u8]) -> Vec<u8> {
    option(GO, &query(name, &[]))
}

fn allocation(id: u8) -> Vec<u8> {
    [&[0, 0, 0, id][..], b"base:allocation"].concat()
}

#[test]
fn structured_replies_may_be_asked_for_twice_and_bring_a_flag() {
    let again = after_structured(&table(), &[option(STRUCTURED, b""), go(b"db")]);
    let expected = [
        (STRUCTURED, C::Ack, vec![]),
        (GO, C::Info, export_info_with(DB_BYTES, 0xded)),
        (GO, C::Info, BLOCK_SIZES.to_vec()),
        (GO, C::Ack, vec![]),
    ];
    assert_eq!(again.replies(), expected);
    let terms = Terms {
        structured: true,
        allocation: false,
    };
    assert_eq!(again.terms, terms);
    // Without the option, and with one that was refused, nothing is agreed on.
    let refused = [option(STRUCTURED, b"x"), go(b"db")].concat();
    let transcript = negotiate_options(&table(), &refused);
    assert_eq!(transcript.terms, Terms::default());
    assert_eq!(transcript.replies()[1].2, export_info(DB_BYTES));
    let by_name = after_structured(&table(), &[option(EXPORT_NAME, b"recordings")]);
    assert_eq!(by_name.output, [0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0xed]);
    assert_eq!(by_name.terms, terms);
}

#[test]
fn lists_of_contexts_know_wildcards() {
    let cases: [(&[&[u8]], bool); 8] = [
        (&[], true),
        (&[b"base:"], true),
        (&[b"base:allocation"], true),
        (&[b"base:allocation", b"base:allocation", b"base:"], true),
        (&[b"qemu:dirty-bitmap:x", b"base:allocation"], true),
        (&[b"base:allocatio"], false),
        (&[b"qemu:"], false),
        (&[b""], false),
    ];
    for (queries, found) in cases {
        let data = contexts(b"db", queries);
        let transcript = after_structured(&table(), &[option(LIST_META, &data), go(b"db")]);
        let replies = transcript.replies();
        let mut expected = vec![(LIST_META, C::Ack, vec![])];
        if found {
            expected.insert(0, (LIST_META, C::MetaContext, allocation(0)));
        }
        assert_eq!(replies[..expected.len()], expected, "{queries:?}");
        // To look is not to choose.
        assert!(!transcript.terms.allocation);
    }
}

#[test]
fn contexts_are_chosen_by_their_whole_name() {
    let cases: [(&[&[u8]], bool); 7] = [
        (&[b"base:allocation"], true),
        (&[b"base:allocation", b"base:allocation"], true),
        (&[b"x:y", b"base:allocation", b"no colon"], true),
        (&[], false),
        (&[b"base:"], false),
        (&[b"base:allocation2"], false),
        (&[b"BASE:allocation"], false),
    ];
    for (queries, found) in cases {
        let data = contexts(b"db", queries);
        let transcript = after_structured(&table(), &[option(SET_META, &data), go(b"db")]);
        let replies = transcript.replies();
        let mut expected = vec![(SET_META, C::Ack, vec![])];
        if found {
            expected.insert(0, (SET_META, C::MetaContext, allocation(1)));
        }
        assert_eq!(replies[..expected.len()], expected, "{queries:?}");
        assert_eq!(transcript.terms.allocation, found, "{queries:?}");
    }
}

#[test]
fn a_choice_of_contexts_holds_for_its_export_until_the_next_choice() {
    let set = |name: &[u8], queries: &[&[u8]]| option(SET_META, &contexts(name, queries));
    let chosen = |options: &[Vec<u8>]| after_structured(&table(), options).terms.allocation;
    let good: &[&[u8]] = &[b"base:allocation"];
    let of_db = set(b"db", good);
    assert!(chosen(&[of_db.clone(), go(b"db")]));
    assert!(chosen(&[of_db.clone(), option(EXPORT_NAME, b"db")]));
    assert!(!chosen(&[of_db.clone(), go(b"recordings")]));
    assert!(chosen(&[
        set(b"recordings", good),
        of_db.clone(),
        go(b"db")
    ]));
    assert!(!chosen(&[
        of_db.clone(),
        set(b"recordings", good),
        go(b"db")
    ]));
    // INFO, LIST_META_CONTEXT and a second STRUCTURED_REPLY change nothing.
    let between = [
        option(INFO, &query(b"recordings", &[])),
        option(LIST_META, &contexts(b"recordings", &[])),
        option(STRUCTURED, b""),
    ];
    let all = [&[of_db.clone()][..], &between, &[go(b"db")]].concat();
    assert!(chosen(&all));
    // A choice that fails is one of nothing.
    for failing in [
        set(b"nothing", good),
        set(b"db", &[]),
        set(b"db", &[b"base:"]),
        option(SET_META, b"junk"),
        option(SET_META, b""),
    ] {
        assert!(!chosen(&[of_db.clone(), failing, go(b"db")]));
    }
    // The default export is the same one.
    let only = table_of(&[("db", 4096)]);
    let by_default = after_structured(&only, &[set(b"", good), go(b"db")]);
    assert!(by_default.terms.allocation);
}

#[test]
fn context_options_that_make_no_sense_are_refused_and_stay_in_step() {
    let valid = contexts(b"db", &[b"base:allocation"]);
    let long = [b'x'; 4097];
    let with_count = |count: u8| {
        let mut data = valid.clone();
        data[9] = count;
        data
    };
    let cases: Vec<(&str, Vec<u8>, C)> = vec![
        ("no data", vec![], C::ErrInvalid),
        ("three bytes", vec![0; 3], C::ErrInvalid),
        ("no count", vec![0, 0, 0, 2, b'd', b'b'], C::ErrInvalid),
        ("name of 4 GiB", vec![0xff; 77], C::ErrInvalid),
        ("a query too many", with_count(2), C::ErrInvalid),
        ("a query too few", with_count(0), C::ErrInvalid),
        (
            "a byte too few",
            valid[..valid.len() - 1].to_vec(),
            C::ErrInvalid,
        ),
        (
            "a byte too many",
            [&valid[..], &[0]].concat(),
            C::ErrInvalid,
        ),
        (
            "4 Gi queries",
            [&valid[..6], &[0xff; 4], &valid[10..]].concat(),
            C::ErrInvalid,
        ),
        (
            "query of 4097 bytes",
            contexts(b"db", &[&long]),
            C::ErrInvalid,
        ),
        ("longest query", contexts(b"db", &[&long[1..]]), C::Ack),
        ("name of 4097 bytes", contexts(&long, &[]), C::ErrInvalid),
        ("longest name", contexts(&long[1..], &[]), C::ErrUnknown),
        ("NUL in the name", contexts(b"d\0b", &[]), C::ErrInvalid),
        (
            "NUL in the query",
            contexts(b"db", &[b"base\0"]),
            C::ErrInvalid,
        ),
        ("bad UTF-8", contexts(b"db", &[b"\xc3("]), C::ErrInvalid),
        ("another name", contexts(b"dbx", &[]), C::ErrUnknown),
        ("no default among two", contexts(b"", &[]), C::ErrUnknown),
    ];
    for (what, data, error) in cases {
        for code in [LIST_META, SET_META] {
            let transcript = after_structured(&table(), &[option(code, &data), option(LIST, b"")]);
            let replies = transcript.replies();
            assert_eq!((replies[0].0, replies[0].1), (code, error), "{what}");
            assert_eq!(
                transcript.codes()[1..],
                [C::Server, C::Server, C::Ack],
                "{what}"
            );
        }
    }
    let mut closed = table();
    closed.set_serving(Err("pbx-a is Primary".to_owned()));
    for code in [LIST_META, SET_META] {
        let transcript = after_structured(&closed, &[option(code, &valid)]);
        let told = (code, C::ErrPolicy, b"pbx-a is Primary".to_vec());
        assert_eq!(transcript.replies(), [told]);
    }
}

#[test]
fn starttls_takes_back_what_was_agreed_on_in_the_clear() {
    // Before TLS nothing can be agreed on at all; what a man in the middle injects counts for nothing.
    let mut session = Session::requiring_tls(Limits::default());
    let set = option(SET_META, &contexts(b"db", &[b"base:allocation"]));
    let clear = [
        client_flags(FIXED_NO_ZEROES),
        option(STRUCTURED, b""),
        set.clone(),
        option(STARTTLS, b""),
    ]
    .concat();
    let transcript = negotiate_pieces(&mut session, &table(), [clear.as_slice()]);
    assert_eq!(transcript.codes(), [C::ErrTlsReqd, C::ErrTlsReqd, C::Ack]);
    for (input, answer) in [(set, C::ErrInvalid), (go(b"db"), C::Info)] {
        session.negotiate(&input, &table());
        let reply = session.output()[12..16].try_into().map(u32::from_be_bytes);
        assert_eq!(C::from_wire(reply.unwrap()), answer);
        session.advance_output(usize::MAX);
    }
    assert_eq!(session.terms(), Terms::default());
}
