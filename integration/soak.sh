#!/bin/bash
# PostgreSQL with pgbench on a volume, and fault after fault: nodes are killed and frozen, links are cut, journals and
# stores fail and hang, all nodes die at once. After each fault every acknowledged row has to be there, exactly one
# node is Primary, and the others catch up.
#
#   integration/soak.sh [--seconds S] [--seed N] [--faults "NAME..."]
#
# Runs for S seconds (default 600) and until the last fault is healed. The seed decides which fault comes when; the same
# seed gives the same faults, not the same timing. Needs root; what it makes (network namespaces, mounts, loop devices)
# goes with it. The last line is one summary. On a failure the logs are kept in target/soak-logs.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -n "${SOAK_NAMESPACES:-}" ] || [ "$(id -u)" != 0 ] || SOAK_NAMESPACES=1 exec unshare --net --mount -- "$here/soak.sh" "$@"
# shellcheck source-path=SCRIPTDIR source=real/lib.sh
. "$here/real/lib.sh"

seconds=600 seed=$((RANDOM * 32768 + RANDOM)) only=
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=$2 ;;
        --seed) seed=$2 ;;
        --faults) only=$2 ;;
        *) echo "usage: soak.sh [--seconds S] [--seed N] [--faults \"NAME...\"]" >&2; exit 2 ;;
    esac
    shift 2
done
need nbdkit ip nft nsenter
# shellcheck source-path=SCRIPTDIR/real source=database.sh
. "$here/database.sh"
ulimit -c 0
RANDOM=$((seed % 32768))
started=$SECONDS faults=0 promotions=0 rows=0 failures=0 fault=start

summary() {
    echo "soak: seed $seed, $((SECONDS - started)) s, $faults faults, $promotions promotions, $rows rows checked, $failures failures"
}

