"""What a party's program yields to its driver: messages to send, messages to be given, and news of progress.

`rotate` weaves several such programs into one, in an order that does not depend on what arrives when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from secsplit.message import Kind, Message, Stamp


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to the party named `to`; sends never wait for their receiver.

    release: what the ledger is charged before the bytes leave, where a mechanism with accounting applies; via: who
    carries it, sealed for `to`, where there is no link.
    """

    to: str
    message: Message
    release: object | None = None
    via: str | None = None

    @property
    def link(self) -> str:
        """Whose link the bytes leave over."""
        return self.via or self.to


@dataclass(frozen=True, slots=True)
class Recv:
    """Be given the message that `frm` sends of this kind, on this edge, with this stamp; via: who carries it sealed."""

    frm: str
    kind: Kind
    edge: str
    stamp: Stamp
    via: str | None = None

    @property
    def link(self) -> str:
        """Over whose link it comes."""
        return self.via or self.frm

    def matches(self, message: Message) -> bool:
        return message.kind is self.kind and message.edge == self.edge and message.stamp == self.stamp


@dataclass(frozen=True, slots=True)
class News:
    """Something a driver may save or show: a turn taken, an epoch ended with its metrics. It needs no answer."""

    what: str  # "turn" | "epoch" | "save" (make a checkpoint) | "saved" (all parties have it) | "done"
    step: int
    epoch: int
    steps: int = 0  # turns in all, for a progress bar
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Begin:
    """The turn of this step is about to be taken: who drives several parties lets the one furthest behind go first."""

    step: int


Step = Send | Recv | News | Begin
Steps = Generator[Step, Message | None, None]


def rotate(programs: Iterable[Steps], width: int | None = None) -> Steps:
    """Advance programs in a fixed rotation: each goes on until it needs an answer to what it has sent.

    So what one waits for is computed elsewhere while the next computes here. width: how many are under way at once
    (None: all); the next begins as soon as one ends. No deadlock is possible where all parties rotate all of the same
    programs: order the stages of one program by what they need of each other; a stage is only ever preceded here by
    stages that need no more than it does.
    """
    if width == 1:
        for program in programs:
            yield from program
        return
    coming = iter(programs)
    waiting: deque[tuple[Steps, Recv | None]] = deque()
    while True:
        if width is None or len(waiting) < width:
            waiting.extendleft((program, None) for program in islice(coming, 1))
        if not waiting:
            return
        program, recv = waiting.popleft()
        answer = (yield recv) if recv is not None else None
        sent = False
        try:
            step = program.send(answer)
            while not (sent and isinstance(step, Recv)):
                sent = sent or isinstance(step, Send)
                step = program.send((yield step))
        except StopIteration:
            continue
        waiting.append((program, step))
