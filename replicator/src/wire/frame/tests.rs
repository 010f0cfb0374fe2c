use proptest::prelude::*;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::codec::MAGIC;
use super::*;
use crate::io::VolumeTrouble;
use crate::journal::log::TableAt;
use crate::journal::testing::config;
use crate::meta::config::Name;
use crate::meta::fences::FenceMark;
use crate::store::block_set::BlockSet;
use crate::store::sums::BlockSum;

/// Header, body and how many blocks of a batch follow.
fn encoded(frame: &Frame, batch_blocks: u32) -> Vec<u8> {
    let mut out = vec![0xee; FRAME_BYTES_MAX];
    let bytes = encode(frame, batch_blocks, &mut out);
    assert!(out[bytes..].iter().all(|&b| b == 0xee));
    out.truncate(bytes);
    out
}

fn decoded(bytes: &[u8]) -> Result<(Frame, u32), FrameError> {
    let (header, body) = bytes
        .split_first_chunk::<FRAME_HEADER_BYTES>()
        .ok_or(FrameError::Length)?;
    let header = FrameHeader::decode(header)?;
    Ok((header.decode_body(body)?, header.batch_blocks))
}

/// `bytes` with checksums that fit them.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = crc32fast::hash(&bytes[FRAME_HEADER_BYTES..]);
    bytes[12..16].copy_from_slice(U32::new(body).as_bytes());
    let header = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(U32::new(header).as_bytes());
    bytes
}

fn id(epoch: u64, seq: u64) -> RecordId {
    RecordId {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    }
}

fn report() -> Report {
    Report {
        token: 1,
        granted: Epoch(2),
        uuid: ResourceUuid(3),
        history: HistoryId(4),
        incarnation: Incarnation(5),
        promised: Epoch(6),
        promised_to: Some(NodeId(7)),
        tail: id(8, 9),
        committed: Seq(10),
        journal_floor: Seq(11),
        you_acked: id(12, 13),
        lease_wait_ms: 14,
        fresh: false,
        serving: true,
        primary: true,
        candidate: false,
        damaged: false,
        inconsistent: false,
        demoted: Epoch(15),
        config: Some(ConfigAt {
            at: id(16, 17),
            config: config(18),
        }),
        epochs: [id(1, 1), id(8, 9)].into_iter().collect(),
        volumes: 19,
        fences: marks(0x13),
    }
}

/// That each node whose bit is set is fenced.
fn marks(fenced: u8) -> FenceMarks {
    let mut marks = FenceMarks::default();
    for node in (0..8).filter(|n| fenced >> n & 1 == 1) {
        marks.learn(NodeId(node), FenceMark::default().fenced_anew());
    }
    marks
}

fn volumes() -> Volumes {
    let name = |text| Name::from(text).unwrap();
    let one = Volumes::default().with(name("db"), 1 << 20).unwrap();
    one.with(name("mail"), 4096).unwrap().without("db").unwrap()
}

fn told() -> Told {
    Told {
        uuid: ResourceUuid(3),
        history: HistoryId(4),
        config: ConfigAt {
            at: id(5, 6),
            config: config(7),
        },
    }
}

