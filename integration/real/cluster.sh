#!/bin/bash
# Three hosts with Corosync and Pacemaker in namespaces, fencing by fence_repl, and on top of the replicated disk a group: the attached
# device, a file system, a virtual IP and a service behind it. A client outside writes to the virtual IP; the active host loses its power, and
# the others go on with every line that was answered. Then it comes back, and the next one loses its power.
#
#   integration/real/cluster.sh [ROUNDS]
. "$(dirname "$0")/lib.sh"
need_root
need corosync pacemakerd crm crm_mon crm_resource cibadmin crm_verify stonith_admin nbdfuse losetup fusermount3 mkfs.ext4 unshare nsenter ip arping xmllint
[ -e /dev/fuse ] || skip "no /dev/fuse"
[ -x /usr/lib/ocf/resource.d/heartbeat/IPaddr2 ] || skip "no resource agents (package resource-agents)"
unshare --net --mount --pid --fork true 2> /dev/null || skip "no namespaces of one's own here"
rounds=${1:-2}
scratch
net=10.77.0 vip=10.77.0.100 port=5000
switch=repl-switch-$$
declare -A power=()

ip netns add "$switch" || skip "no network namespaces here"
at_end "ip netns del $switch"
ip -n "$switch" link add br0 type bridge forward_delay 0 mcast_snooping 0
ip -n "$switch" address add $net.254/24 dev br0
ip -n "$switch" link set br0 up

