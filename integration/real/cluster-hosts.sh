# shellcheck shell=bash disable=SC2154
# Three hosts in namespaces for cluster.sh: a switch, and for each host its power, its cable, and a way to hold it still. To be sourced after
# lib.sh; what is written here is undone at the end.

net=10.77.0
# The namespace of the switch is also where clients are: outside.
switch=repl-switch-$$
declare -A power=() state=()

number_of() {
    local i=1
    while [ "${names[i - 1]}" != "$1" ]; do i=$((i + 1)); done
    echo $i
}

network() {
    ip netns add "$switch" || skip "no network namespaces here"
    at_end "ip netns del $switch"
    ip -n "$switch" link add br0 type bridge forward_delay 0 mcast_snooping 0
    ip -n "$switch" address add $net.254/24 dev br0
    ip -n "$switch" link set br0 up
    # A client that has lost an address asks for it again at once.
    outside sh -c 'echo 100 > /proc/sys/net/ipv4/neigh/br0/retrans_time_ms'
}
outside() { ip netns exec "$switch" "$@"; }

# Where a host can be frozen as a whole, if that is possible here.
freezers=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/repl-cluster-$$
make_freezers() {
    local n
    for n in "${names[@]}"; do
        mkdir -p "$freezers/$n" 2> /dev/null && [ -w "$freezers/$n/cgroup.freeze" ] || { freezers=; return; }
    done
    at_end "rmdir $freezers/* $freezers"
}

# A daemon of its own for a host, as a package puts it there: the old one is replaced, not written to.
installed() {
    mkdir -p "$T/$1/sbin"
    cp "$bin/repld" "$T/$1/sbin/repld.new" && mv "$T/$1/sbin/repld.new" "$T/$1/sbin/repld"
}

# on NODE COMMAND...: runs it on that host
on() {
    local n=$1
    shift
    nsenter -t "$(cat "$T/$n/init")" -m -u -i -n -p -- "$@"
}

# Powers a host on: its first process, then its cable.
power_on() {
    local n=$1 i
    i=$(number_of "$n")
    rm -f "$T/$n/host/ready" "$T/$n/host/disk" "$T/$n/init"
    (
        [ -z "$freezers" ] || echo "$BASHPID" > "$freezers/$n/cgroup.procs"
        exec setsid env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root TERM=dumb \
            unshare --mount --uts --ipc --pid --net --fork --kill-child "$here/cluster-node.sh" "$n" "$i" "$T" "$T/$n/sbin" "$bin"
    ) >> "$T/$n.log" 2>&1 < /dev/null &
    power[$n]=$!
    wait_for 20 "$n boots" test -e "$T/$n/host/ready"
    pgrep -P "${power[$n]}" > "$T/$n/init"
    ip -n "$switch" link add "p$i" type veth peer name eth0 netns "$(cat "$T/$n/init")" || die "no cable for $n"
    ip -n "$switch" link set "p$i" master br0 up
    state[$n]=up
}

# Cuts it: everything on the host is gone at once, its addresses too, and what the kernel held for it.
power_off() {
    local n=$1 loop
    loop=$(readlink "$T/$n/host/disk")
    kill -KILL "$(cat "$T/$n/init")" 2> /dev/null
    ip -n "$switch" link del "p$(number_of "$n")" 2> /dev/null
    [ -z "$freezers" ] || echo 0 > "$freezers/$n/cgroup.freeze"
    wait "${power[$n]}" 2> /dev/null
    unset "power[$n]"
    state[$n]=off
    [ -z "$loop" ] || losetup -d "$loop" 2> /dev/null
}
all_off() { local n; for n in "${!power[@]}"; do power_off "$n"; done; sleep 0.5; }

# A host that has reset itself comes back.
resets=0
revive() {
    local n
    for n in "${!power[@]}"; do
        kill -0 "${power[$n]}" 2> /dev/null && continue
        power_off "$n"
        power_on "$n"
        resets=$((resets + 1))
    done
}

# The cable: out, its light still on, and in again. A host that resets itself has none.
has_reset() { ! kill -0 "${power[$1]}" 2> /dev/null; }
port() {
    outside bridge link set dev "p$(number_of "$1")" state "$2" 2> /dev/null || wait_for 5 "the link of $1 is there, or it has reset itself" has_reset "$1"
}
cut() { port "$1" 0; state[$1]="cut"; }
heal() { port "$1" 3; state[$1]=up; }

freeze() { echo 1 > "$freezers/$1/cgroup.freeze" || die "freeze of $1"; state[$1]=frozen; }
thaw() { echo 0 > "$freezers/$1/cgroup.freeze" || die "thaw of $1"; state[$1]=up; }

# A host that can be asked.
observer() {
    local n
    for n in "${names[@]}"; do
        [ "${state[$n]:-off}" = up ] && kill -0 "${power[$n]:-0}" 2> /dev/null && { echo "$n"; return; }
    done
    echo "${names[0]}"
}
