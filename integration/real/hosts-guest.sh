#!/bin/bash
# The guest of hosts.sh, twice: as the kernel's init it makes room on a read-only root and becomes
# systemd, which then starts it again as hosts.service, with the checks.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C

become_systemd() {
    local dir unit file
    mount -t proc proc /proc 2> /dev/null
    mount -t sysfs sys /sys 2> /dev/null
    mount -t devtmpfs dev /dev 2> /dev/null
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/etc /mnt/sbin /mnt/share /mnt/modules
    mount -t hostfs -o "$SHARE" none /mnt/share
    touch /mnt/share/up

    # A small /etc, so that it is not this machine's units that are started.
    for file in passwd group nsswitch.conf ld.so.cache mke2fs.conf; do
        [ -e "/etc/$file" ] && cp -a "/etc/$file" /mnt/etc/
    done
    mount --bind /usr/sbin /mnt/sbin
    for dir in /etc /var /srv /tmp /run /usr/sbin; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
    chmod 1777 /tmp
    cp -a /mnt/etc/. /etc/
    ln -s /mnt/sbin/* /usr/sbin/
    mkdir -p /etc/systemd/system /etc/replicator /var/lib /var/log /var/tmp
    ln -s /run /var/run
    ln -s /proc/self/mounts /etc/mtab
    echo pbx-a > /etc/hostname
    echo 0123456789abcdef0123456789abcdef > /etc/machine-id
    # modprobe looks here for the modules, which are not where it would expect them.
    mkdir -p /mnt/modules/lib/modules
    ln -s "/usr/lib/uml/modules/$(uname -r)" "/mnt/modules/lib/modules/$(uname -r)"

    # Of what the distribution wants at start, only the journal is.
    for unit in console-getty.service /lib/systemd/system/{sysinit,sockets,timers,local-fs,multi-user,getty}.target.wants/*; do
        case $unit in
            *.target | */systemd-journald.s* | */systemd-journald-dev-log.socket) ;;
            *) : > "/etc/systemd/system/${unit##*/}" ;; # masked
        esac
    done
    cat > /etc/systemd/system/hosts.target << END
[Unit]
Wants=hosts.service multi-user.target
AllowIsolate=yes
END
    ln -s hosts.target /etc/systemd/system/default.target
    cat > /etc/systemd/system/hosts.service << END
[Unit]
# The other hosts outlive this one.
Before=repld@pbx.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
ExecStart=/mnt/share/guest checks
StandardOutput=file:/mnt/share/commands.log
StandardError=inherit
LimitMEMLOCK=infinity
END
    # Empty says that this is no container, whatever the files of the machine around it say.
    container='' exec /lib/systemd/systemd
}
[ $$ = 1 ] && become_systemd
[ "${1:-}" = checks ] || exit 2

share=/mnt/share
export MODPROBE_OPTIONS="-d /mnt/modules"
exec < /dev/null

off() {
    journalctl -b --no-pager > $share/journal.log 2>&1
    sync
    exit
}
say() { echo "$*" >> $share/progress; }
fail() {
    echo "$*" > $share/failed
    off
}
must() { "$@" || fail "$*: exit $?"; }
# within SECONDS COMMAND...
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "not in time: $*"
        sleep 0.2
    done
}

declare -A holder=()
# on HOST COMMAND: a shell command on that host
on() {
    echo "$1# $2" >&2
    if [ "$1" = pbx-a ]; then
        (cd $share/source && bash -c "$2")
    else
        nsenter -t "${holder[$1]}" -m -u bash -c "cd $share/source; $2"
    fi
}
run() { on "$@" || fail "on $1: $2: exit $?"; }
# block N [FROM [TO]]: lines of a code block of the README
block() { sed -n "${2:-1},${3:-${2:-\$}}p" "$share/block-$1"; }
# readme HOST N [FROM [TO]]: runs them, and every one has to work
readme() {
    local line
    while read -r line; do
        [ -z "$line" ] || run "$1" "$line"
    done < <(block "${@:2}")
}
by_hand() { # a host's daemon without systemd
    nsenter -t "${holder[$1]}" -m -u repld >> "$share/$1.log" 2>&1 &
}
# field HOST EXPRESSION: of its status
field() {
    on "$1" "replctl status --json" |
        /usr/bin/python3 -c 'import json, sys; s = json.load(sys.stdin); print(eval(sys.argv[1]))' "$2"
}
is() { [ "$(field "$1" "$2" 2> /dev/null)" = "$3" ]; }
settled() { is "$1" 'all(p["connection"] == "Connected" and p["disk_state"] == "UpToDate" and p["behind_bytes"] == 0 for p in s["peers"])' True; }
sums() { run "$1" "cd /srv/pbx && find . -type f -exec sha256sum {} + | sort"; }

say "systemd is PID 1, version $(systemctl --version | sed -n '1s/ (.*//p'), kernel $(uname -r), host $(uname -n)"
must ip link set lo up
for i in 1 2 3; do must ip addr add "10.0.0.$i/24" dev lo; done
for n in pbx-b pbx-c; do
    unshare -m -u --propagation private sleep infinity &
    holder[$n]=$!
    within 10 grep -q sleep "/proc/$!/comm"
    run $n "hostname $n && mkdir -p /run/replicator-$n && mkdir -p /var/lib/replicator /run/replicator"
    run $n "mount --bind /run/replicator-$n /run/replicator"
done
for disk in a b c; do
    must mkfs.ext4 -q -F "/dev/ubd$disk"
    mkdir -p /var/lib/replicator
    run "pbx-$disk" "mount /dev/ubd$disk /var/lib/replicator"
done

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
run pbx-a "systemctl stop repld@pbx"
stopped=$(systemctl show -P Result -P ExecMainStatus -P ActiveState repld@pbx | paste -sd' ')
[ "$stopped" = "success 0 inactive" ] || fail "after the stop: $stopped"
on pbx-a "journalctl -b -u repld@pbx --no-pager" | grep -q 'demoted: epoch 3 is over' || fail "the stop did not demote"
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
readme pbx-b 6
run pbx-b "losetup -d $loop && replctl demote"
say "an image was copied in with nbdcopy, and compares equal"

# The whole machine is shut down with the disk mounted and not all written.
readme pbx-a 5 2
readme pbx-a 5 3
[ "$(sums pbx-a)" = "$before" ] || fail "the file system of the image has other contents"
run pbx-a "dd if=/dev/urandom of=/srv/pbx/last bs=1M count=12 status=none"
sums pbx-a > $share/sums
say "mounted on pbx-a: same checksum; now it is shut down with the disk in use"
journalctl -b --no-pager > $share/journal.log 2>&1
touch $share/passed
systemctl poweroff
sleep 100
