#!/bin/bash
# A client that reconnects by itself: QEMU's storage daemon shows a volume as a file and looks for its server under a
# name that moves, as an address does. What is written to the file goes on over a failover, without an error.
. "$(dirname "$0")/lib.sh"
need qemu-storage-daemon nbdcopy fusermount3
qemu-storage-daemon --help | grep -q fuse || skip "qemu-storage-daemon was built without FUSE"
[ -e /dev/fuse ] || skip "no /dev/fuse"
scratch

cluster 192MiB db=64MiB
promote pbx-a
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