/// One of each kind, with every field different.
fn every_kind() -> Vec<(Frame, u32)> {
    let epoch = Epoch(0x0102);
    vec![
        (Frame::Report(Box::new(report())), 0),
        (Frame::Ask { token: 3 }, 0),
        (
            Frame::Fence(Box::new(Fence {
                token: 4,
                epoch,
                incarnation: Incarnation(1 << 99),
                marks: marks(0x82),
            })),
            0,
        ),
        (Frame::Stand { for_ms: 30_000 }, 0),
        (
            Frame::Promise {
                token: 4,
                epoch,
                incarnation: Incarnation(1 << 100),
            },
            0,
        ),
        (
            Frame::Fetch {
                token: 5,
                after: Seq(6),
            },
            0,
        ),
        (Frame::Fetched { token: 7 }, 0),
        (Frame::Fetched { token: 7 }, 12),
        (
            Frame::Append {
                epoch,
                committed: Seq(8),
            },
            ALLOC_BLOCKS_MAX,
        ),
        (Frame::Ack { epoch, seq: Seq(9) }, 0),
        (
            Frame::Heartbeat {
                epoch,
                number: 10,
                committed: Seq(11),
                tail: Seq(12),
                lease_ms: 13,
                settled: id(14, 15),
            },
            0,
        ),
        (
            Frame::HeartbeatAck {
                epoch,
                number: 14,
                applied: Seq(16),
                disks_hang: true,
            },
            0,
        ),
        (
            Frame::Refused {
                promised: epoch,
                promised_to: Some(NodeId(2)),
            },
            0,
        ),
        (
            Frame::Refused {
                promised: epoch,
                promised_to: None,
            },
            0,
        ),
        (
            Frame::Demoted {
                epoch,
                committed: Seq(15),
            },
            0,
        ),
        (
            Frame::TooFarBehind {
                journal_floor: Seq(16),
            },
            0,
        ),
        (Frame::Ping, 0),
        (Frame::Config(Box::new(told())), 0),
        (
            Frame::BlocksAsk {
                token: 17,
                volume: VolumeId(18),
                block: 19,
                blocks: 20,
            },
            0,
        ),
        (Frame::Blocks(Box::new(blocks())), 3),
        (Frame::Blocks(Box::new(blocks())), 0),
        (
            Frame::ChangedAsk {
                token: 21,
                volume: VolumeId(22),
                group: 23,
            },
            0,
        ),
        (
            Frame::Changed(Box::new(Changed {
                token: 24,
                groups: (25..30).map(Seq).collect(),
            })),
            0,
        ),
        (
            Frame::ResyncAsk {
                token: 26,
                staged: id(27, 28),
                committed: Seq(29),
            },
            0,
        ),
        (Frame::ResyncFrom(Box::new(from())), 0),
        (
            Frame::Staged {
                epoch,
                seq: Seq(30),
                left_bytes: 31,
                total_bytes: 32,
            },
            0,
        ),
        (Frame::Invite(Box::new(told())), 0),
        (
            Frame::Renew {
                token: 34,
                incarnation: Incarnation(35),
            },
            0,
        ),
        (
            Frame::Renewed {
                token: 36,
                refused: 10,
            },
            0,
        ),
        (Frame::Compare(Box::new(compare())), 0),
        (Frame::Compared(Box::new(compared())), 2),
        (
            Frame::Compared(Box::new(Compared {
                given: BlockSet::default(),
                ..compared()
            })),
            0,
        ),
        (Frame::Compared(Box::new(compared_in_part())), 1),
        (Frame::Verify(VerifyFrame::Ask(check_ask())), 0),
        (Frame::Verify(VerifyFrame::Checked(Box::new(checked()))), 0),
        (
            Frame::Verify(VerifyFrame::Mend(Mend {
                volume: VolumeId(33),
                block: 34,
                as_of: Seq(35),
                sum: BlockSum::from_wire(36),
            })),
            0,
        ),
        (
            Frame::Verify(VerifyFrame::Verified(Verified {
                bytes: 37,
                wire_bytes: 38,
                bad: 39,
                differing: 40,
                left: 41,
                missed: 42,
                repair: false,
                finished: true,
            })),
            0,
        ),
        (
            Frame::Prepare {
                token: 60,
                volumes: Box::new(volumes()),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 61,
                result: Ok(()),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 62,
                result: Err(DiskError::Volume(VolumeTrouble::Device { bytes: 63 })),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 64,
                result: Err(DiskError::Short),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 65,
                result: Err(DiskError::Volume(VolumeTrouble::NotInConfig)),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 66,
                result: Err(DiskError::Volume(VolumeTrouble::OtherSize { bytes: 67 })),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 68,
                result: Err(DiskError::Volume(VolumeTrouble::NotBlank)),
            },
            0,
        ),
        (
            Frame::Prepared {
                token: 69,
                result: Err(DiskError::Os(28)),
            },
            0,
        ),
    ]
}

fn compare() -> Compare {
    Compare {
        token: 33,
        volume: VolumeId(34),
        block: 35,
        sums: (36..40).map(BlockSum::from_wire).collect(),
    }
}

