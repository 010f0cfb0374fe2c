#!/bin/bash
# PID 1 of the guest of oldest.sh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C
mount -t proc proc /proc 2> /dev/null
mount -t sysfs sys /sys 2> /dev/null
mount -t devtmpfs dev /dev 2> /dev/null
for dir in /run /mnt /tmp; do mount -t tmpfs tmpfs $dir; done
share=/mnt/share disk=/mnt/disk
mkdir $share $disk /mnt/fs
mount -t hostfs -o "$SHARE" none $share
touch $share/up

off() {
    for n in "${names[@]}"; do ctl "$n" status > "$share/$n.status.log" 2>&1; done
    cp "$disk"/*.log $share 2> /dev/null
    sync
    echo 1 > /proc/sys/kernel/sysrq
    echo o > /proc/sysrq-trigger
    sleep 60
}
# shellcheck source=guest-words.sh
. "$share/guest-words.sh"

must ip link set lo up
must insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/nbd.ko" nbds_max=4
must mount /dev/ubda $disk

names=(pbx-a pbx-b pbx-c)
declare -A pid=()
{
    echo 'resource = "pbx"'
    port=7789
    for n in "${names[@]}"; do
        printf '[[node]]\nname = "%s"\naddress = "127.0.0.1:%s"\nnbd_listen = "127.0.0.1:%s"\n' "$n" $port $((port + 1000))
        printf 'data_dir = "%s/%%n/data"\nrun_dir = "/run/%%n"\n' $disk
        port=$((port + 1))
    done
    printf '[[volume]]\nname = "db"\nsize = "128MiB"\n[journal]\nsize = "64MiB"\n'
    printf '[policy]\nmemory = "64MiB"\ndisk_timeout_ms = 30000\n[metrics]\nlisten = "/run/%%n/metrics.sock"\n'
} > /run/pbx.toml

ctl() { $share/replctl --config /run/pbx.toml --node "$@"; }
start() {
    $share/repld --config /run/pbx.toml --node "$1" >> "$disk/$1.log" 2>&1 &
    pid[$1]=$!
}
kill9() {
    kill -KILL "${pid[$1]}"
    wait "${pid[$1]}" 2> /dev/null
}
# answers NODE: whether it does; its status is in /run/status then, on one line
answers() {
    ctl "$1" status --json > /run/answer 2> /dev/null && tr -d ' \n' < /run/answer > /run/status
}
# shown TEXT: how often the status says so
shown() { grep -oF "$1" /run/status | wc -l; }
# settled PRIMARY: whether both peers are up to date
settled() {
    answers "$1" || return
    [ "$(shown '"connection":"Connected"')" = 2 ] && [ "$(shown '"behind_bytes":0,')" = 2 ] &&
        [ "$(shown '"disk_state":"UpToDate"')" = 3 ]
}
applied() { # NODE: whether its store has what is committed
    answers "$1" && grep -qE '"committed":([0-9]+),.*"applied":\1[,}]' /run/status
}
# attach NODE DEVICE OPTION...
attach() {
    local node=$1 device=$2
    shift 2
    must nbd-client -unix "/run/$node/nbd.sock" -N db -b 4096 "$@" "$device"
}
# agent NODE DEVICE ACTION: what Pacemaker does with ocf:replicator:nbd
agent() {
    env OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=disk OCF_RESOURCE_TYPE=nbd HA_RSCTMP=/run/resource-agents \
        OCF_RESKEY_volume=db OCF_RESKEY_device="$2" OCF_RESKEY_socket="/run/$1/nbd.sock" OCF_RESKEY_replctl=$share/replctl \
        $share/nbd "$3" >> "$disk/agent.log" 2>&1
}
# file NAME SIZE COUNT: writes a file, durably, and notes its checksum
file() {
    must dd if=/dev/urandom of="/mnt/fs/$1" bs="$2" count="$3" conv=fsync status=none
    (cd /mnt/fs && sha256sum "$1") >> $share/sums
}
same() { (cd /mnt/fs && sha256sum --quiet -c $share/sums) || fail "files have changed on $1"; }

for n in "${names[@]}"; do
    must ctl "$n" create > /dev/null
    start "$n"
done
for n in "${names[@]}"; do within 30 answers "$n"; done
must ctl pbx-a promote
grep -q 'io_uring works for one thread' $disk/pbx-a.log || fail "the ring is not the one that this kernel has"
say "three repld on Linux $(uname -r), $(sed -n 's/.*\(io_uring works.*\)/\1/p' $disk/pbx-a.log)"

attach pbx-a /dev/nbd0 -C 2
# No tables are left to a thread of the kernel, whose writes would be under way on a device that dies.
must mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
must mount /dev/nbd0 /mnt/fs
file first 1M 24
must fstrim /mnt/fs
must umount /mnt/fs
must nbd-client -d /dev/nbd0
say "attached twice over, mkfs.ext4, mount, write, fstrim and umount on pbx-a"

must nbd-client 127.0.0.1 8789 -N db -b 4096 /dev/nbd0
must mount /dev/nbd0 /mnt/fs
same pbx-a
file second 300K 20
must sync -f /mnt/fs
kill9 pbx-a
umount -l /mnt/fs
nbd-client -d /dev/nbd0
must ctl pbx-b promote
mkdir -p /run/resource-agents
agent pbx-b /dev/nbd1 monitor
[ $? = 7 ] || fail "the agent does not say that nothing is attached"
must agent pbx-b /dev/nbd1 start
must agent pbx-b /dev/nbd1 monitor
must mount /dev/nbd1 /mnt/fs
same pbx-b
say "killed under the mount on pbx-a, promoted and mounted on pbx-b: same checksums"

file third 4K 500
start pbx-a
within 30 settled pbx-b
kill9 pbx-b
# Still mounted, and the server is gone: it stops all the same.
must agent pbx-b /dev/nbd1 stop
agent pbx-b /dev/nbd1 monitor
[ $? = 7 ] || fail "the agent did not take /dev/nbd1 away"
ctl pbx-c attach --timeout 0 db /dev/nbd1 2> /run/attach && fail "it is attached under those who still use it"
grep -q 'detached by force.* /mnt/fs' /run/attach || fail "attach: $(cat /run/attach)"
umount -l /mnt/fs
must ctl pbx-c promote
# The verbs do the same, with the kernel's client.
must ctl pbx-c attach db /dev/nbd2
must ctl pbx-c attach --check db /dev/nbd2
must mount /dev/nbd2 /mnt/fs
ctl pbx-c detach --timeout 0 /dev/nbd2 2> /run/detach && fail "a mounted device was detached"
grep -q 'in use by the file system at /mnt/fs' /run/detach || fail "detach: $(cat /run/detach)"
same pbx-c
file fourth 64K 16
must umount /mnt/fs
e2fsck -fn /dev/nbd2 > /run/fsck 2>&1 || fail "e2fsck: $(cat /run/fsck)"
say "the same from pbx-b to pbx-c; ext4 is clean"

/usr/bin/python3 -S -c '
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/pbx-c/metrics.sock")
s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
while b := s.recv(65536): print(b.decode(), end="")' > /run/metrics
grep -q '^repld_health{.*health="degraded"} 1' /run/metrics || fail "the metrics do not say that a peer is away"

must ctl pbx-c detach /dev/nbd2
ctl pbx-c attach --check db /dev/nbd2 2> /dev/null && fail "it is still attached"
must nbdcopy "nbd+unix:///db?socket=/run/pbx-c/nbd.sock" $disk/copy.img
start pbx-b
within 30 settled pbx-c
must ctl pbx-c demote
for n in "${names[@]}"; do
    within 30 applied "$n"
    kill -TERM "${pid[$n]}"
    wait "${pid[$n]}" || fail "$n did not stop cleanly"
done
cp $disk/*.log $share
must umount $disk
say "all caught up and stopped"
touch $share/passed
off
