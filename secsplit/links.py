"""Sessions (or bare channels) as `serve` wants them: messages, sent and received on threads beside the compute.

This is where messages become bytes. It knows channels, not how they came to be (`network` does that).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial

from channels import Channel, ChannelError, PeerClosed, Session
from secsplit.circuits import Circuits
from secsplit.errors import PeerError, SplitError
from secsplit.message import Kind, Message
from secsplit.room import ASK, ENTER, Room, ask, is_word, large
from secsplit.wire import decode, encode

Parcel = tuple[Message, Callable[[], None] | None]  # a message, and what must have returned before its bytes leave
GOODBYE = "goodbye"  # edge of the last CONTROL message of a party that stops for a fault, naming whose


class ChannelInbox:
    """Where all links put what arrived, or why nothing more will. room: of a party that peers ask before they send."""

    def __init__(self, timeout: float | None = None, room: Room | None = None) -> None:
        self._queue: queue.Queue[tuple[str, Message | SplitError | None]] = queue.Queue()
        self._timeout = timeout
        self.room = room

    def put(self, peer: str, what: Message | SplitError | None) -> None:
        """A message, why there will be no more, or None for a peer that has said all and closed."""
        self._queue.put((peer, what))

    def get(self, awaited: str | None = None) -> tuple[str, Message | None]:
        """(peer, message or None). Raises PeerError for a peer that went away or broke the channel, or why this party
        cannot send."""
        if self.room is not None and awaited is not None:
            self.room.awaited(awaited)
        peer, what = self._queue.get(timeout=self._timeout)
        if isinstance(what, SplitError):
            raise what
        if what is not None and what.kind is Kind.CONTROL and what.edge == GOODBYE:
            raise PeerError(str(what.facts.get("peer", peer)), f"{what.facts.get('why', 'gave up')} (told by {peer!r})")
        return peer, what


class Sign(Enum):
    """What the sender's thread is told besides messages."""

    ENTER = "the peer lets in what it was asked about"
    ALONE = "nobody will let anything in any more"
    END = "nothing more will be sent"


class ChannelLink:
    """One peer's channel with a sender's and a receiver's thread. Sends are queued and never wait.

    crowded: whether the peer is asked before much is sent to it.
    """

    def __init__(
        self,
        peer: str,
        channel: Channel | Session,
        inbox: ChannelInbox,
        circuits: Circuits | None = None,
        *,
        crowded: bool = False,
    ) -> None:
        self.peer = peer
        self.channel = channel
        # a session keeps what it sent until it is delivered; a message's memory never changes, so it need not copy
        self._send = partial(channel.send, frozen=True) if isinstance(channel, Session) else channel.send
        self._inbox, self._circuits, self._crowded = inbox, circuits, crowded
        self._outgoing: queue.SimpleQueue[Parcel | Sign] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._sender = threading.Thread(target=self._send_all, name=f"send to {peer}", daemon=True)
        self._receiver = threading.Thread(target=self._receive_all, name=f"receive from {peer}", daemon=True)
        self._sender.start()
        self._receiver.start()

    def send(self, message: Message, settle: Callable[[], None] | None = None) -> None:
        self._outgoing.put((message, settle))

    def last(self, message: Message) -> None:
        """Send this and no more: what the peer has not let in yet is dropped."""
        self._outgoing.put(Sign.ALONE)
        self._outgoing.put((message, None))

    def close(self) -> None:
        """Let all that is queued leave, then end the stream under seal."""
        self._closing.set()
        self._outgoing.put(Sign.END)
        self._sender.join()
        self.channel.close()
        self._receiver.join(timeout=1)

    def _send_all(self) -> None:
        try:
            gate = _Gate(self._crowded)
            while (parcel := gate.next(self._outgoing)) is not None:
                message, settle = parcel
                meta, buffers = encode(message)
                if settle is not None:
                    settle()
                self._send(meta, *buffers)
                del parcel, message, buffers  # or what was sent last stays in memory until the next is
        except ChannelError as error:
            self._fail(error)
        except SplitError as error:
            self._inbox.put(self.peer, error)
        except Exception as error:  # nor for what this one will not send
            self._inbox.put(self.peer, SplitError(f"cannot send to {self.peer!r}: {_in_words(error)}"))

    def _receive_all(self) -> None:
        try:
            while True:
                frame = self.channel.recv()
                if self._circuits is not None and self._circuits.take(self.peer, frame):
                    continue
                self._arrived(decode(frame.meta, frame.payload, peer=self.peer))
                del frame  # or its memory stays taken until the next one comes
        except PeerError as error:
            self._inbox.put(self.peer, error)
        except PeerClosed:
            self._inbox.put(self.peer, None)
        except ChannelError as error:
            self._fail(error)
        except Exception as error:  # whatever it was: nobody must wait for ever for what this thread will not read
            self._inbox.put(self.peer, PeerError(self.peer, f"what it sent cannot be read: {_in_words(error)}"))
        finally:
            self._outgoing.put(Sign.ALONE)
            if self._inbox.room is not None:
                self._inbox.room.left(self.peer)
            if self._circuits is not None:
                self._circuits.lost(self.peer)

    def _arrived(self, message: Message) -> None:
        room = self._inbox.room
        if is_word(message):
            self._told(message)
        else:
            if room is not None and large(message):
                room.came(self.peer, message)
            self._inbox.put(self.peer, message)

    def _told(self, word: Message) -> None:
        """What the link at the other end says."""
        room = self._inbox.room
        if word.edge == ENTER and self._crowded:
            self._outgoing.put(Sign.ENTER)
        elif word.edge == ASK and room is not None:
            enter = Message(Kind.CONTROL, ENTER, word.stamp)
            room.asked(self.peer, word, partial(self.send, enter))
        else:
            raise PeerError(self.peer, f"{word.edge!r} where nobody is asked for room: does it run the same release?")

    def _fail(self, error: ChannelError) -> None:
        if not self._closing.is_set():
            self._inbox.put(self.peer, PeerError(self.peer, f"went away: {error}"))


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Gate:
    """The order in which messages leave: as they were queued, but a large one, and all after it, once it is let in."""

    def __init__(self, crowded: bool) -> None:
        self._crowded = crowded
        self._held: deque[Parcel | Sign] = deque()
        self._asked = self._open = self._alone = False

    def next(self, queued: queue.SimpleQueue[Parcel | Sign]) -> Parcel | None:
        """The next message, waiting for it; None at the end."""
        while True:
            if self._held:
                head = self._held[0]
                if isinstance(head, Sign):
                    return None
                if not self._crowded or self._open or not large(head[0]):
                    self._asked = self._open = False
                    self._held.popleft()
                    return head
                if self._alone:
                    self._held.popleft()
                    continue
                if not self._asked:
                    self._asked = True
                    return ask(head[0]), None
            told = queued.get()
            if isinstance(told, tuple) and is_word(told[0]):
                return told
            if told is Sign.ENTER:
                self._open = self._asked
            elif told is Sign.ALONE:
                self._alone = True
            else:
                self._held.append(told)


def say_goodbye(links: Mapping[str, ChannelLink], error: BaseException, me: str) -> None:
    """Tell every other peer whose fault ended the run, so that all name the same party."""
    at_fault = error.peer if isinstance(error, PeerError) else me
    facts = {"peer": at_fault, "why": f"{type(error).__name__}: {error}"[:500]}
    for peer, link in links.items():
        if peer != at_fault:
            link.last(Message(Kind.CONTROL, GOODBYE, facts=facts))
