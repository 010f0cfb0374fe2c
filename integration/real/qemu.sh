#!/bin/bash
# QEMU's tools: images converted in and out, compared, mapped and benchmarked, odd requests through qemu-io; then its
# storage daemon, whose client reconnects by itself: what is written through it goes on over a failover.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io
scratch

cluster 192MiB db=64MiB recordings=32MiB
promote pbx-a
db=$(uri pbx-a db)

# A sparse image with a little data in many places, as a file that knows its holes.
truncate -s 64M "$T/image"
for at in 0 1 7 4096 4097 9000 16000; do
    head -c $((at % 5 * 30000 + 1000)) /dev/urandom | dd of="$T/image" bs=4096 seek="$at" conv=notrunc status=none
done
qemu-img convert -n -W -m 8 -f raw -O raw "$T/image" "$db" || die "qemu-img convert in"
qemu-img compare -f raw -F raw "$T/image" "$db" > "$T/out.log" || die "qemu-img compare: $(cat "$T/out.log")"
# Sizes are in the answer as bytes of data, and neither more nor less than what was written is data.
qemu-img map --output=json -f raw "$db" | /usr/bin/python3 -c '
import json, sys
image, at, data = open(sys.argv[1], "rb").read(), 0, 0
for e in json.load(sys.stdin):
    assert e["start"] == at, e
    part = image[at : at + e["length"]]
    if e["zero"]: assert not any(part), e
    else: assert e["data"]; data += len(part)
    at += e["length"]
assert at == len(image) and data < 2 << 20, (at, data)' "$T/image" || die "qemu-img map: $(qemu-img map -f raw "$db")"
qemu-img convert -m 8 -W -f raw -O raw "$db" "$T/back" || die "qemu-img convert out"
cmp "$T/image" "$T/back" || die "what came back differs"
[ "$(stat -c %b "$T/back")" -lt 16384 ] || die "the copy is not sparse: $(stat -c %b "$T/back") blocks"
# Through another format and back.
qemu-img convert -f raw -O qcow2 "$db" "$T/back.qcow2" || die "qemu-img convert to qcow2"
qemu-img compare -f qcow2 -F raw "$T/back.qcow2" "$db" > "$T/out.log" || die "qemu-img compare: $(cat "$T/out.log")"
[ "$(stat -c %s "$T/back.qcow2")" -lt $((8 << 20)) ] || die "holes were copied to the qcow2 file"
say "an image in and out, holes stay holes"

for job in "-c 2000 -d 32 -s 4k -w" "-c 400 -d 8 -s 64k -w --flush-interval=16" "-c 2000 -d 32 -s 4k" "-c 50 -d 4 -s 2M"; do
    # shellcheck disable=SC2086
    qemu-img bench $job -f raw "$(uri pbx-a recordings)" > "$T/out.log" 2>&1 || die "qemu-img bench $job: $(cat "$T/out.log")"
done
qemu-io -f raw -c 'write -P 0xab 1000 3000' -c 'read -P 0xab 1000 3000' -c 'write -z 64k 64k' -c 'read -P 0 64k 64k' \
    -c 'write -f -P 1 4k 4k' -c 'write -z -u 1M 1M' -c 'read -P 0 1M 1M' -c 'write -z -n 2M 1M' -c 'discard 3M 1M' -c 'read -P 0 3M 1M' \
    -c 'aio_write -P 7 8M 1M' -c 'aio_write -P 8 9M 1M' -c 'aio_read 8M 64k' -c aio_flush -c flush -c 'read -P 7 8M 1M' -c 'read -P 8 9M 1M' \
    -c 'write -P 9 16777215 2' -c 'read -P 9 16777215 2' -c 'map' -c 'write -P 5 31M 1M' -c 'read -P 5 31M 1M' \
    "$(uri pbx-a recordings)" > "$T/out.log" 2>&1 || die "qemu-io: $(cat "$T/out.log")"
grep -q 'Pattern verification failed' "$T/out.log" && die "qemu-io: $(cat "$T/out.log")"
qemu-io -f raw -c 'read 32M 4k' "$(uri pbx-a recordings)" > "$T/out.log" 2>&1 && die "qemu-io read past the end"
say "benches, and requests of all kinds"

# The storage daemon shows the volume as a file, and looks for it where the service is: a name that moves.
command -v qemu-storage-daemon > /dev/null && qemu-storage-daemon --help | grep -q 'fuse' && [ -e /dev/fuse ] || {
    stop_cleanly pbx-a
    say "no storage daemon with a FUSE export here: the failover is left out"
    exit 0
}
ln -s "$(socket pbx-a)" "$T/service"
: > "$T/volume"
qemu-storage-daemon --blockdev driver=nbd,node-name=n,server.type=unix,server.path="$T/service",export=db,reconnect-delay=60,open-timeout=10 \
    --export type=fuse,id=e,node-name=n,mountpoint="$T/volume",writable=on,allow-other=off > "$T/qsd.log" 2>&1 &
qsd=$!
at_end "kill $qsd; fusermount3 -u -z '$T/volume'"
is_there() { [ "$(stat -c %s "$T/volume")" = $((64 << 20)) ]; }
wait_for 30 "the storage daemon serves" is_there
: > "$T/written"
# Each line of the log is a block that was written and is durable.
/usr/bin/python3 - "$T/volume" "$T/written" << 'EOF' &
import os, sys, time
volume, log = os.open(sys.argv[1], os.O_RDWR), open(sys.argv[2], "w", buffering=1)
longest = 0
for n in range(1, 1000000):
    at = n * 7919 % 16384
    begun = time.monotonic()
    os.pwrite(volume, (b"%015d\n" % n) * 256, at * 4096)
    os.fdatasync(volume)
    longest = max(longest, time.monotonic() - begun)
    log.write(f"{n} {at} {longest:.1f}\n")
    if os.path.exists(sys.argv[2] + ".stop"):
        break
EOF
writer=$!
at_end "kill $writer"
enough() { [ "$(wc -l < "$T/written")" -ge "$1" ] || { kill -0 $writer || die "the writer met an error"; false; }; }
wait_for 60 "blocks are written" enough 200
kill9 pbx-a
before=$(wc -l < "$T/written")
promote pbx-b
ln -sfn "$(socket pbx-b)" "$T/service"
wait_for 60 "blocks are written again" enough $((before + 200))
touch "$T/written.stop"
wait $writer || die "the writer failed"
kill $qsd
wait $qsd 2> /dev/null
nbdcopy "$(uri pbx-b db)" "$T/back" || die "nbdcopy"
/usr/bin/python3 - "$T/written" "$T/back" << 'EOF' || die "the volume is not what was written"
import sys
newest = {}
for line in open(sys.argv[1]):
    n, at, _ = line.split()
    newest[int(at)] = int(n)
volume = open(sys.argv[2], "rb").read()
wrong = [at for at, n in newest.items() if volume[at * 4096 : (at + 1) * 4096] != (b"%015d\n" % n) * 256]
assert not wrong, wrong
EOF
say "$(wc -l < "$T/written") blocks over a failover without an error, the longest took $(tail -n 1 "$T/written" | cut -d' ' -f3) s"
start pbx-a
wait_for 60 "pbx-a has caught up" caught_up pbx-a pbx-b
stop_cleanly pbx-b
say "stores are equal"
