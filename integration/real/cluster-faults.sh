# shellcheck shell=bash disable=SC2154
# The faults that come to the hosts of cluster.sh, each under its name, and what has to be true after each. To be sourced after cluster-hosts.sh.

status_json() { on "$1" timeout 5 replctl --config "$T/pbx.toml" status --json 2> /dev/null; }
status_of() { on "$1" timeout 5 crm_mon -1 --output-as=xml 2> /dev/null; }

# tells XPATH: the first answer that a host has; one that has just come knows nothing yet.
tells() {
    local n answer
    for n in "${names[@]}"; do
        [ "${state[$n]:-off}" = up ] || continue
        answer=$(status_of "$n" | xmllint --xpath "string($1)" - 2> /dev/null)
        [ -z "$answer" ] || { echo "$answer"; return; }
    done
    return 1
}
# Who is promoted, and whose Pacemaker decides.
active() { tells '//resource[@id="repl" and (@role="Promoted" or @role="Master")]/node/@name'; }
dc() { tells '//current_dc/@name'; }
others() { local n; for n in "${names[@]}"; do [ "$n" = "$1" ] || echo "$n"; done; }

# Whether the whole cluster is as it should be: all hosts there, one of them serves, everybody has everything, nobody is fenced, nothing is
# going on. Hosts that have reset themselves meanwhile come back.
settled() {
    local at count
    revive
    at=$(observer)
    count=$(status_of "$at" | xmllint --xpath 'count(//nodes/node[@online="true" and @pending="false" and @unclean="false"])
        + 10 * count(//clone[@id="ms_repl"]/resource[(@role="Promoted" or @role="Master") and @failed="false" and @blocked="false"])
        + 100 * count(//clone[@id="ms_repl"]/resource[@role="Unpromoted" or @role="Slave"])
        + 1000 * count(//resource[@id="address" and @role="Started" and @failed="false"])' - 2> /dev/null)
    [ "$count" = $((1013 + 100 * (${#data_hosts[@]} - 1))) ] || return
    [ "$(on "$at" timeout 5 crmadmin -q -S "$(dc)" 2>&1 | grep -c S_IDLE)" = 1 ] || return
    on "$at" timeout 10 repl-fence --config "$T/pbx.toml" status > "$T/fences" 2> /dev/null && ! grep -q 'FENCED' <(tail -n +2 "$T/fences") || return
    everybody_has_everything "$(active)"
}
everybody_has_everything() {
    status_json "$1" | /usr/bin/python3 -c '
import json, sys
status = json.load(sys.stdin)
has_everything = lambda peer: peer["role"] == "Witness" or (peer["disk_state"] == "UpToDate" and peer["membership"] == "member")
sys.exit(not (status["role"] == "Primary" and all(p["connection"] == "Connected" and has_everything(p) for p in status["peers"])))' 2> /dev/null
}

answered() { cat "$T/rows" "$T/recordings" | wc -l; }
rows_answered() { wc -l < "$T/rows"; }
recordings_answered() { wc -l < "$T/recordings"; }
more_than() { [ "$(rows_answered)" -gt "$1" ] && [ "$(recordings_answered)" -gt "$2" ]; }
# Clients of both kinds get answers again.
goes_on() {
    local rows recordings
    rows=$(($(rows_answered) + 10)) recordings=$(($(recordings_answered) + 5))
    wait_for 60 "after $fault clients get answers" more_than $rows $recordings
}

now() { date +%s.%3N; }

# under FAULT: it comes, and goes; afterwards nothing is missing.
fault=start faults_done=0
under() {
    local from at
    fault=$1
    from=$(active) || die "nobody serves before $fault"
    faults_done=$((faults_done + 1))
    local prepared=prepare_${fault//-/_}
    if declare -F "$prepared" > /dev/null; then
        "$prepared" "$from"
        from=$(active) || die "nobody serves before $fault"
    fi
    say "$faults_done: $fault, where $from serves and $(dc) decides"
    at=$(now)
    "fault_${fault//-/_}" "$from"
    goes_on
    wait_for 150 "after $fault the hosts are whole again" settled
    outside /usr/bin/python3 "$here/cluster.py" check $vip $port "$T/rows" "$T/recordings" > "$T/check" 2>&1 || die "after $fault: $(cat "$T/check")"
    python outage "$fault" "$at" "$T/rows" "$T/recordings" "$T"/*/host/alerts | tee -a "$T/outages"
    say "$(active) serves; $(cat "$T/check")"
}

fault_power() {
    power_off "$1"
    goes_on
    power_on "$1"
}

prepare_power_of_dc() {
    [ "$1" != "$(dc)" ] || return
    on "$(observer)" crm_resource --resource ms_repl --move --promoted --node "$(dc)" > /dev/null 2>&1 || die "move to the DC"
    wait_for 60 "the DC serves" serves "$(dc)"
    on "$(observer)" crm_resource --resource ms_repl --clear > /dev/null 2>&1
    wait_for 60 "the hosts are whole after the move" settled
}
serves() { [ "$(active)" = "$1" ]; }
fault_power_of_dc() { fault_power "$1"; }

fault_partition() {
    cut "$1"
    goes_on
    heal "$1"
}

fault_freeze() {
    freeze "$1"
    goes_on
    thaw "$1"
}

# kill_on NODE PROGRAM: until Pacemaker has noticed. The host has a process table of its own.
kill_on() {
    local before
    before=$(noted)
    on "$1" pkill -KILL -x "${2:0:15}" || die "kill of $2 on $1"
    wait_for 30 "the end of $2 is noticed" noted_more "$before"
}
noted() { cat "$T"/*/host/alerts | grep -c ' node \|:stop \|:demote \|:start '; }
noted_more() { [ "$(noted)" -gt "$1" ]; }

fault_repld() { kill_on "$1" repld; }
fault_corosync() { kill_on "$1" corosync; }
fault_controld() { kill_on "$1" pacemaker-controld; }

fault_move() {
    on "$1" crm_standby -N "$1" -v on || die "standby"
    wait_for 60 "another host serves" moved "$1"
    goes_on
    on "$1" crm_standby -N "$1" -D
}
moved() { local to; to=$(active); [ -n "$to" ] && [ "$to" != "$1" ]; }

# No fault: docs/pacemaker.md, "Upgrading without downtime", the hosts that are not active first.
fault_upgrade() {
    local n
    for n in $(others "$1") "$1"; do upgrade "$n"; done
}
upgrade() {
    local pid
    on "$1" crm_standby -N "$1" -v on || die "standby of $1"
    wait_for 60 "nothing runs on $1" runs_nothing "$1"
    installed "$1"
    pid=$(on "$1" pgrep -x repld) || die "no repld on $1"
    on "$1" kill -TERM "$pid"
    wait_for 40 "the new repld of $1 runs, and has everything" upgraded "$1"
    on "$1" crm_standby -N "$1" -D || die "$1 is not taken back"
    wait_for 60 "after the upgrade of $1 the hosts are whole" settled
}
runs_nothing() {
    [ "$(status_of "$1" | xmllint --xpath "count(//resource[not(starts-with(@resource_agent, 'stonith:'))]/node[@name='$1'])" - 2> /dev/null)" = 0 ] && moved "$1"
}
upgraded() {
    local pid
    pid=$(on "$1" pgrep -x repld) && [ "$(on "$1" stat -L -c %i "/proc/$pid/exe")" = "$(stat -c %i "$T/$1/sbin/repld")" ] &&
        everybody_has_everything "$(active)"
}

# Without a majority nobody gets an answer; with it back, everybody does.
fault_others_off() {
    local n before
    for n in $(others "$1"); do power_off "$n"; done
    # Longer than any lease, and than a client takes.
    sleep 3
    before=$(answered)
    sleep 2
    [ "$(answered)" = "$before" ] || die "$1 alone answers"
    for n in $(others "$1"); do power_on "$n"; done
}

fault_all_off() {
    local n
    for n in "${names[@]}"; do power_off "$n"; done
    for n in "${names[@]}"; do power_on "$n"; done
}

tenths() { echo "$(($1 / 10)).$(($1 % 10))"; }
fault_flapping() {
    local turns
    for ((turns = 0; turns < 6; turns++)); do
        cut "$1"
        sleep "$(tenths $((1 + RANDOM % 9)))"
        heal "$1"
        sleep "$(tenths $((1 + RANDOM % 9)))"
    done
}

# Another host has been away for more than the journal holds, and has just come back.
prepare_catch_up() {
    late=$(others "$1" | head -n 1)
    power_off "$late"
    goes_on
    on "$1" dd if=/dev/urandom of=/run/pbx/bulk bs=1M count=100 oflag=direct conv=notrunc status=none || die "the bulk of writes"
    power_on "$late"
    wait_for 30 "$late is connected" connected "$1" "$late"
}
connected() {
    status_json "$1" | /usr/bin/python3 -c '
import json, sys
sys.exit(not any(p["name"] == sys.argv[1] and p["connection"] == "Connected" for p in json.load(sys.stdin)["peers"]))' "$2" 2> /dev/null
}
fault_catch_up() { fault_power "$1"; }
