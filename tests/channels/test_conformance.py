"""Every channel of this floor passes the public conformance check; and the check can fail."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from channels import (
    Channel,
    Frame,
    Identity,
    Limits,
    Listener,
    Roster,
    SealedChannel,
    connect,
    memory_pair,
    socketpair_pair,
)
from channels.circuit import Router
from channels.conformance import CHECKS, check_channel
from channels.dial import NOISE_IK, converse
from channels.handshake import NoiseIK
from channels.meeting import Handshake
from channels.pairs import fresh_sides, meet
from channels.suites import IK_AESGCM_CLASSICAL, IKHFS_CHACHA
from channels.tls import MutualTls
from channels.wire import SocketWire
from channels.x509 import Authority, request

MakePair = Callable[[], tuple[Channel, Channel]]


def tls_pair() -> tuple[Channel, Channel]:
    near, far = fresh_sides()
    authority = Authority.new("authority")
    certificates = {side.me.public.name: authority.sign(request(side.me)) for side in (near, far)}

    class EachItsOwn:
        """Either side with its own certificate."""

        def initiate(self, side, peer):  # type: ignore[no-untyped-def]
            return MutualTls(certificates["left"], authority.pem).initiate(side, peer)

        def respond(self, side):  # type: ignore[no-untyped-def]
            return MutualTls(certificates["right"], authority.pem).respond(side)

    wires = [SocketWire(sock) for sock in socket.socketpair()]
    return meet(wires[0], wires[1], near, far, EachItsOwn())


@contextlib.contextmanager
def over_tcp(handshake: Handshake) -> Iterator[MakePair]:
    near, far = Identity.generate("near"), Identity.generate("far")
    roster = Roster.of([near.public, far.public], epoch=1, signer=near)
    with Listener("127.0.0.1:0", far, roster, digest=bytes(32), handshake=handshake) as listener:

        def make() -> tuple[Channel, Channel]:
            dialled = connect(listener.address, near, roster, "far", digest=bytes(32), handshake=handshake)
            return dialled, listener.accept(5)

        yield make


PAIRS: dict[str, MakePair] = {
    "memory": memory_pair,
    "memory, padded": lambda: memory_pair(pad=True),
    "memory, 16 KiB records": lambda: memory_pair(limits=Limits(record=1 << 14)),
    "memory, ChaCha20": lambda: memory_pair(handshake=NoiseIK((IKHFS_CHACHA,))),
    "socket pair": socketpair_pair,
    "TLS 1.3": tls_pair,
}


@pytest.mark.parametrize("name", PAIRS)
def test_conforms(name: str) -> None:
    check_channel(PAIRS[name])


def test_conforms_over_tcp() -> None:
    with over_tcp(NoiseIK()) as make:
        check_channel(make)


def test_conforms_over_tcp_with_the_classical_suite_where_policy_allows_it() -> None:
    with over_tcp(NoiseIK((IK_AESGCM_CLASSICAL,))) as make:
        check_channel(make)


@contextlib.contextmanager
def by_circuit() -> Iterator[MakePair]:
    """Over an onion circuit of two hops, whose packets are handed from router to router."""
    near, far = fresh_sides()
    routers: dict[str, Router] = {}

    def towards(receiver: str, sender: str) -> Callable[..., None]:
        return lambda meta, cell: routers[receiver].receive(sender, Frame(meta, memoryview(cell)))

    hop = Identity.generate("hop")
    routers["left"] = Router(near.me, {"hop": towards("hop", "left")})
    routers["hop"] = Router(hop, {"left": towards("left", "hop"), "right": towards("right", "hop")})
    routers["right"] = Router(far.me, {"hop": towards("hop", "right")}, accepts=True)

    def make() -> tuple[Channel, Channel]:
        met: list[Channel] = []

        def answer() -> None:
            wire = routers["right"].accept(10)
            met.append(SealedChannel(wire, converse(wire, NOISE_IK.respond(far), None)))

        answering = threading.Thread(target=answer)
        answering.start()
        wire = routers["left"].dial([hop.public, far.me.public])
        agreed = converse(wire, NOISE_IK.initiate(near, far.me.public), None)
        answering.join()
        return SealedChannel(wire, agreed), met[0]

    yield make
    for router in routers.values():
        router.close()


def test_conforms_by_an_onion_circuit() -> None:
    with by_circuit() as make:
        check_channel(make)


class Spoiled:
    """A channel with one fault."""

    def __init__(self, channel: Channel, fault: str) -> None:
        self.channel, self.fault = channel, fault

    def __getattr__(self, name: str) -> object:
        return getattr(self.channel, name)

    def recv(self, timeout: float | None = None) -> Frame:
        frame = self.channel.recv(timeout)
        if self.fault == "changes bytes" and len(frame.payload) > 100:
            frame.payload[50] ^= 1
        if self.fault == "read-only":
            return Frame(frame.meta, memoryview(bytes(frame.payload)))
        return frame

    def close(self) -> None:
        if self.fault == "rude":
            self.channel.abandon()
        self.channel.close()


@pytest.mark.parametrize("fault", ["changes bytes", "read-only", "rude"])
def test_a_faulty_channel_is_found_out(fault: str) -> None:
    def make() -> tuple[Channel, Channel]:
        left, right = memory_pair()
        return Spoiled(left, fault), Spoiled(right, fault)  # type: ignore[return-value]

    with pytest.raises(AssertionError):
        check_channel(make)


def test_every_check_says_what_it_asks() -> None:
    assert all(check.__doc__ for check in CHECKS)
