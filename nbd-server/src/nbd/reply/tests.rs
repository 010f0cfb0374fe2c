use super::*;
use crate::nbd::protocol::{STATE_HOLE, STATE_ZERO};

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

fn encoded(head: &Head) -> Vec<u8> {
    let mut bytes = vec![0xaa; HEAD_BYTES_MAX];
    let length = head.encode(COOKIE, &mut bytes);
    assert_eq!(head.bytes(), length);
    assert!(bytes[length..].iter().all(|&byte| byte == 0xaa));
    bytes.truncate(length);
    bytes
}

fn chunk(flags: u8, chunk: [u8; 2], len: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, flags, chunk[0], chunk[1]];
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, len]);
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn heads_travel_as_the_protocol_says() {
    let (offset, len) = (0x1000, 512);
    let data = |last| Head::Data { offset, len, last };
    let at = [0, 0, 0, 0, 0, 0, 0x10, 0];
    let mut expected = chunk(0, [0, 1], 8, &at);
    expected[18] = 2; // 512 + 8 bytes of payload
    assert_eq!(encoded(&data(false)), expected);
    expected[5] = 1;
    assert_eq!(encoded(&data(true)), expected);

    let hole = Head::Hole {
        offset,
        len,
        last: false,
    };
    let payload = [&at[..], &[0, 0, 2, 0]].concat();
    assert_eq!(encoded(&hole), chunk(0, [0, 2], 12, &payload));
    assert_eq!(encoded(&Head::Done), chunk(1, [0, 0], 0, &[]));

    let error = Head::Error {
        error: NbdError::NoSpc,
        text: "full",
    };
    let payload = [0, 0, 0, 28, 0, 4, b'f', b'u', b'l', b'l'];
    assert_eq!(encoded(&error), chunk(1, [0x80, 1], 10, &payload));

    let mut extents = Extents::new();
    for (len, status) in [(512, STATE_HOLE | STATE_ZERO), (1, 0)] {
        extents.push(Extent { len, status });
    }
    let payload = [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0];
    let status = Head::Status(Box::new(extents));
    assert_eq!(encoded(&status), chunk(1, [0, 5], 20, &payload));

    let simple = encoded(&Head::Simple(Err(NbdError::Io)));
    assert_eq!(simple, simple_reply(COOKIE, Err(NbdError::Io)));
}

#[test]
fn the_longest_heads_have_a_bound() {
    let extent = Extent { len: 1, status: 0 };
    let extents: Extents = std::iter::repeat_n(extent, EXTENTS_MAX).collect();
    assert_eq!(Head::Status(Box::new(extents)).bytes(), HEAD_BYTES_MAX);
    let text: &'static str = Box::leak("\u{e4}".repeat(1000).into_boxed_str());
    let error = NbdError::Io;
    let bytes = encoded(&Head::Error { error, text });
    assert_eq!(bytes.len(), 26 + TEXT_BYTES_MAX);
    assert!(std::str::from_utf8(&bytes[26..]).is_ok());
}
