"""Sessions over real sockets: exactly once and in order through broken links, and a dead peer noticed by name."""

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


def test_idle_sessions_stay_alive(pair: Pair) -> None:
    left, right = pair
    time.sleep(3)
    left.send(b"after a while")
    assert right.recv(1).meta == b"after a while"
