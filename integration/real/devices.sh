#!/bin/bash
# Journals and stores on block devices, as where they are logical volumes: a volume grows with its devices, under load and on all nodes
# or on none; volumes come and go; a node is away for longer than the journal reaches back; one is made anew with what its device
# holds as the seed. What was on a device before is nobody's data: it is never read, and never overwritten unasked.
. "$(dirname "$0")/lib.sh"
need nbdcopy fio nbdinfo losetup
need_root
fio --enghelp 2> /dev/null | grep -qw nbd || skip "fio was built without ioengine=nbd"
scratch

DEVICES=$T/dev
mkdir "$DEVICES"
declare -A loops=()
free_loops() { local l; for l in "${loops[@]}"; do losetup -d "$l"; done; }
at_end free_loops

# device NODE NAME SIZE: a blank one
device() {
    local file=$T/$1-$2.disk
    truncate -s "$3" "$file"
    loops[$1-$2]=$(losetup -f --show "$file" 2> "$T/losetup.log") || skip "no loop devices: $(cat "$T/losetup.log")"
    ln -s "${loops[$1-$2]}" "$DEVICES/$1-$2"
}
# grow NODE NAME MIB: what it gets was somebody else's
grow() {
    local file=$T/$1-$2.disk old
    old=$(stat -c %s "$file")
    head -c $(($3 * 1048576 - old)) /dev/urandom >> "$file"
    losetup -c "${loops[$1-$2]}" || die "losetup -c"
}
# refused CODE TEXT VERB...: on the Primary
refused() {
    local code=$1 text=$2
    shift 2
    ctl pbx-a "$@" > "$T/refused" 2>&1
    [ $? = "$code" ] || die "$*: not $code: $(cat "$T/refused")"
    grep -qF -- "$text" "$T/refused" || die "$*: it does not say $text: $(cat "$T/refused")"
}
size_of() { nbdinfo --size "$(uri pbx-a "$1")"; }
# same VOLUME MIB: all nodes' devices hold the same
same() {
    local n
    for n in pbx-b pbx-c; do
        cmp -n $(($2 * 1048576)) "$DEVICES/pbx-a-$1" "$DEVICES/$n-$1" || die "the devices of $1 differ"
    done
}
everybody() { local n; for n in pbx-b pbx-c; do wait_for 60 "$n has caught up" caught_up "$n" pbx-a; done; }

for n in "${names[@]}"; do
    device "$n" journal 32M
    device "$n" db 48M
done
cluster 32MiB db=48MiB
for n in "${names[@]}"; do
    [ ! -e "$T/$n/data/db.img" ] && [ ! -e "$T/$n/data/journal" ] || die "$n has files in place of its devices"
done
promote pbx-a

fio --name=load --ioengine=nbd --uri="$(uri pbx-a db)" --size=32M --io_size=1G --iodepth=8 --rw=randwrite --bsrange=4k-64k --bs_unaligned=0 \
    --time_based --runtime=600 --rate=20m --verify=crc32c --do_verify=0 --verify_state_save=0 > "$T/fio.log" 2>&1 &
load=$!
at_end "kill $load"
gets_on() {
    local before
    before=$(ctl pbx-a status --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["seq"]["committed"])')
    wait_for 30 "the client gets on" eval \
        '[ "$(ctl pbx-a status --json | /usr/bin/python3 -c "import json, sys; print(json.load(sys.stdin)[\"seq\"][\"committed\"])")" -gt '"$before"' ]'
}
gets_on
refused 1 "pbx-" resize db 80MiB --timeout 5
grow pbx-a db 80
grow pbx-b db 80
refused 1 "pbx-c" resize db 80MiB --timeout 5
[ "$(size_of db)" = $((48 << 20)) ] || die "it grew though pbx-c has no room"
grow pbx-c db 80
ctl pbx-a resize db 80MiB || die "resize"
[ "$(size_of db)" = $((80 << 20)) ] || die "it did not grow"
gets_on
say "a volume grows with its devices, under load, on all nodes or on none"
kill $load
wait $load 2> /dev/null
nbdcopy "$(uri pbx-a db)" "$T/read" || die "nbdcopy"
cmp -n $((32 << 20)) "$T/read" /dev/zero > /dev/null && die "the load wrote nothing"
cmp -i $((48 << 20)) -n $((32 << 20)) "$T/read" /dev/zero || die "what is new does not read as zeroes"
sed -i 's/"48MiB"/"80MiB"/' "$config"

