# shellcheck shell=bash disable=SC2154
# A User-mode Linux guest, on Debian's 6.1: the oldest kernel that is supported. To be sourced after lib.sh.
#
# Its root is the host's / read-only, its init a script of ours, $share a directory where host and guest
# meet. It lives in a PID namespace of its own, so that nothing that it or its kernel does can signal a
# process of the host, and nothing of it is left when the namespace's first process is killed. A reset is
# this kernel's own: it starts itself anew, with the disks as they are.

need_guest() {
    need linux.uml unshare pgrep cc
    ls /usr/lib/uml/modules/*/kernel/drivers/block/nbd.ko > /dev/null 2>&1 || skip "no nbd.ko for User-mode Linux"
    unshare --pid --fork --mount-proc true 2> /dev/null || skip "no PID namespaces"
}

# boot NAME MEMORY INIT ARGUMENT...: starts the guest; it logs to $T/guest.log
boot() {
    local name=$1 memory=$2 init=$3
    shift 3
    share=$T/share
    mkdir -p "$share"
    cp "$here/guest-words.sh" "$share/"
    : >> "$share/progress"
    cc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$T/guest-registers.so" "$here/guest-registers.c" || die "cc"
    # This kernel may crash where it is about to start anew: then it is started anew from here, if the guest has
    # said that there would be a reset (a file reset-N in its Nth boot).
    # shellcheck disable=SC2016
    SHARE=$share unshare --pid --fork --kill-child --mount-proc bash -c '
        ulimit -c 0
        until "$@"; do
            cd "$SHARE" && [ -e boots ] && [ -e "reset-$(wc -l < boots)" ] || exit
            while kill -KILL -- -1; do sleep 0.1; done # its threads, which hold the disks
        done' guest env LD_PRELOAD="$T/guest-registers.so" linux.uml "mem=$memory" "umid=$name" "uml_dir=$T/uml" root=/dev/root rootfstype=hostfs rootflags=/ ro \
        quiet panic=-1 con=null con0=null,fd:1 ssl=null random.trust_cpu=on "init=$init" "SHARE=$share" "$@" \
        < /dev/null > "$T/guest.log" 2>&1 &
    guest=$!
    at_end "kill -KILL $guest"
    # This kernel loses its one-shot timer now and then and idles for ever; an extra SIGALRM wakes it up.
    # One that starts would die of that until it has a handler for it. And one that crashes where it starts anew may do so
    # for ever.
    (
        crashes=0
        until [ -e "$share/up" ]; do sleep 0.2; done
        while guest_runs; do
            kernel=$(pgrep -P "$(pgrep -P "$guest" -o)" -o)
            before=$crashes crashes=$(grep -c 'SIGSEGV in SIGSEGV handler' "$T/guest.log")
            [ "$crashes" = "$before" ] || kill -KILL "$kernel" 2> /dev/null
            caught=$(sed -n 's/^SigCgt:\t*//p' "/proc/$kernel/status" 2> /dev/null)
            (((0x${caught:-0} >> 13) & 1)) && kill -ALRM "$kernel" 2> /dev/null
            sleep 0.5
        done
    ) &
    at_end "kill $!"
}

# share_hosts GUEST: what a guest of three hosts with systemd finds in $share, with that script as its init:
# the source tree after a build, the README's code blocks, and a config that fits there. Their disks are in $T.
share_hosts() {
    local root=$here/../.. n
    share=$T/share
    mkdir -p "$share/source/target/release" "$share/source/tools"
    cp "$bin/repld" "$bin/replctl" "$bin/repl-fence" "$share/source/target/release/"
    cp -r "$root/tools/systemd" "$root/tools/reset-when-fenced" "$share/source/tools/"
    cp "$1" "$share/guest"
    cp "$here/guest-systemd.sh" "$share/"

    # The code blocks of the two sections, numbered.
    awk -v to="$share/block-" '
        /^## / { on = /^## (Three real hosts|Bringing an existing image in)$/ }
        on && /^```/ { if (open) { open = 0; close(file) } else { open = 1; n += 1; file = to n } next }
        on && open { print > file }
    ' "$root/README.md"

    # The config is the README's, with sizes that fit here.
    cat > "$share/resize" << 'END'
s/"32GiB"/"160MiB"/
s/"1GiB"/"64MiB"/
$a\
\
[policy]\
memory = "64MiB"\
disk_timeout_ms = 30000
END
    for n in "${names[@]}"; do truncate -s 512M "$T/$n.disk"; done
}

# boot_hosts NAME: starts a guest that was made ready by share_hosts
boot_hosts() {
    boot "$1" 640M "$share/guest" "ubda=$T/pbx-a.disk" "ubdb=$T/pbx-b.disk" "ubdc=$T/pbx-c.disk" \
        selinux=0 systemd.show_status=false
}

need_systemd() {
    [ -x /lib/systemd/systemd ] || skip "no systemd"
    [ -e /lib/systemd/systemd-udevd ] || skip "no udev"
}

guest_runs() { [ -d "/proc/$guest" ]; }

guest_failed() {
    cp "$share"/*.log "$T" 2> /dev/null
    die "in the guest, after \"$(tail -n 1 "$share/progress")\": $1"
}

# phase NAME: waits until the guest is done with it
phase() {
    local end=$((SECONDS + 300))
    until [ -e "$share/$1" ]; do
        guest_runs || guest_failed "it ended before $1"
        [ ! -e "$share/failed" ] || guest_failed "$(cat "$share/failed")"
        [ "$SECONDS" -lt "$end" ] || guest_failed "$1: not within 300 s"
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
