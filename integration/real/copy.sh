#!/bin/bash
# A whole random image in and out with nbdcopy and qemu-img, before and after a failover; then the store
# itself is that image.
. "$(dirname "$0")/lib.sh"
need nbdcopy nbdinfo
scratch

# The image is written again while a node is away, and the journal has to reach back over that.
cluster 192MiB db=64MiB
promote pbx-a
[ "$(nbdinfo --size "$(uri pbx-a db)")" = $((64 << 20)) ] || die "nbdinfo --size"
# nbdinfo asks for every export that LIST names; a Secondary names them and refuses to open them.
nbdinfo --list "nbd+unix:///?socket=$(socket pbx-b)" > "$T/list" 2>&1
grep -q 'export: "\?db"\?' "$T/list" || die "LIST on a Secondary does not name db: $(cat "$T/list")"
nbdinfo "$(uri pbx-b db)" > "$T/info" 2>&1 && die "a Secondary opened its export"

head -c $((64 << 20)) /dev/urandom > "$T/image"
# A hole and zeroes in the middle, so that write-zeroes and trim are used too.
dd if=/dev/zero of="$T/image" bs=1M seek=20 count=8 conv=notrunc status=none
nbdcopy --flush "$T/image" "$(uri pbx-a db)" || die "nbdcopy in"
nbdcopy "$(uri pbx-a db)" "$T/back" || die "nbdcopy out"
cmp "$T/image" "$T/back" || die "what came back differs"
say "64 MiB in and out through pbx-a"

kill9 pbx-a
promote pbx-b
nbdcopy "$(uri pbx-b db)" "$T/back" || die "nbdcopy out of the new Primary"
cmp "$T/image" "$T/back" || die "the new Primary has something else"
if command -v qemu-img > /dev/null; then
    qemu-img compare -f raw -F raw "$T/image" "$(uri pbx-b db)" || die "qemu-img compare"
    qemu-io -f raw -c 'write -P 0xab 1000 3000' -c 'read -P 0xab 1000 3000' -c 'write -z 64k 64k' \
        -c 'read -P 0 64k 64k' -c 'write -f -P 1 4k 4k' -c 'discard 1M 1M' -c flush \
        "$(uri pbx-b db)" > "$T/qemu-io" || die "qemu-io: $(cat "$T/qemu-io")"
    nbdcopy --flush "$T/image" "$(uri pbx-b db)" || die "nbdcopy in again"
fi
say "the same image through pbx-b"

start pbx-a
wait_for 60 "pbx-a has caught up" caught_up pbx-a pbx-b
stop_cleanly pbx-b
cmp "$T/image" "$T/pbx-a/data/db.img" || die "the store is not the image"
say "all stores are the image"
