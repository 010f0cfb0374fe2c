#!/bin/bash
# The kernel's own NBD client, in a User-mode Linux guest on a tap: the README's commands by hand, a
# failover between two mounts, and one under a mounted file system.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest.sh"
need_root
need nbd-client mkfs.ext4 ip sha256sum
[ -e /dev/net/tun ] || skip "no /dev/net/tun"
need_guest
if [ -z "${IN_NAMESPACE:-}" ]; then
    unshare -n true 2> /dev/null || skip "no network namespaces"
    exec env IN_NAMESPACE=1 unshare -n "$0" "$@"
fi
scratch

ip link set lo up
ip tuntap add repl0 mode tap || skip "no tap devices"
ip addr add 10.77.0.254/24 dev repl0
ip link set repl0 up

NBD_LISTEN=10.77.0.254:10809 cluster 64MiB db=128MiB
promote pbx-a
boot kernel 256M "$here/kernel-guest.sh" "vec0:transport=tap,ifname=repl0,depth=128,gro=1" SERVER=10.77.0.254

phase written
say "mkfs.ext4, mount, write and umount with the kernel's client on pbx-a"
kill9 pbx-a
promote pbx-b
touch "$share/go-1"
phase mounted
say "mounted again on pbx-b: same checksum"
start pbx-a
wait_for 60 "pbx-a has caught up" caught_up pbx-a pbx-b
kill9 pbx-b
promote pbx-c
touch "$share/go-2"
phase verified
say "what was synced before the Primary died under the mount is there on pbx-c, ext4 is clean"
start pbx-b
wait_for 60 "pbx-b has caught up" caught_up pbx-b pbx-c
stop_cleanly pbx-c
e2fsck -fn "$T/pbx-a/data/db.img" > "$T/fsck" 2>&1 || die "the store is no clean ext4: $(cat "$T/fsck")"
say "stores are equal, and each is the file system"
