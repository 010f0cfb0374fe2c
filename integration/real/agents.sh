#!/bin/bash
# The resource agents and the fence agent by themselves: their metadata by the schemas of OCF, of pcs and of the fence agents; what ocf-tester and ocft
# ask of agents, against a real cluster of repld; and the configurations in docs/pacemaker.md, by Pacemaker's own check.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# With mounts of its own: the agents are laid over what is installed, for as long as this runs.
[ -n "${AGENTS_NAMESPACE:-}" ] || [ "$(id -u)" != 0 ] || AGENTS_NAMESPACE=1 exec unshare --mount -- "$here/agents.sh" "$@"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
need_root
need ocf-tester ocft xmllint nbdfuse losetup fusermount3 crm crm_resource crm_verify pcs
[ -e /usr/lib/ocf/lib/heartbeat/ocf-shellfuncs ] || skip "no resource agents (package resource-agents)"
[ -e /dev/fuse ] || skip "no /dev/fuse"
scratch
agents=$(realpath "$here/../../tools/ocf")
dtd=/usr/share/resource-agents/ra-api-1.dtd
ocf_rng=/usr/share/pcs/data/ocf-1.1.rng
fence_rng=/usr/share/cluster/relaxng/metadata.rng

for agent in volume nbd; do
    # Also for nobody in particular, with nothing in the path.
    env -i PATH=/bin:/usr/bin "$agents/$agent" meta-data > "$T/$agent.xml" || die "$agent has no metadata"
    xmllint --noout "$T/$agent.xml" || die "the metadata of $agent"
    [ ! -e $dtd ] || xmllint --noout --path "$(dirname $dtd)" --valid "$T/$agent.xml" || die "the metadata of $agent are not valid"
    xmllint --noout --nonet --relaxng $ocf_rng "$T/$agent.xml" 2> "$T/rng.log" || die "the metadata of $agent are not those of OCF 1.1"
    name=$(xmllint --xpath 'string(/resource-agent/@name)' "$T/$agent.xml")
    [ "$name" = "$agent" ] || die "$agent calls itself $name"
    env OCF_ROOT=/usr/lib/ocf "$agents/$agent" no-such-action > /dev/null 2>&1
done
ln -s "$(realpath "$bin/repl-fence")" "$T/fence_repl"
echo action=metadata | "$T/fence_repl" > "$T/fence.xml" || die "fence_repl has no metadata"
xmllint --noout --relaxng $fence_rng "$T/fence.xml" || die "the metadata of fence_repl"

