#!/bin/bash
# A node that was away for longer than the journal reaches back, under PostgreSQL. It is brought back under load and has
# everything. Then it is away again, and while what it lacks comes the other two machines are lost: the target of the resync is
# promoted by force, at the consistent point that it kept. The file system mounts, PostgreSQL starts, every row is there that was
# acknowledged before the node went away, and pg_amcheck is clean.
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=database.sh
. "$(dirname "$0")/database.sh"

# field NODE PEER NAME: what the node's status says of a peer; empty if it does not answer
field() {
    ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
try: peer = [p for p in json.load(sys.stdin)["peers"] if p["name"] == sys.argv[1]][0]
except ValueError: sys.exit()
print(peer[sys.argv[2]])' "$2" "$3"
}
is_target() { [ "$(field "$1" pbx-a replication)" = SyncTarget ]; }
# Something of what changed is known and staged, and not all of it: $percent, at record $before. By one answer, and with some of it to
# come: it goes on meanwhile.
is_in_the_middle() {
    local replication
    read -r replication percent before < <(ctl "$1" status --json 2> /dev/null | /usr/bin/python3 -c '
import json, sys
try: status = json.load(sys.stdin)
except ValueError: sys.exit()
peer = [p for p in status["peers"] if p["name"] == "pbx-a"][0]
print(peer["replication"], peer["sync_percent"], status["seq"]["applied"])')
    [ "$replication" = SyncTarget ] && [ "${percent%.*}" -ge 5 ] 2> /dev/null && [ "${percent%.*}" -lt 70 ]
}
applied() { ctl "$1" status --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["seq"]["applied"])'; }

# rewrite SCALE: much more than the journal holds
rewrite() {
    pg "$pgbin/pgbench" -h "$T/out" -i -q -s "$1" postgres > "$T/out/pgbench.log" 2>&1 || die "pgbench -i: $(tail -n 3 "$T/out/pgbench.log")"
    sql -c checkpoint || die "checkpoint"
}

load_on() {
    insert "$1" 1 >> "$T/out/acked.1" 2> /dev/null &
    clients=($!)
    pg "$pgbin/pgbench" -h "$T/out" -n -c 2 -T 300 postgres > /dev/null 2>&1 &
    clients+=($!)
}
load_off() {
    kill "${clients[@]}" 2> /dev/null
    wait "${clients[@]}" 2> /dev/null
    # psql and pgbench run as another user: their sessions end with them.
    sql -c "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()" > /dev/null
}

cluster 16MiB db=1GiB
promote pbx-a
format_volume pbx-a
up pbx-a
sql -c 'create table calls (client int, n bigint, note text, primary key (client, n))' || die "create table"
rewrite 2
wait_for 60 "pbx-c has caught up" caught_up pbx-c pbx-a

kill9 pbx-c
rewrite 10
load_on 1
start pbx-c
wait_for 60 "pbx-c is given what is past the journal" is_target pbx-c
wait_for 180 "pbx-c has everything" caught_up pbx-c pbx-a
say "pbx-c was away for $(du -m "$fs/pg" | tail -n 1 | cut -f 1) MiB of database and came back under load"
load_off

sort "$T"/out/acked.1 > "$T/out/acked"
sql -c checkpoint || die "checkpoint"
wait_for 60 "pbx-c has caught up" caught_up pbx-c pbx-a
kill9 pbx-c
rewrite 30
load_on 2
start pbx-c
wait_for 60 "a resync is in the middle" is_in_the_middle pbx-c
kill9 pbx-a
kill9 pbx-b
say "in the middle of it, at $percent%, the other two machines are lost"
crash "${clients[@]}"
after=$(applied pbx-c)
[ "$before" = "$after" ] || die "the target did not stay at its point: $before, $after"
wait_for 60 "pbx-c takes force" eval 'echo pbx | ctl pbx-c promote --force 2> "$T/force.err"'
up pbx-c
present "$T/out/acked"
consistent
say "PostgreSQL runs on the target at record $after: $(wc -l < "$T/out/acked") rows of before are there, pg_amcheck is clean"
down
wait_for 30 "the clients are gone" no_clients pbx-c
ctl pbx-c demote || die "demote"
kill -TERM "${node_pid[pbx-c]}"
wait "${node_pid[pbx-c]}" || die "pbx-c did not stop cleanly"
unset "node_pid[pbx-c]"
ctl pbx-c dump --sums --verify > "$T/sums" 2>&1 || die "its blocks are not as recorded: $(tail -n 4 "$T/sums")"
say "ext4 is clean, every block is as recorded"
