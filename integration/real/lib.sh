# shellcheck shell=bash
# What the scripts in this directory share: a three-node cluster on loopback, waits with bounds, and a
# tidy end. To be sourced. A script exits 0 if its checks held, 77 if something is missing on this
# machine (it says what), anything else if a check failed.

set -u
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${REPLICATOR_PROGRAMS:-$here/../../target/release}
names=(pbx-a pbx-b pbx-c)
declare -A node_pid=()
cleanups=()

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
skip() { echo "SKIP: $*"; exit 77; }
die() {
    echo "FAILED: $*" >&2
    local log
    for log in "$T"/*.log "$T"/out/*.log; do
        [ -s "$log" ] && { echo "--- the end of ${log##*/}"; tail -n 15 "$log"; } >&2
    done
    echo "FAILED: $*" >&2
    exit 1
}

# need PROGRAM...: skips the whole script if one is not there
need() {
    local program
    for program in "$@"; do
        command -v "$program" > /dev/null || skip "no program $program"
    done
    for program in repld replctl; do
        [ -x "$bin/$program" ] || die "no $bin/$program; build it with: cargo build --release"
    done
}

need_root() { [ "$(id -u)" = 0 ] || skip "needs root"; }

# wait_for SECONDS WHAT COMMAND...: runs the command until it succeeds
wait_for() {
    local bound=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || die "$what: not within $bound s"
        sleep 0.05
    done
}

# at_end COMMAND: run when the script ends, last one first; errors do not matter there
at_end() { cleanups+=("$1"); }

finish_up() {
    local i
    for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do eval "${cleanups[i]}" > /dev/null 2>&1; done
    for i in "${node_pid[@]}"; do kill -KILL "$i" 2> /dev/null; done
    wait 2> /dev/null
    [ -n "${KEEP:-}" ] || rm -rf "$T"
}

# A directory for everything, on a disk that can do O_DIRECT; other users may pass through.
scratch() {
    local parent
    for parent in "${TMPDIR:-}" /var/tmp /tmp "$here/../../target"; do
        [ -n "$parent" ] && [ -d "$parent" ] && [ -w "$parent" ] || continue
        T=$(mktemp -d "$parent/repl-real-XXXXXX") || continue
        if dd if=/dev/zero of="$T/probe" bs=4096 count=1 oflag=direct status=none 2> /dev/null; then
            rm "$T/probe"
            chmod 711 "$T"
            trap finish_up EXIT
            trap 'exit 130' INT TERM HUP
            return
        fi
        rm -rf "$T"
    done
    T=/nonexistent
    die "no directory that can do O_DIRECT"
}

