#!/bin/bash
# Failover without a cluster manager, the reset of a host that was fenced, and a watchdog, under systemd as
# PID 1 with the units that docs/failover.md prints, in a User-mode Linux guest of three hosts that is reset twice.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest.sh"
need_root
need nbd-client mkfs.ext4 debugfs modprobe ip nsenter nbdkit awk
need_systemd
need_guest
ls /usr/lib/uml/modules/*/kernel/drivers/watchdog/softdog.ko > /dev/null 2>&1 || skip "no softdog.ko for User-mode Linux"
scratch

share_hosts "$here/units-guest.sh"
# The page's units, each under its name.
awk -v to="$share/units/" '
    /^```ini$/ { on = 1; next }
    /^```/ { on = 0 }
    on && /^# [^ ]+\.(service|mount|target|conf)(:.*)?$/ { file = $2; sub(/:$/, "", file); dir = to file; sub(/[^\/]*$/, "", dir); system("mkdir -p " dir) }
    on && file { print > (to file) }
' "$here/../../docs/failover.md"
[ -s "$share/units/pbx.target" ] || die "docs/failover.md prints no pbx.target"

boot_hosts units
until_halted 900
grep -q 'sysrq: Resetting' "$T/guest.log" || guest_failed "reset-when-fenced is not what reset the host"
grep -q 'softdog: Initiating system reboot' "$T/guest.log" || guest_failed "softdog is not what reset the host"

# What the shutdown left on pbx-a: a store that is the file system, with all that the service knew to be there.
debugfs -R "dump pbx/data.img $T/data.img" "$T/pbx-a.disk" 2> /dev/null
debugfs -R "dump calls $T/calls" "$T/data.img" 2> /dev/null
[ "$(tail -n 1 "$T/calls")" = stopped ] || guest_failed "the service was not stopped before its disk: $(tail -n 1 "$T/calls")"
last=$(grep -v stopped "$T/calls" | tail -n 1)
[ "$last" -ge "$(tail -n 1 "$share/acked")" ] || guest_failed "call $(tail -n 1 "$share/acked") is not in the store, only $last"
e2fsck -fn "$T/data.img" > "$T/fsck" 2>&1 || guest_failed "the store is no clean ext4: $(cat "$T/fsck")"
say "stopped and unmounted before its disk went away: all $last calls are there, ext4 is clean"
