#!/bin/bash
# The metrics of a Primary and of a Secondary, read by Prometheus' own strict parser of its newer format, by
# the one of its older format, and by promtool where that is installed.
. "$(dirname "$0")/lib.sh"
need /usr/bin/python3
/usr/bin/python3 -c 'import prometheus_client' 2> /dev/null || skip "no prometheus_client for Python"
scratch

METRICS="$T/%n.metrics" cluster 16MiB db=16MiB recordings=16MiB
promote pbx-a

cat > "$T/read.py" << 'END'
"""read.py SOCKET: reads the page in both formats and compares what they say; prints the older one."""
import socket, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families as classic

def get(accept):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(sys.argv[1])
        s.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        data = b""
        while part := s.recv(65536):
            data += part
    head, body = data.split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head, head
    return head.decode(), body.decode()

head, new = get("application/openmetrics-text; version=1.0.0")
assert "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8" in head, head
head, old = get("*/*")
assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head, head
families = [[f for f in parse(text)] for parse, text in ((strict, new), (classic, old))]
for one, other in zip(*families):
    assert (one.name, one.type) == (other.name, other.type), (one, other)
    assert one.documentation and {s.name for s in one.samples} == {s.name for s in other.samples}, (one, other)
assert len(families[0]) == len(families[1]) > 40, len(families[0])
assert all(f.name.startswith("repld_") for f in families[0])
assert all(f.name.endswith("_" + f.unit) for f in families[0] if f.unit)
print(old, end="")
print(f"{len(families[0])} families, {sum(len(f.samples) for f in families[0])} samples", file=sys.stderr)
END

for n in pbx-a pbx-b; do
    /usr/bin/python3 "$T/read.py" "$T/$n.metrics" > "$T/page" 2> "$T/read.log" || die "the page of $n is not what it should be"
    say "$n: $(cat "$T/read.log")"
    if command -v promtool > /dev/null; then
        promtool check metrics < "$T/page" > "$T/promtool.log" 2>&1 || die "promtool does not like the page of $n"
        say "$n: promtool has nothing to say"
    fi
done
