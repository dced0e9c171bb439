"""Messages that a third party carries and cannot read: sealed where they leave their sender, opened where they arrive.

A party's program never sees an envelope of its own: it sends to, and receives from, the party it means. Its driver's
door seals and opens. The carrier sees that something was handed over, from whom, for whom and how long it is; that is
all its transcript says too, for the bytes themselves are new with every sealing and tell nobody else anything.

The context binds an envelope to the run and to the message's place in it: one kept and delivered again later, or in
another run, does not open.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from channels import Identity, PublicIdentity
from channels.errors import IntegrityError
from channels.sealed import OVERHEAD, open_sealed, seal
from secsplit.errors import PeerError, RunError
from secsplit.message import SEALED, Message
from secsplit.run import Run
from secsplit.wire import decode, encode

_LENGTH = 4  # bytes before the header, saying how long it is


class Envelopes:
    """One party's keys to seal and open with. members: name -> public identity, of those it may write to."""

    def __init__(self, me: Identity, members: Mapping[str, PublicIdentity], digest: bytes) -> None:
        self._me = me
        self._members = members
        self._digest = digest

    def sealed(self, message: Message, to: str) -> Message:
        """The envelope that only `to` can open."""
        meta, buffers = encode(message)
        body = b"".join((len(meta).to_bytes(_LENGTH, "big"), meta, *buffers))
        envelope = seal(body, self._me, self._member(to), context=self._context(message))
        tensor = torch.frombuffer(bytearray(envelope), dtype=torch.uint8)
        return Message(message.kind, message.edge, message.stamp, {SEALED: tensor}, {SEALED: len(tensor)})

    def opened(self, envelope: Message, writer: str) -> Message:
        """The message that `writer` sealed for this party. Raises PeerError where it is not that."""
        tensor = envelope_of(envelope, writer)
        try:
            body = open_sealed(
                tensor.numpy().tobytes(), self._me, self._member(writer), context=self._context(envelope)
            )
        except IntegrityError:
            why = "its envelope does not open: changed by whoever carried it, or sealed for another party, run or place"
            raise PeerError(writer, why) from None
        split = _LENGTH + int.from_bytes(body[:_LENGTH], "big")
        message = decode(body[_LENGTH:split], memoryview(bytearray(body[split:])), peer=writer)
        if (message.kind, message.edge, message.stamp) != (envelope.kind, envelope.edge, envelope.stamp):
            raise PeerError(writer, f"sealed another message than the envelope on {envelope.edge!r} says")
        return message

    def _member(self, name: str) -> PublicIdentity:
        member = self._members.get(name)
        if member is None:
            raise RunError(f"no public key of {name!r} to seal with; it must be in the roster")
        return member

    def _context(self, message: Message) -> bytes:
        s = message.stamp
        place = f"{message.kind}|{message.edge}|{s.step}|{s.micro}|{s.epoch}|{s.cast}|{s.training}"
        return self._digest + place.encode()


def envelope_of(message: Message, peer: str) -> torch.Tensor:
    """(length,) uint8: the envelope's bytes. Raises PeerError for anything else, which no carrier takes."""
    tensor = message.tensors.get(SEALED)
    if tensor is None or len(message.tensors) != 1 or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise PeerError(peer, f"{message.kind} on {message.edge!r}: expected a sealed envelope and nothing beside it")
    return tensor


def envelope_bytes(meta: int, payload: int) -> int:
    """How long the envelope of a message is, from the lengths of its header and of its padded payload."""
    return OVERHEAD + _LENGTH + meta + payload


def for_simulation(run: Run) -> dict[str, Envelopes]:
    """Keys made for one simulation: for every party that hands weights over by way of another."""
    names = [name for role in run.cohort_roles for name in run.parties(role)] if run.method.via == "server" else []
    identities = {name: Identity.generate(name, days=1) for name in names}
    members = {name: identity.public for name, identity in identities.items()}
    return {name: Envelopes(identity, members, run.digest()) for name, identity in identities.items()}
