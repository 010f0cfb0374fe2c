#!/bin/bash
# The playbook of docs/pacemaker.md for the day when two of three are gone: the one that is left is promoted by force and has everything that was
# there, and later takes one host with new disks and one that gives its old data up.
. "$(dirname "$0")/lib.sh"
need nbdcopy cmp
scratch
cluster 64MiB data=64MiB
promote pbx-a
head -c 64M /dev/urandom > "$T/image"
nbdcopy "$T/image" "$(uri pbx-a data)" || die "nbdcopy"
wait_for 30 "pbx-b has caught up" caught_up pbx-b pbx-a
kill9 pbx-a
kill9 pbx-c
say "pbx-b alone"
ctl pbx-b promote --timeout 2 2> /dev/null && die "promoted without a majority"
echo pbx | ctl pbx-b promote --force || die "promote --force"
nbdcopy "$(uri pbx-b data)" "$T/back" || die "nbdcopy"
cmp "$T/image" "$T/back" || die "pbx-b has other data"

say "pbx-a is back with new disks, pbx-c with its old ones"
rm -r "$T/pbx-a/data"
ctl pbx-a create || die "create"
start pbx-a
start pbx-c
for n in pbx-a pbx-c; do wait_for 30 "$n answers" answers $n; done
echo pbx | ctl pbx-c invalidate --force --timeout 5 || die "invalidate --force"
# Not before they have found each other.
admitted() { echo "$1" | ctl pbx-b replace "$1" 2> "$T/replace.log"; }
for n in pbx-a pbx-c; do wait_for 60 "$n is admitted" admitted $n; done
stop_cleanly pbx-b
say "all three are one resource again, and equal"
