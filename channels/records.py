"""The record layer, sans I/O: one message becomes a sealed header, its meta, and records of its payload.

    header   16 bytes + tag    >Q payload bytes, >I meta bytes, >B kind, >B padded, 2 zero bytes
    meta     as said + tag     absent when empty
    payload  records of `record` bytes + tag each, the last shorter; absent when empty. Below FEW records' worth they
             are of PIECE bytes at most, so that one is on its way while the next is sealed

The header is sealed, not clear with its tag after the payload: it opens before anything is allocated. The nonce is
each direction's record counter and never travels, so a record that is changed, repeated, dropped or out of order does
not open. Every 2**16 records the key is replaced by a one-way step, and no key passes `LIMIT`.

Opening ends in the memory the caller will own: out of a wire's read-ahead where a record lies there, else in place,
where record k is read to offset k * record and the next one overwrites its tag. AEADs leave unauthenticated plaintext
behind when they refuse a record, so on any failure the destination is wiped and the key is dropped; there is no
resynchronising.

Padding, where asked for, is PADME (Nikitin et al. 2019, PURBs): at most 12 % more bytes, and only O(log log n) bits
of the length remain visible.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from sys import getrefcount
from typing import Any, NamedTuple, Protocol

import numpy as np
from cryptography.exceptions import InvalidTag

from channels.errors import ChannelDead, IntegrityError, KeyExhausted, MessageTooLarge
from channels.noise import Secretive
from channels.primitives import TAG, Aead, Buffer, Cipher

HEADER = struct.Struct(">QIBB2x")
RECORD = 1 << 20  # bytes of plaintext in a full record
REKEY_EVERY = 1 << 16  # records; with 1 MiB records 2**32 AES blocks a key
LIMIT = 1 << 48  # records, ever, in one direction of one channel
DROPPED = -1  # where a dropped key ends: before every counter
MAX_META = 1 << 20
MAX_MESSAGE = 4 << 30
ALIGNMENT = 64
PIECE, FEW = 1 << 18, 4  # bytes; records
SMALL = 4096  # bytes of scratch to begin with
SLACK = HEADER.size + 3 * TAG  # what sealing adds to a message of one record
OWN = 16  # channels of a process that each keep what they seal large messages in
KEEP, KEEP_BYTES = 64, 17 << 20  # how many received buffers a process keeps for another use, and how large ones
KEEP_IN_ALL = 128 << 20  # bytes
FREE = 3  # references to a kept buffer that nobody uses: ours, the loop's variable's, and the question's own


class Kind(IntEnum):
    """What a header announces."""

    DATA = 0
    CLOSE = 1
    HELLO = 2  # a handshake's last word: it proves the keys before anything is trusted to them


KINDS = tuple(Kind)
EMPTY = memoryview(bytearray())
_frame = tuple.__new__  # a NamedTuple's own way is twice as slow


class Frame(NamedTuple):
    """A received message: `payload` is writable memory of its own, starting at a multiple of 64 bytes."""

    meta: bytes
    payload: memoryview


Opened = tuple[Kind, Frame]
NOTHING: Opened = Kind.DATA, Frame(b"", EMPTY)


@dataclass(frozen=True)
class Limits:
    """What both sides of a channel agreed on: record size in bytes, and the largest message and meta taken."""

    record: int = RECORD
    max_message: int = MAX_MESSAGE
    max_meta: int = MAX_META

    def check(self, payload: int, meta: int) -> None:
        """Raise MessageTooLarge where a message of so many bytes is above them."""
        if payload > self.max_message or meta > self.max_meta:
            most = f"{self.max_message} and {self.max_meta}"
            raise MessageTooLarge(f"a message of {payload} bytes and {meta} of meta; at most {most}")


DEFAULT_LIMITS = Limits()


def sealed_bytes(meta: int, payload: int, *, record: int = RECORD) -> int:
    """How many bytes a message of so many bytes is on the wire, unpadded."""
    records = -(-payload // record_bytes(payload, record))
    return HEADER.size + TAG + (meta + TAG if meta else 0) + payload + records * TAG


def record_bytes(payload: int, record: int) -> int:
    """How many bytes of plaintext each record of a payload holds, where `record` is what both sides agreed on."""
    return record if payload >= FEW * record else min(record, PIECE)


def padme(length: int) -> int:
    """The padded length: all but the top log2(log2(length)) + 1 bits of the length are rounded up."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def aligned(length: int) -> memoryview:
    """Fresh writable memory, not zeroed, starting at a multiple of 64 bytes."""
    raw = np.empty(length + ALIGNMENT, np.uint8).data
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % ALIGNMENT
    return raw[start : start + length]


