//! Bytes in, bytes out. P1 (acknowledged is durable), P2 (one order), P10 (the image is yours).

use std::sync::atomic::{AtomicU64, Ordering};

use integration::{MIB, Scene, small};
use nbd_server::nbd::client::ClientRequest;
use tools::cluster::Spec;
use tools::demo::workload::{Job, Pace, Stream};

#[test]
fn stores_are_equal_and_as_written_after_a_clean_stop() {
    let mut scene = Scene::serving(small());
    let load = scene.work(0, scene.busy_streams());
    // Several times the journal's size: it wraps, and old records are applied under load.
    while scene.tally.write_bytes() < 48 * MIB {
        scene.await_writes(&load, 100);
    }
    scene.finish(load);
    scene.stop_and_compare(0);
}

#[test]
fn reads_and_writes_of_any_offset_and_length_agree_with_the_model() {
    let mut scene = Scene::serving(small());
    // Small ones that share blocks, large ones that span records, and both at once; with trims and zeroes.
    let (small, db, recordings) = (
        Job::Scribble { most: 700 },
        &scene.volumes[0],
        &scene.volumes[1],
    );
    let large = Job::Scribble { most: 300_000 };
    let read = Job::Read {
        least: 1,
        most: 50_000,
    };
    let streams = vec![
        Stream::new(1, db, 0..64 << 10, small, Pace::unbounded(8)),
        Stream::new(2, db, 0..64 << 10, small, Pace::unbounded(8)),
        Stream::new(3, db, 0..16 * MIB, read, Pace::unbounded(4)),
        Stream::new(4, recordings, 0..32 * MIB, large, Pace::unbounded(4)),
        Stream::new(5, recordings, 0..32 * MIB, small, Pace::unbounded(4)),
        Stream::new(6, recordings, 0..32 * MIB, read, Pace::unbounded(4)),
    ];
    let load = scene.work(0, streams);
    while scene.tally.writes() < 4000 {
        scene.await_writes(&load, 100);
    }
    scene.finish(load);
    assert!(
        scene.tally.reads() > 100,
        "few reads: {}",
        scene.tally.reads()
    );
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn every_length_around_a_block_is_written_exactly() {
    let scene = Scene::serving(small());
    let mut client = scene.open(0, "db");
    let mut model = vec![0u8; 64 << 10];
    let mut value = 0u8;
    for start in [0, 1, 511, 512, 4095, 4096, 4097, 8191] {
        for length in [1, 2, 511, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12_289] {
            value = value.wrapping_add(1).max(1);
            let data = vec![value; length];
            client
                .write_at(start as u64, &data, false)
                .expect("written");
            model[start..start + length].copy_from_slice(&data);
        }
        let mut read = vec![0; model.len()];
        client.read_at(0, &mut read).expect("read");
        assert!(read == model, "after the writes at {start}");
    }
    // And the largest that the contract promises.
    let data = vec![0xa5; 16 << 20];
    client
        .write_at(0, &data, true)
        .expect("16 MiB in one request");
    let mut read = vec![0; data.len()];
    client.read_at(0, &mut read).expect("read");
    assert!(read == data);
    client.disconnect().expect("goodbye");
}

#[test]
fn what_one_connection_was_told_every_connection_sees() {
    let scene = Scene::serving(small());
    let mut connections: Vec<_> = (0..4).map(|_| scene.open(0, "db")).collect();
    for round in 0..400u64 {
        let writer = (round % 4) as usize;
        let offset = (round % 64) * 1000;
        let data = round.to_le_bytes().repeat(100);
        connections[writer]
            .write_at(offset, &data, false)
            .expect("written");
        for other in &mut connections {
            let mut read = vec![0; data.len()];
            other.read_at(offset, &mut read).expect("read");
            assert!(read == data, "round {round}");
        }
    }
}

#[test]
fn a_flush_on_one_connection_covers_answered_writes_of_all() {
    let mut scene = Scene::serving(small());
    let counter = AtomicU64::new(0);
    let mut last = Vec::new();
    {
        let mut writers: Vec<_> = (0..3).map(|_| scene.open(0, "db")).collect();
        let mut flusher = scene.open(0, "db");
        for page in 0..60u64 {
            let value = counter.fetch_add(1, Ordering::Relaxed) + 1;
            let data = value.to_le_bytes().repeat(512);
            writers[(page % 3) as usize]
                .write_at(page * 4096, &data, false)
                .expect("written");
            last.push(data);
        }
        flusher.flush().expect("flushed");
        for node in 0..3 {
            scene.cluster.kill(node).expect("killed");
        }
    }
    scene.cluster.start_all().expect("all start again");
    scene.promote(1);
    let mut client = scene.open(1, "db");
    for (page, data) in last.iter().enumerate() {
        let mut read = vec![0; 4096];
        client.read_at(page as u64 * 4096, &mut read).expect("read");
        assert!(read == *data, "page {page}");
    }
}

#[test]
fn the_log_of_a_request_that_spans_many_records_is_one_order() {
    let scene = Scene::serving(small());
    // Two connections overwrite the same 8 MiB in one request each, in flight together: block by block
    // either may be last, but every node has to agree, and so do later reads.
    let mut left = scene.open(0, "recordings");
    let mut right = scene.open(0, "recordings");
    let (ones, twos) = (vec![1; 8 << 20], vec![2; 8 << 20]);
    left.submit(&ClientRequest::Write {
        offset: 1000,
        data: &ones,
        fua: false,
    })
    .expect("sent");
    right
        .submit(&ClientRequest::Write {
            offset: 1000,
            data: &twos,
            fua: false,
        })
        .expect("sent");
    for client in [&mut left, &mut right] {
        client.wait().expect("answered").result.expect("written");
    }
    let mut first = vec![0; 8 << 20];
    left.read_at(1000, &mut first).expect("read");
    assert!(first.iter().all(|byte| [1, 2].contains(byte)));
    left.disconnect().expect("goodbye");
    right.disconnect().expect("goodbye");
    assert_eq!(
        scene
            .cluster
            .ctl(0, &["demote"], integration::BOUND)
            .expect("runs")
            .code,
        0
    );
    scene.promote(2);
    let mut second = vec![0; 8 << 20];
    scene
        .open(2, "recordings")
        .read_at(1000, &mut second)
        .expect("read");
    assert!(
        first == second,
        "the nodes disagree about the order of two overlapping writes"
    );
}

#[test]
fn bad_requests_are_answered_and_the_connection_lives_on() {
    let scene = Scene::serving(Spec {
        volumes: vec![("db".into(), 16 * MIB)],
        ..small()
    });
    // With one volume the export "" is that volume.
    let mut client = scene.open(0, "");
    assert_eq!(client.size(), 16 * MIB);
    let mut data = [0; 1024];
    client
        .read_at(16 * MIB - 512, &mut data)
        .expect_err("past the end");
    client
        .write_at(16 * MIB, &[1], false)
        .expect_err("past the end");
    client
        .trim(u64::MAX - 10, 100, false)
        .expect_err("an overflow");
    client
        .write_at(16 * MIB - 1, &[9], true)
        .expect("the last byte");
    let mut last = [0];
    client
        .read_at(16 * MIB - 1, &mut last)
        .expect("the last byte");
    assert_eq!(last, [9]);
    client.disconnect().expect("goodbye");
}