# free_ports COUNT: the first of so many ports in a row that nobody listens on
free_ports() {
    local base port
    while :; do
        base=$((20000 + RANDOM % 12000))
        for ((port = base; port < base + $1; port++)); do
            (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && continue 2
        done
        break
    done
    echo "$base"
}

# volume_lines NAME SIZE: what the config says of a volume
volume_lines() {
    printf '\n[[volume]]\nname = "%s"\nsize = "%s"\n' "$1" "$2"
    [ -z "${DEVICES:-}" ] || printf 'store = "%s/%%n-%s"\n' "$DEVICES" "$1"
}

# cluster JOURNAL VOLUME=SIZE...: writes the config, formats and starts three nodes.
# NBD_LISTEN=ADDRESS:PORT lets node i also listen on PORT + i, METRICS=PATH serves metrics there; with DEVICES=DIR journals and
# stores are DIR/NODE-journal and DIR/NODE-VOLUME.
cluster() {
    local journal=$1 n i=0 volume port
    shift
    # All at once: nobody listens yet on those that were handed out before.
    port=$(free_ports ${#names[@]})
    config=$T/pbx.toml
    {
        echo 'resource = "pbx"'
        for n in "${names[@]}"; do
            printf '\n[[node]]\nname = "%s"\naddress = "127.0.0.1:%s"\n' "$n" $((port + i))
            printf 'data_dir = "%s/%%n/data"\nrun_dir = "%s/%%n/run"\n' "$T" "$T"
            if [ -n "${NBD_LISTEN:-}" ]; then
                printf 'nbd_listen = "%s:%s"\n' "${NBD_LISTEN%:*}" $((${NBD_LISTEN##*:} + i))
            fi
            i=$((i + 1))
        done
        for volume in "$@"; do
            volume_lines "${volume%=*}" "${volume#*=}"
        done
        printf '\n[journal]\nsize = "%s"\n' "$journal"
        [ -z "${DEVICES:-}" ] || printf 'device = "%s/%%n-journal"\n' "$DEVICES"
        # All disks are one disk, and it has others to serve.
        printf '\n[policy]\ndisk_timeout_ms = 30000\n'
        [ -z "${METRICS:-}" ] || printf '\n[metrics]\nlisten = "%s"\n' "$METRICS"
        [ -z "${NBD_LISTEN:-}" ] || printf '\n[tls]\ninsecure = true\n'
    } > "$config"
    for n in "${names[@]}"; do
        ctl "$n" create || die "create of $n"
        start "$n"
    done
    for n in "${names[@]}"; do wait_for 30 "$n answers" answers "$n"; done
}

ctl() { local n=$1; shift; "$bin/replctl" --config "$config" --node "$n" "$@"; }
answers() { ctl "$1" status --json > /dev/null 2>&1; }

start() {
    "$bin/repld" --config "$config" --node "$1" >> "$T/$1.log" 2>&1 < /dev/null &
    node_pid[$1]=$!
}

kill9() {
    kill -KILL "${node_pid[$1]}" || die "$1 does not run"
    wait "${node_pid[$1]}" 2> /dev/null
    unset "node_pid[$1]"
}

# promote NODE: as long as the reason for a refusal can pass
promote() {
    local end=$((SECONDS + 60)) code
    while :; do
        ctl "$1" promote --timeout 30 2> "$T/promote.err"
        code=$?
        case $code in
            0) return ;;
            3 | 10 | 11 | 17) [ "$SECONDS" -lt "$end" ] || break ;;
            *) break ;;
        esac
        sleep 0.05
    done
    die "promote of $1: exit $code: $(cat "$T/promote.err")"
}

socket() { echo "$T/$1/run/nbd.sock"; }
uri() { echo "nbd+unix:///$2?socket=$(socket "$1")"; }

# caught_up NODE PRIMARY: whether the Primary sees the node connected, up to date and not behind
caught_up() {
    ctl "$2" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
peer = [p for p in json.load(sys.stdin)["peers"] if p["name"] == sys.argv[1]][0]
sys.exit(not (peer["connection"] == "Connected" and peer["disk_state"] == "UpToDate" and peer["behind_bytes"] == 0))
' "$1" 2> /dev/null
}

# no_clients NODE: whether nobody is attached
no_clients() {
    ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
sys.exit(any(v["nbd_clients"] for v in json.load(sys.stdin)["volumes"]))' 2> /dev/null
}

# same_committed: whether all nodes know of the same last committed record
same_committed() {
    local n
    for n in "${names[@]}"; do ctl "$n" status --json 2> /dev/null; done | /usr/bin/python3 -c '
import json, sys
text, at, seen = sys.stdin.read(), 0, set()
decoder = json.JSONDecoder()
while text[at:].strip():
    at += len(text[at:]) - len(text[at:].lstrip())
    status, at = decoder.raw_decode(text, at)
    seen.add(status["seq"]["committed"])
sys.exit(len(seen) != 1)' 2> /dev/null
}

# stop_all PRIMARY: cleanly; afterwards everything is in the stores
stop_all() {
    local n
    wait_for 30 "the clients are gone" no_clients "$1"
    for n in "${names[@]}"; do
        [ "$n" = "$1" ] || wait_for 60 "$n has caught up" caught_up "$n" "$1"
    done
    ctl "$1" demote || die "demote of $1"
    wait_for 30 "all nodes know what is committed" same_committed
    for n in "${names[@]}"; do kill -TERM "${node_pid[$n]}"; done
    for n in "${names[@]}"; do
        wait "${node_pid[$n]}" || die "$n did not stop cleanly"
        unset "node_pid[$n]"
    done
}

# stop_cleanly PRIMARY: afterwards the stores are plain images, and equal
stop_cleanly() {
    local n volume
    stop_all "$1"
    for volume in "$T/${names[0]}"/data/*.img; do
        for n in "${names[@]:1}"; do
            cmp "$volume" "$T/$n/data/$(basename "$volume")" || die "the stores differ"
        done
    done
}

# attach NODE VOLUME: the export as a loop device, in $loop, through nbdfuse in $T/NODE.mnt
attach() {
    local mnt=$T/$1.mnt
    mkdir -p "$mnt"
    nbdfuse -P "$mnt.pid" "$mnt/nbd" "$(uri "$1" "$2")" >> "$T/nbdfuse.log" 2>&1 &
    fuse_pid=$!
    fuse_mnt=$mnt
    at_end "fusermount3 -u -z '$mnt'"
    wait_for 30 "nbdfuse serves" test -s "$mnt.pid"
    wait_for 30 "the file is there" test -e "$mnt/nbd"
    loop=$(losetup -f --show "$mnt/nbd") || die "losetup"
    at_end "losetup -d $loop"
}

# detach: takes down what attach made, also if its server is dead
detach() {
    losetup -d "$loop"
    fusermount3 -u "$fuse_mnt" 2> /dev/null || fusermount3 -u -z "$fuse_mnt"
    wait "$fuse_pid" 2> /dev/null
    rm -f "$fuse_mnt.pid"
}
