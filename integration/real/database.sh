# shellcheck shell=bash disable=SC2154
# PostgreSQL on ext4 on a volume, for the scripts that need one. To be sourced after lib.sh.

need_root
need nbdfuse fusermount3 losetup mkfs.ext4 e2fsck runuser pgrep
pgbin=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -n 1)
[ -n "$pgbin" ] || skip "no PostgreSQL server"
[ -e /dev/fuse ] || skip "no /dev/fuse"
losetup -f > /dev/null 2>&1 || skip "no loop devices"
scratch

fs=$T/fs
mkdir -p "$fs" "$T/out"
chown postgres "$T/out"
pg() { runuser -u postgres -- "$@"; }
sql() { pg "$pgbin/psql" -h "$T/out" -d postgres -qAtX -v ON_ERROR_STOP=1 "$@"; }

# format_volume NODE: makes the file system
format_volume() {
    attach "$1" db
    mkfs.ext4 -q -F "$loop" || die "mkfs.ext4"
    detach
}

# start_postgres SECONDS: on the mounted file system, made if it is not there
start_postgres() {
    [ -d "$fs/pg" ] || { install -d -o postgres -m 700 "$fs/pg"; pg "$pgbin/initdb" -D "$fs/pg" -A trust -k \
        --wal-segsize=4 --no-instructions > "$T/initdb.log" || die "initdb: $(tail "$T/initdb.log")"; }
    # In the foreground of a job of ours, so that nothing stays a zombie when it is killed: its id has to
    # be free, as it is on another machine.
    runuser -u postgres -- "$pgbin/postgres" -D "$fs/pg" -c listen_addresses= -c "unix_socket_directories=$T/out" \
        -c shared_buffers=32MB -c max_wal_size=48MB -c checkpoint_timeout=30s >> "$T/out/postgres.log" 2>&1 < /dev/null &
    postgres_job=$!
    wait_for "$1" "PostgreSQL answers" pg "$pgbin/pg_isready" -q -h "$T/out"
    postmaster=$(head -n 1 "$fs/pg/postmaster.pid")
}

# Nobody may have waited for it yet: a zombie holds no files any more.
gone() { ! grep -qs '^State:.[^ZX]' "/proc/$1/status"; }

# kill_postgres [JOB...]: its device is lost; it is killed, and the jobs are waited for. A backend that waits for another one's lock does
# not notice the postmaster's death, so each is killed.
kill_postgres() {
    local backends pid
    mapfile -t backends < <(pgrep -P "$postmaster")
    kill -KILL "$postmaster" "${backends[@]}" 2> /dev/null
    for pid in "$postmaster" "${backends[@]}"; do wait_for 60 "process $pid is gone" gone "$pid"; done
    wait "$@" "$postgres_job" 2> /dev/null
    umount -l "$fs" || die "umount -l"
}

# up NODE: mounts the volume there and starts PostgreSQL on it
up() {
    attach "$1" db
    mount "$loop" "$fs" || die "mount on $1"
    at_end "umount -l '$fs'"
    start_postgres 60
    at_end "kill -KILL $postmaster \$(pgrep -P $postmaster)"
}

# crash [JOB...]: everything on top of the device goes, without a word to it
crash() {
    kill_postgres "$@"
    detach
}

# How long the note of row n is: 1 to this many times 32 bytes.
note_max=40

# insert ROUND CLIENT: each line that psql prints is a row whose commit was answered
insert() {
    local n
    for n in $(seq $(($1 * 1000000 + 1)) $(($1 * 1000000 + 200000))); do
        echo "insert into calls values ($2, $n, repeat(md5('$n'), 1 + $n % $note_max)) returning client || ' ' || n;"
    done | sql
}

# present FILE: every row that the file has is in the table, and all rows are as they were written
present() {
    sql -c "select client || ' ' || n from calls" | sort > "$T/out/present" || die "select"
    comm -23 "$1" "$T/out/present" > "$T/out/lost"
    [ ! -s "$T/out/lost" ] || die "$(wc -l < "$T/out/lost") acknowledged rows are lost, such as $(head -n 3 "$T/out/lost" | tr '\n' ';')"
    [ "$(sql -c "select count(*) from calls where note <> repeat(md5(n::text), (1 + n % $note_max)::int)")" = 0 ] || die "rows with another content"
}

# books_agree: what pgbench has added up
books_agree() {
    local sums
    sums=$(sql -c 'select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)
        and (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history)
        and (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history)')
    [ "$sums" = t ] || die "pgbench's sums differ"
}

# amcheck: tables and indexes, block by block
amcheck() {
    pg "$pgbin/pg_amcheck" -h "$T/out" --install-missing --heapallindexed -d postgres > "$T/out/amcheck" 2>&1 ||
        die "pg_amcheck: $(head -n 20 "$T/out/amcheck")"
}

consistent() {
    books_agree
    amcheck
}

# down: PostgreSQL stops, the file system is checked, the volume is free
down() {
    pg "$pgbin/pg_ctl" -D "$fs/pg" -w -m fast stop > /dev/null || die "PostgreSQL does not stop"
    wait "$postgres_job"
    umount "$fs" || die "umount"
    e2fsck -fn "$loop" > "$T/fsck" 2>&1 || die "e2fsck: $(cat "$T/fsck")"
    detach
}
