#!/bin/bash
# fio writes at random with checksums, then verifies: on the Primary, and after its death on the next one.
. "$(dirname "$0")/lib.sh"
need fio
fio --enghelp 2> /dev/null | grep -qw nbd || skip "fio was built without ioengine=nbd"
scratch

cluster 64MiB db=64MiB
promote pbx-a

# fio NODE OPTIONS...: the same work every time, so that a second run can verify the first
work() {
    local n=$1
    shift
    fio --name=work --ioengine=nbd --uri="$(uri "$n" db)" --rw=randwrite --bsrange=512-64k --bs_unaligned=1 \
        --size=48M --io_size=64M --iodepth=16 --randrepeat=1 --randseed=4711 --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --serialize_overlap=1 --fsync=64 "$@" > "$T/fio.log" 2>&1 || die "fio on $n: $(tail -n 20 "$T/fio.log")"
}

work pbx-a --do_verify=1
say "randwrite of odd sizes, verified through pbx-a"
fio --name=trim --ioengine=nbd --uri="$(uri pbx-a db)" --rw=randtrim --bs=4k --offset=52M --size=4M \
    --iodepth=4 > "$T/fio.log" 2>&1 || die "fio trim: $(tail -n 20 "$T/fio.log")"
fio --name=readers --ioengine=nbd --uri="$(uri pbx-a db)" --rw=randread --bs=4k --size=16M --iodepth=16 \
    --numjobs=4 --group_reporting > "$T/fio.log" 2>&1 || die "fio with four jobs: $(tail -n 20 "$T/fio.log")"


# Four jobs at once, a connection each, each with a part of its own that it writes, trims and verifies again.
four_jobs() {
    fio --name=jobs --ioengine=nbd --uri="$(uri "$1" db)" --numjobs=4 --size=12M --offset_increment=12M --iodepth=16 \
        --randrepeat=1 --randseed=1147 --verify_fatal=1 --verify_state_save=0 --group_reporting "${@:2}" > "$T/fio.log" 2>&1 ||
        die "fio with four jobs on $1: $(tail -n 20 "$T/fio.log")"
}
four_jobs pbx-a --rw=randwrite --bsrange=4k-128k --io_size=16M --serialize_overlap=1 --verify=sha256 --do_verify=1 --fsync=32
four_jobs pbx-a --rw=randtrimwrite --bs=4k --io_size=4M
four_jobs pbx-a --rw=trimwrite --bs=64k --verify=crc32c --do_verify=1
say "four jobs wrote, trimmed and verified"

work pbx-a --do_verify=0
kill9 pbx-a
promote pbx-b
work pbx-b --verify_only=1
say "the same data verified through pbx-b after the death of pbx-a"

start pbx-a
wait_for 60 "pbx-a has caught up" caught_up pbx-a pbx-b
stop_cleanly pbx-b
say "stores are equal"
