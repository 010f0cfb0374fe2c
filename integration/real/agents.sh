#!/bin/bash
# The resource agents and the fence agent by themselves: their metadata, and what ocf-tester asks of every agent, against a real cluster of repld.
. "$(dirname "$0")/lib.sh"
need_root
need ocf-tester xmllint nbdfuse losetup fusermount3
[ -e /usr/lib/ocf/lib/heartbeat/ocf-shellfuncs ] || skip "no resource agents (package resource-agents)"
[ -e /dev/fuse ] || skip "no /dev/fuse"
scratch
agents=$(realpath "$here/../../tools/ocf")
dtd=/usr/share/resource-agents/ra-api-1.dtd

for agent in volume nbd; do
    # Also for nobody in particular, with nothing in the path.
    env -i PATH=/bin:/usr/bin "$agents/$agent" meta-data > "$T/$agent.xml" || die "$agent has no metadata"
    xmllint --noout "$T/$agent.xml" || die "the metadata of $agent"
    [ ! -e $dtd ] || xmllint --noout --path "$(dirname $dtd)" --valid "$T/$agent.xml" || die "the metadata of $agent are not valid"
    name=$(xmllint --xpath 'string(/resource-agent/@name)' "$T/$agent.xml")
    [ "$name" = "$agent" ] || die "$agent calls itself $name"
    env OCF_ROOT=/usr/lib/ocf "$agents/$agent" no-such-action > /dev/null 2>&1
done
ln -s "$(realpath "$bin/repl-fence")" "$T/fence_repl"
echo action=metadata | "$T/fence_repl" > "$T/fence.xml" || die "fence_repl has no metadata"
xmllint --noout "$T/fence.xml" || die "the metadata of fence_repl"

export PATH=$bin:$PATH
cluster 64MiB data=64MiB
promote pbx-a
ctl pbx-a demote || die "demote"

# As Pacemaker would on a host that has only its own repld; nothing is left of an earlier run.
at_end "rm -rf /run/resource-agents/replicator-*-repl-test*"
say "ocf-tester asks ocf:replicator:volume"
ocf-tester -n repl-test -o config="$config" -o node=pbx-a -o replctl="$(realpath "$bin/replctl")" "$agents/volume" > "$T/volume.log" 2>&1 || die "ocf-tester on volume"
say "and ocf:replicator:nbd"
promote pbx-a
ocf-tester -n repl-test-nbd -o volume=data -o socket="$(socket pbx-a)" -o device="$T/disk" "$agents/nbd" > "$T/nbd.log" 2>&1 || die "ocf-tester on nbd"
losetup -a | grep -q "$T" && die "a loop device is left"

# The server is killed under the device: that it is gone is noticed, and it can be stopped.
run() {
    local code=0
    env OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=repl-test-nbd OCF_RESKEY_volume=data OCF_RESKEY_socket="$(socket pbx-a)" \
        OCF_RESKEY_device="$T/disk" "$agents/nbd" "$1" >> "$T/nbd.log" 2>&1 || code=$?
    [ $code = "$2" ] || die "$1 of nbd: exit $code, not $2"
}
run start 0
run monitor 0
dd if="$T/disk" of=/dev/null bs=4096 count=1 iflag=direct status=none || die "the device can not be read"
kill9 pbx-a
run stop 0
run monitor 7
run stop 0
say "the same by hand"
by_hand() {
    local code=0
    ctl "$1" "${@:3}" > "$T/by-hand" 2>&1 || code=$?
    [ $code = "$2" ] || die "${*:3}: exit $code, not $2: $(cat "$T/by-hand")"
}
by_hand pbx-b 1 attach --timeout 0 data "$T/disk"
grep -q "can not be promoted\|is not Primary" "$T/by-hand" || grep -q nbdfuse "$T/by-hand" || die "no reason: $(cat "$T/by-hand")"
[ ! -e "$T/disk" ] || die "a device without a server"
promote pbx-b
by_hand pbx-b 2 attach nonsense "$T/disk"
by_hand pbx-b 2 attach --client kernel data "$T/disk"
touch "$T/file"
by_hand pbx-b 1 attach data "$T/file"
by_hand pbx-b 1 attach --check data "$T/disk"
by_hand pbx-b 0 attach data "$T/disk"
by_hand pbx-b 0 attach data "$T/disk"
by_hand pbx-b 0 attach --check data "$T/disk"
[ "$(blockdev --getsize64 "$T/disk")" = $((64 << 20)) ] || die "the device has another size"
mkfs.ext4 -q "$T/disk" && mkdir "$T/files" && mount "$T/disk" "$T/files" || die "no file system on it"
at_end "umount -l $T/files"
echo text > "$T/files/text"
by_hand pbx-b 1 detach --timeout 0 "$T/disk"
grep -q "in use by the file system at $T/files" "$T/by-hand" || die "no reason: $(cat "$T/by-hand")"
umount "$T/files"
by_hand pbx-b 0 detach "$T/disk"
by_hand pbx-b 0 detach "$T/disk"
[ ! -e "$T/disk" ] || die "the link is left"
losetup -a | grep -q "replicator-attached.*volume" && die "a loop device is left"
by_hand pbx-b 0 attach data "$T/disk"
mount "$T/disk" "$T/files" && [ "$(cat "$T/files/text")" = text ] || die "the file is not there"
umount "$T/files"
kill9 pbx-b
by_hand pbx-b 0 detach "$T/disk"
[ ! -e /run/replicator-attached ] || die "something is left of it"
say "agents done"
