"""Two drivers for one party program: `simulate` moves messages in one process, `serve` drives one party over channels.

Recording is the same call in both, at the party's own door: when it has sent, and when it is handed what it awaited. So
what an audit sees is what that party saw, and transcripts of a simulated and of a networked run are equal bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol, TypeVar, cast

import torch

from secsplit.envelopes import Envelopes, for_simulation
from secsplit.errors import PeerError, RunError, SplitError
from secsplit.failpoint import failpoint
from secsplit.message import Kind, Message, Stamp
from secsplit.party import Party
from secsplit.steps import Begin, News, Recv, Send, Step
from secsplit.transcript import Transcript

MAX_EARLY = 4096  # messages that may wait at a door before they are asked for

Address = tuple[Kind, str, Stamp]
Observer = Callable[[Party, News], None]
Begun = Generator[Step, Message | None, Transcript | None]
T = TypeVar("T")
Settle = Callable[[], None]  # returns once a charge is on the disk; before that its message may not leave
Charge = Callable[[Party, Send], Settle | None]


def _nothing(*_: object) -> None:
    return None


@dataclass
class Door:
    """What a party sends and is handed passes here, and is recorded here."""

    party: str
    transcript: Transcript | None
    shared: bool = False  # whether messages lie in memory that another party's record points to
    envelopes: Envelopes | None = None  # what seals and opens messages that a third party carries
    waiting: dict[tuple[str, Kind, str, Stamp], Message] = field(default_factory=dict)

    def sent(self, send: Send) -> Message:
        """What really leaves: the message, or an envelope where a third party carries it."""
        failpoint("send", self.party)
        if self.transcript is not None:
            self.transcript.append("sent", send.to, send.message)
        return send.message if send.via is None else self.keys.sealed(send.message, send.to)

    @property
    def keys(self) -> Envelopes:
        if self.envelopes is None:
            raise RunError(f"{self.party!r} has no keys to seal what another party carries")
        return self.envelopes

    def arrived(self, peer: str, message: Message) -> None:
        """Keep a message until it is asked for. Raises PeerError for a second one of the same name, or too many."""
        key = (peer, message.kind, message.edge, message.stamp)
        if key in self.waiting:
            raise PeerError(peer, f"sent {message.kind} on {message.edge!r} twice for step {message.stamp.step}")
        if len(self.waiting) >= MAX_EARLY:
            raise PeerError(peer, f"sent more than {MAX_EARLY} messages that nobody asked for")
        self.waiting[key] = message

    def handed(self, recv: Recv) -> Message | None:
        """The awaited message, if it is here, on memory of its own: what a party does to it changes no record."""
        message = self.waiting.pop((recv.link, recv.kind, recv.edge, recv.stamp), None)
        if message is None:
            return None
        failpoint("receive", self.party)
        if recv.via is not None:
            message = self.keys.opened(message, recv.frm)
        if self.transcript is not None:
            self.transcript.append("received", recv.frm, message)
        return message.copy() if self.shared or self.transcript is not None else message


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Fix torch's thread count, which changes floating-point sums, and leave the caller's random state as it was."""
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.random.set_rng_state(state)


def simulate(
    parties: Mapping[str, Party],
    *,
    transcripts: Mapping[str, Transcript] | None = None,
    observe: Observer = _nothing,
    charge: Charge = _nothing,
) -> None:
    """Run all parties in this process, each advancing as far as it can. Their modules are trained in place.

    transcripts: party -> where its messages are recorded; observe: told of progress; charge: called before a send with
    a release leaves; no bytes leave here, and what it returns is called once the party's turn is over.
    Raises SplitError where every party waits for another.
    """
    simulation = _Simulation(parties, transcripts or {}, observe, charge)
    with pinned(next(iter(parties.values())).run.file.train.threads):
        simulation.run()
    for transcript in (transcripts or {}).values():
        transcript.flush()


