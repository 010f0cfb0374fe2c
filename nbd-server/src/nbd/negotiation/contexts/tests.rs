use crate::nbd::negotiation::tests::*;
use crate::nbd::protocol::ReplyCode as C;
use crate::nbd::testing::*;
use crate::nbd::{ExportTable, Limits, Session, Terms};

const STRUCTURED: u32 = 8;
const LIST_META: u32 = 9;
const SET_META: u32 = 10;

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
