use zerocopy::IntoBytes;

use super::*;
use crate::nbd::protocol::{Command, GREETING_MAGIC, OPTION_MAGIC, OptionCode, ReplyCode};

#[test]
fn structures_travel_big_endian_and_without_gaps() {
    let greeting = Greeting {
        magic: GREETING_MAGIC.into(),
        option_magic: OPTION_MAGIC.into(),
        flags: 3.into(),
    };
    assert_eq!(greeting.as_bytes(), b"NBDMAGICIHAVEOPT\0\x03");

    let flags = CommandFlags::FUA.with(CommandFlags::NO_HOLE);
    let bytes = request(
        Command::WriteZeroes.to_wire(),
        flags,
        Cookie(0x0102_0304_0506_0708),
        5,
        9,
    );
    assert_eq!(
        bytes,
        [
            0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 5, 0,
            0, 0, 9
        ]
    );
}

#[test]
fn simple_replies_carry_the_cookie_back_and_the_error() {
    let cookie = Cookie(0x1122_3344_5566_7788);
    let mut expected = [
        0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 17, 34, 51, 68, 85, 102, 119, 136,
    ];
    assert_eq!(simple_reply(cookie, Ok(())), expected);
    expected[7] = 28;
    assert_eq!(simple_reply(cookie, Err(NbdError::NoSpc)), expected);
}

#[test]
fn every_number_survives_the_way_through_its_name() {
    for code in 0..32 {
        assert_eq!(OptionCode::from_wire(code).to_wire(), code);
        assert_eq!(ReplyCode::from_wire(code).to_wire(), code);
        assert_eq!(
            ReplyCode::from_wire(1 << 31 | code).to_wire(),
            1 << 31 | code
        );
    }
    for code in 0..32 {
        if let Some(command) = Command::from_wire(code) {
            assert_eq!(command.to_wire(), code);
        }
    }
}

#[test]
fn only_the_protocols_error_numbers_leave_or_enter() {
    const ALLOWED: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];
    assert_eq!(NbdError::from_wire(0), None);
    for code in 1..200 {
        let read = NbdError::from_wire(code).unwrap().to_wire();
        assert_eq!(
            read,
            if ALLOWED.contains(&code) { code } else { 22 },
            "wire {code}"
        );
        let told = NbdError::from_errno(code as i32).to_wire();
        let expected = match code {
            _ if ALLOWED.contains(&code) => code,
            27 | 122 => 28,
            _ => 5,
        };
        assert_eq!(told, expected, "errno {code}");
    }
    assert_eq!(NbdError::from_errno(-1), NbdError::Io);
}
