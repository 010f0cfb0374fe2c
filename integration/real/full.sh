#!/bin/bash
# A node was away for longer than the journal reaches back, and its file system has no room to stage what it lacks: it stays at its
# older point and says so, the others are not disturbed, and it goes on by itself once there is room. With the policy "in-place" it
# does not wait: it is Inconsistent, says so and is no candidate, until it is whole.
. "$(dirname "$0")/lib.sh"
need nbdcopy mkfs.ext4 fallocate
need_root
scratch

# Only pbx-c's disk is small.
mkdir -p "$T/pbx-c/data"
truncate -s 400M "$T/small.img"
mkfs.ext4 -q -m 0 "$T/small.img" || die "mkfs.ext4"
mount -o loop "$T/small.img" "$T/pbx-c/data" 2> "$T/mount.log" || skip "no loop devices: $(cat "$T/mount.log")"
at_end "umount -l '$T/pbx-c/data'"
rmdir "$T/pbx-c/data/lost+found"

fresh() {
    head -c 96M /dev/urandom > "$T/image"
    nbdcopy --flush "$T/image" "$(uri pbx-a db)" || die "nbdcopy"
}
health() { ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c 'import json, sys; s = json.load(sys.stdin); print(s["health"], s["health_reason"])' 2> /dev/null; }
merged() { [ "$(grep -c "resync: this node has everything" "$T/pbx-c.log")" -eq "$(grep -c "the resync is complete" "$T/pbx-c.log")" ]; }
says_full() { grep -q "there is no room to stage the resync: free up to" "$T/pbx-c.log"; }
# Leaves room for a part of it.
fill() {
    local free
    free=$(df --output=avail -k "$T/pbx-c/data" | tail -n 1)
    fallocate -l $((free - 24 * 1024))K "$T/pbx-c/data/ballast" || die "no ballast"
}
of_peer() { ctl pbx-a status --json 2> /dev/null | /usr/bin/python3 -c 'import json, sys; print([p for p in json.load(sys.stdin)["peers"] if p["name"] == "pbx-c"][0][sys.argv[1]])' "$1"; }

cluster 16MiB db=96MiB
# What has its room already does not compete with the stage for the rest: the store, which is sparse otherwise, and what the first copy
# may have staged, where this machine is slow.
fallocate -l 96M "$T/pbx-c/data/db.img" || die "no room for the store"
promote pbx-a
fresh
wait_for 60 "pbx-c has caught up" caught_up pbx-c pbx-a
wait_for 60 "pbx-c has laid over its stores what it staged" merged
kill9 pbx-c
fresh
fill
start pbx-c
wait_for 60 "pbx-c says that it has no room" says_full
say "pbx-c: $(health pbx-c); seen by the Primary it is $(of_peer disk_state)"
[ "$(of_peer disk_state)" != UpToDate ] || die "it counts as up to date"
fresh
caught_up pbx-b pbx-a || wait_for 30 "pbx-b is not disturbed" caught_up pbx-b pbx-a
ctl pbx-c promote --timeout 2 2> "$T/refused" && die "a node that has no room for what it lacks was promoted beside a Primary"
rm "$T/pbx-c/data/ballast"
wait_for 120 "pbx-c has everything, once there is room" caught_up pbx-c pbx-a
stop_cleanly pbx-a
cmp "$T/image" "$T/pbx-c/data/db.img" || die "the store is not what was written"
say "with room it came to have everything by itself"

sed -i 's/^\[policy\]$/&\nresync_without_room = "in-place"/' "$config"
for n in "${names[@]}"; do start "$n"; done
for n in "${names[@]}"; do wait_for 30 "$n answers" answers "$n"; done
promote pbx-a
wait_for 60 "pbx-c has caught up" caught_up pbx-c pbx-a
fill
goes_in_place() { [ "$(grep -c "there is no room to stage the resync: it goes straight to the stores" "$T/pbx-c.log")" -gt "$1" ]; }
is_inconsistent() { health pbx-c | grep -q "^down .*Inconsistent"; }
signal_others() { kill "-$1" "${node_pid[pbx-a]}" "${node_pid[pbx-b]}" || die "they do not run"; }
# What comes first is staged, until there is no room; from then on the stores are no image, also after a crash. A quick machine may be
# over it before it is killed.
for try in {0..9}; do
    kill9 pbx-c
    fresh
    start pbx-c
    wait_for 60 "pbx-c gives its image up" goes_in_place "$try"
    kill9 pbx-c
    signal_others STOP
    start pbx-c
    wait_for 30 "pbx-c answers" answers pbx-c
    for _ in {1..40}; do is_inconsistent && break 2; sleep 0.05; done
    signal_others CONT
    wait_for 120 "pbx-c has everything" caught_up pbx-c pbx-a
done
is_inconsistent || die "pbx-c never says that it is Inconsistent"
ctl pbx-c promote --timeout 1 2> "$T/refused" && die "stores that are no image were promoted"
echo pbx | ctl pbx-c promote --force 2> "$T/refused" && die "stores that are no image were promoted by force"
say "without room pbx-c takes it straight to its stores; halfway, alone: $(health pbx-c)"
signal_others CONT
[ "$(ctl pbx-a status --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["role"])')" = Primary ] || promote pbx-a
wait_for 120 "pbx-c has everything, without more room" caught_up pbx-c pbx-a
stop_cleanly pbx-a
cmp "$T/image" "$T/pbx-c/data/db.img" || die "the store is not what was written"
say "it came to have everything without more room"
