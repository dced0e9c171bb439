"""Sessions (or bare channels) as `serve` wants them: messages, sent and received on threads beside the compute.

This is where messages become bytes. It knows channels, not how they came to be (`network` does that).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from functools import partial

from channels import Channel, ChannelError, PeerClosed, Session
from secsplit.circuits import Circuits
from secsplit.errors import PeerError
from secsplit.message import Kind, Message
from secsplit.wire import decode, encode

GOODBYE = "goodbye"  # edge of the last CONTROL message of a party that stops for a fault, naming whose


class ChannelInbox:
    """Where all links put what arrived, or why nothing more will."""

    def __init__(self, timeout: float | None = None) -> None:
        self._queue: queue.Queue[tuple[str, Message | PeerError | None]] = queue.Queue()
        self._timeout = timeout

    def put(self, peer: str, what: Message | PeerError | None) -> None:
        """A message, why there will be no more, or None for a peer that has said all and closed."""
        self._queue.put((peer, what))

    def get(self) -> tuple[str, Message | None]:
        """(peer, message or None). Raises PeerError for a peer that went away or broke the channel."""
        peer, what = self._queue.get(timeout=self._timeout)
        if isinstance(what, PeerError):
            raise what
        if what is not None and what.kind is Kind.CONTROL and what.edge == GOODBYE:
            raise PeerError(str(what.facts.get("peer", peer)), f"{what.facts.get('why', 'gave up')} (told by {peer!r})")
        return peer, what


class ChannelLink:
    """One peer's channel with a sender's and a receiver's thread. Sends are queued and never wait."""

    def __init__(
        self, peer: str, channel: Channel | Session, inbox: ChannelInbox, circuits: Circuits | None = None
    ) -> None:
        self.peer = peer
        self.channel = channel
        # a session keeps what it sent until it is delivered; a message's memory never changes, so it need not copy
        self._send = partial(channel.send, frozen=True) if isinstance(channel, Session) else channel.send
        self._inbox, self._circuits = inbox, circuits
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._sender = threading.Thread(target=self._send_all, name=f"send to {peer}", daemon=True)
        self._receiver = threading.Thread(target=self._receive_all, name=f"receive from {peer}", daemon=True)
        self._sender.start()
        self._receiver.start()

    def send(self, message: Message) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        """Let all that is queued leave, then end the stream under seal."""
        self._closing.set()
        self._outgoing.put(None)
        self._sender.join()
        self.channel.close()
        self._receiver.join(timeout=1)

    def _send_all(self) -> None:
        try:
            while (message := self._outgoing.get()) is not None:
                meta, buffers = encode(message)
                self._send(meta, *buffers)
        except ChannelError as error:
            self._fail(error)

    def _receive_all(self) -> None:
        try:
            while True:
                frame = self.channel.recv()
                if self._circuits is not None and self._circuits.take(self.peer, frame):
                    continue
                self._inbox.put(self.peer, decode(frame.meta, frame.payload, peer=self.peer))
        except PeerError as error:
            self._inbox.put(self.peer, error)
        except PeerClosed:
            self._inbox.put(self.peer, None)
        except ChannelError as error:
            self._fail(error)
        finally:
            if self._circuits is not None:
                self._circuits.lost(self.peer)

    def _fail(self, error: ChannelError) -> None:
        if not self._closing.is_set():
            self._inbox.put(self.peer, PeerError(self.peer, f"went away: {error}"))


def say_goodbye(links: Mapping[str, ChannelLink], error: BaseException, me: str) -> None:
    """Tell every other peer whose fault ended the run, so that all name the same party."""
    at_fault = error.peer if isinstance(error, PeerError) else me
    facts = {"peer": at_fault, "why": f"{type(error).__name__}: {error}"[:500]}
    for peer, link in links.items():
        if peer != at_fault:
            link.send(Message(Kind.CONTROL, GOODBYE, facts=facts))