fn compared() -> Compared {
    let mut given = BlockSet::default();
    given.add(0, 1);
    given.add(2, 1);
    Compared {
        token: 41,
        changed: Seq(42),
        through: Seq(43),
        sums: (44..48).map(BlockSum::from_wire).collect(),
        given,
        lost: BlockSet::default(),
    }
}

/// One block is given, one is lost.
fn compared_in_part() -> Compared {
    let mut compared = compared();
    compared.given = BlockSet::default();
    compared.given.add(0, 1);
    compared.lost.add(3, 1);
    compared
}

fn check_ask() -> CheckAsk {
    CheckAsk {
        token: 1,
        volume: VolumeId(2),
        page: 3,
        as_of: Seq(4),
        read: true,
        repair: false,
        sums: true,
    }
}

fn checked() -> Checked {
    Checked {
        token: 1,
        as_of: Seq(2),
        digest: 3,
        blocks: 10,
        unknown: 4,
        bad: 6,
        left: 5,
        named: [7, 8].into_iter().collect(),
        sums: (0..10).map(|n| BlockSum::from_wire(90 + n)).collect(),
    }
}

#[test]
fn as_many_blocks_follow_an_answer_as_it_gives_and_it_gives_none_that_it_does_not_name() {
    for blocks in [0, 1, 3] {
        let bytes = encoded(&Frame::Compared(Box::new(compared())), blocks);
        assert_eq!(decoded(&bytes), Err(FrameError::Length));
    }
    let mut beyond = compared();
    beyond.given = BlockSet::default();
    beyond.given.add(3, 2);
    let bytes = encoded(&Frame::Compared(Box::new(beyond)), 2);
    assert_eq!(decoded(&bytes), Err(FrameError::Length));
    for lost in [0, 4] {
        let mut wrong = compared_in_part();
        wrong.lost.add(lost, 1);
        let bytes = encoded(&Frame::Compared(Box::new(wrong)), 1);
        assert_eq!(decoded(&bytes), Err(FrameError::Length), "{lost}");
    }
    // What nobody has is told by its checksum: one that says nothing, or zeroes, which need not be had from anybody, is none.
    for sum in [BlockSum::UNKNOWN, BlockSum::ZERO] {
        let mut wrong = compared_in_part();
        wrong.sums[3] = sum;
        let bytes = encoded(&Frame::Compared(Box::new(wrong)), 1);
        assert_eq!(decoded(&bytes), Err(FrameError::Field));
    }
}

#[test]
fn what_no_node_can_know_of_a_page_is_refused() {
    let wrong: [fn(&mut Checked); 6] = [
        |c| c.blocks = 9,
        |c| c.blocks = 897,
        |c| c.unknown = 11,
        |c| c.bad = 11,
        |c| c.left = 7,
        |c| c.named.push(10),
    ];
    for spoil in wrong {
        let mut checked = checked();
        spoil(&mut checked);
        let frame = Frame::Verify(VerifyFrame::Checked(Box::new(checked)));
        assert_eq!(decoded(&encoded(&frame, 0)), Err(FrameError::Field));
    }
    let mut whole = checked();
    whole.blocks = 896;
    whole.sums = (0..896).map(BlockSum::from_wire).collect();
    let frame = Frame::Verify(VerifyFrame::Checked(Box::new(whole)));
    let bytes = encoded(&frame, 0);
    assert!(bytes.len() <= FRAME_BYTES_MAX);
    assert_eq!(decoded(&bytes), Ok((frame, 0)));
}

fn blocks() -> Blocks {
    Blocks {
        token: 1,
        changed: Seq(2),
        through: Seq(3),
        sums: (4..7).map(BlockSum::from_wire).collect(),
    }
}

fn from() -> ResyncFrom {
    ResyncFrom {
        token: 1,
        at: id(8, 90),
        blocks: 2,
        checksum: 3,
        common: Seq(4),
        config: ConfigAt {
            at: id(5, 6),
            config: config(7),
        },
        epochs: [id(1, 1), id(8, 9)].into_iter().collect(),
        volumes: TableAt {
            at: Seq(88),
            volumes: volumes(),
        },
    }
}

