#!/bin/bash
# Random bytes are flipped in the stores, journal, checksums and stage of one node at a time, while fio writes and verifies and across
# restarts: nobody ever reads a wrong byte, what is read is mended, and in the end all stores are equal and as they were written.
#
#   integration/real/flips.sh [--seconds S] [--seed N]      30 seconds, and any seed, unless it is said
. "$(dirname "$0")/lib.sh"
need fio
fio --enghelp 2> /dev/null | grep -qw nbd || skip "fio was built without ioengine=nbd"
seconds=30 seed=$RANDOM
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

# flip SEED NODE WHAT COUNT: flips single bits of bytes of a node's files. Stores only where something was written, so that it is data that
# rots; of the journal what was written, but not the label; the meta only in one copy.
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

# image NODE: a sum of all that a client reads there
image() { nbdcopy "$(uri "$1" db)" - | sha256sum; }

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

round=0
end=$((SECONDS + seconds))
# What is flipped, in the Primary or in a Secondary, and whether as it runs, or while it is stopped.
plan=(
    "store primary runs" "store secondary stopped" "journal primary runs" "journal secondary stopped" "sums secondary runs"
    "sums primary stopped" "meta primary stopped" "stage secondary stopped" "journal primary stopped" "store secondary runs"
    "journal secondary runs" "store primary stopped" "sums primary runs" "meta secondary runs"
)
while [ $SECONDS -lt $end ] || [ $round -lt 6 ]; do
    read -r kind whose state <<< "${plan[$((round % ${#plan[@]}))]}"
    round=$((round + 1))
    random=$((seed * 1000 + round))
    work $primary $random --do_verify=0
    for n in $(other $primary); do wait_for 60 "$n has caught up" caught_up "$n" $primary; done
    before=$(image $primary) || die "nbdcopy"
    victim=$primary
    [ "$whose" = primary ] || victim=$(other $primary | sed -n $((1 + round / 2 % 2))p)
    say "round $round: bytes of the $kind of $victim, $state"
    if [ "$state" = stopped ]; then
        tally "$victim"
        kill9 "$victim"
        bits=$(flip $random "$victim" "$kind" 24)
        restart "$victim"
    else
        # In the midst of the verification.
        work $primary $random --verify_only=1 &
        verifying=$!
        sleep 0.1
        bits=$(flip $random "$victim" "$kind" 24)
        wait $verifying || exit 1
        # A running node has no need of most of its journal; whoever starts from it finds what rotted there.
        case $kind in journal | meta) restart "$victim" ;; esac
    fi
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
done
for n in "${names[@]}"; do
    [ "$n" = $primary ] || wait_for 60 "$n has caught up" caught_up "$n" $primary
done
for n in "${names[@]}"; do tally "$n"; done
[ $flipped -gt 0 ] && [ $found -gt 0 ] || die "nothing was flipped, or found: $flipped, $found"
[ $found = $mended ] || die "$found bad blocks were found, and $mended mended"
say "$flipped bytes of stores were flipped; $found bad blocks were found and mended"
stop_cleanly $primary
for n in "${names[@]}"; do
    ctl "$n" dump --sums --verify > "$T/dump" 2>&1 || die "the stores of $n are not what is recorded: $(grep -v '^ ' "$T/dump" | tail -n 3)"
done
say "stores are equal, and as their checksums say"
