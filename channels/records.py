"""The record layer, sans I/O: one message becomes a sealed header, its meta, and records of its payload.

    header   16 bytes + tag    >Q payload bytes, >I meta bytes, >B kind, >B padded, 2 zero bytes
    meta     as said + tag     absent when empty
    payload  records of `record` bytes + tag each, the last shorter; absent when empty

The header is sealed, not clear with its tag after the payload: it opens before anything is allocated. The nonce is
each direction's record counter and never travels, so a record that is changed, repeated, dropped or out of order does
not open. Every 2**16 records the key is replaced by a one-way step, and no key passes `LIMIT`.

Opening happens in place, in the memory the caller will own: record k is read to offset k * record, and the next one
overwrites its tag. AEADs leave unauthenticated plaintext behind when they refuse a record, so on any failure the
destination is wiped and the key is dropped; there is no resynchronising.

Padding, where asked for, is PADME (Nikitin et al. 2019, PURBs): at most 12 % more bytes, and only O(log log n) bits
of the length remain visible.
"""

from __future__ import annotations

import hmac
import os
import struct
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cryptography.exceptions import InvalidTag

from channels.errors import ChannelDead, IntegrityError, KeyExhausted, MessageTooLarge
from channels.noise import Secretive
from channels.primitives import TAG, Aead, Buffer, Cipher

HEADER = struct.Struct(">QIBB2x")
SEALED_HEADER = HEADER.size + TAG
RECORD = 1 << 20  # bytes of plaintext in a full record
REKEY_EVERY = 1 << 16  # records; with 1 MiB records 2**32 AES blocks a key
LIMIT = 1 << 48  # records, ever, in one direction of one channel
MAX_META = 1 << 20
MAX_MESSAGE = 4 << 30
ALIGNMENT = 64


class Kind(IntEnum):
    """What a header announces."""

    DATA = 0
    CLOSE = 1
    HELLO = 2  # the initiator's first record: it proves the keys before anything is trusted to it


@dataclass(frozen=True, slots=True)
class Frame:
    """A received message: `payload` is writable memory of its own, starting at a multiple of 64 bytes."""

    meta: bytes
    payload: memoryview


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


def padme(length: int) -> int:
    """The padded length: all but the top log2(log2(length)) + 1 bits of the length are rounded up."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def aligned(length: int) -> memoryview:
    """Fresh writable memory, not zeroed, starting at a multiple of 64 bytes."""
    raw = np.empty(length + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw.data[start : start + length]


_living: weakref.WeakSet[KeySchedule] = weakref.WeakSet()


def _drop_all() -> None:
    """In a forked child: a copied counter would reuse nonces, so every inherited key goes."""
    for keys in list(_living):
        keys.drop("this process was forked; a channel stays with the process that made it")


os.register_at_fork(after_in_child=_drop_all)


class KeySchedule(Secretive):
    """One direction's key, its record counter, its renewal, and its end."""

    __slots__ = ("__weakref__", "_aead", "_cipher", "_key", "_why", "records", "rekeys")

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        self._cipher, self._key, self._why = cipher, key, ""
        self._aead: Aead | None = cipher.new(key)
        self.records = self.rekeys = 0
        _living.add(self)

    def next(self) -> tuple[Aead, bytes]:
        """The key and nonce for the next record, each nonce handed out once; raises KeyExhausted or ChannelDead."""
        if self._aead is None:
            raise ChannelDead(self._why)
        n = self.records
        if n and n % REKEY_EVERY == 0:
            self._rekey()
        if n >= LIMIT:
            self.drop("its key is exhausted")
            raise KeyExhausted(f"{LIMIT} records sealed in one direction of one channel")
        self.records = n + 1
        return self._aead, self._cipher.nonce(0, n)

    def _rekey(self) -> None:
        """One way: yesterday's traffic stays shut to whoever learns today's key."""
        self.rekeys += 1
        self._key = hmac.digest(self._key, b"secsplit rekey" + self.rekeys.to_bytes(8, "big"), "sha256")
        self._aead = self._cipher.new(self._key)

    def drop(self, why: str) -> None:
        """Forget the key for good."""
        self._aead, self._key = None, b""
        self._why = self._why or why


