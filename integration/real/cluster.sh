#!/bin/bash
# Three hosts with Corosync and Pacemaker in namespaces, fencing by fence_repl, and on top of the replicated disk what a PBX has: the attached
# device, a file system, PostgreSQL, a recorder, and a virtual IP. Clients outside talk to that address only: one commits numbered rows, one appends to
# recordings; logs are written and prompts are read besides. Fault after fault comes to the hosts; after each all that was answered is
# there, the hosts are whole again without a hand, and the outage is measured and taken apart.
#
#   integration/real/cluster.sh                       each fault of a short list, once
#   integration/real/cluster.sh --faults N [--seed S] N random ones, of all kinds
#   integration/real/cluster.sh --only "NAME..."      these, in this order
#   integration/real/cluster.sh --witness ...         with two hosts that have the data, and a witness as the third
#   integration/real/cluster.sh --hold FILE           none: until FILE is there the cluster is yours to look around in
#   integration/real/cluster.sh --compare N           the median of N power cuts, from the cut to a volume that can be written, beside that of a
#                                                     resource that does nothing, with an address and a power fence
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-hosts.sh
. "$here/cluster-hosts.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-faults.sh
. "$here/cluster-faults.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-compare.sh
. "$here/cluster-compare.sh"

all_faults=(power power-of-dc partition freeze repld corosync controld move others-off all-off flapping catch-up upgrade)
short_list=(power partition freeze repld others-off catch-up)
faults=() hold='' compare=0 count=0 seed=$((RANDOM * 32768 + RANDOM))
witness=
while [ $# -gt 0 ]; do
    case $1 in
        --witness)
            witness=${names[2]}
            shift
            continue
            ;;
        --faults) count=$2 ;;
        --seed) seed=$2 ;;
        --only) read -ra faults <<< "$2" ;;
        --hold) hold=$2 ;;
        --compare) compare=$2 ;;
        *) echo "usage: cluster.sh [--witness] [--faults N [--seed S] | --only \"NAME...\" | --hold FILE | --compare N]" >&2; exit 2 ;;
    esac
    shift 2
done
RANDOM=$((seed % 32768))
data_hosts=("${names[@]}")
if [ -n "$witness" ]; then
    data_hosts=("${names[@]:0:2}")
    # Who is behind can not go on without the only other one.
    all_faults=("${all_faults[@]/catch-up/power}") short_list=("${short_list[@]/catch-up/move}")
