"""What runs on a cluster that fails over, and who watches it.

serve FILE ADDRESS PORT     the service: appends each line that it is sent to FILE, durably, and answers it; "?" gives the whole file
write PORT LIST ADDRESS     the client outside: sends numbered lines without end, notes in LIST which were answered, and when
check LIST FILE             whether every line that was answered is in the file, once and in order; prints the longest gap
"""

import os
import socket
import sys
import time


def serve(path, address, port):
    log = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    listener = socket.create_server((address, port))
    while True:
        client, _ = listener.accept()
        try:
            client.settimeout(2)
            for line in client.makefile("rb"):
                if line == b"?\n":
                    with open(path, "rb") as whole:
                        client.sendall(whole.read())
                    break
                os.write(log, line)
                os.fdatasync(log)
                client.sendall(line)
        except OSError as error:
            # A file that can not be written any more is no service.
            if not isinstance(error, (socket.timeout, ConnectionError)):
                raise
        finally:
            client.close()


def write(port, noted, address):
    number = 0
    with open(noted, "a", buffering=1) as notes:
        while True:
            try:
                with socket.create_connection((address, port), timeout=0.5) as server:
                    answers = server.makefile("rb")
                    while True:
                        line = b"%d\n" % number
                        # A line that was not answered may be there or not: the next attempt has a number of its own.
                        number += 1
                        server.sendall(line)
                        if answers.readline() != line:
                            break
                        notes.write("%d %.3f\n" % (number - 1, time.monotonic()))
                        time.sleep(0.005)
            except OSError:
                pass
            time.sleep(0.02)


def check(noted, path):
    with open(noted) as notes:
        answered = [line.split() for line in notes]
    with open(path) as log:
        there = [int(line) for line in log]
    if there != sorted(set(there)):
        sys.exit("lines are there twice, or out of order")
    missing = {int(number) for number, _ in answered} - set(there)
    if missing:
        sys.exit("%d of %d answered lines are missing: %s" % (len(missing), len(answered), sorted(missing)[:10]))
    times = [float(at) for _, at in answered]
    gap = max((b - a for a, b in zip(times, times[1:])), default=0)
    print("%d answered, %d there, the longest gap %.1f s" % (len(answered), len(there), gap))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "serve":
        serve(rest[0], rest[1], int(rest[2]))
    elif verb == "write":
        write(int(rest[0]), rest[1], rest[2])
    else:
        check(*rest)