# Somebody's data is recognized where a file system or a partition table would be. What is elsewhere is not, and reads as zeroes.
litter() { head -c 1M /dev/urandom | dd of="$DEVICES/$1-rec" bs=1M seek="$2" conv=notrunc status=none || die "dd"; }
for n in "${names[@]}"; do
    device "$n" rec 32M
    litter "$n" 7
done
litter pbx-c 0
volume_lines rec 32MiB >> "$config"
refused 1 "pbx-c: there is something at the place" add-volume rec --timeout 5
losetup -d "${loops[pbx-c-rec]}" && rm "$T/pbx-c-rec.disk" "$DEVICES/pbx-c-rec"
device pbx-c rec 32M
ctl pbx-a add-volume rec || die "add-volume"
nbdcopy "$(uri pbx-a rec)" "$T/read" || die "nbdcopy"
cmp -n $((32 << 20)) "$T/read" /dev/zero || die "what was on a device before is read"
head -c 32M /dev/urandom > "$T/rec"
nbdcopy --flush "$T/rec" "$(uri pbx-a rec)" || die "nbdcopy"
say "a volume comes, once its device is blank everywhere"

# More than the journal holds.
everybody
kill9 pbx-c
head -c 80M /dev/urandom > "$T/db"
nbdcopy --flush "$T/db" "$(uri pbx-a db)" || die "nbdcopy"
start pbx-c
everybody
grep -q "past the Primary's journal" "$T/pbx-c.log" || die "the journal held all of it"
say "pbx-c was away for longer than the journal reaches back"

# A new machine, with a device that was carried to it: what it has is compared, and only the rest is brought.
kill9 pbx-c
rm -rf "$T/pbx-c/data"
head -c 4M /dev/urandom | nbdcopy --flush - "$(uri pbx-a rec)" || die "nbdcopy"
ctl pbx-c create > "$T/refused" 2>&1 && die "devices with somebody's data were formatted unasked"
ctl pbx-c create --seed > "$T/refused" 2>&1 && die "a journal that was in use was overwritten unasked"
ctl pbx-c create --seed --wipe || die "create --seed"
start pbx-c
wait_for 30 "pbx-c answers" answers pbx-c
admitted() { echo pbx-c | ctl pbx-a replace pbx-c --timeout 5 2> "$T/refused"; }
wait_for 60 "pbx-c is admitted" admitted
everybody
say "pbx-c was made anew, with its devices as the seed"

wait_for 30 "the clients are gone" no_clients pbx-a
echo rec | ctl pbx-a remove-volume rec || die "remove-volume"
for n in "${names[@]}"; do
    cmp -n $((4 << 20)) "$DEVICES/pbx-a-rec" "$DEVICES/$n-rec" || die "a removed volume's device was touched"
done
refused 1 "there is something at the place" add-volume rec --timeout 5
/usr/bin/python3 - "$config" << 'PY'
import sys
text = open(sys.argv[1]).read()
at = text.index('\n[[volume]]\nname = "rec"')
open(sys.argv[1], "w").write(text[:at])
PY
ctl pbx-a verify > "$T/verify" 2>&1 || die "verify: $(cat "$T/verify")"
stop_all pbx-a
same db 80
cmp -n $((80 << 20)) "$T/db" "$DEVICES/pbx-a-db" || die "the store is not what was written"
for n in "${names[@]}"; do
    ctl "$n" dump --sums --verify > "$T/dump" 2>&1 || die "the stores of $n are not what is recorded: $(grep -v '^ ' "$T/dump" | tail -n 3)"
done
say "devices are equal, and as their checksums say"
