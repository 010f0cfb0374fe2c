# shellcheck shell=bash disable=SC2154
# How long a power cut of the active host keeps a volume from being written, beside what any resource costs on the same hosts: a promotable
# resource that does nothing (Stateful), with an address, fenced by a power switch that answers at once. In turns, in one run. To be sourced
# after cluster-faults.sh.

dummy_vip=10.77.0.101

# A power fence that costs nothing: the power of who is to be off is off already.
make_power_fence() {
    mkdir -p "$T/power"
    cat > "$T/usr/sbin/fence_power" << END
#!/bin/sh
while IFS='=' read -r key value; do
    case \$key in action) action=\$value ;; port | nodename) node=\$value ;; esac
done
case \$action in
    metadata) echo '<?xml version="1.0"?><resource-agent name="fence_power" shortdesc="Power"><longdesc>Power.</longdesc><vendor-url/><parameters>
        <parameter name="port"><getopt mixed="-n"/><content type="string"/><shortdesc lang="en">Host</shortdesc></parameter></parameters>
        <actions><action name="off"/><action name="on"/><action name="status"/><action name="monitor"/><action name="list"/></actions></resource-agent>' ;;
    list) printf '%s,\\n' ${names[*]} ;;
    off | reboot) until [ -e "$T/power/\$node" ]; do sleep 0.02; done ;;
    status) ! [ -e "$T/power/\$node" ] || exit 2 ;;
esac
exit 0
END
    chmod 755 "$T/usr/sbin/fence_power"
}

# Stopped at first, all of it.
compared_resources() {
    cat << END
primitive power stonith:fence_power meta target-role=Stopped op monitor interval=30s timeout=20s
primitive dummy ocf:pacemaker:Stateful op monitor interval=3s role=Promoted timeout=20s on-fail=demote op monitor interval=4s role=Unpromoted timeout=20s
clone ms_dummy dummy meta promotable=true promoted-max=1 notify=true interleave=true target-role=Stopped
primitive dummy_address IPaddr2 params ip=$dummy_vip cidr_netmask=24 nic=eth0 arp_count=2 \
    op start timeout=20s interval=0s op stop timeout=20s interval=0s op monitor interval=5s timeout=20s
colocation dummy_with_promoted inf: dummy_address ms_dummy:Promoted
order dummy_after_promotion Mandatory: ms_dummy:promote dummy_address:start
END
}

want() { on "$(observer)" crm_resource --meta --resource "$1" --set-parameter target-role --parameter-value "$2" > /dev/null || die "$1 is to be $2"; }

# promoted CLONE: where, if all of it is there and nothing is going on
promoted() {
    local at seen
    at=$(observer)
    seen=$(status_of "$at" | xmllint --xpath 'concat(count(//nodes/node[@online="true" and @pending="false" and @unclean="false"]), " ",
        count(//clone[@id="'"$1"'"]/resource[@role="Unpromoted" or @role="Slave"]), " ",
        string(//clone[@id="'"$1"'"]/resource[@role="Promoted" or @role="Master"]/node/@name))' - 2> /dev/null)
    [ "${seen% *}" = "3 2" ] && [ -n "${seen##* }" ] || return
    [ "$(on "$at" timeout 5 crmadmin -q -S "$(dc)" 2>&1 | grep -c S_IDLE)" = 1 ] || return
    [ "$1" != ms_repl ] || everybody_has_everything "${seen##* }" || return
    echo "${seen##* }"
}
is_promoted() { promoted "$1" > /dev/null; }

# cut_of CLONE: cuts the power of its active host; the seconds until the other side can go on, in $took
cut_of() {
    local n other at sockets=()
    wait_for 120 "$1 is whole" is_promoted "$1"
    n=$(promoted "$1")
    for other in $(others "$n"); do sockets+=("/proc/$(cat "$T/$other/init")/root/run/replicator/nbd.sock"); done
    at=$(awk -v now="$(now)" 'BEGIN { printf "%.3f", now + 1.5 }')
    if [ "$1" = ms_repl ]; then
        timeout 90 /usr/bin/python3 "$here/cluster.py" writable "$at" "${sockets[@]}" > "$T/took" &
    else
        timeout 90 ip netns exec "$switch" /usr/bin/python3 "$here/cluster.py" answers "$at" $dummy_vip > "$T/took" &
    fi
    local probe=$!
    sleep "$(awk -v now="$(now)" -v at="$at" 'BEGIN { print at - now }')"
    touch "$T/power/$n"
    power_off "$n"
    wait_for 60 "$1 goes on" test -s "$T/took"
    wait $probe
    rm "$T/power/$n"
    power_on "$n"
    took=$(cat "$T/took")
}

# compare N
compare() {
    local round
    want pbx Stopped
    for ((round = 1; round <= $1; round++)); do
        cut_of ms_repl
        echo "$took" >> "$T/ours"
        local ours=$took
        wait_for 120 "all hosts are back" is_promoted ms_repl
        want ms_repl Stopped
        want fence Stopped
        want power Started
        want ms_dummy Started
        cut_of ms_dummy
        echo "$took" >> "$T/dummies"
        wait_for 120 "all hosts are back" is_promoted ms_dummy
        want ms_dummy Stopped
        want power Stopped
        want fence Started
        want ms_repl Started
        say "$round: a volume can be written after $ours s; the address of a resource that does nothing answers after $took s"
    done
    python medians "$T/ours" "$T/dummies"
}