die() {
    failures=1
    echo "FAILED during $fault: $*"
    local kept=$here/../../target/soak-logs n
    rm -rf "$kept" && mkdir -p "$kept"
    cp "$T"/*.log "$T"/out/*.log "$T/pbx.toml" "$kept" 2> /dev/null
    for n in "${names[@]}"; do
        timeout 20 "$bin/replctl" --config "$config" --node "$n" status --json > "$kept/$n.status" 2>&1
        echo "--- the end of $n's log"
        tail -n 6 "$T/$n.log"
    done
    echo "logs: $(realpath "$kept")"
    summary
    exit 1
}

# --- The network: a host per node on a switch whose links can be cut.

declare -A address=() holder=()
network() {
    ip link set lo up && ip link add switch type bridge && ip link set switch up || skip "no bridge"
    nft 'add table bridge links; add set bridge links cut { type ipv4_addr . ipv4_addr; };
        add chain bridge links forward { type filter hook forward priority 0; };
        add rule bridge links forward ip saddr . ip daddr @cut drop' || skip "no nftables on bridges"
    local n i=0 pid
    for n in "${names[@]}"; do
        i=$((i + 1)) address[$n]=10.77.0.$i
        unshare --net sleep 1000000 &
        pid=$! holder[$n]=$pid
        at_end "kill $pid"
        wait_for 30 "a namespace for $n" apart "$pid"
        ip link add "port$i" type veth peer name eth0 netns "$pid" || die "veth"
        ip link set "port$i" master switch up
        nsenter --net="/proc/$pid/ns/net" sh -c "ip link set lo up; ip address add 10.77.0.$i/24 dev eth0; ip link set eth0 up"
    done
}
apart() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
cut_link() { nft "add element bridge links cut { ${address[$1]} . ${address[$2]}, ${address[$2]} . ${address[$1]} }" || die "nft"; }
isolate() { local n; for n in "${names[@]}"; do [ "$n" = "$1" ] || cut_link "$1" "$n"; done; }
heal_links() { nft flush set bridge links cut || die "nft"; }

# --- Disks that fail and hang: nbdkit under nbdfuse in the place of a file.

declare -A kit=()
disk() { # FILE
    mv "$1" "$1.backing" && : > "$1" || die "no $1"
    nbdkit -f --filter=error -U "$1.sock" -P "$1.listening" file "file=$1.backing" cache=none \
        error-pwrite=EIO error-pwrite-rate=100% "error-pwrite-file=$1.fail" \
        error-zero=EIO error-zero-rate=100% "error-zero-file=$1.fail" >> "$T/nbdkit.log" 2>&1 < /dev/null &
    kit[$1]=$!
    wait_for 30 "nbdkit for $1" test -s "$1.listening"
    nbdfuse -P "$1.pid" "$1" "nbd+unix:///?socket=$1.sock" >> "$T/nbdfuse.log" 2>&1 < /dev/null &
    at_end "fusermount3 -u -z '$1'"
    at_end "kill -KILL ${kit[$1]}"
    wait_for 30 "nbdfuse for $1" test -s "$1.pid"
}

start() {
    nsenter --net="/proc/${holder[$1]}/ns/net" "$bin/repld" --config "$config" --node "$1" >> "$T/$1.log" 2>&1 < /dev/null &
    node_pid[$1]=$!
}

make_cluster() {
    config=$T/pbx.toml
    {
        echo 'resource = "pbx"'
        local n
        for n in "${names[@]}"; do
            printf '\n[[node]]\nname = "%s"\naddress = "%s:7789"\n' "$n" "${address[$n]}"
            printf 'data_dir = "%s/%%n/data"\nrun_dir = "%s/%%n/run"\n' "$T" "$T"
        done
        printf '\n[[volume]]\nname = "db"\nsize = "512MiB"\n\n[journal]\nsize = "512MiB"\n\n[tls]\ninsecure = true\n'
        # All disks are one disk, and it has others to serve.
        printf '\n[policy]\ndisk_timeout_ms = 20000\n'
    } > "$config"
    for n in "${names[@]}"; do
        ctl "$n" create || die "create of $n"
        disk "$T/$n/data/journal"
        disk "$T/$n/data/db.img"
        disk "$T/$n/data/meta"
        disk "$T/$n/data/sums"
        start "$n"
    done
    for n in "${names[@]}"; do wait_for 30 "$n answers" answers "$n"; done
}

# --- The service.

note_max=20
loop='' fuse_pid='' fuse_mnt='' postmaster=''

# The export as a loop device, as attach of the library does it; but what is taken down is forgotten at once, since in
# an hour somebody else may have the same loop device.
attach_db() { # NODE
    fuse_mnt=$T/$1.mnt
    mkdir -p "$fuse_mnt"
    rm -f "$fuse_mnt.pid"
    # In a shell of its own, which keeps to itself how it ended.
    (nbdfuse -P "$fuse_mnt.pid" "$fuse_mnt/nbd" "$(uri "$1" db)"; true) >> "$T/nbdfuse.log" 2>&1 < /dev/null &
    fuse_job=$!
    wait_for 60 "nbdfuse serves" test -s "$fuse_mnt.pid"
    fuse_pid=$(cat "$fuse_mnt.pid")
    wait_for 60 "the file is there" test -e "$fuse_mnt/nbd"
    loop=$(losetup -f --show "$fuse_mnt/nbd") || die "losetup"
}
detach_db() {
    losetup -d "$loop" 2> /dev/null
    loop=
    fusermount3 -u "$fuse_mnt" 2> /dev/null || fusermount3 -u -z "$fuse_mnt"
    wait "$fuse_job" 2> /dev/null
    fuse_pid=
}

up() { # NODE
    attach_db "$1"
    mount "$loop" "$fs" || die "mount on $1"
    start_postgres 120
}

clients=() base=0
begin_load() {
    local client
    base=$((base + 1000000)) clients=()
    for client in 1 2; do
        # Each line that psql prints is a row whose commit was answered. Not faster than a node that is away for a
        # while can make up for.
        for n in $(seq $((base + 1)) $((base + 900000))); do
            echo "insert into calls values ($client, $n, repeat(md5('$n'), 1 + $n % $note_max)) returning client || ' ' || n;"
            [ $((n % 10)) != 0 ] || sleep 0.1
        done | sql >> "$T/out/acked.$client" 2> /dev/null &
        clients+=($!)
    done
    pg "$pgbin/pgbench" -h "$T/out" -n -c 2 -R 60 -T 1000000 postgres > /dev/null 2>&1 &
    clients+=($!)
}

acked() { cat "$T"/out/acked.* | wc -l; }
more_than() { [ "$(acked)" -gt "$1" ]; }
# goes_on WHAT: the clients get answers
goes_on() { wait_for 60 "$1: clients get answers" more_than $(($(acked) + 20)); }

# The service's host is dead, or shall be: whatever was on top of the device goes, without a word to it.
crash_service() {
    kill -KILL "$fuse_pid" 2> /dev/null
    kill_postgres "${clients[@]}"
    detach_db
}

# check: every acknowledged row is there, with its content, and pgbench's books agree
check() {
    sort "$T"/out/acked.* > "$T/out/acked"
    present "$T/out/acked"
    books_agree
    rows=$((rows + $(wc -l < "$T/out/acked")))
}

# What was checked twice goes, so that the disks do not fill up.
tidy() {
    local client log
    for client in 1 2; do
        awk -v from="$base" '$2 > from' "$T/out/acked.$client" > "$T/out/kept"
        cat "$T/out/kept" > "$T/out/acked.$client"
    done
    sql -c "delete from calls where n <= $base" || die "delete"
    if [ $((faults % 25)) = 0 ]; then
        amcheck
        books
    fi
    for log in "$T"/*.log "$T"/out/*.log; do
        [ "$(stat -c %s "$log")" -lt 8000000 ] || { tail -c 1000000 "$log" > "$T/tail" && cat "$T/tail" > "$log"; }
    done
}

books() { pg "$pgbin/pgbench" -h "$T/out" -i -q -s 1 postgres > "$T/out/pgbench.log" 2>&1 || die "pgbench -i: $(tail -n 3 "$T/out/pgbench.log")"; }

# What the server had committed without telling any more is no loss.
stop_load() {
    sql -c "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()" \
        > /dev/null || die "the clients can not be stopped"
    wait "${clients[@]}" 2> /dev/null
}

# --- Judgement.

field() { # NODE EXPRESSION: of the status, as python
    timeout 20 "$bin/replctl" --config "$config" --node "$1" status --json 2> /dev/null |
        /usr/bin/python3 -c "import json, sys; s = json.load(sys.stdin); print($2)" 2> /dev/null
}
is_primary() { [ "$(field "$1" 's["role"]')" = Primary ]; }
one_primary() {
    local n count=0
    for n in "${names[@]}"; do is_primary "$n" && count=$((count + 1)); done
    [ "$count" = 1 ] && is_primary "$primary"
}
is_ok() { [ "$(field "$1" 's["health"]')" = ok ]; }
# blames NODE FILE: whether status and log name the file
blames() { [[ "$(field "$1" 's["health_reason"]')" == *"$2"* ]] && grep -qF "$2" "$T/$1.log"; }

# whole: everybody is back, and nothing is missing
whole() {
    local n
    for n in "${names[@]}"; do
        [ "$n" = "$primary" ] || wait_for 180 "$n has caught up" caught_up "$n" "$primary"
    done
    wait_for 60 "one Primary" one_primary
    for n in "${names[@]}"; do wait_for 60 "$n is well" is_ok "$n"; done
}

# take_over NODE: the service moves there
take_over() {
    crash_service
    promote "$1"
    promotions=$((promotions + 1))
    primary=$1
    up "$1"
    check
    begin_load
}

pick() { local from=("$@"); picked=${from[RANDOM % ${#from[@]}]}; }
others() { local n; secondaries=(); for n in "${names[@]}"; do [ "$n" = "$primary" ] || secondaries+=("$n"); done; }
a_while() { sleep "$((1 + RANDOM % $1)).$((RANDOM % 10))"; }
freeze() { kill -STOP "${node_pid[$1]}" || die "$1 does not run"; }
thaw() { kill -CONT "${node_pid[$1]}" || die "$1 does not run"; }
hang() { kill -STOP "${kit[$1]}" || die "nbdkit does not run"; }
wake() { kill -CONT "${kit[$1]}" || die "nbdkit does not run"; }

# --- The faults. $victim is a Secondary, $heir is the other one.

secondary_killed() { kill9 "$victim"; goes_on "one is dead"; a_while 4; start "$victim"; }
secondary_frozen() { freeze "$victim"; goes_on "one is frozen"; a_while 6; thaw "$victim"; }
secondary_isolated() { isolate "$victim"; goes_on "one is isolated"; a_while 6; heal_links; }
link_cut() { pick "$victim" "$primary"; cut_link "$picked" "$heir"; goes_on "a link is cut"; a_while 6; heal_links; }
link_half_cut() {
    local ends=("$victim" "$primary")
    [ $((RANDOM % 2)) = 0 ] || ends=("$primary" "$victim")
    nft "add element bridge links cut { ${address[${ends[0]}]} . ${address[${ends[1]}]} }" || die "nft"
    goes_on "a link loses one direction"
    a_while 6
    heal_links
}
secondary_disk_hangs() {
    pick journal db.img meta sums
    local file=$T/$victim/data/$picked
    hang "$file"
    goes_on "a disk hangs"
    wait_for 60 "$victim blames $file" blames "$victim" "$file"
    wake "$file"
}
secondary_disk_fails() {
    pick journal db.img meta sums
    local file=$T/$victim/data/$picked
    touch "$file.fail"
    goes_on "a disk fails"
    wait_for 60 "$victim blames $file" blames "$victim" "$file"
    rm "$file.fail"
    kill9 "$victim"
    start "$victim"
}
primary_journal_hangs() {
    local file=$T/$primary/data/journal
    hang "$file"
    wait_for 60 "$primary blames $file" blames "$primary" "$file"
    goes_on "the Primary's journal hangs"
    wake "$file"
}
primary_killed() { local old=$primary; kill9 "$old"; take_over "$heir"; goes_on "after the failover"; start "$old"; }
primary_frozen() {
    local old=$primary
    freeze "$old"
    a_while 3
    take_over "$heir"
    goes_on "after the failover"
    thaw "$old"
}
primary_isolated() { isolate "$primary"; a_while 3; take_over "$heir"; goes_on "after the failover"; heal_links; }
primary_disk_fails() {
    pick journal db.img meta sums
    local old=$primary file=$T/$primary/data/$picked
    touch "$file.fail"
    wait_for 60 "$old blames $file" blames "$old" "$file"
    take_over "$heir"
    goes_on "after the failover"
    rm "$file.fail"
    kill9 "$old"
    start "$old"
}
primary_store_hangs() {
    local old=$primary file=$T/$primary/data/db.img
    hang "$file"
    wait_for 60 "$old blames $file" blames "$old" "$file"
    # It gives the service up as soon as somebody waits for that disk; a read does that.
    crash_service
    ctl "$old" demote --force || die "demote of $old while its store hangs"
    promote "$heir"
    promotions=$((promotions + 1)) primary=$heir
    up "$primary"
    check
    begin_load
    wake "$file"
}
moved_by_hand() {
    local old=$primary
    crash_service
    ctl "$old" demote --force || die "demote of $old"
    promote "$heir"
    promotions=$((promotions + 1)) primary=$heir
    up "$primary"
    check
    begin_load
}
disk_stutters() { # of any node, on any file; shorter than anybody gives up for
    pick "${names[@]}"
    local n=$picked i
    pick journal db.img meta sums
    for i in 1 2 3 4 5; do
        hang "$T/$n/data/$picked"
        sleep 0.8
        wake "$T/$n/data/$picked"
        sleep 0.2
    done
    goes_on "a disk stutters"
}
is_suspended() { [ "$(field "$1" 's["suspended"]')" = quorum ]; }
majority_killed() {
    kill9 "$victim"
    kill9 "$heir"
    wait_for 60 "$primary suspends" is_suspended "$primary"
    a_while 3
    start "$victim"
    start "$heir"
    goes_on "the majority is back"
}
two_killed() {
    local old=$primary
    kill9 "$victim"
    a_while 3
    kill9 "$old"
    start "$victim"
    take_over "$heir"
    goes_on "after the failover"
    start "$old"
}
all_killed() {
    local n
    for n in "${names[@]}"; do kill -KILL "${node_pid[$n]}"; done
    for n in "${names[@]}"; do wait "${node_pid[$n]}" 2> /dev/null; start "$n"; done
    for n in "${names[@]}"; do wait_for 60 "$n answers" answers "$n"; done
    take_over "$heir"
}

all_faults=(
    secondary_killed secondary_frozen secondary_isolated link_cut link_half_cut secondary_disk_hangs secondary_disk_fails
    primary_journal_hangs primary_killed primary_killed primary_frozen primary_isolated primary_disk_fails primary_store_hangs
    moved_by_hand all_killed two_killed majority_killed disk_stutters
)
if [ -n "$only" ]; then read -r -a all_faults <<< "$only"; fi

say "seed $seed, $seconds s"
at_end '[ -z "$fuse_mnt" ] || fusermount3 -u -z "$fuse_mnt"'
at_end '[ -z "$loop" ] || losetup -d "$loop"'
at_end '[ -z "$fuse_pid" ] || kill -KILL "$fuse_pid"'
at_end "umount -l '$fs'"
at_end '[ -z "$postmaster" ] || kill -KILL "$postmaster" $(pgrep -P "$postmaster")'
network
make_cluster
primary=pbx-a
promote pbx-a
attach_db pbx-a
mkfs.ext4 -q -F "$loop" || die "mkfs.ext4"
detach_db
up pbx-a
sql -c 'create table calls (client int, n bigint, note text, primary key (client, n))' || die "create table"
books
begin_load
goes_on "at the start"

while [ $((SECONDS - started)) -lt "$seconds" ]; do
    others
    pick "${secondaries[@]}"
    victim=$picked
    for heir in "${secondaries[@]}"; do [ "$heir" = "$victim" ] || break; done
    pick "${all_faults[@]}"
    fault=$picked
    faults=$((faults + 1))
    say "$faults: $fault (Primary $primary, victim $victim)"
    "$fault"
    whole
    goes_on "all is healed"
    check
    stop_load
    tidy
    begin_load
    goes_on "on"
done

fault=end
stop_load
check
pg "$pgbin/pg_ctl" -D "$fs/pg" -w -m fast stop > /dev/null || die "PostgreSQL does not stop"
wait "$postgres_job"
umount "$fs" || die "umount"
e2fsck -fn "$loop" > "$T/fsck" 2>&1 || die "e2fsck: $(cat "$T/fsck")"
detach_db
stop_cleanly "$primary"
summary
