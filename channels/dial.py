"""Dialling out: connect to a peer, directly or through an HTTP CONNECT proxy, and meet it.

A party that may not listen only ever dials. Addresses are "host:port" or "unix:/path". Connecting is tried again
until the deadline while nobody listens yet, since the parties of a run start when they start; a peer that hangs up on
us is asked once more at most.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

from channels.channel import SealedChannel
from channels.errors import (
    ChannelError,
    DeadlineExceeded,
    HandshakeError,
    HandshakeTimeout,
    RosterExpired,
    Truncated,
)
from channels.handshake import NoiseIK
from channels.identity import Identity
from channels.meeting import Agreement, Conversation, Handshake, Side
from channels.records import DEFAULT_LIMITS, Limits
from channels.roster import Roster
from channels.wire import STALL, SocketWire, Wire

HANDSHAKE_SECONDS = 5.0
MAX_PROXY_ANSWER = 8192  # bytes
NOISE_IK = NoiseIK()


def connect(
    address: str,
    me: Identity,
    roster: Roster,
    peer_name: str,
    *,
    digest: bytes,
    timeout: float = 30.0,
    proxy: str | None = None,
    handshake: Handshake = NOISE_IK,
    limits: Limits = DEFAULT_LIMITS,
    pad: bool = False,
    stall: float = STALL,
) -> SealedChannel:
    """A channel to the party of that name, within `timeout` seconds.

    `digest` is 32 bytes that both sides must hold alike; `proxy` an "http://[user:password@]host:port" to pass
    through. Raises HandshakeError in its kinds; the one it raises says what to mend.
    """
    side = Side(me, check_own(me, roster), digest, limits, pad)
    peer = roster.by_name(peer_name)
    deadline = time.monotonic() + timeout
    for last in _attempts(deadline):
        wire = SocketWire(open_socket(address, deadline, peer_name, proxy), stall=stall)
        try:
            limit = min(deadline, time.monotonic() + HANDSHAKE_SECONDS)
            return SealedChannel(wire, converse(wire, handshake.initiate(side, peer), limit))
        except ChannelError as error:
            wire.close()
            error.peer = error.peer or peer_name
            if isinstance(error, Truncated) and last:
                raise _unexplained(side, peer_name, address) from None
            if not isinstance(error, Truncated | DeadlineExceeded):
                raise
    raise HandshakeTimeout(f"no handshake with {address} in {timeout:g} s", peer=peer_name)


def check_own(me: Identity, roster: Roster) -> Roster:
    """The roster; raises where it does not list us, under our name and in time, for no peer could then accept us."""
    try:
        roster.expect(me.public.name, me.public.noise)
        if me.public.expired:
            raise RosterExpired("the identity in our own key file has expired")
    except HandshakeError as error:
        error.fault, error.peer = "local", f"our own identity {me.public.name}"
        raise
    return roster


def converse(wire: Wire, conversation: Conversation, deadline: float | None) -> Agreement:
    """Carry a handshake over a wire, blocking; raises what the conversation or the wire raises."""
    try:
        ask = next(conversation)
        while True:
            if ask.say:
                wire.write(memoryview(ask.say))
            heard = bytearray(ask.want)
            wire.fill(memoryview(heard), deadline)
            ask = conversation.send(bytes(heard))
    except StopIteration as done:
        agreement: Agreement = done.value
        return agreement


def _attempts(deadline: float) -> Iterator[bool]:
    """Two, the second after a short wait: a listener under a flood may have dropped us by no fault of ours."""
    yield False
    if time.monotonic() + 0.05 < deadline:
        time.sleep(0.05)
        yield True


def _unexplained(side: Side, peer: str, address: str) -> HandshakeError:
    return HandshakeError(
        f"{address} closed the connection without a word",
        peer=peer,
        fix=f"ask its operator for its log: its roster may lack our key ({side.me.public.fingerprint}) or be older or "
        f"newer than ours (epoch {side.roster.epoch}), or nothing of ours listens at that address",
    )


def open_socket(address: str, deadline: float, peer: str, proxy: str | None = None) -> socket.socket:
    """A connected socket; tries again while refused, until the deadline. Raises HandshakeTimeout or HandshakeError."""
    via = _proxy(proxy) if proxy else None
    hop = f"{via.hostname}:{via.port or 3128}" if via else address
    pause = 0.02
    while True:
        try:
            sock = _connect_once(hop, max(0.05, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() + pause >= deadline:
                raise HandshakeTimeout(f"cannot reach {hop}: {error}", peer=peer) from None
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        if via:
            _ask_proxy(sock, via, address, deadline)
        stack.pop_all()
    return sock


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; raises ValueError on anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected an address 'host:port' or 'unix:/path', got {address!r}")
    return host.strip("[]"), int(port)


def _connect_once(address: str, seconds: float) -> socket.socket:
    if not address.startswith("unix:"):
        return socket.create_connection(split_address(address), timeout=seconds)
    with contextlib.ExitStack() as stack:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(sock.close)
        sock.settimeout(seconds)
        sock.connect(address.removeprefix("unix:"))
        stack.pop_all()
    return sock


def _proxy(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"expected a proxy 'http://[user:password@]host:port', got {parts.scheme}://{parts.hostname}")
    return parts


def _ask_proxy(sock: socket.socket, via: SplitResult, address: str, deadline: float) -> None:
    """CONNECT (RFC 9110, 9.3.6): what follows is end to end, so the proxy sees sealed bytes only."""
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if via.username is not None:
        user = f"{unquote(via.username)}:{unquote(via.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}")
    answer = b""
    try:
        sock.settimeout(max(0.05, deadline - time.monotonic()))
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while not answer.endswith(b"\r\n\r\n") and len(answer) < MAX_PROXY_ANSWER and time.monotonic() < deadline:
            byte = sock.recv(1)  # one at a time: never a byte of the tunnel itself
            if not byte:
                break
            answer += byte
    except OSError as error:
        raise HandshakeTimeout(f"the proxy did not answer: {error}", peer=address) from None
    first = answer.split(b"\r\n", 1)[0]
    if not first.startswith(b"HTTP/1.") or first[8:12] != b" 200" or not answer.endswith(b"\r\n\r\n"):
        said = first[:80].decode("latin-1")
        raise HandshakeError(f"the proxy refused the tunnel: {said!r}", fix="ask the proxy's operator to allow it")