class Warm:
    """Memory for what is received: a buffer whose last holder has let go serves again, warm and already paged in.

    Whoever holds any view of a buffer, or an array over one, holds a reference to it, so one that only this object
    refers to is free. Few and small enough ones are kept; all else is fresh. All channels of a process share one, so
    that hundreds of them keep no more than a few do; a channel that ends has all of them wiped and let go.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._kept: dict[int, list[tuple[np.ndarray[Any, Any], int]]] = {}  # length -> buffer, its first aligned byte
        self._ages: deque[int] = deque()  # the lengths of all that is kept, the oldest first
        self._bytes = 0

    def take(self, length: int) -> memoryview:
        """Writable memory of that length, not zeroed, starting at a multiple of 64 bytes."""
        with self._guard:
            for raw, start in self._kept.get(length, ()):
                if getrefcount(raw) == FREE:
                    return raw.data[start : start + length]
        raw = np.empty(length + ALIGNMENT, np.uint8)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(raw.data)) % ALIGNMENT
        if length <= KEEP_BYTES:
            with self._guard:
                self._ages.append(length)
                self._kept.setdefault(length, []).append((raw, start))
                self._bytes += length
                while len(self._ages) > KEEP or self._bytes > KEEP_IN_ALL:
                    self._let_go()
        return raw.data[start : start + length]

    def forget(self) -> None:
        """Wipe what nobody holds, and keep nothing: what its receiver still holds is then the receiver's alone."""
        with self._guard:
            while self._ages:
                self._let_go()

    def _let_go(self) -> None:
        """Of the oldest."""
        length = self._ages.popleft()
        kept = self._kept[length]
        for raw, _ in kept[:1]:
            if getrefcount(raw) == FREE:
                raw[:] = 0
        del kept[0]
        if not kept:
            del self._kept[length]
        self._bytes -= length


WARM = Warm()
BORROWED = Warm()  # what is sealed in where many channels send
_few = threading.Semaphore(OWN)


def flat(buffer: Buffer) -> memoryview:
    """Its bytes, as one line; raises TypeError where they are not contiguous."""
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 and view.c_contiguous else view.cast("B")


_living: weakref.WeakSet[RecordKeys] = weakref.WeakSet()


def forget_in_children(keys: RecordKeys) -> None:
    """Have a forked child drop these: a copied counter would reuse nonces, a copied stream interleave."""
    _living.add(keys)


def _drop_all() -> None:
    for keys in list(_living):
        keys.drop("this process was forked; a channel stays with the process that made it")
    WARM.__init__()  # type: ignore[misc]  # what another process received, behind a lock that another thread may hold


os.register_at_fork(after_in_child=_drop_all)


class RecordKeys(Protocol):
    """What seals and opens one direction's records."""

    tag: int  # bytes a record grows by
    records: int
    rekeys: int

    def seal(self, plaintext: Buffer, out: memoryview) -> None: ...
    def seal_two(self, first: Buffer, first_out: memoryview, second: Buffer, second_out: memoryview) -> None: ...
    def open(self, record: memoryview, out: memoryview) -> None: ...
    def drop(self, why: str) -> None: ...


