"""Listeners under bad callers: strangers cost little, are told nothing, leave one log line, and harm no honest peer."""

import base64
import contextlib
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels import (
    ChannelDead,
    DeadlineExceeded,
    HandshakeError,
    Identity,
    Listener,
    Roster,
    RosterRollback,
    connect,
    listen,
)
from channels.dial import split_address
from channels.handshake import PREFACE, NoiseIK, frame
from channels.meeting import Side

ANN, BEN, EVE = (Identity.generate(name) for name in ("ann", "ben", "eve"))
ROSTER = Roster.of([ANN.public, BEN.public], epoch=1, signer=ANN)
DIGEST = bytes(32)


@pytest.fixture
def host() -> Iterator[Listener]:
    with Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST) as listener:
        yield listener


def dial(listener: Listener, me: Identity = ANN, roster: Roster = ROSTER):  # type: ignore[no-untyped-def]
    return connect(listener.address, me, roster, "ben", digest=DIGEST, timeout=10)


def honest(listener: Listener) -> float:
    """Seconds an honest peer needs to be served."""
    began = time.monotonic()
    with dial(listener) as near, listener.accept(10) as far:
        near.send(b"hello")
        assert far.recv(5).meta == b"hello"
    return time.monotonic() - began


def raw(listener: Listener) -> socket.socket:
    return socket.create_connection(split_address(listener.address), timeout=8)


def said_before_closing(sock: socket.socket) -> bytes:
    """Everything the listener said until it hung up."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(4096):
            heard += piece
    return heard


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "longest frame of nothing": frame(bytes(4096)),
    "our preface, then noise": frame(PREFACE.pack(b"SECSPLIT", 1, 1, 2, 20, 0) + os.urandom(1500)),
    "preface alone": frame(PREFACE.pack(b"SECSPLIT", 1, 1, 2, 20, 0)),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_hung_up_on_without_a_word(host: Listener, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with raw(host) as sock:
        sock.sendall(GARBAGE[kind])
        assert said_before_closing(sock) == b""
    assert len(host.refusals) == 1
    assert len([record for record in caplog.records if record.name == "secsplit.channels"]) == 1
    assert "\n" not in caplog.text.strip()
    honest(host)


def test_a_stranger_cannot_tell_why(host: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown key, a wrong responder key and nonsense end alike, and leave one log line each."""
    known_wrongly = Roster.of([EVE.public, BEN.public], epoch=1, signer=EVE)
    first = next(NoiseIK().initiate(Side(EVE, known_wrongly, DIGEST), BEN.public)).say
    other = next(NoiseIK().initiate(Side(ANN, ROSTER, DIGEST), ANN.public)).say
    endings = set()
    for message in (first, other, first[:-1] + b"x", frame(os.urandom(len(first) - 2))):
        with raw(host) as sock:
            sock.sendall(message)
            endings.add(said_before_closing(sock))
    assert endings == {b""}
    assert len([record for record in caplog.records if record.name == "secsplit.channels"]) == 4
    with pytest.raises(HandshakeError, match="without a word") as caught:
        dial(host, EVE, known_wrongly)
    assert EVE.public.fingerprint in str(caught.value)


