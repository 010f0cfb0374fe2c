//! The pieces that every request passes: what they cost alone, without disk and network.
//!
//! `cargo bench -p benches`; what the whole costs is the matter of `cargo side-by-side`.

mod lone_node;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nbd_server::nbd::protocol::CommandFlags;
use nbd_server::nbd::{Cookie, ExportIndex, Limits, Session, wire};
use replicator::journal::batch::{self, Draft, Kind, Place};
use replicator::store::extents::{Extent, ExtentMap, Source};
use replicator::types::*;
use replicator::wire::frame::{self, Frame, FrameHeader};
use std::hint::black_box;

const RECORDS: usize = 32;

fn place() -> Place {
    Place {
        uuid: ResourceUuid(1),
        history: HistoryId(2),
        epoch: Epoch(3),
        prev: RecordId {
            epoch: Epoch(3),
            seq: Seq(99),
        },
        prev_blocks: 2,
        prev_checksum: 7,
        committed: Seq(98),
    }
}

/// A batch of 32 writes of 4 KiB.
fn make_batch(draft: &mut Draft, bytes: &mut [u8]) {
    draft.clear();
    let (header, payload) = bytes.split_at_mut(BLOCK_BYTES);
    for (n, block) in (0u64..).zip(payload.chunks_exact(BLOCK_BYTES)) {
        draft.push(Kind::Write, VolumeId(0), n * 7, 1, block);
    }
    draft.write_header(&place(), header);
}

fn journal(c: &mut Criterion) {
    let mut bytes = vec![0x5a; (1 + RECORDS) * BLOCK_BYTES];
    let mut draft = Draft::default();
    let mut group = c.benchmark_group("journal");
    group.throughput(Throughput::Bytes((RECORDS * BLOCK_BYTES) as u64));
    group.bench_function("make a batch of 32 x 4 KiB", |b| {
        b.iter(|| make_batch(&mut draft, black_box(&mut bytes)));
    });
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    group.bench_function("make a batch of one 4 KiB", |b| {
        b.iter(|| make_batch(&mut draft, black_box(&mut bytes[..2 * BLOCK_BYTES])));
    });
    group.throughput(Throughput::Bytes((RECORDS * BLOCK_BYTES) as u64));
    make_batch(&mut draft, &mut bytes);
    group.bench_function("verify a batch of 32 x 4 KiB", |b| {
        b.iter(|| batch::verify(black_box(&bytes)).expect("it was just made"));
    });
    group.finish();
}

fn overlay(c: &mut Criterion) {
    let mut map = ExtentMap::with_capacity(1 << 17);
    let mut seq = 0u64;
    c.bench_function("overlay: overwrite a random block among 65536", |b| {
        b.iter(|| {
            seq += 1;
            map.insert(Extent {
                volume: VolumeId(0),
                start: seq.wrapping_mul(0x9e37_79b9) % 65536,
                blocks: 1,
                seq: Seq(seq),
                source: Source::Batch {
                    entry: seq,
                    block: 1,
                },
            });
        });
    });
}

/// What a read asks first: which of its blocks are newer than the store.
fn lookup(c: &mut Criterion) {
    let mut map = ExtentMap::with_capacity(1 << 17);
    for n in 0..65536_u64 {
        map.insert(Extent {
            volume: VolumeId(0),
            start: n * 2,
            blocks: 1,
            seq: Seq(n + 1),
            source: Source::Batch { entry: n, block: 1 },
        });
    }
    let mut n = 0_u64;
    c.bench_function("overlay: look for a random block among 65536", |b| {
        b.iter(|| {
            n = n.wrapping_add(0x9e37_79b9);
            let block = n % 131_072;
            map.first_overlap(VolumeId(0), block, block + 1)
        });
    });
}

fn frames(c: &mut Criterion) {
    let mut out = [0; frame::FRAME_BYTES_MAX];
    let frame = Frame::Append {
        epoch: Epoch(3),
        committed: Seq(98),
    };
    c.bench_function("frame: encode and decode an append", |b| {
        b.iter(|| {
            let length = frame::encode(black_box(&frame), 33, &mut out);
            let header = out
                .first_chunk()
                .expect("a frame is longer than its header");
            let header = FrameHeader::decode(header).expect("it was just made");
            header
                .decode_body(&out[frame::FRAME_HEADER_BYTES..length])
                .expect("it was just made")
        });
    });
}

fn nbd(c: &mut Criterion) {
    let mut session = Session::transmitting(ExportIndex(0), 1 << 30, Limits::default());
    let read = 0;
    let request = wire::request(read, CommandFlags::default(), Cookie(1), 4096, 4096);
    c.bench_function("NBD: parse a request", |b| {
        b.iter(|| session.next_request(black_box(&request)));
    });
}

/// Everything that the core does for a write, from the request to the reply and to the store.
fn core(c: &mut Criterion) {
    const WRITES: u32 = 32;
    let mut node = lone_node::LoneNode::primary();
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(u64::from(WRITES)));
    group.bench_function("a turn with 32 writes of 4 KiB", |b| {
        b.iter(|| assert_eq!(node.write_at_random(WRITES), WRITES, "all are answered"));
    });
    group.finish();
}

criterion_group!(benches, journal, overlay, lookup, frames, nbd, core);
criterion_main!(benches);
