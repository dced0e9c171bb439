"""Room for what many peers send: a party with more peers than CROWD is asked before much is sent to it.

Hundreds of clients each have their first mini-batch ready long before their turn; if all sent it, the server would
hold all of them. So a link holds back what is large, says how much it has, and sends it once it is let in: at once
while there is room, and always where the party waits for that peer, or did so lately (clients in flight overlap as
ever). Who must be asked follows from the run, which both ends know. Small messages pass by themselves, in order.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sized

from secsplit.errors import PeerError
from secsplit.message import Kind, Message

CROWD = 16  # peers; a party with more has to be asked
UNASKED = 64 << 10  # bytes of tensors that pass by themselves
ROOM = 16 << 20  # bytes that may lie at a party, or be on their way to it, before it waits for their senders
FAVOURED = 8  # of the peers waited for last, which are always let in
ASK, ENTER = "room-ask", "room-enter"  # the edges of what links tell each other
WORDS = (ASK, ENTER)


def crowded(peers: Sized) -> bool:
    """Whether whoever has these peers must be asked."""
    return len(peers) > CROWD


def large(message: Message) -> bool:
    """Whether a crowded party is asked before this is sent."""
    return message.nbytes > UNASKED


def is_word(message: Message) -> bool:
    """Whether it is between links alone, and no party's."""
    return message.kind is Kind.CONTROL and message.edge in WORDS


def ask(message: Message) -> Message:
    """May this come?"""
    return Message(Kind.CONTROL, ASK, message.stamp, facts={"bytes": message.nbytes})


class Room:
    """One party's. Called by the threads of all its links, and by its own; what it calls must not wait."""

    def __init__(self, room: int = ROOM) -> None:
        self._left = room  # bytes; below zero while those waited for lately take more than there is
        self._asking: dict[str, tuple[int, Callable[[], None]]] = {}  # in the order in which they asked
        self._entering: dict[str, int] = {}  # bytes on their way
        self._lately: deque[str] = deque(maxlen=FAVOURED)
        self._gone: deque[int] = deque()  # bytes of messages that nobody holds any more
        self._guard = threading.Lock()

    def asked(self, peer: str, word: Message, enter: Callable[[], None]) -> None:
        """A peer has something large; `enter` tells it to come. Raises PeerError where it asks out of turn."""
        size = word.facts.get("bytes")
        if not isinstance(size, int) or size <= UNASKED:
            raise PeerError(peer, f"asked for room for {size!r} bytes; expected more than {UNASKED}")
        with self._guard:
            if peer in self._asking or peer in self._entering:
                raise PeerError(peer, "asked for room before what it had asked for came")
            self._asking[peer] = size, enter
            self._settle()

    def awaited(self, peer: str) -> None:
        """The party can do nothing before that peer's next message."""
        with self._guard:
            if peer in self._lately:
                self._lately.remove(peer)
            self._lately.append(peer)
            self._settle()

    def came(self, peer: str, message: Message) -> None:
        """Something large came, and takes room as long as anyone holds it. Raises PeerError unless it was let in."""
        with self._guard:
            size = self._entering.pop(peer, 0)
            if message.nbytes != size:
                raise PeerError(peer, f"sent {message.nbytes} bytes where {size} were let in")
            weakref.finalize(message, self._gone.append, size).atexit = False

    def left(self, peer: str) -> None:
        """Nothing more comes from that peer."""
        with self._guard:
            self._asking.pop(peer, None)
            self._left += self._entering.pop(peer, 0)
            self._settle()

    def _settle(self) -> None:
        while self._gone:  # filled by whichever thread lets go of a message, perhaps in the midst of this one
            self._left += self._gone.popleft()
        for peer in [*self._lately, *self._asking]:
            if peer in self._asking and (peer in self._lately or self._asking[peer][0] <= self._left):
                size, enter = self._asking.pop(peer)
                self._entering[peer] = size
                self._left -= size
                enter()