#[test]
fn a_resync_begins_at_a_record_that_its_history_and_config_reach() {
    let wrong: [fn(&mut ResyncFrom); 5] = [
        |f| f.volumes.at = Seq(91),
        |f| f.at = id(9, 90),
        |f| f.at = id(8, 5),
        |f| f.config.at = id(8, 91),
        |f| f.epochs.clear(),
    ];
    for spoil in wrong {
        let mut from = from();
        spoil(&mut from);
        let bytes = encoded(&Frame::ResyncFrom(Box::new(from)), 0);
        assert_eq!(decoded(&bytes), Err(FrameError::Field));
    }
}

#[test]
fn what_was_said_is_what_is_heard() {
    for (frame, batch_blocks) in every_kind() {
        let bytes = encoded(&frame, batch_blocks);
        assert_eq!(decoded(&bytes), Ok((frame, batch_blocks)));
    }
    type Flag = fn(&mut Report) -> &mut bool;
    let flags: [Flag; 6] = [
        |r| &mut r.fresh,
        |r| &mut r.serving,
        |r| &mut r.primary,
        |r| &mut r.candidate,
        |r| &mut r.damaged,
        |r| &mut r.inconsistent,
    ];
    for flag in flags {
        let mut report = report();
        let value = flag(&mut report);
        *value = !*value;
        report.config = None;
        let frame = Frame::Report(Box::new(report));
        assert_eq!(decoded(&encoded(&frame, 0)), Ok((frame, 0)));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (frame, batch_blocks) in every_kind() {
        let mut bytes = encoded(&frame, batch_blocks);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(decoded(&bytes).is_err(), "{frame:?} byte {at} bit {bit}");
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn the_longest_frame_fits_its_bound() {
    let mut longest = report();
    longest.epochs = (1..=64).map(|n| id(n, n * 3)).collect();
    assert!(longest.epochs.is_full());
    let frame = Frame::Report(Box::new(longest));
    let bytes = encoded(&frame, 0);
    assert!(bytes.len() <= FRAME_BYTES_MAX);
    assert_eq!(decoded(&bytes), Ok((frame, 0)));
}

#[test]
fn what_is_no_frame_is_named() {
    let good = encoded(&Frame::Ask { token: 1 }, 0);
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        decoded(&sealed(bytes)).map(|_| ())
    };
    assert_eq!(with(4, &[2]), Ok(()));
    assert_eq!(with(0, &[0]), Err(FrameError::Magic));
    assert_eq!(with(4, &[0]), Err(FrameError::Kind(0)));
    assert_eq!(with(4, &[15]), Err(FrameError::Kind(15)));
    assert_eq!(with(4, &[0, 1]), Err(FrameError::Kind(256)));
    for (what, at, new) in [
        ("a body beyond the bound", 6, &[1u8, 16][..]),
        ("a body of another length", 6, &[55]),
        ("a question with a batch", 8, &[1]),
        ("an append without a batch", 4, &[6]),
        ("a batch beyond the bound", 8, &[1, 2]),
    ] {
        assert_eq!(with(at, new), Err(FrameError::Length), "{what}");
    }
    // A fetched batch has the same bound.
    let mut fetched = encoded(&Frame::Fetched { token: 1 }, 1);
    fetched[9] = 0x7f;
    assert_eq!(decoded(&sealed(fetched)), Err(FrameError::Length));
    let mut damaged = good.clone();
    damaged[5] ^= 1;
    assert_eq!(decoded(&damaged), Err(FrameError::HeaderChecksum));
    let mut damaged = good;
    damaged[40] ^= 1;
    assert_eq!(decoded(&damaged), Err(FrameError::BodyChecksum));
}

#[test]
fn fields_that_no_node_can_mean_are_refused() {
    let refused = |frame: &Frame, at: usize, new: &[u8]| {
        let mut bytes = encoded(frame, 0);
        let at = FRAME_HEADER_BYTES + at;
        bytes[at..at + new.len()].copy_from_slice(new);
        decoded(&sealed(bytes)).map(|_| ())
    };
    let to_nobody = Frame::Refused {
        promised: Epoch(1),
        promised_to: None,
    };
    assert_eq!(refused(&to_nobody, 52, &[0xff]), Ok(()));
    assert_eq!(refused(&to_nobody, 52, &[8]), Err(FrameError::Field));
    let report = Frame::Report(Box::new(report()));
    for (what, at, new, error) in [
        ("node 8", 148, &[8u8][..], FrameError::Field),
        ("a config of no version", 152, &[0], FrameError::Field),
        ("an epoch fewer than said", 150, &[3], FrameError::Length),
        ("an epoch more than said", 150, &[1], FrameError::Length),
        ("65535 epochs", 150, &[0xff, 0xff], FrameError::Length),
        ("epochs that do not rise", 944 + 16, &[1], FrameError::Field),
        (
            "records that do not rise",
            944 + 24,
            &[1],
            FrameError::Field,
        ),
    ] {
        assert_eq!(refused(&report, at, new), Err(error), "{what}");
    }
    let told = Frame::Config(Box::new(told()));
    assert_eq!(refused(&told, 48, &[8]), Ok(()));
    assert_eq!(refused(&told, 48, &[0]), Err(FrameError::Field));
    assert_eq!(refused(&told, 39, &[0x41]), Err(FrameError::Field));
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_is_this() {
    let hex = |bytes: &[u8]| -> Vec<String> {
        bytes
            .chunks(16)
            .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
            .collect()
    };
    let heartbeat = Frame::Heartbeat {
        epoch: Epoch(0x0102),
        number: 0x0304,
        committed: Seq(0x0506),
        tail: Seq(0x0708),
        lease_ms: 0x090a,
        settled: RecordId::NONE,
    };
    assert_eq!(hex(&encoded(&heartbeat, 0)), HEARTBEAT);
    let append = Frame::Append {
        epoch: Epoch(1),
        committed: Seq(2),
    };
    assert_eq!(hex(&encoded(&append, 0x0103)[..16]), APPEND);
    let bytes = encoded(&Frame::Report(Box::new(report())), 0);
    let config_ends = FRAME_HEADER_BYTES + 944;
    assert_eq!(hex(&bytes[..208]), REPORT);
    assert_eq!(
        hex(&bytes[config_ends..]),
        [
            "01000000000000000100000000000000",
            "08000000000000000900000000000000"
        ]
    );
    let bytes = encoded(&Frame::Config(Box::new(told())), 0);
    assert_eq!(bytes.len(), FRAME_HEADER_BYTES + 768);
    assert_eq!(hex(&bytes[..96]), CONFIG);
}

const HEARTBEAT: [&str; 6] = [
    "5250464d08003800000000000c2af3b2",
    "000000000000000000000000592504eb",
    "02010000000000000403000000000000",
    "06050000000000000807000000000000",
    "00000000000000000000000000000000",
    "0a09000000000000",
];
const APPEND: [&str; 1] = ["5250464d0600380003010000266f3eb5"];
const REPORT: [&str; 13] = [
    "5250464d0100d00300000000abb43b90",
    "0000000000000000000000000ec95104",
    "01000000000000000200000000000000",
    "03000000000000000000000000000000",
    "04000000000000000000000000000000",
    "05000000000000000000000000000000",
    "06000000000000000800000000000000",
    "09000000000000000a00000000000000",
    "0b000000000000000c00000000000000",
    "0d000000000000000f00000000000000",
    "10000000000000001100000000000000",
    "0e000000072602001200000000000000",
    "03000000000000000103000000000000",
];
const CONFIG: [&str; 6] = [
    "5250464d0e000003000000000f6e3869",
    "000000000000000000000000bf2f9812",
    "03000000000000000000000000000000",
    "04000000000000000000000000000000",
    "05000000000000000600000000000000",
    "07000000000000000300000000000000",
];

prop_compose! {
    fn any_report()(
        numbers in proptest::array::uniform12(0..=NUMBER_MAX),
        wide in any::<[u128; 3]>(),
        small in any::<u32>(),
        flags in any::<[bool; 6]>(),
        node in proptest::option::of(0u8..8),
        configured in any::<bool>(),
        epochs in proptest::collection::btree_set(1u64..1 << 60, 0..=EPOCH_HISTORY_MAX),
    ) -> Report {
        Report {
            token: numbers[0],
            granted: Epoch(numbers[1]),
            uuid: ResourceUuid(wide[0]),
            history: HistoryId(wide[1]),
            incarnation: Incarnation(wide[2]),
            promised: Epoch(numbers[2]),
            promised_to: node.map(NodeId),
            tail: id(numbers[3], numbers[4]),
            committed: Seq(numbers[5]),
            journal_floor: Seq(numbers[6]),
            you_acked: id(numbers[7], numbers[8]),
            lease_wait_ms: small,
            fresh: flags[0],
            serving: flags[1],
            primary: flags[2],
            candidate: flags[3],
            damaged: flags[4],
            inconsistent: flags[5],
            demoted: Epoch(numbers[9]),
            config: configured.then(|| ConfigAt {
                at: id(numbers[10], numbers[11]),
                config: config(numbers[0].max(1)),
            }),
            epochs: epochs.into_iter().map(|n| id(n, n * 2)).collect(),
            fences: marks(u8::from(flags[0]) << 7 | u8::from(flags[1])),
            volumes: small,
        }
    }
}

proptest! {
    #[test]
    fn any_report_comes_back(report in any_report()) {
        let frame = Frame::Report(Box::new(report));
        prop_assert_eq!(decoded(&encoded(&frame, 0)), Ok((frame, 0)));
    }

    #[test]
    fn no_bytes_make_it_panic(
        kind in prop_oneof![0u8..16, 20u8..27, 40u8..48, 60u8..62, 70u8..72],
        batch_blocks in prop_oneof![Just(0u32), 1u32..600, any::<u32>()],
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..BODY_BYTES_MAX),
            proptest::collection::vec(any::<u8>(), 56),
            (0usize..66).prop_map(|epochs| vec![0; 944 + 16 * epochs]),
            any::<u8>().prop_map(|fill| vec![fill; 768]),
            (any::<u8>(), prop_oneof![Just(24usize), Just(48), 56usize..80]).prop_map(|(fill, n)| vec![fill; n]),
        ],
        scribbles in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    ) {
        let mut bytes = encoded(&Frame::Ping, 0);
        bytes.truncate(FRAME_HEADER_BYTES);
        bytes[4] = kind;
        let length = u16::try_from(body.len()).unwrap();
        bytes[6..8].copy_from_slice(U16::new(length).as_bytes());
        bytes[8..12].copy_from_slice(U32::new(batch_blocks).as_bytes());
        bytes.extend(body);
        for (at, byte) in scribbles {
            if bytes.len() > FRAME_HEADER_BYTES {
                let at = FRAME_HEADER_BYTES + at.index(bytes.len() - FRAME_HEADER_BYTES);
                bytes[at] = byte;
            }
        }
        if let Ok((frame, batch_blocks)) = decoded(&sealed(bytes)) {
            prop_assert!(batch_blocks <= ALLOC_BLOCKS_MAX);
            // Whatever is understood can be said again.
            prop_assert_eq!(decoded(&encoded(&frame, batch_blocks)), Ok((frame, batch_blocks)));
        }
    }

    #[test]
    fn no_header_makes_it_panic(bytes in any::<[u8; FRAME_HEADER_BYTES]>(), magic in any::<bool>()) {
        let mut bytes = bytes.to_vec();
        if magic {
            bytes[..4].copy_from_slice(U32::new(MAGIC).as_bytes());
        }
        let header = sealed(bytes);
        if let Ok(header) = FrameHeader::decode(header.first_chunk().unwrap()) {
            prop_assert!(header.body_bytes <= BODY_BYTES_MAX);
            prop_assert!(header.batch_blocks <= ALLOC_BLOCKS_MAX);
        }
    }
}

#[test]
fn a_number_that_no_node_can_have_made_is_refused() {
    for n in [NUMBER_MAX, NUMBER_MAX + 1, u64::MAX] {
        let frame = Frame::Ack {
            epoch: Epoch(3),
            seq: Seq(n),
        };
        let mut bytes = [0; FRAME_BYTES_MAX];
        let length = encode(&frame, 0, &mut bytes);
        let (head, body) = bytes[..length].split_at(FRAME_HEADER_BYTES);
        let header = FrameHeader::decode(head.try_into().unwrap()).unwrap();
        let expected = if n == NUMBER_MAX {
            Ok(frame)
        } else {
            Err(FrameError::Field)
        };
        assert_eq!(header.decode_body(body), expected);
    }
}
