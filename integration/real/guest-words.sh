# shellcheck shell=bash disable=SC2154
# What the guests' own scripts say to the host, and how they wait. To be sourced there; $share is where host and guest meet, and off() ends
# the guest.

say() { echo "$*" >> "$share/progress"; }
fail() {
    echo "$*" > "$share/failed"
    off
}
must() { "$@" || fail "$*: exit $?"; }
# within SECONDS COMMAND...
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "not in time: $*"
        sleep 0.1
    done
}