fi
if [ ${#faults[@]} = 0 ]; then
    faults=("${short_list[@]}")
    if [ "$count" -gt 0 ]; then
        faults=()
        while [ ${#faults[@]} -lt "$count" ]; do faults+=("${all_faults[RANDOM % ${#all_faults[@]}]}"); done
    fi
fi

need_root
need corosync pacemakerd crm crm_mon crm_resource cibadmin crm_verify crm_standby crmadmin nbdfuse losetup fusermount3 mkfs.ext4 unshare nsenter \
    ip bridge arping xmllint pcs
[ -e /dev/fuse ] || skip "no /dev/fuse"
[ -x /usr/lib/ocf/resource.d/heartbeat/pgsql ] || skip "no resource agents (package resource-agents)"
pgbin=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -n 1)
[ -n "$pgbin" ] || skip "no PostgreSQL server"
/usr/bin/python3 -c 'import psycopg2, nbd' 2> /dev/null || skip "no psycopg2 or nbd for Python"
unshare --net --mount --pid --fork true 2> /dev/null || skip "no namespaces of one's own here"
scratch
# The database is another user's.
chmod 755 "$T"
vip=10.77.0.100 port=5000
python() { /usr/bin/python3 "$here/cluster.py" "$@"; }

network
make_freezers
[ -n "$freezers" ] || skip "no cgroups that can be frozen"

# The programs and agents, laid over what is installed.
mkdir -p "$T"/usr/sbin "$T"/usr/lib/ocf/resource.d/replicator
cp "$here"/../../tools/ocf/* "$T/usr/lib/ocf/resource.d/replicator/"
cp "$bin"/repl{ctl,-fence} "$here/../../tools/reset-when-fenced" "$T/usr/sbin/"
ln -s repl-fence "$T/usr/sbin/fence_repl"
# Pacemaker tells when something happened.
cat > "$T/usr/sbin/cluster-alert" << 'END'
#!/bin/sh
case $CRM_alert_kind in
    node) what=$CRM_alert_desc ;;
    # "Operation off of HOST by ..."
    fencing) what=${CRM_alert_desc#Operation } && what=${what%% *} ;;
    resource) what=${CRM_alert_rsc%%:*}:$CRM_alert_task ;;
    *) exit 0 ;;
esac
printf '%s.%06d %s %s %s rc=%s took=%s\n' "$CRM_alert_timestamp_epoch" "$CRM_alert_timestamp_usec" "$CRM_alert_kind" "$what" "$CRM_alert_node" "$CRM_alert_rc" \
    "${CRM_alert_exec_time:-}" >> /run/host/alerts
END
[ "$compare" = 0 ] || make_power_fence
chmod 755 "$T"/usr/sbin/*

{
    echo 'resource = "pbx"'
    for i in 1 2 3; do
        printf '\n[[node]]\nname = "%s"\naddress = "%s.%d:7789"\ndata_dir = "%s/%%n/data"\nrun_dir = "/run/replicator"\n' \
            "${names[i - 1]}" $net $i "$T"
        [ "${names[i - 1]}" != "$witness" ] || echo 'role = "witness"'
    done
    printf '\n[[volume]]\nname = "data"\nsize = "640MiB"\n\n[[volume]]\nname = "probe"\nsize = "4MiB"\n\n[journal]\nsize = "64MiB"\n'
    # All disks are one disk, and it has others to serve.
    printf '\n[policy]\nmemory = "96MiB"\ndisk_timeout_ms = 30000\n\n[tls]\ninsecure = true\n'
} > "$T/pbx.toml"
{
    echo "127.0.0.1 localhost"
    for i in 1 2 3; do echo "$net.$i ${names[i - 1]}"; done
} > "$T/hosts"
{
    printf 'totem {\n  version: 2\n  cluster_name: pbx\n  transport: knet\n  token: 1000\n  token_coefficient: 0\n'
    printf '  crypto_cipher: none\n  crypto_hash: none\n}\nsystem {\n  sched_rr: yes\n  move_to_root_cgroup: no\n}\n'
    printf 'logging {\n  to_stderr: no\n  to_syslog: no\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n  timestamp: hires\n}\n'
    printf 'quorum {\n  provider: corosync_votequorum\n}\nnodelist {\n'
    for i in 1 2 3; do
        printf '  node {\n    name: %s\n    nodeid: %d\n    ring0_addr: %s.%d\n  }\n' "${names[i - 1]}" $i $net $i
    done
    echo '}'
} > "$T/corosync.conf"

cat > "$T/cluster.crm" << END
primitive fence stonith:fence_repl params config=$T/pbx.toml \
    meta provides=unfencing op monitor interval=30s timeout=20s
primitive repl ocf:replicator:volume params config=$T/pbx.toml \
    op start timeout=60s interval=0s op stop timeout=60s interval=0s op promote timeout=60s interval=0s op demote timeout=60s interval=0s \
    op notify timeout=20s interval=0s \
    op monitor interval=3s role=Promoted timeout=20s on-fail=demote op monitor interval=4s role=Unpromoted timeout=20s
clone ms_repl repl meta promotable=true promoted-max=1 clone-max=${#data_hosts[@]} notify=true interleave=true
primitive disk ocf:replicator:nbd params volume=data device=/run/host/disk socket=/run/replicator/nbd.sock \
    op start timeout=40s interval=0s op stop timeout=40s interval=0s op monitor interval=3s timeout=20s
primitive files Filesystem params device=/run/host/disk directory=/run/pbx fstype=ext4 \
    op start timeout=40s interval=0s op stop timeout=40s interval=0s op monitor interval=10s timeout=20s
primitive db pgsql params pgctl=$pgbin/pg_ctl psql=/usr/bin/psql pgdata=/run/pbx/pg socketdir=/run/postgresql logfile=/run/pbx/pg.log \
    stop_escalate=5 \
    op start timeout=60s interval=0s op stop timeout=20s interval=0s op monitor interval=5s timeout=20s
primitive recorder anything params binfile=/usr/bin/python3 cmdline_options="$here/cluster.py serve /run/pbx 0.0.0.0 $port" pidfile=/run/recorder.pid \
    op start timeout=20s interval=0s op stop timeout=20s interval=0s op monitor interval=5s timeout=20s
primitive address IPaddr2 params ip=$vip cidr_netmask=24 nic=eth0 arp_count=2 \
    op start timeout=20s interval=0s op stop timeout=20s interval=0s op monitor interval=5s timeout=20s
group pbx disk files db recorder address
colocation with_promoted inf: pbx ms_repl:Promoted
order after_promotion Mandatory: ms_repl:promote pbx:start
alert trace "/usr/sbin/cluster-alert"
property stonith-enabled=true stonith-timeout=30s no-quorum-policy=freeze fence-reaction=panic dc-deadtime=2s cluster-recheck-interval=60s
rsc_defaults resource-stickiness=200 multiple-active=stop_unexpected failure-timeout=60s
END
[ -z "$witness" ] || cat >> "$T/cluster.crm" << END
location no_data_there ms_repl resource-discovery=never -inf: $witness
location no_service_there pbx resource-discovery=never -inf: $witness
END
[ "$compare" = 0 ] || compared_resources >> "$T/cluster.crm"

empty_cib() {
    echo '<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0">
        <configuration><crm_config/><nodes/><resources/><constraints/></configuration><status/></cib>'
}

# made FILE: the configuration in crm's words, as Pacemaker has it
made() {
    empty_cib > "$1.xml"
    on "$first" env CIB_file="$1.xml" crm -F configure load update "$1" > "$1.log" 2>&1 || die "the configuration $1"
    ! grep -i error "$1.log" || die "the configuration $1 has errors"
    on "$first" crm_verify -x "$1.xml" -V || die "the configuration $1 is not valid"
}

say "three hosts boot; seed $seed"
at_end "all_off"
for n in "${names[@]}"; do
    mkdir -p "$T/$n"/{host,data,etc/corosync,var/lib/corosync,var/log/{corosync,pacemaker,crmsh}} "$T/$n"/var/lib/pacemaker/{blackbox,cib,cores,pengine}
    cp "$T/corosync.conf" "$T/$n/etc/corosync/"
    "$bin/replctl" --config <(sed "s|/run/replicator|$T/$n/run|" "$T/pbx.toml") --node "$n" create || die "create of $n"
    installed "$n"
    power_on "$n"
done
first=${names[0]}
for n in "${names[@]}"; do wait_for 30 "$n answers" on "$n" replctl --config "$T/pbx.toml" status > /dev/null 2>&1; done
say "the disk is promoted for the first time, and gets its file system and database"
on "$first" replctl --config "$T/pbx.toml" promote || die "the first promotion"
on "$first" sh -ec "
    mkdir /run/first
    nbdfuse -P /run/first.pid /run/first/disk 'nbd+unix:///data?socket=/run/replicator/nbd.sock' &
    until [ -s /run/first.pid ]; do sleep 0.05; done
    mkfs.ext4 -q -F -b 4096 /run/first/disk
    loop=\$(losetup -f --show /run/first/disk)
    mount \$loop /run/pbx
    mkdir /run/pbx/prompts
    /usr/bin/python3 $here/cluster.py prompts /run/pbx/prompts
    install -d -o postgres -m 700 /run/pbx/pg
    install -o postgres /dev/null /run/pbx/pg.log
    runuser -u postgres -- $pgbin/initdb -D /run/pbx/pg -A trust -k --wal-segsize=4 --no-instructions
    echo 'host all all $net.0/24 trust' >> /run/pbx/pg/pg_hba.conf
    printf '%s\n' \"listen_addresses = '*'\" \"unix_socket_directories = '/run/postgresql'\" 'shared_buffers = 32MB' \
        'max_wal_size = 48MB' 'checkpoint_timeout = 30s' 'max_connections = 200' 'authentication_timeout = 5s' >> /run/pbx/pg/postgresql.conf
    runuser -u postgres -- $pgbin/pg_ctl -D /run/pbx/pg -l /run/pbx/pg.log -w start
    runuser -u postgres -- psql -h /run/postgresql -qc 'create table calls (n bigint primary key, note text)' postgres
    runuser -u postgres -- $pgbin/pg_ctl -D /run/pbx/pg -w stop
    umount /run/pbx
    losetup -d \$loop
    fusermount3 -u /run/first
    wait" > "$T/first.log" 2>&1 || die "the file system and the database"
wait_for 60 "it is demoted" on "$first" replctl --config "$T/pbx.toml" demote
made "$T/cluster.crm"
for n in "${names[@]}"; do
    cp "$T/cluster.crm.xml" "$T/$n/var/lib/pacemaker/cib/cib.xml"
    chmod 600 "$T/$n/var/lib/pacemaker/cib/cib.xml"
    chown -R hacluster:haclient "$T/$n/var/lib/pacemaker" "$T/$n/var/log/pacemaker"
    touch "$T/$n/host/join"
done

touch "$T/rows" "$T/recordings"
ip netns exec "$switch" /usr/bin/python3 "$here/cluster.py" rows $vip "$T/rows" > "$T/rows.log" 2>&1 &
at_end "kill $!"
ip netns exec "$switch" /usr/bin/python3 "$here/cluster.py" recordings $vip $port "$T/recordings" > "$T/recordings.log" 2>&1 &
at_end "kill $!"
wait_for 90 "all hosts are in the cluster, and serve" settled
say "rows and recordings are answered by $(active)"
on "$first" crm_verify -L -V || die "the cluster's configuration"

if [ -n "$hold" ]; then
    for n in "${names[@]}"; do echo "$n: nsenter -t $(cat "$T/$n/init") -m -u -i -n -p"; done
    echo "outside: ip netns exec $switch"
    until [ -e "$hold" ]; do revive; sleep 0.5; done
    exit
fi

if [ "$compare" != 0 ]; then
    compare "$compare"
    exit
fi

for fault in "${faults[@]}"; do under "$fault"; done

say "everything is stopped"
for n in "${names[@]}"; do on "$n" crm_standby -N "$n" -v on || die "standby of $n"; done
nobody_serves() { ! active > /dev/null && [ "$(for n in "${data_hosts[@]}"; do status_json "$n"; done | grep -o '"committed": *[0-9]*' | sort -u | wc -l)" = 1 ]; }
wait_for 60 "nobody serves, and all know what is committed" nobody_serves
for n in "${names[@]}"; do
    touch "$T/$n/host/halt"
    on "$n" pkill -TERM -x repld
    wait_for 30 "repld of $n has stopped" test -e "$T/$n/host/halted"
done
for n in "${data_hosts[@]:1}"; do
    for volume in data probe; do cmp "$T/$first/data/$volume.img" "$T/$n/data/$volume.img" || die "the stores differ"; done
done
python epochs "$T"/*/host/events || die "two Primaries in an epoch"
! cat "$T"/*/host/wrong 2> /dev/null || die "prompts were read wrongly"
say "the outages, from answer to answer as the client that commits rows sees them; $resets hosts reset themselves:"
python summary "$T/outages"
