#!/bin/bash
# PID 1 of the guest of kernel.sh. Root is the host's / read-only; $SHARE is where host and guest meet.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C
mount -t proc proc /proc 2> /dev/null
mount -t sysfs sys /sys 2> /dev/null
mount -t devtmpfs dev /dev 2> /dev/null
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
mkdir /mnt/share /mnt/fs
share=/mnt/share
mount -t hostfs -o "$SHARE" none $share

off() {
    sync
    echo 1 > /proc/sys/kernel/sysrq
    echo o > /proc/sysrq-trigger
    sleep 60
}
# shellcheck source=guest-words.sh
. "$share/guest-words.sh"
host() { # waits for the host's turn to end
    local i
    for ((i = 0; i < 900; i++)); do
        [ -e "/mnt/share/$1" ] && return
        sleep 0.1
    done
    fail "the host never said $1"
}
same() { [ "$(sha256sum < "/mnt/fs/$1")" = "$(cat "/run/sum-$1")" ] || fail "$1 has changed"; }

must ip link set lo up
must ip addr add 10.77.0.1/24 dev vec0
must ip link set vec0 up
must insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/nbd.ko" nbds_max=4
touch /mnt/share/up

must nbd-client -b 4096 -N db "$SERVER" 10809 /dev/nbd0
must mkfs.ext4 -q -F /dev/nbd0
must mount /dev/nbd0 /mnt/fs
must dd if=/dev/urandom of=/mnt/fs/first bs=1M count=24 conv=fsync status=none
sha256sum < /mnt/fs/first > /run/sum-first
must umount /mnt/fs
must nbd-client -d /dev/nbd0
touch /mnt/share/written

host go-1
must nbd-client -b 4096 -N db "$SERVER" 10810 /dev/nbd1
echo 3 > /proc/sys/vm/drop_caches
must mount /dev/nbd1 /mnt/fs
same first
must dd if=/dev/urandom of=/mnt/fs/second bs=300K count=20 conv=fsync status=none
sha256sum < /mnt/fs/second > /run/sum-second
must sync -f /mnt/fs
touch /mnt/share/mounted

host go-2
# The stock client does not find the new Primary by itself: the mount is lost, what was synced is not.
nbd-client -d /dev/nbd1
umount -l /mnt/fs
must nbd-client -b 4096 -N db "$SERVER" 10811 /dev/nbd2
must mount /dev/nbd2 /mnt/fs
same first
same second
must fstrim /mnt/fs
must umount /mnt/fs
e2fsck -fn /dev/nbd2 > /run/fsck 2>&1 || fail "e2fsck: $(cat /run/fsck)"
must nbd-client -d /dev/nbd2
touch /mnt/share/verified
off
