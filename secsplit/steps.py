"""What a party's program yields to its driver: messages to send, messages to be given, and news of progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secsplit.message import Kind, Message, Stamp


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to the party named `to`; sends never wait for their receiver.

    release: what the ledger is charged before the bytes leave, where a mechanism with accounting applies.
    """

    to: str
    message: Message
    release: object | None = None


@dataclass(frozen=True, slots=True)
class Recv:
    """Be given the message that `frm` sends of this kind, on this edge, with this stamp."""

    frm: str
    kind: Kind
    edge: str
    stamp: Stamp

    def matches(self, message: Message) -> bool:
        return message.kind is self.kind and message.edge == self.edge and message.stamp == self.stamp


@dataclass(frozen=True, slots=True)
class News:
    """Something a driver may save or show: a turn taken, an epoch ended with its metrics. It needs no answer."""

    what: str  # "turn" | "epoch" | "done"
    step: int
    epoch: int
    steps: int = 0  # events in all, for a progress bar
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Step = Send | Recv | News
