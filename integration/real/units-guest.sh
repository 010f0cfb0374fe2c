#!/bin/bash
# The guest of units.sh. It boots three times: two resets are part of it.
. "$(dirname "$0")/guest-systemd.sh"

failover=replicator-failover@pbx
after_ms=2000 margin_s=10

# state UNIT: as systemd has it
state() { systemctl show -P ActiveState "$1"; }
is_state() { [ "$(state "$1")" = "$2" ]; }
role() { is "$1" 's["role"]' "$2"; }
acked() { tail -n 1 $share/acked; }
more_calls() { [ "$(acked)" -gt "$1" ]; }
# What udev reads of a device that goes may fail.
nothing_lost() { ! dmesg | grep -E 'I/O error.*WRITE|EXT4-fs error|lost (a?sync )?page write'; }
logged() { # UNIT TEXT: since the mark
    journalctl -b -u "$1" --no-pager -o cat --since "@$mark" | grep -qF -- "$2"
}
mark() { mark=$(date +%s.%N); }
# serves SECONDS: the target is up, and what it runs writes
serves() {
    local before
    before=$(acked)
    within "$1" is_state pbx.target active
    within 10 is_state asterisk.service active
    within 10 mountpoint -q /srv/pbx
    within 10 more_calls "$before"
    [ ! -e $share/lost ] || fail "$(cat $share/lost)"
}
# is_down: nothing of the target is left
is_down() {
    ! is_state asterisk.service active && is_state srv-pbx.mount inactive && is_state pbx-disk.service inactive &&
        ! mountpoint -q /srv/pbx && ! nbd-client -c /dev/nbd0 > /dev/null
}
units() { systemctl list-units --all --no-legend pbx.target asterisk.service srv-pbx.mount pbx-disk.service; }
down() { is_down || fail "$1: $(units)"; }
# mount_on_b: by hand, on a device that systemd of pbx-a does not know
mount_on_b() {
    run pbx-b "replctl promote"
    run pbx-b "nbd-client -unix /run/replicator/pbx/nbd.sock -N data -b 4096 /dev/nbd1"
    [ "${1:-}" != clean ] || run pbx-b "e2fsck -fn /dev/nbd1"
    run pbx-b "mkdir -p /srv/pbx && mount /dev/nbd1 /srv/pbx"
    [ "$(on pbx-b "grep -v stopped /srv/pbx/calls | tail -n 1")" -ge "$(acked)" ] || fail "call $(acked) is not on pbx-b"
}
release_b() {
    run pbx-b "umount /srv/pbx && e2fsck -fn /dev/nbd1 && nbd-client -d /dev/nbd1 && replctl demote"
}
all_serve() {
    local n
    for n in pbx-a pbx-b pbx-c; do within 30 is $n 's["node"]' $n; done
}

mark
[ -e $share/acked ] || echo 0 > $share/acked
say "boot $boot: systemd $(systemctl --version | sed -n '1s/ (.*//p'), kernel $(uname -r)"
[ "$boot" = 1 ] || [ -e "$share/reset-$((boot - 1))" ] || fail "the guest was reset, and nothing was to reset it"
make_hosts
readme pbx-a 1
run pbx-a "install -m 0755 target/release/repl-fence tools/reset-when-fenced /usr/sbin/"
must sed -f $share/resize $share/block-2 > /etc/replicator/pbx.toml
cp /etc/replicator/pbx.toml /etc/replicator/others.toml
printf '\n[failover]\nunit = "pbx.target"\n' >> /etc/replicator/pbx.toml
# With this the units of the target can stop also where the disk takes nothing.
[ "$boot" != 3 ] || sed -i '/^\[policy\]/a disconnect_clients_after_ms = 500' /etc/replicator/pbx.toml
# /dev/watchdog and number 0 are this kernel's own.
[ "$boot" != 2 ] || printf '\n[watchdog]\ndevice = "/dev/watchdog1"\nafter_ms = %s\n' $after_ms >> /etc/replicator/pbx.toml

