#!/bin/bash
# All of it on the oldest kernel that is supported: three repld, the stock nbd-client and nbd.ko in one
# User-mode Linux guest, with a disk of its own; two failovers with a mounted file system.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest.sh"
need_root
need nbd-client nbdcopy mkfs.ext4 debugfs sha256sum cmp
need_guest
[ -e /usr/lib/ocf/lib/heartbeat/ocf-shellfuncs ] || skip "no resource agents (package resource-agents)"
scratch

truncate -s 1G "$T/disk"
mkfs.ext4 -q -F "$T/disk"
mkdir "$T/share"
cp "$bin/repld" "$bin/replctl" "$here/../../tools/ocf/nbd" "$T/share/"
boot oldest 640M "$here/oldest-guest.sh" "ubda=$T/disk"
until_halted 600

# What the guest left behind, looked at from outside.
for n in "${names[@]}"; do
    debugfs -R "dump $n/data/db.img $T/$n.img" "$T/disk" 2> /dev/null
    cmp "$T/pbx-a.img" "$T/$n.img" || die "the stores of pbx-a and $n differ"
done
debugfs -R "dump copy.img $T/copy.img" "$T/disk" 2> /dev/null
cmp "$T/pbx-a.img" "$T/copy.img" || die "what nbdcopy copied is not the store"
e2fsck -fn "$T/pbx-a.img" > "$T/fsck" 2>&1 || die "the store is no clean ext4: $(cat "$T/fsck")"
while read -r sum file; do
    debugfs -R "dump $file $T/file" "$T/pbx-a.img" 2> /dev/null
    [ "$(sha256sum < "$T/file")" = "$sum  -" ] || die "$file is not in the store as it was written"
done < "$T/share/sums"
say "stores are equal, each is the file system with all $(wc -l < "$T/share/sums") files"