# The programs and agents, laid over what is installed.
mkdir -p "$T"/usr/sbin "$T"/usr/lib/ocf/resource.d/replicator
cp "$here"/../../tools/ocf/* "$T/usr/lib/ocf/resource.d/replicator/"
cp "$bin"/repl{ctl,-fence} "$T/usr/sbin/"
ln -s repl-fence "$T/usr/sbin/fence_repl"

{
    echo 'resource = "pbx"'
    for i in 1 2 3; do
        printf '\n[[node]]\nname = "%s"\naddress = "%s.%d:7789"\ndata_dir = "%s/%%n/data"\nrun_dir = "/run/replicator"\n' \
            "${names[i - 1]}" $net $i "$T"
    done
    printf '\n[[volume]]\nname = "data"\nsize = "256MiB"\n\n[journal]\nsize = "64MiB"\n'
    printf '\n[policy]\nmemory = "96MiB"\n\n[tls]\ninsecure = true\n'
} > "$T/pbx.toml"
{
    echo "127.0.0.1 localhost"
    for i in 1 2 3; do echo "$net.$i ${names[i - 1]}"; done
} > "$T/hosts"
{
    printf 'totem {\n  version: 2\n  cluster_name: pbx\n  transport: knet\n  token: 1000\n  token_coefficient: 0\n'
    printf '  crypto_cipher: none\n  crypto_hash: none\n}\nsystem {\n  sched_rr: no\n  move_to_root_cgroup: no\n}\n'
    printf 'logging {\n  to_stderr: no\n  to_syslog: no\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n  timestamp: hires\n}\n'
    printf 'quorum {\n  provider: corosync_votequorum\n}\nnodelist {\n'
    for i in 1 2 3; do
        printf '  node {\n    name: %s\n    nodeid: %d\n    ring0_addr: %s.%d\n  }\n' "${names[i - 1]}" $i $net $i
    done
    echo '}'
} > "$T/corosync.conf"

operation() { printf '<op id="%s-%s-%s" name="%s" interval="%s" timeout="%s" %s/>' "$1" "$2" "$3" "$2" "$3" "$4" "${5:-}"; }
parameter() { printf '<nvpair id="%s-%s" name="%s" value="%s"/>' "$1" "$2" "$2" "$3"; }
cat > "$T/cib.xml" << END
<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0">
 <configuration>
  <crm_config><cluster_property_set id="properties">
   $(parameter properties dc-deadtime 2s)
   $(parameter properties stonith-enabled true)
   $(parameter properties stonith-timeout 30s)
   $(parameter properties no-quorum-policy demote)
  </cluster_property_set></crm_config>
  <nodes/>
  <resources>
   <primitive id="fence" class="stonith" type="fence_repl">
    <meta_attributes id="fence-meta">$(parameter fence-meta provides unfencing)</meta_attributes>
    <instance_attributes id="fence-parameters">$(parameter fence config "$T/pbx.toml")</instance_attributes>
    <operations>$(operation fence monitor 30s 20s)</operations>
   </primitive>
   <clone id="ms_repl">
    <meta_attributes id="ms_repl-meta">
     $(parameter ms_repl promotable true) $(parameter ms_repl promoted-max 1) $(parameter ms_repl notify true)
     $(parameter ms_repl interleave true)
    </meta_attributes>
    <primitive id="repl" class="ocf" provider="replicator" type="volume">
     <instance_attributes id="repl-parameters">$(parameter repl config "$T/pbx.toml")</instance_attributes>
     <operations>
      $(operation repl start 0s 60s) $(operation repl stop 0s 60s) $(operation repl promote 0s 60s) $(operation repl demote 0s 60s)
      $(operation repl notify 0s 20s)
      $(operation repl monitor 3s 20s 'role="Promoted" on-fail="demote"') $(operation repl monitor 4s 20s 'role="Unpromoted"')
     </operations>
    </primitive>
   </clone>
   <group id="pbx">
    <primitive id="disk" class="ocf" provider="replicator" type="nbd">
     <instance_attributes id="disk-parameters">
      $(parameter disk volume data) $(parameter disk socket /run/replicator/nbd.sock) $(parameter disk device /run/host/disk)
     </instance_attributes>
     <operations>$(operation disk start 0s 40s) $(operation disk stop 0s 40s) $(operation disk monitor 10s 20s)</operations>
    </primitive>
    <primitive id="files" class="ocf" provider="heartbeat" type="Filesystem">
     <instance_attributes id="files-parameters">
      $(parameter files device /run/host/disk) $(parameter files directory /run/pbx) $(parameter files fstype ext4)
     </instance_attributes>
     <operations>$(operation files start 0s 40s) $(operation files stop 0s 40s) $(operation files monitor 10s 20s)</operations>
    </primitive>
    <primitive id="address" class="ocf" provider="heartbeat" type="IPaddr2">
     <instance_attributes id="address-parameters">
      $(parameter address ip $vip) $(parameter address cidr_netmask 24) $(parameter address nic eth0) $(parameter address arp_count 2)
     </instance_attributes>
     <operations>$(operation address start 0s 20s) $(operation address stop 0s 20s) $(operation address monitor 10s 20s)</operations>
    </primitive>
    <primitive id="service" class="ocf" provider="heartbeat" type="anything">
     <instance_attributes id="service-parameters">
      $(parameter service binfile /usr/bin/python3)
      $(parameter service cmdline_options "$here/cluster.py serve /run/pbx/lines $vip $port")
      $(parameter service pidfile /run/service.pid)
     </instance_attributes>
     <operations>$(operation service start 0s 20s) $(operation service stop 0s 20s) $(operation service monitor 5s 20s)</operations>
    </primitive>
   </group>
  </resources>
  <constraints>
   <rsc_colocation id="with-promoted" score="INFINITY" rsc="pbx" with-rsc="ms_repl" with-rsc-role="Promoted"/>
   <rsc_order id="after-promotion" kind="Mandatory" first="ms_repl" first-action="promote" then="pbx" then-action="start"/>
  </constraints>
  <rsc_defaults><meta_attributes id="defaults">$(parameter defaults resource-stickiness 100)</meta_attributes></rsc_defaults>
 </configuration>
 <status/>
</cib>
END

# on NODE COMMAND...: runs it on that host
on() {
    local n=$1
    shift
    nsenter -t "$(cat "$T/$n/init")" -m -u -i -n -p -- "$@"
}

# Powers a host on: its first process, then its cable.
power_on() {
    local n=$1 i=$2
    rm -f "$T/$n/host/ready" "$T/$n/host/disk" "$T/$n/init"
    setsid env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root TERM=dumb \
        unshare --mount --uts --ipc --pid --net --fork --kill-child "$here/cluster-node.sh" "$n" "$i" "$T" "$bin" \
        > "$T/$n.log" 2>&1 < /dev/null &
    power[$n]=$!
    at_end "kill -KILL ${power[$n]}"
    wait_for 20 "$n boots" test -e "$T/$n/host/ready"
    pgrep -P "${power[$n]}" > "$T/$n/init"
    ip -n "$switch" link add "p$i" type veth peer name eth0 netns "$(cat "$T/$n/init")" || die "no cable for $n"
    ip -n "$switch" link set "p$i" master br0 up
}

# Cuts it: everything on the host is gone at once, its addresses too, and what the kernel held for it.
power_off() {
    local n=$1 i=$2 loop
    loop=$(readlink "$T/$n/host/disk")
    kill -KILL "$(cat "$T/$n/init")"
    ip -n "$switch" link del "p$i" 2> /dev/null
    wait "${power[$n]}" 2> /dev/null
    unset "power[$n]"
    [ -z "$loop" ] || losetup -d "$loop" 2> /dev/null
}

online() {
    local n=$1 count
    count=$(on "$n" crm_mon -1 --output-as=xml 2> /dev/null | xmllint --xpath 'count(//nodes/node[@online="true"])' - 2> /dev/null)
    [ "$count" = "$2" ]
}

# Who is promoted, by what the cluster says on a host.
promoted() {
    on "$1" crm_mon -1 --output-as=xml 2> /dev/null |
        xmllint --xpath 'string(//resource[@id="repl" and (@role="Promoted" or @role="Master")]/node/@name)' - 2> /dev/null
}

answered() { wc -l < "$T/answered"; }
goes_on() { [ "$(answered)" -gt "$1" ]; }
whole_again() { on "$1" repl-fence --config "$T/pbx.toml" status > "$T/fences" 2> /dev/null && ! grep -q FENCED' ' <(tail -n +2 "$T/fences") && online "$1" 3; }

for i in 1 2 3; do
    n=${names[i - 1]}
    mkdir -p "$T/$n"/{host,data,etc/corosync,var/lib/corosync,var/log/{corosync,pacemaker,crmsh}} "$T/$n"/var/lib/pacemaker/{blackbox,cib,cores,pengine}
    cp "$T/corosync.conf" "$T/$n/etc/corosync/"
    cp "$T/cib.xml" "$T/$n/var/lib/pacemaker/cib/"
    chmod 600 "$T/$n/var/lib/pacemaker/cib/cib.xml"
    chown -R hacluster:haclient "$T/$n/var/lib/pacemaker" "$T/$n/var/log/pacemaker"
    "$bin/replctl" --config <(sed "s|/run/replicator|$T/$n/run|" "$T/pbx.toml") --node "$n" create || die "create of $n"
done
say "three hosts boot"
for i in 1 2 3; do power_on "${names[i - 1]}" $i; done
at_end "for h in \"\${!power[@]}\"; do loop=\$(readlink $T/\$h/host/disk); kill -KILL \$(cat $T/\$h/init); losetup -d \"\$loop\"; done; sleep 0.5"
first=${names[0]}
say "the disk is promoted for the first time, and gets its file system"
for n in "${names[@]}"; do wait_for 30 "$n answers" on "$n" replctl --config "$T/pbx.toml" status > /dev/null 2>&1; done
on "$first" replctl --config "$T/pbx.toml" promote || die "the first promotion"
on "$first" sh -c "mkdir /run/first && nbdfuse /run/first/disk 'nbd+unix:///data?socket=/run/replicator/nbd.sock' & sleep 1; mkfs.ext4 -q -F -b 4096 /run/first/disk; code=\$?; fusermount3 -u /run/first; wait; exit \$code" || die "mkfs"
wait_for 10 "it is demoted" on "$first" replctl --config "$T/pbx.toml" demote
for n in "${names[@]}"; do touch "$T/$n/host/join"; done
wait_for 60 "all hosts are in the cluster" online "$first" 3

ip netns exec "$switch" /usr/bin/python3 "$here/cluster.py" write $port "$T/answered" $vip &
writer=$!
at_end "kill $writer"
touch "$T/answered"
wait_for 60 "the service is there" goes_on 20
say "the service answers, on $(promoted "$first")"
on "$first" crm_verify -L -V || die "the cluster's configuration"

say "the configuration in docs/pacemaker.md is one"
sed '/^```$/,/^```$/!d; /^```/d' "$here/../../docs/pacemaker.md" > "$T/page.crm"
cat > "$T/page.xml" << END
<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0">
 <configuration><crm_config/><nodes/><resources/><constraints/></configuration><status/>
</cib>
END
on "$first" env CIB_file="$T/page.xml" crm -F configure load update "$T/page.crm" > "$T/page.log" 2>&1 || die "the page's configuration"
! grep -i error "$T/page.log" || die "the page's configuration has errors"
on "$first" crm_verify -x "$T/page.xml" -V || die "the page's configuration is not valid"
[ "$(grep -c '<primitive' "$T/page.xml")" = 5 ] || die "the page's resources are not all there"

for ((round = 1; round <= rounds; round++)); do
    for n in "${names[@]}"; do
        active=$(promoted "$n") && [ -n "$active" ] && break
    done
    i=1
    while [ "${names[i - 1]}" != "$active" ]; do i=$((i + 1)); done
    other=${names[i % 3]}
    before=$(answered)
    goes_well() { goes_on $((before + 100)); }
    wait_for 30 "lines are answered" goes_well
    say "the power of $active is cut, after $(answered) lines"
    power_off "$active" $i
    before=$(answered)
    wait_for 60 "another host goes on" goes_on $((before + 20))
    say "$(promoted "$other") goes on"
    power_on "$active" $i
    wait_for 60 "$active is back, and not fenced any more" whole_again "$other"
done
kill $writer
wait $writer 2> /dev/null
printf '?\n' | ip netns exec "$switch" timeout 10 /usr/bin/python3 -c '
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as server:
    server.sendall(b"?\n")
    sys.stdout.buffer.write(server.makefile("rb").read())' $vip $port > "$T/lines" || die "the service does not answer"
/usr/bin/python3 "$here/cluster.py" check "$T/answered" "$T/lines" || die "lines are lost"