# What stands for the PBX: a call is a line, and is acknowledged when it is synced.
cat > /usr/sbin/asterisk << 'END'
#!/bin/bash
calls=/srv/pbx/calls acked=/mnt/share/acked
touch $calls
n=$(grep -v stopped $calls | tail -n 1)
answered=$(tail -n 1 $acked)
[ "${n:-0}" -ge "$answered" ] || { echo "call $answered was acknowledged, and the last one there is ${n:-0}" > /mnt/share/lost; exit 1; }
# It takes its time to stop, and needs the disk for that.
trap 'sleep 1; echo stopped >> $calls && sync $calls; exit' TERM
while :; do
    n=$((n + 1))
    echo "$n" >> $calls && sync $calls || exit 1
    echo "$n" >> $acked
    sleep 0.05
done
END
chmod 755 /usr/sbin/asterisk
printf '[Service]\nExecStart=/usr/sbin/asterisk\n' > /etc/systemd/system/asterisk.service
must cp -r $share/units/. /etc/systemd/system/
must systemctl daemon-reload
verified=$(systemd-analyze verify pbx.target replicator-{failover,reset,verify}@pbx.service replicator-verify@pbx.timer 2>&1) || fail "the units: $verified"
[ -z "$verified" ] || fail "the units: $verified"
mkdir -p /srv/pbx
for n in pbx-b pbx-c; do
    run $n "mount --bind /etc/replicator/others.toml /etc/replicator/pbx.toml"
    [ "$boot" != 1 ] || run $n "replctl create"
    by_hand $n
done
[ "$boot" != 1 ] || run pbx-a "replctl create"
readme pbx-a 4 3 # modprobe nbd
[ "$boot" != 2 ] || run pbx-a "modprobe softdog soft_margin=$margin_s nowayout=0"
run pbx-a "systemctl enable --now repld@pbx"
all_serve
within 30 is pbx-a 'all(p["connection"] == "Connected" for p in s["peers"])' True

first_boot() {
    run pbx-a "replctl promote && replctl attach data /dev/nbd0 && mkfs.ext4 -q /dev/nbd0 && replctl detach /dev/nbd0"
    run pbx-a "systemctl enable --now $failover"
    serves 20
    say "the target comes up on the Primary by itself: attached, mounted, written to"

    # Sunday is not waited for.
    mkdir -p /etc/systemd/system/replicator-verify@pbx.timer.d
    printf '[Timer]\nOnCalendar=\nOnActiveSec=1\nRandomizedDelaySec=0\n' > /etc/systemd/system/replicator-verify@pbx.timer.d/soon.conf
    run pbx-a "systemctl daemon-reload && systemctl start replicator-verify@pbx.timer"
    within 120 is pbx-a '(s["verify"]["last"]["by"], s["verify"]["last"]["clean"])' "('pbx-a', True)"
    [ "$(systemctl show -P Result replicator-verify@pbx.service)" = success ] || fail "the verification that the timer began"
    run pbx-a "systemctl stop replicator-verify@pbx.timer"
    say "the timer begins a verification while the service runs: all copies are sound and equal"

    run pbx-a "systemctl stop $failover"
    down "after the stop of the failover"
    role pbx-a Secondary || fail "it was stopped, and is Primary"
    nothing_lost || fail "I/O errors after a stop in peace"
    mount_on_b clean
    [ "$(on pbx-b "tail -n 1 /srv/pbx/calls")" = stopped ] || fail "the service had no time to stop"
    release_b
    say "failover stopped: the target's units in order, demoted; clean and whole on pbx-b"
    mark
    run pbx-a "systemctl start $failover"
    serves 20
    say "started again: promoted by itself, and up"

    mark
    run pbx-a "systemctl kill -s KILL asterisk.service"
    within 20 logged $failover "rests for 30 s"
    within 20 logged repld@pbx "demoted: epoch"
    serves 60
    nothing_lost || fail "it was demoted before its units were stopped"
    say "the service fails by itself: the target is stopped, the node demoted; it rests, and comes up where nobody else takes over"

    mark
    run pbx-a "systemctl kill -s KILL repld@pbx"
    within 20 logged $failover "the service is stopped"
    serves 60
    say "repld killed under the target: up again, with all that was acknowledged"

    mark
    kill -KILL "${daemon[pbx-b]}" "${daemon[pbx-c]}"
    within 20 logged $failover "the service is stopped"
    within 20 is_state asterisk.service deactivating
    sleep 3
    is_state asterisk.service deactivating && mountpoint -q /srv/pbx || fail "without the disk its units have stopped: $(units)"
    for n in pbx-b pbx-c; do by_hand $n; done
    serves 60
    say "majority lost: the target hangs in stopping, as the disk does; up again when the majority is back, and nothing is lost"

    within 30 settled pbx-a
    # Another disk hangs for ever, with something that is to be written to it: whoever syncs now waits.
    run pbx-a "nbdkit -U /run/other.sock -P /run/other.pid memory 32M && nbd-client -unix /run/other.sock /dev/nbd2"
    run pbx-a "mkfs.ext4 -q /dev/nbd2 && mkdir /mnt/other && mount /dev/nbd2 /mnt/other && touch /mnt/other/file && sync -f /mnt/other"
    run pbx-a 'kill -STOP "$(cat /run/other.pid)" && echo more >> /mnt/other/file'
    run pbx-a "systemctl start replicator-reset@pbx"
    sleep 1
    touch "$share/reset-1"
    run pbx-b "install -m 0755 target/release/repl-fence /usr/sbin/; repl-fence fence pbx-a"
    sleep 30
    fail "the fenced Primary's host was not reset"
}

