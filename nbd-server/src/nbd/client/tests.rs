mod memory_server;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use self::memory_server::MemoryServer;
use super::*;
use crate::nbd::protocol::{Cookie, OPTION_REPLY_MAGIC, ReplyCode as C, TransmissionFlags};
use crate::nbd::testing::table_of;
use crate::nbd::wire::{OptionReplyHeader, simple_reply};
use crate::nbd::{ExportTable, Op};

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const EXPORT_INFO: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d];

fn reply(option: u32, code: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionReplyHeader {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        reply: code.into(),
        len: (data.len() as u32).into(),
    };
    [header.as_bytes(), data].concat()
}

fn handshake(server_bytes: &[u8]) -> Result<(usize, HandshakeEvent), ClientError> {
    Handshake::new("db")
        .unwrap()
        .handle(server_bytes, &mut Vec::new())
}

/// A client of a memory server that runs on its own thread.
fn connected(table: ExportTable) -> (Result<Client, ClientError>, JoinHandle<MemoryServer>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || MemoryServer::new(table).run(theirs));
    (
        Client::negotiate(OwnedFd::from(ours), "db", &Options::default()),
        server,
    )
}

/// A client of a server that opens an export of 1 MiB and then does what `serve` does.
fn scripted(serve: impl FnOnce(UnixStream) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        theirs.write_all(GREETING).unwrap();
        let mut hello = [0; 4 + 16 + 4 + 2 + 2 + 4];
        theirs.read_exact(&mut hello).unwrap();
        theirs
            .write_all(&[reply(7, 3, &EXPORT_INFO), reply(7, 1, &[])].concat())
            .unwrap();
        serve(theirs);
    });
    (
        Client::negotiate(OwnedFd::from(ours), "db", &Options::default()).unwrap(),
        server,
    )
}

#[test]
fn addresses_are_understood_and_shown_the_same() {
    let cases = [
        (
            "nbd+unix:///db?socket=/run/r/nbd.sock",
            Uri::unix("db", "/run/r/nbd.sock"),
            true,
        ),
        (
            "nbd+unix:///?socket=/a%20b%26c",
            Uri::unix("", "/a b&c"),
            true,
        ),
        ("nbd+unix://?socket=x", Uri::unix("", "x"), false),
        ("nbd+unix:///a/b%3F?socket=x", Uri::unix("a/b?", "x"), true),
        ("nbd://pbx-a:10810/db", Uri::tcp("db", "pbx-a", 10810), true),
        (
            "nbd://127.0.0.1/db",
            Uri::tcp("db", "127.0.0.1", 10809),
            false,
        ),
        ("nbd://[::1]:7/db", Uri::tcp("db", "::1", 7), true),
        ("nbd://[fe80::1]", Uri::tcp("", "fe80::1", 10809), false),
        ("nbd://h/%C3%A4", Uri::tcp("\u{e4}", "h", 10809), false),
    ];
    for (text, uri, canonical) in cases {
        assert_eq!(text.parse::<Uri>().as_ref(), Ok(&uri), "{text}");
        assert_eq!(uri.to_string().parse::<Uri>().as_ref(), Ok(&uri), "{text}");
        assert!(!canonical || uri.to_string() == text, "{uri}");
    }
}

#[test]
fn addresses_that_mean_nothing_here_are_refused() {
    use UriError as U;
    type Check = fn(&U) -> bool;
    let scheme: Check = |error| matches!(error, U::Scheme);
    let endpoint: Check = |error| matches!(error, U::Endpoint(_));
    let escape: Check = |error| matches!(error, U::Escape(_));
    let cases: [(&str, Check); 17] = [
        ("", scheme),
        ("/run/nbd.sock", scheme),
        ("http://h/", scheme),
        ("nbds://h/db", |error| *error == U::Tls),
        ("nbd+unix:///db", endpoint),
        ("nbd+unix://host/db?socket=x", endpoint),
        ("nbd+unix:///db?socket=", |error| {
            matches!(error, U::Parameter(_))
        }),
        ("nbd+unix:///db?path=x", |error| {
            matches!(error, U::Parameter(_))
        }),
        ("nbd:///db", endpoint),
        ("nbd://u@h/db", endpoint),
        ("nbd://h:99999/db", endpoint),
        ("nbd://[::1/db", endpoint),
        ("nbd://[::1]x/db", endpoint),
        ("nbd://h/%2", escape),
        ("nbd://h/%+1", escape),
        ("nbd://h/%ff", escape),
        ("nbd://h/a%00", |error| *error == U::Export),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Uri>().unwrap_err();
        assert!(expected(&error), "{text}: {error:?}");
    }
}