# Pacemaker finds them.
mkdir -p "$T/usr/sbin" "$T/usr/lib/ocf/resource.d/replicator" "$T/ocft"
cp "$agents"/* "$T/usr/lib/ocf/resource.d/replicator/"
cp "$bin"/repl{ctl,-fence} "$T/usr/sbin/"
ln -s repl-fence "$T/usr/sbin/fence_repl"
for over in usr/sbin usr/lib/ocf; do
    mount -t overlay -o "ro,lowerdir=$T/$over:/$over" overlay /$over || skip "no overlay on /$over"
done

export PATH=$bin:$PATH
cluster 64MiB data=64MiB
promote pbx-a
ctl pbx-a demote || die "demote"

# As Pacemaker would on a host that has only its own repld; nothing is left of an earlier run.
at_end "rm -rf /run/resource-agents/replicator-*-repl-test*"
say "ocf-tester asks ocf:replicator:volume"
ocf-tester -n repl-test -o config="$config" -o node=pbx-a -o replctl="$(realpath "$bin/replctl")" "$agents/volume" > "$T/volume.log" 2>&1 || die "ocf-tester on volume"
say "and ocf:replicator:nbd"
promote pbx-a
ocf-tester -n repl-test-nbd -o volume=data -o socket="$(socket pbx-a)" -o device="$T/disk" "$agents/nbd" > "$T/nbd.log" 2>&1 || die "ocf-tester on nbd"
# What is taken down may take a moment to be gone.
no_loop() { ! losetup -a | grep -q "$1"; }
no_server() { ! pgrep -f "nbdfuse.*$(socket "$1")" > /dev/null; }
wait_for 20 "the loop device is gone" no_loop "$T"

# The server is killed under the device: that it is gone is noticed, and it can be stopped.
run() {
    local code=0
    env OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=repl-test-nbd OCF_RESKEY_volume=data OCF_RESKEY_socket="$(socket pbx-a)" \
        OCF_RESKEY_device="$T/disk" "$agents/nbd" "$1" >> "$T/nbd.log" 2>&1 || code=$?
    [ $code = "$2" ] || die "$1 of nbd: exit $code, not $2"
}
run start 0
run monitor 0
dd if="$T/disk" of=/dev/null bs=4096 count=1 iflag=direct status=none || die "the device can not be read"
kill9 pbx-a
run stop 0
run monitor 7
run stop 0
say "the same by hand"
by_hand() {
    local code=0
    ctl "$1" "${@:3}" > "$T/by-hand" 2>&1 || code=$?
    [ $code = "$2" ] || die "${*:3}: exit $code, not $2: $(cat "$T/by-hand")"
}
by_hand pbx-b 1 attach --timeout 0 data "$T/disk"
grep -q "can not be promoted\|is not Primary" "$T/by-hand" || grep -q nbdfuse "$T/by-hand" || die "no reason: $(cat "$T/by-hand")"
[ ! -e "$T/disk" ] || die "a device without a server"
promote pbx-b
by_hand pbx-b 2 attach nonsense "$T/disk"
by_hand pbx-b 2 attach --client kernel data "$T/disk"
touch "$T/file"
by_hand pbx-b 1 attach data "$T/file"
by_hand pbx-b 1 attach --check data "$T/disk"
at_end "ctl pbx-b detach --force $T/disk"
by_hand pbx-b 0 attach data "$T/disk"
by_hand pbx-b 0 attach data "$T/disk"
by_hand pbx-b 0 attach --check data "$T/disk"
[ "$(blockdev --getsize64 "$T/disk")" = $((64 << 20)) ] || die "the device has another size"
mkfs.ext4 -q "$T/disk" && mkdir "$T/files" && mount "$T/disk" "$T/files" || die "no file system on it"
at_end "umount -l $T/files"
echo text > "$T/files/text"
by_hand pbx-b 1 detach --timeout 0 "$T/disk"
grep -q "in use by the file system at $T/files" "$T/by-hand" || die "no reason: $(cat "$T/by-hand")"
umount "$T/files"
by_hand pbx-b 0 detach "$T/disk"
by_hand pbx-b 0 detach "$T/disk"
[ ! -e "$T/disk" ] || die "the link is left"
wait_for 20 "the loop device is gone" no_loop "replicator-attached.*volume"
by_hand pbx-b 0 attach data "$T/disk"
mount "$T/disk" "$T/files" && [ "$(cat "$T/files/text")" = text ] || die "the file is not there"
say "whoever still uses it when it is taken away by force gets errors, and nobody waits for that"
by_hand pbx-b 0 detach --force --timeout 2 "$T/disk"
[ ! -e "$T/disk" ] || die "the link is left"
wait_for 20 "nbdfuse is gone" no_server pbx-b
dd if="$T/files/text" of=/dev/null iflag=direct bs=4096 status=none 2> /dev/null && die "a file can be read without its disk"
umount "$T/files" || die "umount"
wait_for 20 "the loop device is gone" no_loop "replicator-attached.*volume"
by_hand pbx-b 0 attach data "$T/disk"
kill9 pbx-b
by_hand pbx-b 0 detach "$T/disk"
# Others may have attached something on this host.
find /run/replicator-attached -name "*${T##*-}*" 2> /dev/null | grep -q . && die "something is left of it"
for n in pbx-a pbx-b; do
    start $n
    wait_for 30 "$n answers" answers $n
done

# validate AGENT CODE OPTION...: what Pacemaker says of parameters before a resource has them
validate() {
    local agent=$1 want=$2 code=0 option options=()
    shift 2
    for option in "$@"; do options+=(--option "$option"); done
    crm_resource --validate --class ocf --provider replicator --agent "$agent" "${options[@]}" > "$T/validate.log" 2>&1 || code=$?
    [ $code = "$want" ] || die "crm_resource --validate of $agent with $*: exit $code, not $want"
}
say "crm_resource asks for the parameters"
replctl=replctl=$(realpath "$bin/replctl")
validate volume 0 config="$config" node=pbx-a "$replctl"
validate volume 2 config="$config" node=nobody "$replctl"
validate volume 5 config=/nonexistent/pbx.toml "$replctl"
validate nbd 0 volume=data socket="$(socket pbx-a)" device="$T/disk"
validate nbd 6 volume=data client=carrier-pigeon

say "ocft asks both, state by state"
mkdir -p /var/lib/resource-agents
at_end "umount /var/lib/resource-agents; rmdir /var/lib/resource-agents"
mount -t tmpfs tmpfs /var/lib/resource-agents || die "a place for ocft"
echo 'nonsense = 1' > "$T/wrong.toml"
for agent in volume nbd; do
    [ $agent = volume ] || promote pbx-a
    sed "s|@PLACE@|$T|; s|@CONFIG@|$config|; s|@NODE@|pbx-a|; s|@REPLCTL@|$(realpath "$bin/replctl")|; s|@SOCKET@|$(socket pbx-a)|" \
        "$here/ocft/$agent" > "$T/ocft/$agent"
    ocft make -d "$T/ocft" $agent > "$T/ocft.log" 2>&1 || die "ocft does not understand the cases of $agent"
    ocft test -v $agent > "$T/ocft.log" 2>&1 || die "ocft on $agent"
    [ "$(grep -c '^Starting ' "$T/ocft.log")" = "$(grep -c '^CASE "' "$here/ocft/$agent")" ] || die "ocft did not ask all of $agent"
    ! grep -q FAILED "$T/ocft.log" || die "ocft on $agent"
done

say "a host resets itself when it was fenced as Primary, and not otherwise"
mkdir "$T/fake"
printf '#!/bin/sh\ncat "$FAKE_EVENTS"\nexec sleep 60\n' > "$T/fake/replctl"
chmod 755 "$T/fake/replctl"
event() { printf '{"time":"-","kind":"%s","what":"%s","name":"pbx","changes":{%s}}\n' "$1" "$2" "$3"; }
# resets WHICH SECONDS: whether those events reset the host, within that time
resets() {
    local watcher
    FAKE_EVENTS=$T/events.$1 PATH=$T/fake:$PATH timeout "$2" "$here/../../tools/reset-when-fenced" none touch "$T/reset.$1" 2> /dev/null &
    watcher=$!
    while [ ! -e "$T/reset.$1" ] && kill -0 $watcher 2> /dev/null; do sleep 0.05; done
    kill $watcher 2> /dev/null
    wait $watcher 2> /dev/null
    [ -e "$T/reset.$1" ]
}
{ event exists resource '"fenced":false,"role":"Primary"'; event change resource '"epoch":4,"fenced":true,"role":"Secondary"'; } > "$T/events.cut"
{ event exists resource '"fenced":false,"role":"Secondary"'; event change resource '"role":"Primary"'; event change resource '"fenced":true'; } > "$T/events.frozen"
{ event exists resource '"fenced":true,"role":"Secondary"'; event change resource '"fenced":true'; } > "$T/events.booted"
{ event exists resource '"fenced":false,"role":"Primary"'; event change peer '"fenced":true'; } > "$T/events.peer"
{ event exists resource '"fenced":false,"role":"Primary"'; event change resource '"role":"Secondary"'; event change resource '"fenced":true'; } > "$T/events.demoted"
for which in cut frozen; do resets $which 20 || die "a host that was $which does not reset itself"; done
for which in booted peer demoted; do ! resets $which 3 || die "a host resets itself: $which"; done

say "the configurations in docs/pacemaker.md are ones"
page=$(realpath "$here/../../docs/pacemaker.md")
# block LANGUAGE NAME: a block of that page
block() { awk -v want='```'"$1${2:+ $2}" '$0 == "```" { on = 0 } on; $0 == want { on = 1 }' "$page"; }
empty() {
    echo '<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0">
        <configuration><crm_config/><nodes/><resources/><constraints/></configuration><status/></cib>' > "$1"
}
primitives() { xmllint --xpath '//primitive/@id' "$1" | tr -d ' ' | sort; }
mkdir -p /run/crm
for name in "" witness awseip topology drbd; do
    cib=$T/crm-$name.xml
    block crm "$name" > "$T/page.crm"
    # A piece has no fence.
    grep -q stonith: "$T/page.crm" || echo 'property stonith-enabled=false' >> "$T/page.crm"
    empty "$cib"
    CIB_file=$cib crm -F configure load update "$T/page.crm" > "$T/page.log" 2>&1 || die "the page's configuration $name, in crm's words"
    # What systemd has is asked of systemd, which may not be here.
    ! grep -i error "$T/page.log" | grep -v "systemd:\|warning:" || die "the page's configuration $name has errors"
    crm_verify -x "$cib" -V > "$T/page.log" 2>&1 || die "the page's configuration $name is not valid"
    [ "$(primitives "$cib" | wc -l)" = "$(grep -c ^primitive "$T/page.crm")" ] || die "the resources of the page's configuration $name are not all there"
done
for name in "" awseip; do
    cib=$T/pcs-$name.xml
    empty "$cib"
    while read -ra words; do
        case ${words[*]} in *systemd:*) words+=(--force) ;; esac
        pcs -f "$cib" "${words[@]:1}" > "$T/page.log" 2>&1 < /dev/null || die "the page's line: ${words[*]}"
    done < <(block pcs "$name")
    [ -z "$name" ] || pcs -f "$cib" property set stonith-enabled=false
    crm_verify -x "$cib" -V > "$T/page.log" 2>&1 || die "the page's configuration $name in pcs's words is not valid"
    [ "$(primitives "$cib")" = "$(primitives "$T/crm-$name.xml")" ] || die "the page's configuration $name is another one in pcs's words"
done
# What that page says of faults is what the cluster test does.
for fault in $(sed -n '/^## What happens when/,/^## /s/^|.*| \(`.*\) |$/\1/p' "$page" | tr -d '`,' | tr ' ' '\n' | grep -v /); do
    grep -q "^fault_${fault//-/_}()" "$here/cluster-faults.sh" || die "docs/pacemaker.md tells of a test $fault that is not there"
done
say "agents done"
