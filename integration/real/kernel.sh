#!/bin/bash
# The kernel's own NBD client, in a User-mode Linux guest on a tap: the README's commands by hand, a
# failover between two mounts, and one under a mounted file system.
. "$(dirname "$0")/lib.sh"
need_root
need linux.uml nbd-client mkfs.ext4 ip unshare sha256sum pgrep
[ -e /dev/net/tun ] || skip "no /dev/net/tun"
ls /usr/lib/uml/modules/*/kernel/drivers/block/nbd.ko > /dev/null 2>&1 || skip "no nbd.ko for User-mode Linux"
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
share=$T/share
mkdir "$share"

linux.uml mem=256M umid=repl "uml_dir=$T/uml" root=/dev/root rootfstype=hostfs rootflags=/ ro quiet panic=-1 \
    con=null con0=null,fd:1 ssl=null random.trust_cpu=on "vec0:transport=tap,ifname=repl0,depth=128,gro=1" \
    "init=$here/kernel-guest.sh" "SHARE=$share" "SERVER=10.77.0.254" < /dev/null > "$T/guest.log" 2>&1 &
guest=$!
at_end "kill -KILL $guest \$(pgrep -P $guest)"
# This kernel loses its one-shot timer now and then and idles for ever; an extra SIGALRM wakes it up.
(
    until [ -e "$share/up" ]; do sleep 0.2; done
    while kill -ALRM "$guest" 2> /dev/null; do sleep 0.5; done
) &
at_end "kill $!"

# phase NAME: waits until the guest is done with it
phase() {
    local end=$((SECONDS + 90))
    until [ -e "$share/$1" ]; do
        [ -d "/proc/$guest" ] || guest_failed "it ended before $1"
        [ -e "$share/failed" ] && guest_failed "$(cat "$share/failed")"
        [ "$SECONDS" -lt "$end" ] || guest_failed "$1: not within 90 s"
        sleep 0.05
    done
}
guest_failed() {
    tail -n 30 "$T/guest.log" >&2
    die "in the guest: $1"
}

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