#[test]
fn a_servers_details_are_believed_when_they_make_sense() {
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 0, 0x10, 0, 0];
    let replies = [
        GREETING,
        &reply(7, 3, &[0, 2, b'?']),
        &reply(7, 3, &[0, 99]),
        &reply(7, 3, b"\0\x01db"),
        &reply(7, 3, &sizes),
        &reply(7, 3, &EXPORT_INFO),
        &reply(7, 1, &[]),
        b"rest",
    ]
    .concat();
    let details = ExportDetails {
        size_bytes: 1 << 20,
        flags: TransmissionFlags::SERVED,
        name: Some("db".to_owned()),
        block_bytes_min: 512,
        block_bytes_preferred: 4096,
        payload_bytes_max: 1 << 20,
    };
    let (taken, event) = handshake(&replies).unwrap();
    assert_eq!(
        (taken, event),
        (replies.len() - 4, HandshakeEvent::Open(details.clone()))
    );

    let mut handshake = Handshake::new("db").unwrap();
    for (index, byte) in replies[..taken].iter().enumerate() {
        let (_, event) = handshake.handle(&[*byte], &mut Vec::new()).unwrap();
        let open = event == HandshakeEvent::Open(details.clone());
        assert_eq!(open, index == taken - 1);
    }
}

#[test]
fn a_server_that_breaks_the_protocol_is_left() {
    let mut negative = EXPORT_INFO;
    negative[2] = 0x80;
    let mut no_flags = EXPORT_INFO;
    no_flags[11] = 0x6c;
    let long = OptionReplyHeader {
        magic: OPTION_REPLY_MAGIC.into(),
        option: 7.into(),
        reply: 3.into(),
        len: u32::MAX.into(),
    };
    let sizes = |sizes: [u32; 3]| {
        let sizes = sizes.map(zerocopy::byteorder::big_endian::U32::new);
        reply(7, 3, &[&[0, 3], sizes.as_bytes()].concat())
    };
    let after_greeting: Vec<(&str, Vec<u8>)> = vec![
        ("no magic", vec![0; 20]),
        ("reply to another option", reply(6, 1, &[])),
        ("4 GiB reply", long.as_bytes().to_vec()),
        ("acknowledgement without details", reply(7, 1, &[])),
        (
            "acknowledgement with data",
            [reply(7, 3, &EXPORT_INFO), reply(7, 1, &[0])].concat(),
        ),
        (
            "negative size",
            [reply(7, 3, &negative), reply(7, 1, &[])].concat(),
        ),
        (
            "no HAS_FLAGS",
            [reply(7, 3, &no_flags), reply(7, 1, &[])].concat(),
        ),
        ("short details", reply(7, 3, &EXPORT_INFO[..11])),
        (
            "long details",
            reply(7, 3, &[&EXPORT_INFO[..], &[0]].concat()),
        ),
        ("information without type", reply(7, 3, &[0])),
        ("name that is no text", reply(7, 3, &[0, 1, 0xff])),
        ("minimum 0", sizes([0, 4096, 4096])),
        ("minimum 3", sizes([3, 4096, 4096])),
        ("minimum 128 KiB", sizes([1 << 17, 1 << 17, 1 << 17])),
        ("preferred below minimum", sizes([4096, 512, 4096])),
        ("maximum below minimum", sizes([4096, 4096, 512])),
        ("list entry", reply(7, 2, &[0; 4])),
        ("information without end", reply(7, 3, &[0, 99]).repeat(257)),
    ];
    for (what, bytes) in after_greeting {
        let result = handshake(&[GREETING, &bytes].concat());
        assert!(
            matches!(result, Err(ClientError::Protocol(_))),
            "{what}: {result:?}"
        );
    }
    for greeting in [
        &b"HTTP/1.1 400 Bad R"[..],
        b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0",
    ] {
        assert!(matches!(handshake(greeting), Err(ClientError::Protocol(_))));
    }
    let oldish = b"NBDMAGICIHAVEOPT\0\x02";
    assert!(matches!(handshake(oldish), Err(ClientError::Protocol(_))));
}