def test_a_byte_a_second_is_cut_off_at_the_deadline(host: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HANDSHAKE_SECONDS", 1.0)
    first = next(NoiseIK().initiate(Side(ANN, ROSTER, DIGEST), BEN.public)).say
    began = time.monotonic()
    with raw(host) as sock, contextlib.suppress(OSError):
        for byte in first:
            sock.sendall(bytes([byte]))
            time.sleep(0.1)
            if host.refusals:
                break
    assert 0.9 < time.monotonic() - began < 3
    assert "no handshake within 1 s" in str(host.refusals[0])


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for a thousand callers' sockets in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    assert wanted >= 1500, "this test needs 1,500 file descriptors: ulimit -Hn"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_half_open_connections_do_not_keep_an_honest_peer_out(host: Listener) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    threads = threading.active_count()
    flood = []
    try:
        for _ in range(1000):
            flood.append(raw(host))
            if len(flood) % 100 == 0:
                flood[-1].sendall(b"\x05")
                assert honest(host) < 5
        assert len(host._callers) <= listen.HALF_OPEN_PER_ADDRESS
        assert threading.active_count() == threads
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB
    finally:
        for sock in flood:
            sock.close()
    honest(host)


def test_all_whom_the_roster_lists_may_start_at_once_behind_one_address() -> None:
    crowd = [Identity.generate(f"client-{i}") for i in range(listen.HALF_OPEN_PER_ADDRESS + 4)]
    roster = Roster.of([BEN.public, *(each.public for each in crowd)], epoch=1, signer=ANN)
    with Listener("127.0.0.1:0", BEN, roster, digest=DIGEST) as listener:
        early = [raw(listener) for _ in crowd[1:]]  # connected, and slow to speak
        with dial(listener, crowd[0], roster), listener.accept(10):
            assert not listener.refusals
        for sock in early:
            sock.close()


def test_half_open_connections_of_many_addresses_are_bounded(host: Listener) -> None:
    flood = []
    try:
        for number in range(1, 120):
            sock = socket.socket()
            sock.bind((f"127.0.1.{number}", 0))
            sock.connect(split_address(host.address))
            flood.append(sock)
        honest(host)
        assert len(host._callers) <= listen.HALF_OPEN
    finally:
        for sock in flood:
            sock.close()


def test_slow_but_honest_peers_are_served_while_others_idle(host: Listener) -> None:
    """A handshake that arrives in pieces, while seven silent connections are open."""
    idle = [raw(host) for _ in range(6)]
    conversation = NoiseIK().initiate(Side(ANN, ROSTER, DIGEST), BEN.public)
    message = next(conversation).say
    with raw(host) as sock:
        for at in range(0, len(message), 400):
            sock.sendall(message[at : at + 400])
            time.sleep(0.05)
        head = sock.recv(2, socket.MSG_WAITALL)
        conversation.send(head)
        hello = conversation.send(sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)).say
        sock.sendall(hello)
        with host.accept(5) as channel:
            assert channel.peer == ANN.public
    for sock in idle:
        sock.close()


def test_a_refusal_is_told_to_whoever_waits(host: Listener) -> None:
    with raw(host) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said_before_closing(sock)
    with pytest.raises(DeadlineExceeded, match=r"refused 127.0.0.1: not a secsplit handshake"):
        host.accept(0.05)


def test_log_lines_are_short_and_hold_no_control_characters(host: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with raw(host) as sock:
        sock.sendall(frame(PREFACE.pack(b"\n\x1b[31m!!", 1, 1, 2, 20, 0) + b"\x1b" * 100))
        said_before_closing(sock)
    (record,) = [record for record in caplog.records if record.name == "secsplit.channels"]
    assert len(record.getMessage()) <= listen.MAX_LINE
    assert record.getMessage().isprintable()


def test_no_key_is_ever_logged(host: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the log's level, and whoever is met or refused."""
    caplog.set_level(logging.DEBUG)
    honest(host)
    with pytest.raises(HandshakeError):
        dial(host, EVE, Roster.of([EVE.public, BEN.public], epoch=1, signer=EVE))
    assert host.refusals
    for identity in (ANN, BEN, EVE):
        for key in (identity.noise.private_bytes_raw(), identity.signing.private_bytes_raw()):
            for form in (key.hex(), base64.b64encode(key).decode(), repr(key)[2:-1]):
                assert form not in caplog.text


def test_a_new_roster_counts_at_once(host: Listener) -> None:
    honest(host)
    host.replace_roster(Roster.of([BEN.public], epoch=2, signer=ANN))
    with pytest.raises(HandshakeError, match="without a word"):
        dial(host)
    with pytest.raises(RosterRollback):
        host.replace_roster(ROSTER)


def test_unix_sockets(tmp_path: Path) -> None:
    with Listener(f"unix:{tmp_path}/socket", BEN, ROSTER, digest=DIGEST) as listener:
        honest(listener)
    assert not (tmp_path / "socket").exists()


def test_closing_ends_accept_and_unaccepted_channels(host: Listener) -> None:
    near = dial(host)
    deadline = time.monotonic() + 5
    while host._met.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    host.close()
    host.close()
    with pytest.raises(Exception, match="ended without"):
        near.recv(5)
    with pytest.raises(ChannelDead):
        host.accept(1)


@pytest.mark.parametrize("address", ["localhost", ":1", "x:y", "x:99999", ""])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_a_listener_that_saw_the_flag_first_closes_too() -> None:
    """Closing races with a listener that is busy with a caller: it may be gone before the bell rings."""
    listener = Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST)
    listener._closed = True
    listener._bell_end.send(b"x")
    listener._thread.join()
    listener._closed = False
    listener.close()
    assert listener._bell_end.fileno() == -1
