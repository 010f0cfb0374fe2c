#!/bin/bash
# libnbd's tools: nbdinfo with everything that it asks, maps of holes before and after a failover, nbdcopy with several
# connections, and an nbdsh script that says what a polite client would not.
. "$(dirname "$0")/lib.sh"
need nbdinfo nbdcopy
/usr/bin/python3 -c 'import nbd' 2> /dev/null || skip "no python3-libnbd"
scratch

cluster 192MiB db=64MiB recordings=48MiB
promote pbx-a
db=$(uri pbx-a db)

# json EXPRESSION: whether it holds for what nbdinfo --json said, as j
json() { /usr/bin/python3 -c "import json, sys; j = json.load(sys.stdin); sys.exit(not ($1))"; }

for what in connect write flush fua trim zero fast-zero cache df multi-conn "structured reply"; do
    nbdinfo --can "$what" "$db" || die "nbdinfo --can $what"
done
nbdinfo --is read-only "$db" && die "read-only"
nbdinfo --json "$db" | json '(e := j["exports"][0])["export-name"] == "db" and e["export-size"] == 64 << 20 and j["structured"]
    and e["contexts"] == ["base:allocation"] and e["block_size_minimum"] == 1 and e["block_size_preferred"] == 4096
    and e["block_size_maximum"] == 32 << 20 and not e["is_rotational"] and e["can_multi_conn"]' ||
    die "nbdinfo --json: $(nbdinfo --json "$db")"
nbdinfo --list --json "nbd+unix:///?socket=$(socket pbx-a)" | json '[e["export-name"] for e in j["exports"]] == ["db", "recordings"]' ||
    die "nbdinfo --list"

# What a map says, as lines of offset, length and status, neighbours of one status joined.
map() {
    nbdinfo --map --json "$1" | /usr/bin/python3 -c '
import json, sys
runs = []
for e in json.load(sys.stdin):
    assert e["length"] > 0 and (not runs or e["offset"] == runs[-1][0] + runs[-1][1])
    if runs and runs[-1][2] == e["type"]: runs[-1][1] += e["length"]
    else: runs.append([e["offset"], e["length"], e["type"]])
for run in runs: print(*run)'
}
[ "$(map "$db")" = "0 $((64 << 20)) 3" ] || die "a fresh volume is not one hole: $(map "$db")"

# Data, zeroes that may be holes and zeroes that may not, while they are in the journal and when they are in the stores.
head -c $((64 << 20)) /dev/urandom > "$T/image"
dd if=/dev/zero of="$T/image" bs=1M seek=8 count=40 conv=notrunc status=none
fallocate --punch-hole --offset $((8 << 20)) --length $((40 << 20)) "$T/image"
nbdcopy --connections=4 --flush "$T/image" "$db" || die "nbdcopy in with four connections"
printf '0 %s 0\n%s %s 3\n%s %s 0\n' $((8 << 20)) $((8 << 20)) $((40 << 20)) $((48 << 20)) $((16 << 20)) > "$T/expected"
right_map() { map "$1" | cmp -s - "$T/expected"; }
right_map "$db" || die "the map right after the copy: $(map "$db")"
# applied NODE: whether its stores lack nothing
applied() { ctl "$1" status --json | json 'j["seq"]["applied"] == j["seq"]["admitted"]'; }
wait_for 30 "everything is applied" applied pbx-a
right_map "$db" || die "the map when all is in the stores: $(map "$db")"
[ "$(nbdinfo --map --totals "$db" | awk '$3 == 3 { print $1 }')" = $((40 << 20)) ] || die "nbdinfo --map --totals"
say "maps of holes are right before and after the journal is applied"

nbdcopy --connections=4 --requests=32 "$db" "$T/back" || die "nbdcopy out with four connections"
cmp "$T/image" "$T/back" || die "what came back differs"
nbdcopy --synchronous "$db" - | cmp - "$T/image" || die "nbdcopy to a pipe"
nbdcopy --connections=2 "$db" "$(uri pbx-a recordings)" 2> /dev/null && die "64 MiB went into a volume of 48"
say "64 MiB in and out with four connections"

NBD_SOCKET=$(socket pbx-a) /usr/bin/python3 "$here/tools.py" || die "tools.py"
say "impolite requests are answered"

# The next Primary's map is that of its own store and journal.
nbdcopy --flush "$T/image" "$db" || die "nbdcopy in again"
kill9 pbx-a
promote pbx-b
right_map "$(uri pbx-b db)" || die "the map of the next Primary: $(map "$(uri pbx-b db)")"
nbdcopy "$(uri pbx-b db)" - | cmp - "$T/image" || die "the next Primary has something else"
start pbx-a
wait_for 60 "pbx-a has caught up" caught_up pbx-a pbx-b
stop_cleanly pbx-b
say "the next Primary says the same, stores are equal"