class Keys(Secretive):
    """One direction's key, its record counter, its renewal, and its end; every nonce serves one record."""

    __slots__ = ("__weakref__", "_aead", "_cipher", "_key", "_nonce", "_until", "_why", "records", "rekeys", "tag")

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        self.tag = TAG
        self._cipher, self._nonce, self._key, self._why = cipher, cipher.nonce, key, ""
        self._aead: Aead = cipher.new(key)
        self._until = REKEY_EVERY
        self.records = self.rekeys = 0
        forget_in_children(self)

    def seal(self, plaintext: Buffer, out: memoryview) -> None:
        """Seal the next record into `out`, which is TAG bytes longer; raises KeyExhausted or ChannelDead."""
        n = self.records
        if n >= self._until:
            self._turn(n)
        self.records = n + 1
        self._aead.encrypt_into(self._nonce(0, n), plaintext, None, out)

    def seal_two(self, first: Buffer, first_out: memoryview, second: Buffer, second_out: memoryview) -> None:
        """Seal the next two records at once: what `seal` does twice."""
        n, nonce, seal = self.records, self._nonce, self._aead.encrypt_into
        if n + 1 >= self._until:
            self.seal(first, first_out)
            self.seal(second, second_out)
            return
        self.records = n + 2
        seal(nonce(0, n), first, None, first_out)
        seal(nonce(0, n + 1), second, None, second_out)

    def open(self, record: memoryview, out: memoryview) -> None:
        """Open the next record; raises IntegrityError, leaving what must be wiped in `out`, or as `seal`."""
        n = self.records
        if n >= self._until:
            self._turn(n)
        self.records = n + 1
        try:
            self._aead.decrypt_into(self._nonce(0, n), record, None, out)
        except InvalidTag:
            raise IntegrityError(f"record {n} did not open") from None

    def _turn(self, n: int) -> None:
        """A new key, by a one-way step: yesterday's traffic stays shut to whoever learns today's key."""
        if self._until == DROPPED:
            raise ChannelDead(self._why)
        if n >= LIMIT:
            self.drop("its key is exhausted")
            raise KeyExhausted(f"{LIMIT} records in one direction of one channel")
        self.rekeys += 1
        self._key = hmac.digest(self._key, b"secsplit rekey" + self.rekeys.to_bytes(8, "big"), "sha256")
        self._aead = self._cipher.new(self._key)
        self._until += REKEY_EVERY

    def drop(self, why: str) -> None:
        """Forget the key for good; the first reason stays."""
        self._why = self._why or why
        self._until, self._key = DROPPED, b""
        self._aead = self._cipher.new(bytes(32))  # never used: `_until` is below every counter


class Sealer:
    """Turns messages into sealed bytes, in a scratch of about one record; nothing is copied that need not be."""

    def __init__(self, keys: RecordKeys, limits: Limits = DEFAULT_LIMITS, *, pad: bool = False) -> None:
        self.keys, self.limits, self._pad = keys, limits, pad
        self._short = min(limits.record, PIECE, limits.max_message)  # what surely is one record, and may be sent
        self._little = limits.max_meta
        self._scratch = memoryview(bytearray(SMALL))
        self._head = self._scratch[: HEADER.size + keys.tag]

    def seal(self, kind: int, meta: bytes, payload: Sequence[Buffer] = ()) -> Iterable[memoryview]:
        """Pieces to write in order, each valid until the next is asked for; raises MessageTooLarge before sealing."""
        if len(payload) == 1 and not self._pad:
            view = flat(payload[0])
            length, extra = len(view), len(meta)
            if length <= self._short and extra <= self._little and length + extra + SLACK <= len(self._scratch):
                return (self._whole(kind, meta, view),)
        views = [view for buffer in payload if len(view := flat(buffer))]
        total = sum(map(len, views))
        self.limits.check(total, len(meta))
        return self._pieces(kind, meta, views, total)

    def _whole(self, kind: int, meta: bytes, view: memoryview) -> memoryview:
        """A message of at most one record, that fits the scratch: what `_pieces` makes of it, without its loops."""
        out, head, keys, tag = self._scratch, self._head, self.keys, self.keys.tag
        announced, at = HEADER.pack(len(view), len(meta), kind, 0), len(head)
        middle = at + len(meta) + tag if meta else at
        end = middle + len(view) + tag if view else middle
        if meta and view:
            keys.seal_two(announced, head, meta, out[at:middle])
            keys.seal(view, out[middle:end])
        elif meta or view:
            keys.seal_two(announced, head, meta or view, out[at:end])
        else:
            keys.seal(announced, head)
        return out[:end]

    def _pieces(self, kind: int, meta: bytes, views: list[memoryview], total: int) -> Iterator[memoryview]:
        room = self._scratch
        if total + len(meta) + SLACK > len(room) <= SMALL:
            room = self._large()
        size, seal, tag = (
            record_bytes(padme(total) if self._pad else total, self.limits.record),
            self.keys.seal,
            self.keys.tag,
        )
        scratch = out = room[: SMALL + size + tag]  # one record a piece, and what comes before it
        at = HEADER.size + tag
        seal(HEADER.pack(total, len(meta), kind, self._pad), out[:at])
        if self._pad:
            meta, total = meta.ljust(padme(len(meta)), b"\0"), padme(total)
        if meta:
            if (end := at + len(meta) + tag) > len(out):
                yield out[:at]
                at, end = 0, len(meta) + tag
                out = out if end <= len(out) else memoryview(bytearray(end))
            seal(meta, out[at:end])
            at = end
        for length, parts in _records(views, total, size):
            if (end := at + length + tag) > len(out):
                yield out[:at]
                out, at, end = scratch, 0, length + tag
            seal(_gather(parts, length, out[at:end]), out[at:end])
            at = end
        yield out[:at]

    def _large(self) -> memoryview:
        """A scratch for whole records: kept where few have one, else borrowed for one message."""
        length = SMALL + self.limits.record + self.keys.tag
        if not _few.acquire(blocking=False):
            return BORROWED.take(length)
        weakref.finalize(self, _few.release).atexit = False
        self._scratch = aligned(length)  # a page touched costs; most never are
        self._head = self._scratch[: HEADER.size + self.keys.tag]
        return self._scratch