class Sealer:
    """Turns messages into sealed bytes, in a scratch of about one record; nothing is copied that need not be."""

    def __init__(self, keys: KeySchedule, limits: Limits = DEFAULT_LIMITS, *, pad: bool = False) -> None:
        self.keys, self.limits, self._pad = keys, limits, pad
        self._scratch = memoryview(bytearray(4096 + limits.record + TAG))

    def seal(self, kind: Kind, meta: Buffer, payload: Sequence[Buffer] = ()) -> Iterator[memoryview]:
        """Pieces to write in order, each valid until the next is asked for; raises MessageTooLarge before sealing."""
        views = [flat for view in payload if (flat := memoryview(view).cast("B"))]
        total, meta = sum(map(len, views)), bytes(meta)
        self.limits.check(total, len(meta))
        return self._pieces(kind, meta, views, total)

    def _pieces(self, kind: Kind, meta: bytes, views: list[memoryview], total: int) -> Iterator[memoryview]:
        out, at = self._scratch, 0
        at += self._seal(HEADER.pack(total, len(meta), kind, self._pad), out[at:])
        if self._pad:
            meta = meta.ljust(padme(len(meta)), b"\0")
        if meta:
            if at + len(meta) + TAG > len(out):
                yield out[:at]
                out, at = memoryview(bytearray(max(len(out), len(meta) + TAG))), 0
            at += self._seal(meta, out[at:])
        for length, parts in _records(views, padme(total) if self._pad else total, self.limits.record):
            if at + length + TAG > len(out):
                yield out[:at]
                out, at = self._scratch, 0
            at += self._seal(_gather(parts, length, out[at:]), out[at:])
        yield out[:at]

    def _seal(self, plaintext: Buffer, out: memoryview) -> int:
        aead, nonce = self.keys.next()
        length = memoryview(plaintext).nbytes + TAG
        return aead.encrypt_into(nonce, plaintext, None, out[:length])


def _records(views: list[memoryview], total: int, size: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Cut the concatenation of the views, with zeros up to `total`, into records: (length, parts) each."""
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
    """Turns sealed bytes into messages. It asks for bytes by yielding memory to fill; the caller does the reading."""

    def __init__(self, keys: KeySchedule, limits: Limits = DEFAULT_LIMITS) -> None:
        self.keys, self._limits = keys, limits
        self._header = bytearray(SEALED_HEADER)

    def open(self) -> Generator[memoryview, None, tuple[Kind, Frame]]:
        """One message: fill each memory yielded, entirely; the message is the generator's value.

        Raises IntegrityError or MessageTooLarge, once; then, and whenever the caller gives up half way, all that was
        written is wiped and the key is gone.
        """
        holding: list[memoryview] = []
        started = False
        try:
            header = memoryview(self._header)
            yield header
            started = True
            total, meta_length, kind, padded = self._parse(header)
            meta = memoryview(bytearray((padme(meta_length) if padded else meta_length) + TAG if meta_length else 0))
            if meta:
                holding.append(meta)
                yield meta
                self._open(meta)
            wire = padme(total) if padded else total
            payload = aligned(wire + TAG if wire else 0)
            holding.append(payload)
            for begin in range(0, wire, self._limits.record):
                record = payload[begin : min(begin + self._limits.record, wire) + TAG]
                yield record
                self._open(record)
        except BaseException:
            if started:
                for memory in holding:
                    np.frombuffer(memory, np.uint8)[:] = 0
                self.keys.drop("a message did not arrive whole and authentic")
            raise
        return kind, Frame(bytes(meta[:meta_length]), payload[:total])

    def _parse(self, header: memoryview) -> tuple[int, int, Kind, bool]:
        self._open(header)
        total, meta_length, kind, padded = HEADER.unpack_from(header)
        self._limits.check(total, meta_length)
        if kind > max(Kind) or padded > 1:
            raise IntegrityError(f"unknown message kind {kind}", fault="peer", fix="run the same release on both sides")
        return total, meta_length, Kind(kind), bool(padded)

    def _open(self, record: memoryview) -> None:
        aead, nonce = self.keys.next()
        try:
            aead.decrypt_into(nonce, record, None, record[: len(record) - TAG])
        except InvalidTag:
            raise IntegrityError(f"record {self.keys.records - 1} did not open") from None