#[test]
fn refusals_keep_the_servers_words() {
    let policy = handshake(&[GREETING, &reply(7, (1 << 31) | 2, b"pbx-a is Primary")].concat());
    assert!(matches!(policy, Err(ClientError::Policy { text }) if text == "pbx-a is Primary"));
    let unknown = handshake(&[GREETING, &reply(7, (1 << 31) | 6, b"\xff")].concat());
    let Err(ClientError::Refused {
        code: C::ErrUnknown,
        text,
    }) = unknown
    else {
        panic!("{unknown:?}");
    };
    assert_eq!(text, "\u{fffd}");
    let other = handshake(&[GREETING, &reply(7, (1 << 31) | 77, &[b'x'; 60_000])].concat());
    assert!(matches!(other, Err(ClientError::Refused { text, .. }) if text.len() == 4096));
}

#[test]
fn names_and_payloads_that_do_not_fit_are_not_sent() {
    for name in ["a\0", &"x".repeat(4097)] {
        assert!(matches!(Handshake::new(name), Err(ClientError::Usage(_))));
    }
    let mut output = Vec::new();
    let mut pipeline = Pipeline::new();
    let read = ClientRequest::Read {
        offset: 0,
        len: (32 << 20) + 1,
    };
    assert!(matches!(
        pipeline.submit(&read, &mut output),
        Err(ClientError::Usage(_))
    ));
    assert!(output.is_empty() && pipeline.is_idle());
}

#[test]
fn answers_find_their_requests_in_any_order_and_in_any_pieces() {
    let mut pipeline = Pipeline::new();
    let mut output = Vec::new();
    let read = ClientRequest::Read { offset: 0, len: 3 };
    let requests = [read, ClientRequest::Flush, read, read];
    let [a, b, c, d] = requests.map(|request| pipeline.submit(&request, &mut output).unwrap());
    let answers = [
        &simple_reply(c, Ok(()))[..],
        b"ccc",
        &simple_reply(b, Ok(())),
        &simple_reply(d, Err(NbdError::Io)),
        &simple_reply(a, Ok(())),
        b"aaa",
    ]
    .concat();
    let mut done = Vec::new();
    for byte in answers {
        assert!(!pipeline.is_idle());
        let (taken, completion) = pipeline.receive(&[byte]).unwrap();
        assert_eq!(taken, 1);
        done.extend(completion.map(|completion| (completion.cookie, completion.result)));
    }
    let expected = [
        (c, Ok(b"ccc".to_vec())),
        (b, Ok(vec![])),
        (d, Err(NbdError::Io)),
        (a, Ok(b"aaa".to_vec())),
    ];
    assert_eq!(done, expected);
    assert!(pipeline.is_idle());
}

#[test]
fn a_reply_to_nothing_or_a_second_reply_ends_the_connection() {
    let mut pipeline = Pipeline::new();
    let cookie = pipeline
        .submit(&ClientRequest::Flush, &mut Vec::new())
        .unwrap();
    let bytes = simple_reply(cookie, Ok(()));
    assert!(pipeline.receive(&bytes).unwrap().1.is_some());
    assert!(matches!(
        pipeline.receive(&bytes),
        Err(ClientError::Protocol(_))
    ));
    let chunk = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(matches!(
        Pipeline::new().receive(&chunk),
        Err(ClientError::Protocol(_))
    ));
}

