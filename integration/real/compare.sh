#!/bin/bash
# The comparison with other servers, as short as it can be: three nodes and QEMU's quorum mirror do one job, and what scripts rely on is in
# the JSON. No figure is judged here.
. "$(dirname "$0")/lib.sh"
need fio qemu-nbd python3
fio --enghelp 2> /dev/null | grep -qw nbd || skip "fio was built without ioengine=nbd"
scratch

cd "$here/../.." || die "no workspace"
cargo side-by-side -- --quick --no-memory --dir "$T" --volume-mib 32 --system repld-3 --system qemu-quorum \
    --job randwrite-4k-qd32-flush --json "$T/results.json" --svg "$T/chart.svg" > "$T/page.md" 2> "$T/side-by-side.log" ||
    die "cargo side-by-side"
python3 - "$T/results.json" << 'P' || die "the JSON is not as promised"
import json, sys
results = json.load(open(sys.argv[1]))
runs = {(run["system"], run["job"]): run for run in results["runs"]}
assert not results["skipped"], results["skipped"]
for system in ("repld-3", "qemu-quorum"):
    run = runs[system, "randwrite-4k-qd32-flush"]
    assert run["iops"] > 0 and run["mean_us"] > 0 and run["durable"] is True, run
    assert len(run["processes"]) == 3 and run["cpu_us_per_op"] > 0, run
P
python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$T/chart.svg" || die "the chart is no XML"
grep -q '^| 4 KiB random write, depth 32, a flush after each | repld, three nodes | ' "$T/page.md" || die "no row in the page"
[ -z "$(ls -d "$T"/sbs-* 2> /dev/null)" ] || die "it left something behind"
say "both did the job; JSON, page and chart are there"
