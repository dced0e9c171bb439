"""Fuzz targets for all that reads what a stranger wrote: `python -m fuzz TARGET [options]`.

Coverage-guided by atheris (the `fuzz` extra); options after the target's name are libFuzzer's, such as `-runs=100000`
or `-max_total_time=600`. New inputs go to fuzz/corpus/TARGET, which is kept. Only the errors that each reader declares
may leave it; anything else is a finding. tests/channels/test_fuzz.py plays the kept corpus without atheris.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from channels.circuit import HEAD, Router
from channels.contact import Arriving, Receiving
from channels.errors import ChannelError, KeyFileError
from channels.handshake import NoiseIK
from channels.identity import PublicIdentity
from channels.invite import Invite, Invites
from channels.meeting import Side
from channels.onion import CELL
from channels.pairs import fresh_sides
from channels.primitives import CIPHERS
from channels.records import Frame, Keys, Limits, Opener
from channels.roster import Roster

CORPUS = Path(__file__).parent / "corpus"
_sides: list[Side] = []


def handshake(data: bytes) -> None:
    """A listener hears these bytes first; then, as if they answered it, a dialler does."""
    if not _sides:
        _sides.extend(fresh_sides())
    near, far = _sides
    for conversation in (NoiseIK().respond(far), NoiseIK().initiate(near, far.me.public)):
        at, ask = 0, next(conversation)
        try:
            while at + ask.want <= len(data):
                assert 0 <= ask.want <= 4096, "a stranger made us wait for much"
                ask = conversation.send(data[at : at + ask.want])
                at += ask.want
        except StopIteration:
            raise AssertionError("a stranger was let in") from None
        except ChannelError:
            pass


class AnyInvite:
    """A book in which every number is an open invite: what lies behind that check is reached."""

    def find(self, number: bytes) -> Invite:
        """One and the same."""
        return Invite("x", "-".join(["babab"] * 8), roles=(), expires=1 << 40, secret=bytes(32), guest="", address="")

    def use(self, invite: Invite, newcomer: PublicIdentity) -> None:
        """Nobody proves a key by chance."""
        raise AssertionError("a stranger was let in")


def contact(data: bytes) -> None:
    """A host that awaits an invited newcomer hears these bytes; then, as if they answered it, a newcomer does."""
    if not _sides:
        _sides.extend(fresh_sides())
    near, far = _sides
    book = cast(Invites, AnyInvite())
    for conversation in (Receiving(book).respond(far), Arriving(book.find(b"")).initiate(near)):
        at, ask = 0, next(conversation)
        try:
            while at + ask.want <= len(data):
                assert 0 <= ask.want <= 4096, "a stranger made us wait for much"
                ask = conversation.send(data[at : at + ask.want])
                at += ask.want
        except StopIteration:
            raise AssertionError("a stranger was let in") from None
        except ChannelError:
            pass


def packets(data: bytes) -> None:
    """An enrolled neighbour sends these as onion packets, one cell after the other."""
    me = fresh_sides()[0].me
    router = Router(me, {"x": lambda meta, cell: None}, accepts=True)
    try:
        for at in range(0, len(data), HEAD.size + CELL):
            meta, cell = data[at : at + HEAD.size], data[at + HEAD.size : at + HEAD.size + CELL]
            with contextlib.suppress(ChannelError):
                router.receive("x", Frame(meta, memoryview(cell)))
    finally:
        router.close()


class Transparent:
    """Keys that let everything through, so that the parser behind the seal is reached: an enrolled, hostile peer."""

    tag, records, rekeys = 0, 0, 0

    def seal(self, plaintext: object, out: memoryview) -> None:
        """Never asked for."""

    def open(self, record: memoryview, out: memoryview) -> None:
        """All is authentic."""
        out[:] = record

    def drop(self, why: str) -> None:
        """Nothing to forget."""


def records(data: bytes) -> None:
    """A receiver hears these bytes: under a real key nothing opens; behind an opened seal nothing absurd is done."""
    limits = Limits(record=128, max_message=1 << 16, max_meta=1 << 10)
    for keys in (Keys(CIPHERS["AESGCM"], bytes(32)), Transparent()):
        opener, at, delivered = Opener(keys, limits), 0, 0
        try:
            while at < len(data):
                conversation = opener.open()
                memory = next(conversation)
                try:
                    while at + len(memory) <= len(data):
                        assert len(memory) <= limits.max_meta * 2 + 16, "much memory for one read"
                        here = memoryview(data)[at : at + len(memory)]
                        at += len(memory)
                        if at % 2:  # in place, or out of what was read ahead
                            memory[:] = here
                        memory = conversation.send(None if at % 2 else here)
                    conversation.close()
                    break
                except StopIteration:
                    delivered += 1
        except ChannelError:
            pass
        assert isinstance(keys, Transparent) or not delivered, "a forged record was taken"


def files(data: bytes) -> None:
    """A public identity or a roster, handed over by anybody."""
    text = data.decode(errors="replace")
    for read in (PublicIdentity.loads, lambda text: Roster.loads(text, "anybody")):
        with contextlib.suppress(KeyFileError):
            read(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "handshake": handshake,
    "contact": contact,
    "records": records,
    "packets": packets,
    "files": files,
}