#[test]
fn client_and_session_agree_on_every_command() {
    let mut server = MemoryServer::new(table_of(&[("db", 1 << 20)]));
    let mut handshake = Handshake::new("").unwrap();
    let mut to_client = server.handle(&[]);
    let details = loop {
        let mut to_server = Vec::new();
        match handshake.handle(&to_client, &mut to_server).unwrap() {
            (_, HandshakeEvent::NeedInput) => to_client = server.handle(&to_server),
            (_, HandshakeEvent::Open(details)) => break details,
        }
    };
    assert_eq!((details.size_bytes, details.block_bytes_min), (1 << 20, 1));
    assert_eq!(details.name.as_deref(), Some("db"));

    let (offset, len, fua, no_hole) = (5, 7, true, true);
    let requests = [
        ClientRequest::Write {
            offset,
            data: b"payload",
            fua,
        },
        ClientRequest::Read { offset, len },
        ClientRequest::Flush,
        ClientRequest::Trim { offset, len, fua },
        ClientRequest::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
        },
    ];
    let mut pipeline = Pipeline::new();
    let mut output = Vec::new();
    for request in &requests {
        pipeline.submit(request, &mut output).unwrap();
    }
    pipeline.disconnect(&mut output);
    let answers = server.handle(&output);
    let mut rest = answers.as_slice();
    let mut data = Vec::new();
    while let (taken, Some(completion)) = pipeline.receive(rest).unwrap() {
        rest = &rest[taken..];
        data.push(completion.result.unwrap());
    }
    assert_eq!(data, [&b""[..], b"payload", b"", b"", b""]);
    assert!(server.closed && pipeline.is_idle());
    let expected = [
        Op::Write { offset, len, fua },
        Op::Read {
            offset,
            len,
            whole: false,
        },
        Op::Flush,
        Op::Trim { offset, len, fua },
        Op::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
        },
    ];
    assert_eq!(server.requests, expected);
}

#[test]
fn simple_calls_do_what_they_say() {
    let (client, server) = connected(table_of(&[("db", 1 << 20)]));
    let mut client = client.unwrap();
    assert_eq!(
        (client.size(), client.flags()),
        (1 << 20, TransmissionFlags::SERVED)
    );
    let mut buffer = [1; 4];
    client.write_at(1000, b"abcd", true).unwrap();
    client.flush().unwrap();
    client.read_at(1000, &mut buffer).unwrap();
    assert_eq!(&buffer, b"abcd");
    client.trim(1000, 1, false).unwrap();
    client.write_zeroes(1003, 1, true, true).unwrap();
    client.read_at(1000, &mut buffer).unwrap();
    assert_eq!(&buffer, b"\0bc\0");
    client.read_at(0, &mut []).unwrap();

    let past = client.write_at((1 << 20) - 1, b"ab", false);
    assert!(
        matches!(past, Err(ClientError::Io(NbdError::NoSpc))),
        "{past:?}"
    );
    let past = client.read_at(1 << 20, &mut buffer);
    assert!(
        matches!(past, Err(ClientError::Io(NbdError::Inval))),
        "{past:?}"
    );
    client.read_at(1000, &mut buffer).unwrap();
    assert!(client.disconnect().unwrap().is_empty());
    assert_eq!(server.join().unwrap().requests.len(), 7);
}

#[test]
fn many_large_requests_in_flight_do_not_lock_up() {
    const PIECE: usize = 1 << 20;
    let (client, server) = connected(table_of(&[("db", 8 << 20)]));
    let mut client = client.unwrap();
    let mut cookies = Vec::new();
    for turn in 0..24_u64 {
        let offset = turn % 8 * PIECE as u64;
        let data = vec![turn as u8; PIECE];
        let write = ClientRequest::Write {
            offset,
            data: &data,
            fua: false,
        };
        cookies.push((client.submit(&write).unwrap(), None));
        let read = ClientRequest::Read {
            offset,
            len: PIECE as u32,
        };
        cookies.push((client.submit(&read).unwrap(), Some(data)));
    }
    // A simple call does not take the answers of others.
    client.flush().unwrap();
    for (cookie, data) in cookies {
        let completion = client.wait().unwrap();
        assert_eq!(completion.cookie, cookie);
        assert!(completion.result.unwrap() == data.unwrap_or_default());
    }
    assert!(matches!(client.wait(), Err(ClientError::Usage(_))));
    client.disconnect().unwrap();
    server.join().unwrap();
}

#[test]
fn a_node_that_does_not_serve_is_told_from_one_that_is_gone() {
    let mut table = table_of(&[("db", 4096)]);
    table.set_serving(Err("pbx-b is Primary".to_owned()));
    let (client, server) = connected(table);
    let error = client.unwrap_err();
    assert!(matches!(&error, ClientError::Policy { text } if text == "pbx-b is Primary"));
    server.join().unwrap();

    let (client, server) = connected(table_of(&[("log", 1), ("more", 1)]));
    assert!(matches!(
        client,
        Err(ClientError::Refused {
            code: C::ErrUnknown,
            ..
        })
    ));
    server.join().unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let client = Client::negotiate(OwnedFd::from(ours), "db", &Options::default());
    assert!(matches!(client, Err(ClientError::Lost(_))));

    let nowhere = Uri::unix("db", "/nonexistent/nbd.sock");
    assert!(matches!(
        Client::connect(&nowhere),
        Err(ClientError::Connect(_))
    ));
}