def _records(views: list[memoryview], total: int, size: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Cut the concatenation of the views, with zeros up to `total`, into records: (length, parts) each."""
    if total <= size:
        if total:
            yield total, views
        return
    waiting, start = iter(views), 0
    view = next(waiting, None)
    for begin in range(0, total, size):
        length = min(size, total - begin)
        parts, missing = [], length
        while missing and view is not None:
            part = view[start : start + missing]
            parts.append(part)
            missing -= len(part)
            start += len(part)
            if start == len(view):
                view, start = next(waiting, None), 0
        yield length, parts


def _gather(parts: list[memoryview], length: int, out: memoryview) -> memoryview:
    """The one part itself where it is the whole record; else the parts and zeros, copied to where they are sealed."""
    if len(parts) == 1 and len(parts[0]) == length:
        return parts[0]
    at = 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    out[at:length] = bytes(length - at)
    return out[:length]


class Opener:
    """Turns sealed bytes into messages. It asks for bytes by yielding memory to fill; the caller does the reading.

    Or the caller sends in other memory that holds as many bytes already: they are opened from there.
    """

    def __init__(self, keys: RecordKeys, limits: Limits = DEFAULT_LIMITS) -> None:
        self.keys, self.limits = keys, limits
        self._header = memoryview(bytearray(HEADER.size + keys.tag))
        self._plain = self._header[: HEADER.size]
        self._warm = WARM

    def open(self) -> Generator[memoryview, memoryview | None, Opened]:
        """One message: fill each memory yielded, entirely; the message is the generator's value. Raises as below."""
        going = self.messages()
        try:
            step = next(going)
            while isinstance(step, memoryview):
                step = going.send((yield step))
            return step
        finally:
            going.close()

    def messages(self) -> Generator[memoryview | Opened, memoryview | None, None]:
        """Message after message: fill each memory yielded, entirely; a message is yielded when it is whole.

        Raises IntegrityError or MessageTooLarge, once; then, and whenever the caller gives up after a header, all that
        was written is wiped and the key is gone. A message that was yielded is the caller's alone.
        """
        keys, limits, header, plain = self.keys, self.limits, self._header, self._plain
        tag, most, most_meta, take = keys.tag, limits.max_message, limits.max_meta, self._warm.take
        one = min(limits.record, PIECE)  # what surely is one record
        holding: list[memoryview] = []
        while True:
            here = yield header
            try:
                keys.open(here or header, plain)
                total, meta_length, kind, padded = HEADER.unpack(plain)
                if kind or padded or total > most or meta_length > most_meta:
                    self._judge(total, meta_length, kind, padded)
                meta, wire = b"", padme(total) if padded else total
                if meta_length:
                    record = memoryview(bytearray((padme(meta_length) if padded else meta_length) + tag))
                    holding.append(record)
                    here = yield record
                    keys.open(here or record, record[: len(record) - tag])
                    meta = bytes(record[:meta_length])
                payload = take(wire + tag) if wire else EMPTY
                holding.append(payload)
                if 0 < wire <= one:
                    here = yield payload
                    keys.open(here or payload, payload[:wire])
                else:
                    size = record_bytes(wire, limits.record)
                    for begin in range(0, wire, size):
                        end = min(begin + size, wire)
                        record = payload[begin : end + tag]
                        here = yield record
                        keys.open(here or record, payload[begin:end])
            except BaseException:
                for memory in holding:
                    np.frombuffer(memory, np.uint8)[:] = 0
                self.keys.drop("a message did not arrive whole and authentic")
                raise
            message = KINDS[kind], _frame(Frame, (meta, payload[:total]))
            holding.clear()
            payload = record = here = EMPTY  # nothing here keeps alive what its receiver, or a wire, has let go
            yield message
            message = NOTHING

    def _judge(self, total: int, meta_length: int, kind: int, padded: int) -> None:
        """Raise where a header asks for what it must not."""
        if kind >= len(KINDS) or padded > 1:
            raise IntegrityError(f"unknown message kind {kind}", fault="peer", fix="run the same release on both sides")
        self.limits.check(total, meta_length)
