#!/bin/bash
# The first process of a node of the cluster in cluster.sh, in namespaces of its own: a host as far as Corosync and Pacemaker can see. When
# it is killed, so is everything on that host.
#
#   cluster-node.sh NAME NUMBER DIRECTORY DAEMON PROGRAMS      the last two are directories

set -u
name=$1 number=$2 dir=$3 daemon=$4 programs=$5
# A host that resets itself ends this, and is booted anew by who watches its power.
trap 'exit 0' USR1

mount --make-rprivate /
mount -t proc proc /proc
# A host that was fenced resets itself. Here that must end this host, and never the machine below: what is left to Pacemaker is the
# system call, which ends the namespace.
for switch in /proc/sysrq-trigger /proc/sys/kernel/sysrq; do
    [ ! -e $switch ] || mount --bind /dev/null $switch || exit 1
done
mount -t tmpfs -o mode=755,size=64m tmpfs /run
mount -t tmpfs -o mode=1777,size=256m tmpfs /dev/shm
for place in etc/corosync var/lib/corosync var/lib/pacemaker var/log; do
    mount --bind "$dir/$name/$place" "/$place"
done
mount --bind "$dir/hosts" /etc/hosts
mkdir -p /run/lock /run/resource-agents /run/crm /run/host /run/pbx /run/postgresql
chown postgres /run/postgresql
mount --bind "$dir/$name/host" /run/host
touch /run/host/alerts
chown hacluster:haclient /run/crm /run/host/alerts && chmod 750 /run/crm
# The agents and the programs are there as if they were installed; nothing on the machine is touched.
mount -t overlay -o "ro,lowerdir=$dir/usr/sbin:/usr/sbin" overlay /usr/sbin
mount -t overlay -o "ro,lowerdir=$dir/usr/lib/ocf:/usr/lib/ocf" overlay /usr/lib/ocf
hostname "$name"
ip link set lo up
# The cable comes when the switch sees this.
echo ready > /run/host/ready
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip address add "10.77.0.$number/24" dev eth0
ip link set eth0 up

# What systemd does elsewhere: the daemon runs whatever the cluster thinks.
(
    until [ -e /run/host/halt ]; do
        "$daemon/repld" --config "$dir/pbx.toml" --node "$name" >> /var/log/repld.log 2>&1
        sleep 1
    done
    touch /run/host/halted
) &
# What it does is noted, for the judge.
while true; do
    "$programs/replctl" --config "$dir/pbx.toml" --node "$name" events --json >> /run/host/events 2> /dev/null
    sleep 0.05
done &
reset-when-fenced "$dir/pbx.toml" kill -USR1 1 > /var/log/reset.log 2>&1 &
# The cluster comes once the disk has its file system.
until [ -e /run/host/join ]; do sleep 0.1; done
# Both are started again when they fail, as docs/pacemaker.md wants it of systemd; Pacemaker not when it was told to stop.
while true; do
    corosync -f > /var/log/corosync.out 2>&1
    sleep 1
done &
code=1
while [ $code != 0 ] && [ $code != 100 ]; do
    until corosync-cfgtool -s > /dev/null 2>&1; do sleep 0.05; done
    PCMK_logfile=/var/log/pacemaker/pacemaker.log PCMK_logfacility=none PCMK_debug=no pacemakerd > /var/log/pacemakerd.out 2>&1 &
    wait $!
    code=$?
    sleep 1
done
sleep infinity &
wait
