# Requests of a client that keeps to no rule, through libnbd with its checks switched off. For tools.sh.
import errno, os, threading, nbd

SOCKET = os.environ["NBD_SOCKET"]
SIZE = 64 << 20


def connect(structured=True, context=True, export="db"):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if context:
        h.add_meta_context("base:allocation")
    h.set_export_name(export)
    h.connect_unix(SOCKET)
    return h


def fails(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in expected, f"{call} {args}: {error}"
        return error
    raise AssertionError(f"{call} {args} succeeded")


INVAL, NOSPC, OVERFLOW = [errno.EINVAL], [errno.ENOSPC], [errno.EOVERFLOW]

for structured in (True, False):
    h = connect(structured)
    assert h.get_structured_replies_negotiated() == structured
    assert h.can_meta_context("base:allocation") == structured
    assert h.can_df() == structured
    assert h.can_cache() and h.can_fast_zero() and h.can_fua() and h.can_multi_conn()

    # Past the end, at the end, and about nothing.
    for offset, length in ((SIZE - 511, 512), (SIZE, 1), (2**63 - 1, 512), (SIZE + 1, 0)):
        data = bytes(length)
        fails(INVAL, h.pread, length, offset)
        fails(NOSPC, h.pwrite, data, offset)
        fails(INVAL, h.trim, length, offset)
        fails(NOSPC, h.zero, length, offset)
        fails(INVAL, h.cache, length, offset)
    h.pwrite(b"", SIZE), h.trim(0, SIZE), h.zero(0, SIZE), h.cache(0, SIZE)
    for length in (2**32 - 1, 2**32 - 512):
        fails(INVAL, h.trim, length, 0)
        fails(NOSPC, h.zero, length, 0)
        fails(INVAL, h.cache, length, 0)

    # Flags of other commands.
    no_hole, df, one, fast = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO
    for flags in (no_hole, one, fast, 1 << 5, 1 << 15):
        fails(INVAL, h.pread, 512, 0, flags)
        fails(INVAL, h.pwrite, bytes(512), 0, flags)
        fails(INVAL, h.flush, flags)
        fails(INVAL, h.trim, 512, 0, flags)
        fails(INVAL, h.cache, 512, 0, flags)
    for flags in (df, one, 1 << 5, 1 << 15):
        fails(INVAL, h.zero, 512, 0, flags)

    # FUA belongs to all of them.
    fua = nbd.CMD_FLAG_FUA
    h.pread(512, 0, fua), h.flush(fua), h.cache(512, 0, fua), h.trim(512, 4096, fua)
    h.pwrite(b"x" * 5000, 4097, fua), h.zero(300, 5000, fua | no_hole | fast)
    assert h.pread(5000, 4097) == b"x" * 903 + bytes(300) + b"x" * 3797

    # Writes and reads of up to 32 MiB are served; a longer write is refused and the connection goes on.
    for length in (32 << 20, (32 << 20) - 1):
        data = os.urandom(length)
        h.pwrite(data, 1)
        assert h.pread(length, 1) == data
    for length in ((32 << 20) + 1, (32 << 20) + 512):
        fails(INVAL, h.pwrite, bytes(length), 0)
        fails(INVAL, h.pread, length, 0)
    assert h.pread(1, 1) == data[:1]

    if not structured:
        fails(INVAL, h.pread, 512, 0, df)
        continue
    error = fails(NOSPC, h.pwrite, b"x", SIZE)
    for length in (1, 65536, 1 << 20):
        assert h.pread(length, 1, df) == data[:length]
    fails(OVERFLOW, h.pread, (1 << 20) + 1, 0, df)

    # Chunks of a read cover it exactly, and holes are zeroes.
    h.zero(1 << 20, 1 << 20), h.pwrite(b"y", (1 << 20) + 70000)
    seen = []
    buf = h.pread_structured(3 << 20, 4095, lambda part, at, status, error: seen.append((at, bytes(part), status)) or 0)
    at = 4095
    for offset, part, status in sorted(seen):
        assert offset == at and status in (nbd.READ_DATA, nbd.READ_HOLE)
        at += len(part)
    assert at == 4095 + (3 << 20) and any(s == nbd.READ_HOLE for _, _, s in seen)
    assert buf == h.pread(3 << 20, 4095)

    def status(length, offset, flags=0):
        extents = []
        h.block_status(length, offset, lambda name, at, entries, error: extents.extend(entries) or 0, flags)
        pairs = list(zip(extents[::2], extents[1::2]))
        assert pairs and all(n > 0 for n, _ in pairs)
        return pairs

    # What was written is no hole, whatever of it is still in the journal; zeroes read as zeroes.
    h.zero(1 << 20, 8 << 20), h.pwrite(b"z", (8 << 20) + 8192), h.zero(4096, (8 << 20) + 16384, no_hole)
    got = status(1 << 20, 8 << 20)
    at = 0
    for length, flags in got:
        assert not (at <= 8192 < at + length) or flags == 0, got
        assert at + length <= 1 << 20
        if flags & 2:
            assert not any(h.pread(length, (8 << 20) + at))
        at += length
    assert [n for n, _ in status(1 << 20, 8 << 20, one)] == [8192]
    assert status(1, SIZE - 1)[0][0] == 1 and status(SIZE, 0)
    for offset, length in ((SIZE, 1), (0, SIZE + 1), (0, 2**32 - 1), (2**63 - 512, 512), (0, 0)):
        fails(INVAL, h.block_status, length, offset, lambda *_: 0)
    for flags in (df, no_hole, fast, 1 << 5):
        fails(INVAL, h.block_status, 512, 0, lambda *_: 0, flags)
    # Without the context there is no status, and the connection goes on.
    plain = connect(context=False)
    fails(INVAL + [errno.ENOTSUP], plain.block_status, 512, 0, lambda *_: 0)
    plain.pread(1, 0)
    plain.shutdown()
    h.shutdown()

# Many connections at once: each writes its own part, then sees what the others have written.
handles = [connect() for _ in range(8)]


def work(n):
    for i in range(64):
        handles[n].pwrite(bytes([n * 8 + i % 8 + 1]) * 4096, (n * 64 + i) * 4096)


threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
handles[0].flush()
for h in handles:
    data = h.pread(8 * 64 * 4096, 0)
    for n in range(8):
        for i in range(64):
            at = (n * 64 + i) * 4096
            assert data[at : at + 4096] == bytes([n * 8 + i % 8 + 1]) * 4096
    h.shutdown()

# Names that are not there, and the negotiation goes on after each.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(SOCKET)
names = []
assert h.opt_list(lambda name, text: names.append(name) or 0) == 2 and names == ["db", "recordings"]
for name in ("", "DB", "x" * 256, "x" * 4096):
    h.set_export_name(name)
    try:
        h.opt_info()
        raise AssertionError(name)
    except nbd.Error as error:
        assert error.errnum in (errno.ENOENT, errno.EINVAL, errno.ENOTSUP), error
h.set_export_name("recordings")
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == 48 << 20
h.opt_abort()