second_boot() {
    within 30 is pbx-a 's["fenced"]' True
    role pbx-a Secondary || fail "the fenced node is not Secondary"
    mount_on_b
    run pbx-b "repl-fence unfence pbx-a"
    within 30 settled pbx-b
    release_b
    say "the fenced host was reset: it is Secondary and fenced, everything is on pbx-b, ext4 is clean after its journal"

    holds_watchdog() { find "/proc/$(systemctl show -P MainPID repld@pbx)/fd" -lname /dev/watchdog1 | grep -q .; }
    left_armed() { dmesg | grep -q 'watchdog1: watchdog did not stop'; }
    holds_watchdog || fail "repld runs, and has no watchdog"
    run pbx-a "systemctl stop repld@pbx"
    left_armed && fail "a clean stop leaves the watchdog armed"
    sleep $((margin_s + 2))
    run pbx-a "systemctl start repld@pbx"
    run pbx-a "systemctl kill -s KILL repld@pbx"
    within 20 is pbx-a 's["node"]' pbx-a
    left_armed || fail "the watchdog was not armed when repld was killed"
    sleep $((margin_s + 2))
    holds_watchdog || fail "repld was started again, and has no watchdog"
    say "softdog: a clean stop disarms it; a repld that was killed is started again and feeds it: no reset"

    run pbx-a "systemctl enable --now $failover"
    serves 60
    touch "$share/reset-2"
    kill -KILL "${daemon[pbx-b]}" "${daemon[pbx-c]}"
    sleep 40
    fail "the watchdog did not reset the host of a Primary without a majority"
}

third_boot() {
    role pbx-a Secondary || fail "it was reset, and is no Secondary"
    mount_on_b
    release_b
    say "the watchdog reset the host: everything is on pbx-b, ext4 is clean after its journal"
    run pbx-a "systemctl enable --now $failover"
    serves 60
    mark
    kill -KILL "${daemon[pbx-b]}" "${daemon[pbx-c]}"
    for ((n = 0; n < 150; n++)); do is_down && break; sleep 0.2; done
    # The kernel keeps what was on its way: docs/failover.md says what to do.
    is_down || run pbx-a "replctl detach --force /dev/nbd0"
    # What was caught in it may take as long as systemd lets it (90 s).
    within 150 is_down
    say "majority lost, with disconnect_clients_after_ms: the target is down, nothing hangs"
    for n in pbx-b pbx-c; do by_hand $n; done
    serves 60
    within 60 settled pbx-a
    say "up again with the majority; now the host is shut down"
    keep_journal
    touch $share/passed
    systemctl poweroff
    sleep 100
}

case $boot in
    1) first_boot ;;
    2) second_boot ;;
    3) third_boot ;;
    *) fail "boot $boot" ;;
esac
