"""What runs on a cluster that fails over, who uses it from outside, and who judges.

prompts DIRECTORY                       makes the prompts that are played
serve DIRECTORY ADDRESS PORT            the recorder: keeps recordings, durably, and answers; logs and prompts besides
rows ADDRESS NOTES                      a client outside: commits numbered rows without end, notes which were answered, and when
recordings ADDRESS PORT NOTES           another one: appends to one recording after the other, notes what was answered
check ADDRESS PORT ROWS RECORDINGS      whether all that was answered is there, by asking the service; old recordings are removed then
outage FAULT AT ROWS RECORDINGS ALERTS...     the outage that followed a fault, and its parts
writable AT SOCKET...                   how long after that moment a volume behind one of these NBD sockets takes a write
answers AT ADDRESS                      how long after it an address answers again
medians OURS THEIRS                     two lists of such times side by side
epochs FILE...                          whether each epoch had one Primary at most, by the hosts' own events
summary FILE                            the distribution of the outages, for each kind of fault
"""

import errno
import json
import os
import random
import select
import socket
import statistics
import sys
import threading
import time
import zlib

import nbd
import psycopg2
import psycopg2.extensions

CHUNK_BYTES = 8192
RECORDING_BYTES = 32 * CHUNK_BYTES
PROMPT_BYTES = 65536


def pattern(name, start, end):
    """The bytes of a recording, or of a prompt: they follow from its name, so that each can be judged by itself."""
    seed, first, last = zlib.crc32(name.encode()), start // 16, (end + 15) // 16
    words = b"".join(b"%08x%08d" % (seed, word) for word in range(first, last))
    return words[start - first * 16 : end - first * 16]


# --- On the active host.


