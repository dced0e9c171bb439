"""Dialling: patience with a peer that is not up yet, the way through a proxy, and errors that say what to mend."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from channels import HandshakeError, HandshakeTimeout, Identity, Listener, Roster, UnknownPeer, connect
from channels.dial import split_address

ANN, BEN = Identity.generate("ann"), Identity.generate("ben")
ROSTER = Roster.of([ANN.public, BEN.public], epoch=1, signer=ANN)
DIGEST = bytes(32)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_a_peer_that_comes_up_late_is_waited_for() -> None:
    address = f"127.0.0.1:{free_port()}"
    hosts = []

    def late() -> None:
        time.sleep(0.3)
        hosts.append(Listener(address, BEN, ROSTER, digest=DIGEST))

    thread = threading.Thread(target=late)
    thread.start()
    with connect(address, ANN, ROSTER, "ben", digest=DIGEST, timeout=10) as channel:
        assert channel.peer == BEN.public
    thread.join()
    hosts[0].close()


def test_nobody_there() -> None:
    began = time.monotonic()
    with pytest.raises(HandshakeTimeout, match=r"ben: cannot reach 127.0.0.1.*refused.*fix: check"):
        connect(f"127.0.0.1:{free_port()}", ANN, ROSTER, "ben", digest=DIGEST, timeout=0.3)
    assert time.monotonic() - began < 2


def test_a_peer_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(HandshakeTimeout, match="ben: no handshake"):
            connect(f"127.0.0.1:{silent.getsockname()[1]}", ANN, ROSTER, "ben", digest=DIGEST, timeout=0.5)
        assert time.monotonic() - began < 3


def test_a_peer_that_is_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def web() -> None:
            for _ in range(2):
                with server.accept()[0] as sock:
                    sock.recv(4096)
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=web)
        thread.start()
        with pytest.raises(HandshakeError, match="not a secsplit handshake"):
            connect(f"127.0.0.1:{server.getsockname()[1]}", ANN, ROSTER, "ben", digest=DIGEST, timeout=3)
        socket.create_connection(server.getsockname()).close()
        thread.join()


def test_a_name_that_is_not_in_the_roster() -> None:
    with pytest.raises(UnknownPeer, match=r"carol: roster epoch 1 lists no 'carol'; it lists ann, ben"):
        connect("127.0.0.1:1", ANN, ROSTER, "carol", digest=DIGEST)


class Proxy:
    """An HTTP proxy that knows CONNECT, and remembers what passed."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n") -> None:
        self.server, self.answer, self.request, self.passed = socket.create_server(("127.0.0.1", 0)), answer, b"", b""
        self.url = f"http://user:p%40ss@127.0.0.1:{self.server.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        with contextlib.suppress(OSError), self.server.accept()[0] as inner:
            while not self.request.endswith(b"\r\n\r\n"):
                self.request += inner.recv(1)
            inner.sendall(self.answer)
            if b" 200 " not in self.answer:
                return
            address = split_address(self.request.split(b" ")[1].decode())
            with socket.create_connection(address) as outer:
                back = threading.Thread(target=self.carry, args=(outer, inner))
                back.start()
                self.carry(inner, outer)
                back.join()

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.passed += piece
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def host() -> Iterator[Listener]:
    with Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST) as listener:
        yield listener


def test_through_a_proxy_that_sees_only_sealed_bytes(host: Listener) -> None:
    proxy = Proxy()
    near = connect(host.address, ANN, ROSTER, "ben", digest=DIGEST, proxy=proxy.url)
    far = host.accept(5)
    with near, far:
        near.send(b"patient", b"record" * 100)
        assert far.recv(5).payload == b"record" * 100
    proxy.thread.join(5)
    proxy.server.close()
    assert proxy.request.startswith(f"CONNECT {host.address} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.request
    assert len(proxy.passed) > 3000
    for plain in (b"patient", b"record", b"ann", b"ben"):
        assert plain not in proxy.passed


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"",
        b"x" * 9000,
        b"HTTP/1.1 200",
    ],
    ids=["407", "403", "ssh", "nothing", "endless", "cut off"],
)
def test_a_proxy_that_refuses_is_quoted(host: Listener, answer: bytes) -> None:
    proxy = Proxy(answer)
    with pytest.raises(HandshakeError, match="proxy refused the tunnel"):
        connect(host.address, ANN, ROSTER, "ben", digest=DIGEST, proxy=proxy.url, timeout=2)
    proxy.server.close()


@pytest.mark.parametrize("url", ["socks://user:secret@x:1", "127.0.0.1:3128", "http://"])
def test_proxy_addresses_are_checked_and_their_passwords_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="expected a proxy") as caught:
        connect("127.0.0.1:1", ANN, ROSTER, "ben", digest=DIGEST, proxy=url, timeout=1)
    assert "secret" not in str(caught.value)
