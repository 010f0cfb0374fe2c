use super::*;

const SECOND: u64 = 1_000_000_000;

fn write(began: u64) -> Operation<'static> {
    Operation {
        path: Path::new("/dev/vg0/journal"),
        doing: Doing::Writing,
        offset: 8192,
        length: 4096,
        began: Time(began),
    }
}

/// Looks on from one time to another, as often as the data thread does.
fn look_on(watch: &mut Watch, (from, to): (u64, u64), oldest: Option<Operation<'_>>) {
    let mut now = from;
    while now <= to {
        watch.look(Time(now), oldest);
        now += WATCH_NANOS;
    }
}

#[test]
fn an_operation_that_is_not_answered_is_named_until_it_is() {
    let mut watch = Watch::new(5 * SECOND);
    look_on(&mut watch, (SECOND, 2 * SECOND), None);
    look_on(
        &mut watch,
        (2 * SECOND, 3 * SECOND),
        Some(write(2 * SECOND)),
    );
    assert_eq!(watch.trouble().silence, None, "one second is nothing yet");
    look_on(
        &mut watch,
        (3 * SECOND, 7 * SECOND),
        Some(write(2 * SECOND)),
    );
    let silence = watch.trouble().silence.clone().expect("five seconds are");
    assert_eq!(
        &*silence,
        "/dev/vg0/journal: writing 4096 bytes at byte 8192 is not answered"
    );
    assert!(watch.silent_for_nanos() >= 4 * SECOND);
    watch.look(Time(7 * SECOND + 1), None);
    assert_eq!(watch.trouble().silence, None);
    assert_eq!(watch.silent_for_nanos(), 0);
}

#[test]
fn a_timeout_of_the_disks_is_told_when_it_is_over_and_not_at_the_next_look() {
    let mut watch = Watch::new(SECOND);
    look_on(&mut watch, (SECOND, 2 * SECOND), None);
    let began = 2 * SECOND + WATCH_NANOS / 2;
    look_on(&mut watch, (2 * SECOND, 3 * SECOND), Some(write(began)));
    assert_eq!(watch.silent_for_nanos(), 0);
    let over = Time(began + SECOND);
    assert_eq!(watch.slow_at(), Some(over));
    assert!(!watch.is_due(Time(over.0 - 1)) && watch.is_due(over));
    watch.look(over, Some(write(began)));
    assert_eq!(watch.silent_for_nanos(), SECOND);
    assert!(watch.trouble().silence.is_some());
    assert_eq!(watch.slow_at(), None, "it is");
}

#[test]
fn a_thread_that_stood_still_blames_no_disk_for_it() {
    let mut watch = Watch::new(5 * SECOND);
    look_on(&mut watch, (SECOND, 2 * SECOND), Some(write(SECOND)));
    // Frozen for a minute: the answer is on its way.
    watch.look(Time(62 * SECOND), Some(write(SECOND)));
    assert_eq!(watch.trouble().silence, None);
    look_on(&mut watch, (62 * SECOND, 65 * SECOND), Some(write(SECOND)));
    assert!(watch.trouble().silence.is_some(), "or so it seemed");
}

#[test]
fn a_failed_write_is_told_rather_than_a_failed_read() {
    let mut watch = Watch::new(5 * SECOND);
    let read = Operation {
        doing: Doing::Reading,
        ..write(0)
    };
    let (eio, enospc) = (
        DiskError::Os(Errno::EIO as i32),
        DiskError::Os(Errno::ENOSPC as i32),
    );
    watch.failed(Time(1), &read, eio);
    let told = watch.trouble().failure.clone().expect("a failure");
    assert!(told.contains("reading 4096 bytes at byte 8192 failed: Input/output error"));
    watch.failed(Time(2), &write(0), enospc);
    watch.failed(Time(3), &read, eio);
    let told = watch.trouble().failure.clone().expect("a failure");
    assert!(
        told.contains("/dev/vg0/journal: writing 4096 bytes"),
        "{told}"
    );
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(watch.trouble().advice, "free space there");
}
