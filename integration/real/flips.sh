#!/bin/bash
# Random bytes are flipped in the stores, journal, checksums, metadata and stage of one node at a time, while fio writes, while it
# verifies, and across restarts: nobody ever reads a wrong byte, what is read is mended, and in the end all stores are equal and as they
# were written.
#
#   integration/real/flips.sh [--seconds S] [--seed N]      each kind once, and any seed, unless it is said
. "$(dirname "$0")/lib.sh"
need fio
fio --enghelp 2> /dev/null | grep -qw nbd || skip "fio was built without ioengine=nbd"
seconds=0 seed=$RANDOM
while [ $# -gt 1 ]; do
    case $1 in
        --seconds) seconds=$2 ;;
        --seed) seed=$2 ;;
        *) echo "no option $1" >&2; exit 2 ;;
    esac
    shift 2
done
scratch
say "seed $seed"

cluster 64MiB db=48MiB
primary=pbx-a
promote $primary
other() { local n; for n in "${names[@]}"; do [ "$n" = "$1" ] || echo "$n"; done; }

# flip SEED NODE WHAT COUNT: flips single bits of bytes of a node's files, and says how many. Of the journal not the label; the meta only
# in one copy.
cat > "$T/flip.py" << 'PY'
import json, os, random, sys
seed, data, what, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = random.Random(seed)
path = {"store": "db.img"}.get(what, what)
fd = os.open(os.path.join(data, path), os.O_RDWR)
size = os.fstat(fd).st_size
done, blocks = 0, set()
for _ in range(count * 200):
    if done == count:
        break
    at = rng.randrange(4096, size) if what == "journal" else rng.randrange(size)
    if what == "meta":
        at = 65536 * rng.randrange(4) + rng.randrange(4096)
    block = os.pread(fd, 4096, at // 4096 * 4096)
    # In a page of checksums one slot at a time; a block of zeroes rots as well, but seldom here.
    if not any(block) and rng.random() < 0.98 or at // 4096 in blocks:
        continue
    blocks.add(at // 4096)
    byte = block[at % 4096] ^ 1 << rng.randrange(8)
    os.pwrite(fd, bytes([byte]), at)
    done += 1
    if what in ("meta", "sums"):
        break
os.fsync(fd)
os.close(fd)
print(done)
PY
flip() { /usr/bin/python3 "$T/flip.py" "$1" "$T/$2/data" "$3" "$4" || die "flip"; }

# integrity NODE KEY
integrity() {
    ctl "$1" status --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["integrity"][sys.argv[1]])' "$2"
}

# work NODE SEED OPTIONS...: several jobs, each with a part of its own that it writes and verifies.
work() {
    fio --name=jobs --ioengine=nbd --uri="$(uri "$1" db)" --numjobs=3 --size=14M --offset_increment=16M --iodepth=8 \
        --rw=randwrite --bsrange=4k-64k --bs_unaligned=0 --io_size=14M --randrepeat=1 --randseed="$2" --serialize_overlap=1 \
        --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=64 --group_reporting "${@:3}" > "$T/fio.log" 2>&1 ||
        die "fio on $1: $(tail -n 20 "$T/fio.log")"
}

# image NODE: a sum of all that a client reads there, also of what it could know to be zeroes
image() { nbdcopy --no-extents "$(uri "$1" db)" - | sha256sum; }

# applied NODE: whether its store has all of it, so that nothing is written there any more
applied() {
    ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
seq = json.load(sys.stdin)["seq"]
sys.exit(seq["applied"] is None or seq["applied"] != seq["admitted"])' 2> /dev/null
}

# staging NODE: whether it is in the midst of a resync, or over it already
staging() {
    ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
peer = [p for p in json.load(sys.stdin)["peers"] if p["name"] == sys.argv[1]][0]
sys.exit(not (peer["replication"] == "Established" or peer["replication"] == "SyncTarget" and peer["sync_percent"] >= 20))' $primary 2> /dev/null
}

found=0 mended=0 flipped=0
# tally NODE: what a node found and mended since it was started, before it goes
tally() {
    found=$((found + $(integrity "$1" bad_blocks)))
    mended=$((mended + $(integrity "$1" repaired_blocks)))
    [ "$(integrity "$1" lost_blocks)" = 0 ] || die "$1 has lost blocks"
}

# newest NODE LINES: what its log says since it had so many lines
newest() { tail -n "+$(($2 + 1))" "$T/$1.log"; }
# Which is written by a thread of its own, maybe a moment after the node answers.
recovered() { grep -q "the log was recovered" <(newest "$@"); }

# restart NODE
restart() {
    local before
    before=$(wc -l < "$T/$1.log")
    [ -z "${node_pid[$1]:-}" ] || { tally "$1"; kill9 "$1"; }
    start "$1"
    wait_for 30 "$1 answers" answers "$1"
    if [ "$1" = $primary ]; then
        # What rotted of its log may be acknowledged and in no store yet: then another node has to serve first, and this is an error.
        wait_for 30 "$1 says what it has recovered" recovered "$1" "$before"
        if grep -q "ERROR the log was recovered" <(newest "$1" "$before"); then
            primary=$(other "$1" | head -n 1)
            say "the log of $1 has lost what is acknowledged; $primary serves"
        fi
        promote $primary
    fi
    [ "$1" = $primary ] || wait_for 60 "$1 has caught up" caught_up "$1" $primary
}

# in_the_midst COMMAND...: runs it, and flips bytes of the victim meanwhile: $bits
in_the_midst() {
    "$@" &
    local job=$!
    sleep 0.1
    bits=$(flip $random "$victim" "$kind" 24)
    wait $job || exit 1
}

# resync_with_flips: the victim is away for more than the journal holds, and ends in the midst of what it is given then. What it has
# staged rots.
resync_with_flips() {
    tally "$victim"
    kill9 "$victim"
    work $primary $((random + 500)) --do_verify=0
    work $primary $random --do_verify=0
    before=$(image $primary) || die "nbdcopy"
    # It gives way to clients, and takes longer.
    work $primary $random --verify_only=1 &
    local job=$!
    start "$victim"
    wait_for 60 "$victim is given what it lacks" staging "$victim"
    kill9 "$victim"
    bits=$(flip $random "$victim" stage 24)
    wait $job || exit 1
    restart "$victim"
}

# What is flipped, in the Primary or in a Secondary, and when: as clients write, as they verify, or while the node is stopped. Of a node
# that is away for longer ("resync") it is the stage.
plan=(
    "store primary verify" "store secondary stopped" "journal primary verify" "journal secondary stopped" "sums secondary verify"
    "sums primary stopped" "meta primary stopped" "stage secondary resync" "journal primary stopped" "store secondary verify"
    "journal secondary write" "store primary stopped" "sums primary write" "meta secondary verify" "store primary write"
    "store secondary write"
)
round=0 staged=0
end=$((SECONDS + seconds))
while [ $SECONDS -lt $end ] || [ $round -lt ${#plan[@]} ] || [ $staged = 0 ]; do
    read -r kind whose state <<< "${plan[$((round % ${#plan[@]}))]}"
    round=$((round + 1))
    # On a quick machine a resync may be over before anything can rot in it.
    [ $round -le $((8 * ${#plan[@]})) ] || die "nothing was ever staged when it was flipped"
    random=$((seed * 1000 + round))
    victim=$primary
    [ "$whose" = primary ] || victim=$(other $primary | sed -n $((1 + round / 2 % 2))p)
    say "round $round: bytes of the $kind of $victim ($whose), $state"
    if [ "$state" = write ]; then in_the_midst work $primary $random --do_verify=0; else work $primary $random --do_verify=0; fi
    for n in $(other $primary); do wait_for 60 "$n has caught up" caught_up "$n" $primary; done
    before=$(image $primary) || die "nbdcopy"
    exact=
    case $state in
        write | verify)
            if [ "$state" = verify ]; then
                wait_for 60 "$victim has applied everything" applied "$victim"
                # Nothing is written over what is flipped then: all of it is to be found.
                [ "$kind" != store ] || exact=$(integrity "$victim" bad_blocks)
                in_the_midst work $primary $random --verify_only=1
            fi
            # A running node has no need of most of its journal; whoever starts from it finds what rotted there.
            case $kind in journal | meta) restart "$victim" ;; esac
            ;;
        stopped)
            tally "$victim"
            kill9 "$victim"
            bits=$(flip $random "$victim" "$kind" 24)
            restart "$victim"
            ;;
        resync)
            resync_with_flips
            staged=$((staged + bits))
            ;;
    esac
    [ "$kind" != store ] || flipped=$((flipped + bits))
    work $primary $random --verify_only=1
    [ "$before" = "$(image $primary)" ] || die "a wrong byte was read"
    # What rotted in a Secondary is found once it is Primary and read.
    if [ "$victim" != $primary ]; then
        wait_for 60 "$victim has caught up" caught_up "$victim" $primary
        wait_for 30 "the clients are gone" no_clients $primary
        ctl $primary demote || die "demote of $primary"
        primary=$victim
        promote $primary
        [ "$before" = "$(image $primary)" ] || die "a wrong byte was read at $primary"
        work $primary $random --verify_only=1
    fi
    if [ -n "$exact" ]; then
        all=$(($(integrity "$victim" bad_blocks) - exact))
        [ $all -ge "$bits" ] || die "$bits bytes of the store of $victim were flipped, and only $all bad blocks found"
    fi
done
for n in "${names[@]}"; do
    [ "$n" = $primary ] || wait_for 60 "$n has caught up" caught_up "$n" $primary
done
for n in "${names[@]}"; do tally "$n"; done
[ $flipped -gt 0 ] && [ $found -gt 0 ] || die "nothing was flipped, or found: $flipped, $found"
[ $found = $mended ] || die "$found bad blocks were found, and $mended mended"
say "$flipped bytes of stores and $staged of stages were flipped; $found bad blocks were found and mended"
stop_cleanly $primary
for n in "${names[@]}"; do
    ctl "$n" dump --sums --verify > "$T/dump" 2>&1 || die "the stores of $n are not what is recorded: $(grep -v '^ ' "$T/dump" | tail -n 3)"
done
say "stores are equal, and as their checksums say"
