#!/bin/bash
# The README's "Three real hosts" and "Bringing an existing image in", command by command as they are
# printed there, and the systemd unit under systemd as PID 1, in a User-mode Linux guest in which each
# host is a mount and a host name namespace with a disk of its own.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest.sh"
need_root
need nbd-client mkfs.ext4 debugfs modprobe ip nsenter sha256sum nbdcopy qemu-img losetup awk
need_systemd
need_guest
scratch

share_hosts "$here/hosts-guest.sh"
boot_hosts hosts
until_halted 600

# What the shutdown left on pbx-a: a store that is the file system, cleanly unmounted, with all of it.
debugfs -R "dump pbx/data.img $T/data.img" "$T/pbx-a.disk" 2> /dev/null
debugfs -R "dump last $T/last" "$T/data.img" 2> /dev/null
[ "$(sha256sum < "$T/last")" = "$(sed -n 's, \./last$, -,p' "$share/sums")" ] || guest_failed "what was written last is not in the store"
e2fsck -fn "$T/data.img" > "$T/fsck" 2>&1 || guest_failed "the store is no clean ext4: $(cat "$T/fsck")"
say "it was unmounted before its disk went away: all is there, ext4 is clean"