#[test]
fn a_lost_connection_says_what_was_not_answered() {
    let (mut client, server) = scripted(|mut stream| {
        let mut requests = [0; 3 * 28];
        stream.read_exact(&mut requests).unwrap();
        stream.write_all(&simple_reply(Cookie(1), Ok(()))).unwrap();
    });
    let flush = ClientRequest::Flush;
    let [first, second, third] = [(); 3].map(|()| client.submit(&flush).unwrap());
    assert_eq!(client.wait().unwrap().cookie, second);
    assert!(matches!(client.wait(), Err(ClientError::Lost(_))));
    assert_eq!(client.unanswered().collect::<Vec<_>>(), [first, third]);
    assert!(matches!(client.submit(&flush), Err(ClientError::Lost(_))));
    assert!(matches!(client.disconnect(), Err(ClientError::Lost(_))));
    server.join().unwrap();
}

#[test]
fn goodbye_fails_if_the_server_leaves_answers_out() {
    let (mut client, server) = scripted(|mut stream| {
        stream.read_exact(&mut [0; 2 * 28]).unwrap();
    });
    client.submit(&ClientRequest::Flush).unwrap();
    assert!(matches!(client.disconnect(), Err(ClientError::Lost(_))));
    server.join().unwrap();
}

#[test]
fn patience_ends_and_can_be_renewed() {
    let (go, may_go) = std::sync::mpsc::channel();
    let (mut client, server) = scripted(move |mut stream| {
        stream.read_exact(&mut [0; 28]).unwrap();
        may_go.recv().unwrap();
        stream.write_all(&simple_reply(Cookie(0), Ok(()))).unwrap();
    });
    client.set_idle_timeout(Some(Duration::from_millis(20)));
    let cookie = client.submit(&ClientRequest::Flush).unwrap();
    assert!(matches!(client.wait(), Err(ClientError::TimedOut)));
    go.send(()).unwrap();
    client.set_idle_timeout(None);
    assert_eq!(client.wait().unwrap().cookie, cookie);
    server.join().unwrap();
}

#[test]
fn addresses_of_both_kinds_can_be_connected_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        MemoryServer::new(table_of(&[("db", 4096)])).run(stream)
    });
    let client = Client::connect(&Uri::unix("db", path)).unwrap();
    assert_eq!(client.size(), 4096);
    // In transmission, a socket without anything in flight can be handed on.
    let socket = client.into_socket().unwrap();
    drop(socket);
    server.join().unwrap();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let stream = UnixStream::from(OwnedFd::from(stream));
        MemoryServer::new(table_of(&[("db", 4096)])).run(stream)
    });
    let options = Options {
        connect_timeout: Some(Duration::from_secs(10)),
        ..Options::default()
    };
    let mut client = Client::connect_with(&Uri::tcp("", "127.0.0.1", port), &options).unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    server.join().unwrap();
}

proptest! {
    #[test]
    fn no_bytes_from_a_server_make_a_client_panic(
        greeting in any::<bool>(),
        replies in vec((prop_oneof![4 => Just(7_u32), 1 => any::<u32>()], 0_u32..5,
            any::<bool>(), vec(any::<u8>(), 0..20)), 0..5),
        garbage in vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = if greeting { GREETING.to_vec() } else { Vec::new() };
        for (option, code, error, data) in replies {
            bytes.extend(reply(option, code | u32::from(error) << 31, &data));
        }
        bytes.extend_from_slice(&garbage);
        let _ = handshake(&bytes);

        let mut pipeline = Pipeline::new();
        pipeline.submit(&ClientRequest::Read { offset: 0, len: 9 }, &mut Vec::new()).unwrap();
        let input = [&simple_reply(Cookie(0), Ok(()))[..], &garbage].concat();
        let mut rest = input.as_slice();
        while let Ok((taken, Some(_))) = pipeline.receive(rest) {
            rest = &rest[taken..];
        }
    }

    #[test]
    fn no_text_makes_the_address_parser_panic(text in "(nbd|nbd\\+unix)?(://)?[\\[\\]a-z:/?=%&0-9\u{e4}]*") {
        if let Ok(uri) = text.parse::<Uri>() {
            prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
        }
    }
}
