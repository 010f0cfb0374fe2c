#!/bin/bash
# PostgreSQL on ext4 on a volume. Clients commit and note elsewhere what was acknowledged; the Primary's
# repld dies at a random moment; PostgreSQL starts on the next Primary and has every acknowledged row.
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=database.sh
. "$(dirname "$0")/database.sh"

cluster 128MiB db=384MiB
promote pbx-a
format_volume pbx-a
up pbx-a
sql -c 'create table calls (client int, n bigint, note text, primary key (client, n))' || die "create table"
pg "$pgbin/pgbench" -h "$T/out" -i -q -s 1 postgres > "$T/out/pgbench.log" 2>&1 || die "pgbench -i"
say "PostgreSQL runs on pbx-a"

from=pbx-a to=pbx-b
for round in $(seq "${ROUNDS:-2}"); do
    clients=()
    for client in 1 2 3 4; do
        insert "$round" "$client" >> "$T/out/acked.$client" 2> /dev/null &
        clients+=($!)
    done
    pg "$pgbin/pgbench" -h "$T/out" -n -c 2 -T 300 postgres > /dev/null 2>&1 &
    clients+=($!)
    wait_for 60 "the clients commit" test -s "$T/out/acked.4"
    sleep "$((1 + RANDOM % 3)).$((RANDOM % 10))"
    kill9 "$from"
    acked=$(cat "$T/out"/acked.* | wc -l)
    say "round $round: $from is killed after $acked acknowledged rows"
    crash "${clients[@]}"

    promote "$to"
    up "$to"
    sort "$T"/out/acked.* > "$T/out/acked"
    present "$T/out/acked"
    consistent
    say "round $round: PostgreSQL recovered on $to: $(wc -l < "$T/out/acked") acknowledged rows are there, pg_amcheck is clean"

    start "$from"
    wait_for 90 "$from has caught up" caught_up "$from" "$to"
    # The next round kills this one and returns to the first.
    last=$to to=$from from=$last
done

down
stop_cleanly "$last"
say "ext4 is clean, stores are equal"
