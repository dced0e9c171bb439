"""The tap: what it sees is lengths and times, and no fault it can commit gets a changed byte delivered."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from channels import (
    ChannelError,
    Identity,
    Listener,
    PeerClosed,
    Roster,
    SessionListener,
    connect,
    open_session,
)
from channels.dial import split_address
from channels.tap import Fault, Mangler, Tap

ANN, BEN = Identity.generate("ann"), Identity.generate("ben")
ROSTER = Roster.of([ANN.public, BEN.public], epoch=1, signer=ANN)
DIGEST = bytes(32)
HANDSHAKE = 1452  # bytes from the dialler before the first record but hello
MESSAGES = [(b"meta %d" % n, bytes([n]) * 3000) for n in range(4)]


@pytest.fixture
def host() -> Iterator[Listener]:
    with Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST) as listener:
        yield listener


def deliver(tap: Tap, host: Listener) -> list[tuple[bytes, bytes]]:
    """Send all messages through the tap; what arrived before the first error or the goodbye."""
    near = connect(tap.address, ANN, ROSTER, "ben", digest=DIGEST, timeout=5, stall=1)
    far = host.accept(5)
    got = []
    with near, far:

        def pump() -> None:
            try:
                for meta, payload in MESSAGES:
                    near.send(meta, payload)
                near.close()
            except ChannelError:
                near.abandon()

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            while True:
                frame = far.recv(3)
                got.append((frame.meta, bytes(frame.payload)))
        except PeerClosed:
            got.append((b"goodbye", b""))
        except ChannelError:
            pass
        thread.join()
    return got


def test_an_idle_tap_changes_nothing_and_sees_only_lengths_and_times(host: Listener) -> None:
    with Tap(host.address, keep_bytes=True) as tap:
        assert deliver(tap, host) == [*MESSAGES, (b"goodbye", b"")]
    lengths = {way: sum(seen.length for seen in tap.seen if seen.direction == way) for way in ("there", "back")}
    assert lengths["there"] > sum(len(meta) + len(payload) for meta, payload in MESSAGES)
    assert 1000 < lengths["back"] < 2000
    assert all(seen.seconds >= 0 for seen in tap.seen)
    assert b"meta" not in tap.recordings[0].there


@pytest.mark.parametrize("at", [0, 700, HANDSHAKE + 40, HANDSHAKE + 3000, HANDSHAKE + 9000])
@pytest.mark.parametrize("kind", ["flip", "drop", "duplicate", "swap", "insert", "truncate"])
def test_faults_deliver_a_true_beginning_at_most(host: Listener, kind: str, at: int) -> None:
    with Tap(host.address) as tap:
        tap.fault = Fault(kind, at, length=60, data=b"x" * 60)  # type: ignore[arg-type]
        try:
            got = deliver(tap, host)
        except ChannelError:
            got = []
            while not host._met.empty():
                host.accept(1).abandon()
    if at < HANDSHAKE and got:  # the handshake failed, the dialler tried again, the fault was gone
        assert got == [*MESSAGES, (b"goodbye", b"")]
    else:
        assert got == MESSAGES[: len(got)]
        assert len(got) < len(MESSAGES)


def test_what_is_reflected_is_not_taken_for_the_peers(host: Listener) -> None:
    with Tap(host.address) as tap:
        tap.fault = Fault("reflect", HANDSHAKE + 40, length=500)
        near = connect(tap.address, ANN, ROSTER, "ben", digest=DIGEST, timeout=5)
        with near, host.accept(5):
            near.send(*MESSAGES[0])
            with pytest.raises(ChannelError, match="did not open"):
                near.recv(3)


def test_a_recorded_connection_replayed_is_no_connection(host: Listener) -> None:
    with Tap(host.address, keep_bytes=True) as tap:
        deliver(tap, host)
        recorded = bytes(tap.recordings[0].there)
    with socket.create_connection(split_address(host.address)) as sock, contextlib.suppress(ConnectionResetError):
        sock.sendall(recorded)
        while sock.recv(4096):
            pass
    with pytest.raises(ChannelError, match="replayed or forged"):
        host.accept(0.2)


def test_bytes_of_one_connection_spliced_into_another_are_refused(host: Listener) -> None:
    with Tap(host.address, keep_bytes=True) as tap:
        deliver(tap, host)
        old = bytes(tap.recordings[0].there)
        tap.fault = Fault("insert", len(old) - 2000, data=old[-2000:])
        assert len(deliver(tap, host)) < len(MESSAGES)


def test_a_delay_is_only_a_delay(host: Listener) -> None:
    with Tap(host.address) as tap:
        tap.fault = Fault("delay", HANDSHAKE + 100, seconds=0.3)
        began = time.monotonic()
        assert deliver(tap, host) == [*MESSAGES, (b"goodbye", b"")]
        assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("kind", ["flip", "drop", "duplicate", "truncate"])
def test_a_session_survives_every_fault_and_delivers_exactly_once(kind: str) -> None:
    listener = Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST)
    with SessionListener(listener, silence=2) as host, Tap(host.address) as tap:
        tap.fault = Fault(kind, HANDSHAKE + 4000, length=50)  # type: ignore[arg-type]
        near = open_session(tap.address, ANN, ROSTER, "ben", digest=DIGEST, silence=2)
        far = host.accept(5)
        for meta, payload in MESSAGES * 3:
            near.send(meta, payload)
        got = [far.recv(10) for _ in range(12)]
        assert [(frame.meta, bytes(frame.payload)) for frame in got] == MESSAGES * 3
        assert len(near.facts.channels) == 2
        near.close()
        far.close()


def test_a_cut_network_is_bridged() -> None:
    listener = Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST)
    with SessionListener(listener, silence=2) as host, Tap(host.address) as tap:
        near = open_session(tap.address, ANN, ROSTER, "ben", digest=DIGEST, silence=2)
        far = host.accept(5)
        for number in range(3):
            near.send(b"%d" % number)
            tap.cut()
            far.send(b"%d" % number)
            assert far.recv(5).meta == near.recv(5).meta == b"%d" % number
        near.close()
        far.close()


@pytest.mark.parametrize("kind", ["flip", "drop", "duplicate", "swap", "insert"])
def test_a_fault_does_not_depend_on_how_the_stream_is_cut(kind: str) -> None:
    stream = bytes(range(100))
    fault = Fault(kind, 30, length=10, data=b"new")  # type: ignore[arg-type]
    outcomes = set()
    for size in (1, 7, 30, 31, 45, 100):
        mangler, passed = Mangler(fault), b""
        for at in range(0, len(stream), size):
            passed += b"".join(act.data for act in mangler.feed(stream[at : at + size]))
        outcomes.add(passed + mangler.end())
    a, run, then, rest = stream[:30], stream[30:40], stream[40:50], stream[50:]
    assert outcomes == {
        {
            "flip": a + bytes([run[0] ^ 1]) + run[1:] + then + rest,
            "drop": a + then + rest,
            "duplicate": a + run + run + then + rest,
            "swap": a + then + run + rest,
            "insert": a + b"new" + run + then + rest,
        }[kind]
    }
