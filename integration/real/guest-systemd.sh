# shellcheck shell=bash disable=SC2034
# What the guests with systemd share: three hosts in one User-mode Linux, of which the first one, pbx-a,
# is the guest itself with systemd as PID 1, and the others are a mount and a host name namespace each,
# with a disk of their own and repld by hand. To be sourced, by a script that runs twice: as the kernel's
# init it makes room on a read-only root and becomes systemd, which then starts it again as
# checks.service, as often as the guest boots.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C
share=/mnt/share

become_systemd() {
    local dir unit file
    mount -t proc proc /proc 2> /dev/null
    mount -t sysfs sys /sys 2> /dev/null
    mount -t devtmpfs dev /dev 2> /dev/null
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/etc /mnt/sbin /mnt/share /mnt/modules
    mount -t hostfs -o "$SHARE" none /mnt/share
    touch /mnt/share/up
    echo boot >> /mnt/share/boots

    # A small /etc, so that it is not this machine's units that are started.
    for file in passwd group nsswitch.conf ld.so.cache mke2fs.conf; do
        [ -e "/etc/$file" ] && cp -a "/etc/$file" /mnt/etc/
    done
    mount --bind /usr/sbin /mnt/sbin
    for dir in /etc /var /srv /tmp /run /usr/sbin; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
    chmod 1777 /tmp
    cp -a /mnt/etc/. /etc/
    ln -s /mnt/sbin/* /usr/sbin/
    mkdir -p /etc/systemd/system /etc/replicator /var/lib /var/log /var/tmp
    ln -s /run /var/run
    ln -s /proc/self/mounts /etc/mtab
    echo pbx-a > /etc/hostname
    echo 0123456789abcdef0123456789abcdef > /etc/machine-id
    # modprobe looks here for the modules, which are not where it would expect them.
    mkdir -p /mnt/modules/lib/modules
    ln -s "/usr/lib/uml/modules/$(uname -r)" "/mnt/modules/lib/modules/$(uname -r)"

    # Of what the distribution wants at start, only the journal is, and udev, which tells systemd of devices.
    for unit in console-getty.service /lib/systemd/system/{sysinit,sockets,timers,local-fs,multi-user,getty}.target.wants/*; do
        case $unit in
            *.target | */systemd-journald.s* | */systemd-journald-dev-log.socket) ;;
            */systemd-udevd*.s* | */systemd-udev-trigger.service) ;;
            *) : > "/etc/systemd/system/${unit##*/}" ;; # masked
        esac
    done
    cat > /etc/systemd/system/checks.target << END
[Unit]
Wants=checks.service multi-user.target
AllowIsolate=yes
END
    ln -s checks.target /etc/systemd/system/default.target
    cat > /etc/systemd/system/checks.service << END
[Unit]
# The other hosts outlive this one.
Before=repld@pbx.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
ExecStart=/mnt/share/guest checks
StandardOutput=append:/mnt/share/commands.log
StandardError=inherit
LimitMEMLOCK=infinity
END
    # Empty says that this is no container, whatever the files of the machine around it say.
    container='' exec /lib/systemd/systemd
}
[ $$ = 1 ] && become_systemd
[ "${1:-}" = checks ] || exit 2

export MODPROBE_OPTIONS="-d /mnt/modules"
exec < /dev/null
boot=$(wc -l < $share/boots)

keep_journal() { journalctl -b --no-pager > "$share/journal-$boot.log" 2>&1; }
off() {
    keep_journal
    ps axo pid,stat,wchan:24,args > "$share/processes.log" 2>&1
    # Not by way of systemd: what is to be stopped may hang.
    echo o > /proc/sysrq-trigger
    sleep 60
}
# shellcheck source=guest-words.sh
. "$share/guest-words.sh"

declare -A holder=() daemon=()
# on HOST COMMAND: a shell command on that host
on() {
    echo "$1# $2" >&2
    if [ "$1" = pbx-a ]; then
        (cd $share/source && bash -c "$2")
    else
        nsenter -t "${holder[$1]}" -m -u bash -c "cd $share/source; $2"
    fi
}
run() { on "$@" || fail "on $1: $2: exit $?"; }
# block N [FROM [TO]]: lines of a code block of the README
block() { sed -n "${2:-1},${3:-${2:-\$}}p" "$share/block-$1"; }
# readme HOST N [FROM [TO]]: runs them, and every one has to work
readme() {
    local line
    while read -r line; do
        [ -z "$line" ] || run "$1" "$line"
    done < <(block "${@:2}")
}
by_hand() { # a host's daemon without systemd
    nsenter -t "${holder[$1]}" -m -u repld >> "$share/$1.log" 2>&1 &
    daemon[$1]=$!
}
# field HOST EXPRESSION: of its status
field() {
    on "$1" "replctl status --json" |
        /usr/bin/python3 -c 'import json, sys; s = json.load(sys.stdin); print(eval(sys.argv[1]))' "$2"
}
is() { [ "$(field "$1" "$2" 2> /dev/null)" = "$3" ]; }
settled() { is "$1" 'all(p["connection"] == "Connected" and p["disk_state"] == "UpToDate" and p["behind_bytes"] == 0 for p in s["peers"])' True; }

# The addresses, and the hosts with their disks: /dev/ubda is pbx-a's, and so on.
make_hosts() {
    local i n
    must ip link set lo up
    for i in 1 2 3; do must ip addr add "10.0.0.$i/24" dev lo; done
    for n in pbx-b pbx-c; do
        unshare -m -u --propagation private sleep infinity &
        holder[$n]=$!
        within 10 grep -q sleep "/proc/$!/comm"
        run $n "hostname $n && mkdir -p /run/replicator-$n && mkdir -p /var/lib/replicator /run/replicator"
        run $n "mount --bind /run/replicator-$n /run/replicator"
    done
    mkdir -p /var/lib/replicator
    for i in a b c; do
        [ "$boot" -gt 1 ] || must mkfs.ext4 -q -F "/dev/ubd$i"
        run "pbx-$i" "mount /dev/ubd$i /var/lib/replicator"
    done
}
