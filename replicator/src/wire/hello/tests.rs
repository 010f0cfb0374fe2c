use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from(text).unwrap()
}

fn hello() -> Hello {
    Hello {
        version: WIRE_VERSION,
        digest: [7; 16],
        resource: name("pbx"),
        from: name("pbx-a"),
        to: name("pbx-b"),
        refusal: None,
    }
}

#[test]
fn what_was_said_is_what_is_heard() {
    let refusal = hello().refuse("the config differs");
    for said in [hello(), refusal] {
        assert_eq!(Hello::decode(&said.encode()), Ok(said));
    }
    assert_eq!(hello().check(&hello()), Ok(()));
    let error = refusal.check(&hello()).unwrap_err();
    assert_eq!(error.to_string(), "the peer refused: the config differs");
}

#[test]
fn a_long_reason_is_cut_between_letters() {
    let refusal = hello().refuse(&"\u{e4}".repeat(300));
    assert_eq!(refusal.refusal.unwrap().len(), 254);
    assert_eq!(Hello::decode(&refusal.encode()), Ok(refusal));
}

#[test]
fn what_does_not_fit_is_named() {
    let fits = hello();
    for (other, fragment) in [
        (
            Hello {
                resource: name("x"),
                ..fits
            },
            "resource \"x\", this is \"pbx\"",
        ),
        (
            Hello {
                from: name("x"),
                ..fits
            },
            "node \"x\" answered at the address of \"pbx-a\"",
        ),
        (
            Hello {
                to: name("x"),
                ..fits
            },
            "wanted to reach node \"x\", this is \"pbx-b\"",
        ),
        (
            Hello {
                digest: [8; 16],
                ..fits
            },
            "use the same file on all",
        ),
        (
            Hello { version: 9, ..fits },
            "protocol version 9, this node 3",
        ),
    ] {
        let error = other.check(&fits).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
}

#[test]
fn another_version_is_recognised_whatever_it_holds() {
    let bytes = Hello {
        version: 1,
        ..hello()
    }
    .encode();
    assert_eq!(Hello::decode(&bytes), Err(HelloError::Version(1)));
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_is_this() {
    let bytes = hello().refuse("no").encode();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    assert_eq!(
        hex(&bytes[..32]),
        "52504c48454c4c4f030001000000000007070707070707070707070707070707"
    );
    assert_eq!(bytes[32..36], *b"\x03pbx");
    assert_eq!(bytes[96..102], *b"\x05pbx-a");
    assert_eq!(bytes[160..166], *b"\x05pbx-b");
    assert_eq!(bytes[224..228], *b"\x02\0no");
    assert_eq!(hex(&bytes[508..]), "47465a73");
}

/// Bytes with a checksum that fits them.
fn sealed(mut bytes: [u8; HELLO_BYTES]) -> [u8; HELLO_BYTES] {
    let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(U32::new(checksum).as_bytes());
    bytes
}

#[test]
fn no_hello_is_believed_that_makes_no_sense() {
    let good = hello().refuse("no").encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        sealed(bytes)
    };
    assert_eq!(Hello::decode(&[0; HELLO_BYTES]), Err(HelloError::NotAHello));
    assert_eq!(Hello::decode(&with(10, 2)), Err(HelloError::Field("kind")));
    assert_eq!(
        Hello::decode(&with(32, 64)),
        Err(HelloError::Field("resource"))
    );
    assert_eq!(
        Hello::decode(&with(33, b'\n')),
        Err(HelloError::Field("resource"))
    );
    assert_eq!(
        Hello::decode(&with(96, 255)),
        Err(HelloError::Field("sender"))
    );
    assert_eq!(
        Hello::decode(&with(225, 1)),
        Err(HelloError::Field("reason"))
    );
    assert_eq!(
        Hello::decode(&with(226, 0x1b)),
        Err(HelloError::Field("reason"))
    );
    assert_eq!(
        Hello::decode(&with(226, 0xff)),
        Err(HelloError::Field("reason"))
    );
}

proptest! {
    #[test]
    fn a_damaged_byte_is_noticed(at in 0..HELLO_BYTES, flip in 1u8..) {
        let mut bytes = hello().encode();
        bytes[at] ^= flip;
        prop_assert!(Hello::decode(&bytes).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(rest in proptest::collection::vec(any::<u8>(), HELLO_BYTES - 10)) {
        let mut bytes = hello().encode();
        bytes[10..].copy_from_slice(&rest);
        if let Ok(hello) = Hello::decode(&sealed(bytes)) {
            let _ = hello.check(&super::tests::hello());
        }
    }
}
