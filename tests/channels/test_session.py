"""Sessions over real sockets: exactly once and in order through broken links, and a dead peer noticed by name."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from channels import (
    Identity,
    Listener,
    PeerClosed,
    PeerLost,
    Roster,
    Session,
    SessionListener,
    open_session,
)
from channels.dial import split_address

DIGEST = bytes(32)
Pair = tuple[Session, Session]


def meet(silence: float) -> Iterator[Pair]:
    near, far = Identity.generate("near"), Identity.generate("far")
    roster = Roster.of([near.public, far.public], epoch=1, signer=near)
    with SessionListener(Listener("127.0.0.1:0", far, roster, digest=DIGEST), silence=silence) as listener:
        left = open_session(listener.address, near, roster, "far", digest=DIGEST, silence=silence)
        right = listener.accept(5)
        yield left, right
        left.close()
        right.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    yield from meet(silence=2)


def test_messages_cross_broken_links_exactly_once_and_in_order(pair: Pair) -> None:
    count, failures = 120, []

    def pump(session: Session) -> None:
        for number in range(count):
            session.send(b"%d" % number, bytes([number % 256]) * (1000 * number))

    def drain(session: Session) -> None:
        for number in range(count):
            frame = session.recv(20)
            if (frame.meta, bytes(frame.payload)) != (b"%d" % number, bytes([number % 256]) * (1000 * number)):
                failures.append((number, frame.meta))

    threads = [threading.Thread(target=run, args=(side,)) for side in pair for run in (pump, drain)]
    for thread in threads:
        thread.start()
    for cut in range(6):
        time.sleep(0.05)
        pair[cut % 2].drop_link()
    for thread in threads:
        thread.join()
    assert not failures
    left, right = pair
    left.flush()
    right.flush()
    assert len(left.facts.channels) > 1
    for facts in (left.facts, right.facts):
        assert (facts.messages_sent, facts.messages_received, facts.delivered) == (count, count, count)


def test_what_was_sent_is_resent_though_the_caller_reused_its_memory(pair: Pair) -> None:
    left, right = pair
    left.drop_link()
    memory = bytearray(b"first")
    left.send(b"", memory)
    memory[:] = b"other"
    assert bytes(right.recv(5).payload) == b"first"


def test_close_delivers_first_and_then_tells(pair: Pair) -> None:
    left, right = pair
    left.send(b"last", b"words")
    left.close()
    assert right.recv(5).meta == b"last"
    with pytest.raises(PeerClosed):
        right.recv(5)


def test_a_dead_peer_is_noticed_within_the_silence_and_named() -> None:
    meeting = meet(silence=1)
    left, right = next(meeting)
    right._finish(PeerLost("process killed"))  # no goodbye, and nobody answers for it any more
    began = time.monotonic()
    with pytest.raises(PeerLost, match=r"^far: ") as caught:
        left.recv(10)
    assert time.monotonic() - began < 2.5
    assert caught.value.peer == "far"
    meeting.close()


class Network:
    """What lies between two hosts: it can swallow packets, or be unreachable, and never says so to either."""

    def __init__(self, target: str) -> None:
        self._target, self._swallows, self._closed = target, False, False
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._port = self._sock.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._open: list[socket.socket] = []
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._sock,), daemon=True).start()

    def _accept(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = sock.accept()[0]
                self._open.append(near)
                if not self._swallows:
                    far = socket.create_connection(split_address(self._target))
                    self._open.append(far)
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                if self._swallows:
                    return  # this connection is dead from now on, and nobody is told
                sink.sendall(piece)

    def swallow(self, *, on: bool) -> None:
        """From now on nothing passes; connections made meanwhile hang, those from before stay dead for good."""
        self._swallows = on

    def unreachable(self, seconds: float) -> None:
        """Nothing passes, and whoever dials is refused; then all is well again."""
        self._swallows = True
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        time.sleep(seconds)
        self._swallows = False
        self._sock = socket.create_server(("127.0.0.1", self._port))
        self._serve()

    def close(self) -> None:
        for sock in (self._sock, *self._open):
            sock.close()


@contextlib.contextmanager
def across(silence: float, patience: float | None = None) -> Iterator[tuple[Session, Session, Network]]:
    near, far = Identity.generate("near"), Identity.generate("far")
    roster = Roster.of([near.public, far.public], epoch=1, signer=near)
    waits = {"silence": silence, "patience": patience}
    listener = SessionListener(Listener("127.0.0.1:0", far, roster, digest=DIGEST), **waits)  # type: ignore[arg-type]
    network = Network(listener.address)
    left = open_session(network.address, near, roster, "far", digest=DIGEST, **waits)  # type: ignore[arg-type]
    right = listener.accept(5)
    yield left, right, network
    for session in (left, right):
        session._finish(PeerLost("the test is over"))
    listener.close()
    network.close()


@pytest.mark.parametrize("how", ["packets swallowed", "host unreachable"])
def test_a_link_that_dies_in_silence_is_replaced_within_the_patience(how: str) -> None:
    """No end of stream, no reset: keepalive alone tells. What was sent meanwhile arrives, once and in order."""
    with across(silence=1, patience=8) as (left, right, network):
        left.send(b"0", bytes(100_000))
        right.send(b"0")
        assert (left.recv(5).meta, right.recv(5).meta) == (b"0", b"0")
        if how == "host unreachable":
            away = threading.Thread(target=network.unreachable, args=(2.0,))
            away.start()
        else:
            network.swallow(on=True)
        for number in range(1, 6):
            left.send(b"%d" % number, bytes(100_000))
            right.send(b"%d" % number)
        if how == "host unreachable":
            away.join()
        else:
            time.sleep(2.5)
            network.swallow(on=False)
        for number in range(1, 6):
            assert (left.recv(8).meta, right.recv(8).meta) == (b"%d" % number, b"%d" % number)
        left.flush(8)
        assert len(left.facts.channels) >= 2
        assert left.facts.messages_received == right.facts.messages_received == 6


def test_a_network_that_does_not_come_back_ends_the_session_at_its_deadline() -> None:
    with across(silence=2) as (left, right, network):
        network.swallow(on=True)
        began = time.monotonic()
        for session, name in ((left, "far"), (right, "near")):
            with pytest.raises(PeerLost, match=f"^{name}: ") as caught:
                session.recv(10)
            assert caught.value.peer == name
        assert 1.5 < time.monotonic() - began < 4


def test_by_default_a_silent_link_is_given_up_in_time_to_find_another() -> None:
    with across(silence=4) as (left, right, network):
        network.swallow(on=True)
        left.send(b"kept")
        time.sleep(1)
        network.swallow(on=False)  # the old link stays dead, the way is free
        assert right.recv(6).meta == b"kept"


def test_idle_sessions_stay_alive(pair: Pair) -> None:
    left, right = pair
    time.sleep(3)
    left.send(b"after a while")
    assert right.recv(1).meta == b"after a while"