class _Simulation:
    """All programs, their doors, and who waits for what."""

    def __init__(
        self,
        parties: Mapping[str, Party],
        transcripts: Mapping[str, Transcript],
        observe: Observer,
        charge: Charge,
    ) -> None:
        self.parties = parties
        self.observe = observe
        self.charge = charge
        run = next(iter(parties.values())).run
        keys = for_simulation(run) if run.method.via == "server" else {}
        shared = bool(transcripts)
        self.doors = {name: Door(name, transcripts.get(name), shared, envelopes=keys.get(name)) for name in parties}
        self.programs = {name: party.program() for name, party in parties.items()}
        self.awaited: dict[str, Recv] = {}
        self.unsettled: dict[str, Settle] = {}
        self.ready = deque(parties)  # can go on in the midst of something
        self.behind: list[tuple[int, int, str]] = []  # a heap: (step, order, party) about to begin that turn
        self.place = {name: order for order, name in enumerate(parties)}

    def run(self) -> None:
        """Whoever can go on within a turn does; else the party furthest behind begins its next one.

        So no more is computed ahead of its use than need be, and memory does not grow with the number of parties.
        """
        while self.ready or self.behind:
            self.advance(self.ready.popleft() if self.ready else heappop(self.behind)[2])
        if self.awaited:
            stuck = "; ".join(f"{name} waits for {recv}" for name, recv in self.awaited.items())
            raise SplitError(f"deadlock: {stuck}")

    def advance(self, name: str) -> None:
        """Drive one program until it ends, begins a turn, or awaits what is not there yet."""
        door, program = self.doors[name], self.programs[name]
        recv = self.awaited.pop(name, None)
        answer = door.handed(recv) if recv is not None else None
        try:
            while True:
                step = program.send(answer)
                answer = None
                if isinstance(step, Send):
                    self.deliver(name, step)
                elif isinstance(step, Recv):
                    answer = door.handed(step)
                    if answer is None:
                        self.awaited[name] = step
                        return
                elif isinstance(step, Begin):
                    heappush(self.behind, (step.step, self.place[name], name))
                    return
                else:
                    self.settle(name)
                    self.observe(self.parties[name], step)
        except StopIteration:
            self.settle(name)

    def settle(self, name: str) -> None:
        """Have the party's charges on the disk."""
        if (settle := self.unsettled.pop(name, None)) is not None:
            settle()

    def deliver(self, name: str, send: Send) -> None:
        """Record the send, put it at the receiver's door, and wake the receiver if that is what it awaits."""
        if send.release is not None and (settle := self.charge(self.parties[name], send)) is not None:
            self.unsettled[name] = settle
        self.doors[send.link].arrived(name, self.doors[name].sent(send))
        recv = self.awaited.get(send.link)
        if recv is not None and recv.link == name and recv.matches(send.message):
            self.ready.appendleft(send.link)


class Link(Protocol):
    """One peer's channel, as `serve` sees it: messages, with the waiting done elsewhere."""

    def send(self, message: Message, settle: Settle | None = None) -> None:
        """Queue a message; never waits. settle: called, on the thread that sends, before its bytes leave."""

    def close(self) -> None:
        """Wait until all queued messages have left, then end the stream."""


class Inbox(Protocol):
    """Where all links' messages arrive."""

    def get(self, awaited: str | None = None) -> tuple[str, Message | None]:
        """(peer, message), waiting for one; None once a peer has said all and closed, as one does whose part is over.

        awaited: the peer without whose next message nothing goes on; any peer's may come first.
        Raises PeerError when a peer went away or broke the channel.
        """


def serve(
    party: Party,
    links: Mapping[str, Link],
    inbox: Inbox,
    *,
    transcript: Transcript | None = None,
    begin: Begun | None = None,
    envelopes: Envelopes | None = None,
    observe: Observer = _nothing,
    charge: Charge = _nothing,
) -> None:
    """Drive one party over real channels until its program ends; links send and receive on threads of their own.

    begin: what is settled with the peers first, unrecorded; it returns the transcript to go on with. envelopes: what
    seals and opens what a third party carries.
    """
    service = _Service(party, links, inbox, observe, charge, Door(party.name, None, envelopes=envelopes))
    with pinned(party.run.file.train.threads):
        try:
            service.door.transcript = transcript if begin is None else service.drive(begin)
            service.drive(party.program())
        finally:
            if service.door.transcript is not None:
                service.door.transcript.flush()


@dataclass
class _Service:
    """One party, its links, and which peers have said all."""

    party: Party
    links: Mapping[str, Link]
    inbox: Inbox
    observe: Observer
    charge: Charge
    door: Door
    closed: set[str] = field(default_factory=set)

    def drive(self, program: Generator[Step, Message | None, T]) -> T:
        """Carry a program out to its end, and return what it returns."""
        answer: Message | None = None
        try:
            while True:
                step = program.send(answer)
                answer = None
                if isinstance(step, Send):
                    settle = self.charge(self.party, step) if step.release is not None else None
                    self.links[step.link].send(self.door.sent(step), settle)
                elif isinstance(step, Recv):
                    answer = self.await_(step)
                elif isinstance(step, News):
                    self.observe(self.party, step)
        except StopIteration as end:
            return cast(T, end.value)

    def await_(self, recv: Recv) -> Message:
        while (answer := self.door.handed(recv)) is None:
            if recv.link in self.closed:
                raise PeerError(recv.link, "closed the channel before the run was over")
            peer, message = self.inbox.get(recv.link)
            if message is None:
                self.closed.add(peer)
            else:
                self.door.arrived(peer, message)
        return answer
