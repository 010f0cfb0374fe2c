#!/bin/bash
# The guest of hosts.sh.
. "$(dirname "$0")/guest-systemd.sh"

sums() { run "$1" "cd /srv/pbx && find . -type f -exec sha256sum {} + | sort"; }

say "systemd is PID 1, version $(systemctl --version | sed -n '1s/ (.*//p'), kernel $(uname -r), host $(uname -n)"
make_hosts

readme pbx-a 1
must sed -f $share/resize $share/block-2 > /etc/replicator/pbx.toml
must systemd-analyze verify "repld@pbx.service"
for n in pbx-b pbx-c; do
    readme $n 3 1
    by_hand $n
done
readme pbx-a 3
say "created and started: $(systemctl show -P ActiveState -P Type -P UnitFileState repld@pbx | paste -sd' ')"
for n in pbx-b pbx-c; do within 30 is $n 's["node"]' $n; done

# What the unit promises.
pid=$(systemctl show -P MainPID repld@pbx)
[ "$(systemctl is-active repld@pbx)" = active ] || fail "the unit is not active"
grep -q '^Max locked memory *unlimited *unlimited' "/proc/$pid/limits" || fail "MEMLOCK: $(grep locked "/proc/$pid/limits")"
[ "$(cat "/proc/$pid/oom_score_adj")" = -1000 ] || fail "oom_score_adj: $(cat "/proc/$pid/oom_score_adj")"
is pbx-a 's["memory_locked"]' True || fail "the memory is not locked"

readme pbx-a 4
say "promoted, attached, made ext4 and mounted on pbx-a"
run pbx-a "dd if=/dev/urandom of=/srv/pbx/first bs=1M count=24 conv=fsync status=none"
before=$(sums pbx-a)

run pbx-b "mkdir -p /srv/pbx"
readme pbx-a 5 1
readme pbx-b 5 2
readme pbx-b 5 3
[ "$(sums pbx-b)" = "$before" ] || fail "pbx-b has other contents"
say "moved to pbx-b: same checksum"
readme pbx-b 5 1

run pbx-a "replctl promote"
mark=$(date +%s.%N)
run pbx-a "systemctl stop repld@pbx"
stopped=$(systemctl show -P Result -P ExecMainStatus -P ActiveState repld@pbx | paste -sd' ')
[ "$stopped" = "success 0 inactive" ] || fail "after the stop: $stopped"
# Since then: it was demoted before as well. The journal may have its lines a moment later.
demoted() { on pbx-a "journalctl -b -u repld@pbx --no-pager --since @$mark" | grep -q 'demoted: epoch [0-9]* is over'; }
within 20 demoted
run pbx-a "systemctl start repld@pbx"
run pbx-a "systemctl restart repld@pbx"
say "stopped as Primary: $stopped; started and restarted"

readme pbx-a 5 2
readme pbx-a 5 3
run pbx-a "dd if=/dev/urandom of=/srv/pbx/second bs=300K count=40 status=none && sync -f /srv/pbx"
before=$(sums pbx-a)
run pbx-a "kill -KILL $(systemctl show -P MainPID repld@pbx)"
on pbx-a "timeout 20 dd if=/dev/zero of=/srv/pbx/lost bs=1M count=1 conv=fsync status=none" && fail "the dead mount takes writes"
[ $? = 124 ] && fail "a write to the dead mount hangs"
# On hosts with a kernel of their own this can come later.
run pbx-a "umount -l /srv/pbx"
run pbx-a "nbd-client -d /dev/nbd0"
readme pbx-b 5 2
readme pbx-b 5 3
[ "$(sums pbx-b)" = "$before" ] || fail "pbx-b has other contents after the failover"
run pbx-b "umount /srv/pbx && e2fsck -fn /dev/nbd0"
say "killed under the mount on pbx-a, promoted on pbx-b: same checksums, ext4 is clean"
within 30 is pbx-a 's["role"]' Secondary
within 30 settled pbx-b
say "pbx-a is back: restarted $(systemctl show -P NRestarts repld@pbx) time, Secondary, caught up"
run pbx-b "nbd-client -d /dev/nbd0"

run pbx-b "modprobe loop && mkdir -p /mnt/old /dev/vg0"
# image BLOCK: a file system with such blocks, its files' sums in $before, as the block device $loop
image() {
    run pbx-b "rm -f /tmp/old && truncate -s 96M /tmp/old && mkfs.ext4 -q -b $1 /tmp/old"
    loop=$(run pbx-b "losetup -f --show /tmp/old")
    run pbx-b "mount $loop /mnt/old && dd if=/dev/urandom of=/mnt/old/recording bs=1M count=20 status=none"
    before=$(run pbx-b "cd /mnt/old && find . -type f -exec sha256sum {} + | sort")
    run pbx-b "umount /mnt/old"
}
image 1024
run pbx-b "qemu-img convert -O qcow2 $loop /tmp/old.qcow2 && losetup -d $loop"
run pbx-b "qemu-img convert -n -O raw /tmp/old.qcow2 'nbd+unix:///data?socket=/run/replicator/pbx/nbd.sock'"
run pbx-b "$(block 5 3 | sed 's/-b 4096/-b 512/')"
[ "$(sums pbx-b)" = "$before" ] || fail "the file system of the first image has other contents"
run pbx-b "umount /srv/pbx && nbd-client -d /dev/nbd0"
say "a qcow2 image with blocks of 1 KiB was copied in with qemu-img, and attached with -b 512"
image 4096
run pbx-b "ln -s $loop /dev/vg0/old-pbx"
readme pbx-b 7
run pbx-b "losetup -d $loop && replctl demote"
say "an image was copied in with nbdcopy, and compares equal"

# The whole machine is shut down with the disk mounted and not all written.
readme pbx-a 5 2
readme pbx-a 5 3
[ "$(sums pbx-a)" = "$before" ] || fail "the file system of the image has other contents"
run pbx-a "dd if=/dev/urandom of=/srv/pbx/last bs=1M count=12 status=none"
sums pbx-a > $share/sums
say "mounted on pbx-a: same checksum; now it is shut down with the disk in use"
keep_journal
touch $share/passed
systemctl poweroff
sleep 100
