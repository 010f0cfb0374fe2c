#!/bin/bash
# The README's "Three real hosts" and "Bringing an existing image in", command by command as they are
# printed there, and the systemd unit under systemd as PID 1, in a User-mode Linux guest in which each
# host is a mount and a host name namespace with a disk of its own.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest.sh"
need_root
need nbd-client mkfs.ext4 debugfs modprobe ip nsenter sha256sum nbdcopy qemu-img losetup awk
[ -x /lib/systemd/systemd ] || skip "no systemd"
need_guest
scratch

# What the guest sees as the source tree after a build.
root=$here/../..
share=$T/share
mkdir -p "$share/source/target/release" "$share/source/tools"
cp "$bin/repld" "$bin/replctl" "$share/source/target/release/"
cp -r "$root/tools/systemd" "$share/source/tools/"
cp "$here/hosts-guest.sh" "$share/guest"

# The code blocks of the two sections, numbered.
awk -v to="$share/block-" '
    /^## / { on = /^## (Three real hosts|Bringing an existing image in)$/ }
    on && /^```/ { if (open) { open = 0; close(file) } else { open = 1; n += 1; file = to n } next }
    on && open { print > file }
' "$root/README.md"

# The config is the README's, with sizes that fit here.
cat > "$share/resize" << 'END'
s/"32GiB"/"160MiB"/
s/"1GiB"/"64MiB"/
$a\
\
[policy]\
memory = "64MiB"
END

for n in "${names[@]}"; do truncate -s 512M "$T/$n.disk"; done

boot hosts 640M "$share/guest" "ubda=$T/pbx-a.disk" "ubdb=$T/pbx-b.disk" "ubdc=$T/pbx-c.disk" \
    selinux=0 systemd.show_status=false
until_halted 200

# What the shutdown left on pbx-a: a store that is the file system, cleanly unmounted, with all of it.
debugfs -R "dump pbx/data.img $T/data.img" "$T/pbx-a.disk" 2> /dev/null
debugfs -R "dump last $T/last" "$T/data.img" 2> /dev/null
[ "$(sha256sum < "$T/last")" = "$(sed -n 's, \./last$, -,p' "$share/sums")" ] || guest_failed "what was written last is not in the store"
e2fsck -fn "$T/data.img" > "$T/fsck" 2>&1 || guest_failed "the store is no clean ext4: $(cat "$T/fsck")"
say "it was unmounted before its disk went away: all is there, ext4 is clean"
