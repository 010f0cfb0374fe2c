# shellcheck shell=bash
# A User-mode Linux guest, on Debian's 6.1: the oldest kernel that is supported. To be sourced after lib.sh.
#
# Its root is the host's / read-only, its init a script of ours, $share a directory where host and guest
# meet. It lives in a PID namespace of its own, so that nothing that it or its kernel does can signal a
# process of the host, and nothing of it is left when the namespace's first process is killed.

need_guest() {
    need linux.uml unshare pgrep
    ls /usr/lib/uml/modules/*/kernel/drivers/block/nbd.ko > /dev/null 2>&1 || skip "no nbd.ko for User-mode Linux"
    unshare --pid --fork --mount-proc true 2> /dev/null || skip "no PID namespaces"
}

# boot NAME MEMORY INIT ARGUMENT...: starts the guest; it logs to $T/guest.log
boot() {
    local name=$1 memory=$2 init=$3
    shift 3
    share=$T/share
    mkdir -p "$share"
    : >> "$share/progress"
    unshare --pid --fork --kill-child --mount-proc linux.uml "mem=$memory" "umid=$name" "uml_dir=$T/uml" root=/dev/root rootfstype=hostfs rootflags=/ ro \
        quiet panic=-1 con=null con0=null,fd:1 ssl=null random.trust_cpu=on "init=$init" "SHARE=$share" "$@" \
        < /dev/null > "$T/guest.log" 2>&1 &
    guest=$!
    at_end "kill -KILL $guest"
    # This kernel loses its one-shot timer now and then and idles for ever; an extra SIGALRM wakes it up.
    (
        until [ -e "$share/up" ]; do sleep 0.2; done
        kernel=$(pgrep -P "$guest" -o)
        while kill -ALRM "$kernel" 2> /dev/null; do sleep 0.5; done
    ) &
    at_end "kill $!"
}

guest_runs() { [ -d "/proc/$guest" ]; }

guest_failed() {
    cp "$share"/*.log "$T" 2> /dev/null
    die "in the guest, after \"$(tail -n 1 "$share/progress")\": $1"
}

# phase NAME: waits until the guest is done with it
phase() {
    local end=$((SECONDS + 90))
    until [ -e "$share/$1" ]; do
        guest_runs || guest_failed "it ended before $1"
        [ ! -e "$share/failed" ] || guest_failed "$(cat "$share/failed")"
        [ "$SECONDS" -lt "$end" ] || guest_failed "$1: not within 90 s"
        sleep 0.05
    done
}

# until_halted SECONDS: says what the guest says, until it has halted after it passed
until_halted() {
    local end=$((SECONDS + $1)) shown=0 lines
    while guest_runs; do
        lines=$(wc -l < "$share/progress")
        while [ "$shown" -lt "$lines" ]; do
            shown=$((shown + 1))
            say "$(sed -n "${shown}p" "$share/progress")"
        done
        [ "$SECONDS" -lt "$end" ] || guest_failed "not within $1 s"
        sleep 0.1
    done
    [ ! -e "$share/failed" ] || guest_failed "$(cat "$share/failed")"
    [ -e "$share/passed" ] || guest_failed "it ended"
}