def besides(directory):
    """Logs are written, prompts are read, as a PBX does; a prompt that is not what it was is told to the host."""
    log = open(os.path.join(directory, "log"), "a+b", buffering=0)
    prompts = os.path.join(directory, "prompts")
    while True:
        name = random.choice(os.listdir(prompts))
        with open(os.path.join(prompts, name), "rb") as prompt:
            # From the disk, not from the cache.
            os.posix_fadvise(prompt.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if prompt.read() != pattern(name, 0, PROMPT_BYTES):
                with open("/run/host/wrong", "a") as wrong:
                    wrong.write("prompt %s\n" % name)
        log.write(b"%.3f played %s\n" % (time.time(), name.encode()))
        if log.tell() > 1 << 20:
            log.truncate(0)
        time.sleep(0.05)


def prompts(directory):
    for number in range(20):
        name = "prompt-%02d" % number
        with open(os.path.join(directory, name), "wb") as prompt:
            prompt.write(pattern(name, 0, PROMPT_BYTES))


def attend(client, directory):
    """One client of the recorder."""
    lines = client.makefile("rb")
    while True:
        verb, name, *rest = lines.readline().decode().split() or ["", ""]
        path = os.path.join(directory, os.path.basename(name))
        if verb == "append":
            chunk = lines.read(int(rest[0]))
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            # Where the client says: an attempt of it that was given up may still be under way.
            os.pwrite(file, chunk, int(rest[1]))
            os.fdatasync(file)
            client.sendall(b"%d\n" % os.fstat(file).st_size)
            os.close(file)
        elif verb == "length":
            client.sendall(b"%d\n" % (os.stat(path).st_size if os.path.exists(path) else 0))
        elif verb == "read":
            with open(path, "rb") as file:
                recording = file.read()
            client.sendall(b"%d\n" % len(recording) + recording)
        elif verb == "remove":
            os.unlink(path)
            client.sendall(b"0\n")
        else:
            return client.close()


def serve(directory, address, port):
    def guarded(function, *arguments):
        try:
            function(*arguments)
        except (ConnectionError, ValueError):
            pass
        except OSError as error:
            # A recorder that can not write is none.
            print(error, file=sys.stderr)
            os._exit(1)

    recordings = os.path.join(directory, "recordings")
    os.makedirs(recordings, exist_ok=True)
    threading.Thread(target=guarded, args=(besides, directory), daemon=True).start()
    listener = socket.create_server((address, int(port)))
    while True:
        client, _ = listener.accept()
        threading.Thread(target=guarded, args=(attend, client, recordings), daemon=True).start()


# --- Outside.


class Recorder:
    """A connection to the recorder."""

    def __init__(self, address, port, timeout_s):
        self.socket = socket.create_connection((address, int(port)), timeout=timeout_s)
        self.answers = self.socket.makefile("rb")

    def ask(self, verb, name, data=b"", offset=0):
        self.socket.sendall(("%s %s %d %d\n" % (verb, name, len(data), offset)).encode() + data)
        answer = self.answers.readline()
        if not answer.endswith(b"\n"):
            raise ConnectionError("the recorder is gone")
        return int(answer)


class Database:
    """A connection to PostgreSQL on which nothing takes longer than it may: a host that is gone says nothing."""

    def __init__(self, address, timeout_s):
        self.timeout_s = timeout_s
        # Whether anybody is there at all shows sooner this way.
        socket.create_connection((address, 5432), timeout=min(0.3, timeout_s)).close()
        self.connection = psycopg2.connect(host=address, user="postgres", dbname="postgres", async_=True)
        self.wait()

    def wait(self):
        end = time.monotonic() + self.timeout_s
        while (state := self.connection.poll()) != psycopg2.extensions.POLL_OK:
            sockets = [self.connection.fileno()]
            reading = state == psycopg2.extensions.POLL_READ
            left = end - time.monotonic()
            if left <= 0 or not any(select.select(sockets if reading else [], [] if reading else sockets, [], left)):
                raise TimeoutError("no answer within %s s" % self.timeout_s)

    def execute(self, statement, values=()):
        """Each statement is a transaction; it is committed when this returns."""
        cursor = self.connection.cursor()
        cursor.execute(statement, values)
        self.wait()
        return cursor


def rows(address, noted):
    number = 0
    with open(noted, "a", buffering=1) as notes:
        while True:
            try:
                database = Database(address, 1)
                while True:
                    # A row that was not answered may be there or not: the next attempt has a number of its own.
                    number += 1
                    database.execute("insert into calls values (%s, repeat(md5(%s::text), 4))", (number, number))
                    notes.write("%d %.3f\n" % (number, time.time()))
                    time.sleep(0.02)
            except (psycopg2.Error, OSError) as error:
                print("%.3f after row %d: %s" % (time.time(), number, error), flush=True)
                time.sleep(0.05)


def recordings(address, port, noted):
    call = 0
    with open(noted, "a", buffering=1) as notes:
        while True:
            try:
                recorder = Recorder(address, port, 1)
                while True:
                    name = "call-%06d" % call
                    length = recorder.ask("length", name)
                    while length < RECORDING_BYTES:
                        chunk = pattern(name, length, min(length + CHUNK_BYTES, RECORDING_BYTES))
                        length = recorder.ask("append", name, chunk, length)
                        notes.write("%s %d %.3f\n" % (name, length, time.time()))
                        time.sleep(0.05)
                    call += 1
            except OSError as error:
                print("%.3f in call %d: %s" % (time.time(), call, error), flush=True)
                time.sleep(0.05)


def noted_lines(path):
    """What was noted; the last line may be half there."""
    with open(path) as notes:
        return [line.split() for line in notes if line.endswith("\n")]


def check(address, port, rows_noted, recordings_noted):
    answered = {int(line[0]) for line in noted_lines(rows_noted)}
    there = dict(Database(address, 30).execute("select n, note = repeat(md5(n::text), 4) from calls").fetchall())
    missing = answered - set(there)
    if missing:
        sys.exit("%d of %d answered rows are missing: %s" % (len(missing), len(answered), sorted(missing)[:10]))
    if not all(there.values()):
        sys.exit("rows have other contents: %s" % [n for n, right in there.items() if not right][:10])

    lengths = {}
    for name, length, _ in noted_lines(recordings_noted):
        lengths[name] = max(lengths.get(name, 0), int(length))
    removed_path = recordings_noted + ".removed"
    removed = set(open(removed_path).read().split()) if os.path.exists(removed_path) else set()
    recorder = Recorder(address, port, 30)
    judged_bytes = 0
    for name in sorted(set(lengths) - removed):
        recording = recorder.answers.read(recorder.ask("read", name))
        if len(recording) < lengths[name]:
            sys.exit("%s has %d bytes, %d were answered" % (name, len(recording), lengths[name]))
        if recording != pattern(name, 0, len(recording)):
            right = pattern(name, 0, len(recording))
            wrong = [at for at in range(0, len(right), 16) if right[at : at + 16] != recording[at : at + 16]]
            sys.exit("%s has other bytes, from %d to %d of %d" % (name, wrong[0], wrong[-1] + 16, len(recording)))
        judged_bytes += lengths[name]
        if lengths[name] == RECORDING_BYTES:
            recorder.ask("remove", name)
            with open(removed_path, "a") as notes:
                notes.write(name + "\n")
    print("%d rows and %d KiB of recordings were answered, and are there" % (len(answered), judged_bytes >> 10))


# --- Judges.


def gap(times, after):
    """The longest pause between answers that ends after a moment."""
    pairs = [(b - a, a, b) for a, b in zip(times, times[1:]) if b > after]
    return max(pairs, default=(0, after, after))


def outage(fault, at, rows_noted, recordings_noted, *alerts):
    at = float(at)
    pause, begin, end = gap([float(line[1]) for line in noted_lines(rows_noted)], at)
    recordings_pause, _, recordings_end = gap([float(line[2]) for line in noted_lines(recordings_noted)], at)
    # It may have been served in between.
    begin = max(at, begin)
    events = []
    for path in alerts:
        for time_s, kind, what in (line[:3] for line in noted_lines(path) if len(line) >= 3):
            if begin <= float(time_s) <= end:
                events.append((float(time_s), kind, what))
    events.sort()

    def last(kind, *names, before=end):
        return max((t for t, k, what in events if k == kind and what in names and t <= before), default=None)

    lost = next((t for t, kind, what in events if kind == "node" and what == "lost"), None)
    # What Pacemaker does first tells when it knew, where no host was lost.
    first = next((t for t, kind, what in events if kind == "resource"), None)
    promoted = last("resource", "repl:promote")
    started = next((t for t, kind, what in events if what.endswith(":start")), end)
    stops = [name + ":stop" for name in ("address", "recorder", "db", "files", "disk")]
    points = [
        ("detect", lost or first),
        ("fence", last("fencing", "off", "reboot", before=promoted or end)),
        ("stop", last("resource", "repl:demote", *stops, before=promoted or started)),
        ("promote", promoted),
        ("attach and mount", last("resource", "disk:start", "files:start")),
        ("PostgreSQL", last("resource", "db:start")),
        ("recorder, address", last("resource", "recorder:start", "address:start")),
        ("clients", end),
    ]
    parts, before = [], begin
    for name, time_s in points:
        if time_s is not None and time_s >= before:
            parts.append((name, round(time_s - before, 2)))
            before = time_s
    result = {"fault": fault, "rows_s": round(pause, 2), "recordings_s": round(recordings_pause, 2), "parts": parts}
    print(json.dumps(result))


def until_a_moment_after(at):
    # Whatever was there before is gone then.
    time.sleep(max(0, float(at) + 0.3 - time.time()))


def writable(at, *sockets):
    until_a_moment_after(at)
    while True:
        for path in sockets:
            client = nbd.NBD()
            client.set_export_name("probe")
            try:
                client.connect_unix(path)
                client.pwrite(os.urandom(4096), 0, nbd.CMD_FLAG_FUA)
                return print("%.2f" % (time.time() - float(at)))
            except nbd.Error:
                time.sleep(0.01)


def answers(at, address):
    until_a_moment_after(at)
    while True:
        with socket.socket() as probe:
            probe.settimeout(0.1)
            # Nobody listens there: a refusal is the host's answer.
            if probe.connect_ex((address, 9)) == errno.ECONNREFUSED:
                return print("%.2f" % (time.time() - float(at)))
        time.sleep(0.01)


def medians(ours, theirs):
    lists = [sorted(float(line) for line in open(path)) for path in (ours, theirs)]
    for name, times in zip(("a volume can be written", "a resource that does nothing answers"), lists):
        print("%s after %.2f s in the median of %d, %.2f to %.2f" % (name, statistics.median(times), len(times), times[0], times[-1]))
    print("the difference of the medians is %.2f s" % (statistics.median(lists[0]) - statistics.median(lists[1])))


def epochs(*files):
    primaries = {}
    for path in files:
        state = {}
        for line in open(path):
            try:
                event = json.loads(line)
            except ValueError:
                # The host lost its power in the middle of it.
                continue
            if event["what"] != "resource":
                continue
            if event["kind"] == "exists":
                state = {}
            state.update(event["changes"])
            if state.get("role") == "Primary":
                primaries.setdefault(state["epoch"], set()).add(path)
    double = {epoch: sorted(hosts) for epoch, hosts in primaries.items() if len(hosts) > 1}
    if double:
        sys.exit("epochs with two Primaries: %s" % double)
    print("%d epochs, one Primary each" % len(primaries))


def summary(path):
    by_fault = {}
    for line in open(path):
        result = json.loads(line)
        by_fault.setdefault(result["fault"], []).append(result)
    for fault, results in sorted(by_fault.items()):
        times = sorted(result["rows_s"] for result in results)
        parts = {}
        for result in results:
            for name, time_s in result["parts"]:
                parts.setdefault(name, []).append(time_s)
        made_of = ", ".join("%s %.1f" % (name, statistics.median(values)) for name, values in parts.items())
        print("%-16s %3d times: %5.1f s median, %.1f to %.1f; medians of its parts: %s"
              % (fault, len(times), statistics.median(times), times[0], times[-1], made_of))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {
        "prompts": prompts,
        "serve": serve,
        "rows": rows,
        "recordings": recordings,
        "check": check,
        "outage": outage,
        "writable": writable,
        "answers": answers,
        "medians": medians,
        "epochs": epochs,
        "summary": summary,
    }[verb](*rest)
