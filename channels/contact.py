"""First contact: a party that no roster lists yet meets the host that invited it, and hands over its public identity.

    -> u16 length | preface (32 bytes: as in `handshake`, and the invite's number) | e, e1
    <- u16 length | e, ee, ekem1, s, es, {the host's public identity}
    -> u16 length | s, se, psk, {the newcomer's public identity}
    <- the first sealed record, kind HELLO: welcome, the invite is used up

`Noise_XXhfs+psk3` under an invite's secret, `Noise_XXhfs` where the invite names the newcomer's fingerprint; the
newcomer knows the host's fingerprint in both cases. So each side is sure of the other before anything is believed, and
the invite is used up only when the newcomer has proved its keys: nobody on the wire can use it or spoil it. Who cannot
name an open invite is hung up on without a word. A host shows its identity to whoever names one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from channels.channel import SealedChannel
from channels.dial import HANDSHAKE_SECONDS, converse, open_socket
from channels.errors import (
    ChannelError,
    DeadlineExceeded,
    HandshakeError,
    HandshakeTimeout,
    IdentityMismatch,
    InviteRefused,
    SuiteRefused,
    Truncated,
)
from channels.handshake import MAGIC, PREFACE, VERSION, agree, frame, frame_length, kind_of, read
from channels.identity import Identity, PublicIdentity
from channels.invite import NUMBER, Invite, Invites
from channels.listen import Listener
from channels.meeting import Agreement, Ask, Claims, Conversation, Side
from channels.noise import HandshakeState, Transport
from channels.records import DEFAULT_LIMITS, Kind
from channels.roster import Roster
from channels.suites import XXHFS, XXHFS_INVITE, Suite, offer
from channels.wire import SocketWire

DIGEST = sha256(b"secsplit first contact 1").digest()  # no run: the parties do not share one yet
IDENTITY = 2048  # bytes that every public identity is filled up to: the length tells no name
MAX_SAID = 2400  # bytes of one message: two of them are below what a stranger may cost
RECORD_BITS = DEFAULT_LIMITS.record.bit_length() - 1


@dataclass(frozen=True)
class Arriving:
    """The newcomer's side."""

    invite: Invite

    def initiate(self, side: Side) -> Conversation:
        """Meet the host. Raises IdentityMismatch where somebody else answers."""
        suite = suite_of(self.invite)
        preface = _preface(suite, self.invite.number)
        noise = _noise(suite, self.invite, preface, side.me, initiator=True)
        head = yield Ask(frame(preface + noise.write_message()), 2)
        answer = yield Ask(b"", frame_length(head))
        host = _identity(read(noise, answer), noise)
        if host.fingerprint != self.invite.host or host.expired:
            raise IdentityMismatch(f"met {host.name} ({host.fingerprint}), expected {self.invite.host}")
        last = frame(noise.write_message(_text(side.me.public)))
        agreement = _agreed(side, suite, host, noise.into_transport())
        hearing = agreement.opener.open()
        memory = next(hearing)
        memory[:] = yield Ask(last, len(memory))
        if kind_of(hearing) is not Kind.HELLO:
            raise HandshakeError("the host did not say welcome", peer=host.name)
        return agreement


@dataclass(frozen=True)
class Receiving:
    """The host's side: whoever holds an open invite of this book is met, and the invite used up."""

    book: Invites

    def respond(self, side: Side) -> Conversation:
        """Be met by an invited party. Raises InviteRefused."""
        head = yield Ask(b"", 2)
        first = yield Ask(b"", frame_length(head, MAX_SAID))
        preface, number = first[: PREFACE.size + NUMBER], first[PREFACE.size : PREFACE.size + NUMBER]
        if first[: len(MAGIC)] != MAGIC:
            raise HandshakeError("not a secsplit handshake: wrong first bytes")
        invite = self.book.find(number)
        suite = suite_of(invite)
        if preface != _preface(suite, number):
            raise SuiteRefused(f"another protocol version or suite than {suite.name}")
        noise = _noise(suite, invite, preface, side.me, initiator=False)
        read(noise, first[len(preface) :])
        head = yield Ask(frame(noise.write_message(_text(side.me.public))), 2)
        last = yield Ask(b"", frame_length(head, MAX_SAID))
        newcomer = _identity(read(noise, last), noise)
        self.book.use(invite, newcomer)
        agreement = _agreed(side, suite, newcomer, noise.into_transport())
        (hello,) = agreement.sealer.seal(Kind.HELLO, b"")
        yield Ask(bytes(hello), 0)
        return agreement


class Reception:
    """Listens for invited newcomers at "host:port", until closed."""

    def __init__(self, address: str, me: Identity, book: Invites) -> None:
        self._book = book
        self._listener = Listener(address, me, alone(me), digest=DIGEST, handshake=Receiving(book))
        self.address = self._listener.address

    def welcome(self, timeout: float | None = None) -> tuple[PublicIdentity, Path]:
        """The next newcomer, and where its identity waits to be listed; raises DeadlineExceeded."""
        with self._listener.accept(timeout) as channel:
            return channel.peer, self._book.pending / f"{channel.peer.name}.pub.toml"

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def __enter__(self) -> Reception:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def accept_invite(
    invite: Invite, me: Identity, *, address: str = "", timeout: float = 30.0, proxy: str | None = None
) -> PublicIdentity:
    """Meet the host (at the invite's address, or another) and hand over our identity; the host's own, to be pinned.

    Raises InviteRefused where the host hangs up or this identity is not the one invited, HandshakeError in its kinds.
    """
    invite.check_time().check(me.public)
    deadline = time.monotonic() + timeout
    wire = SocketWire(open_socket(address or invite.address, deadline, "the host", proxy))
    try:
        limit = min(deadline, time.monotonic() + HANDSHAKE_SECONDS)
        agreement = converse(wire, Arriving(invite).initiate(Side(me, alone(me), DIGEST)), limit)
        with SealedChannel(wire, agreement) as channel:
            return channel.peer
    except ChannelError as error:
        wire.close()
        raise _explained(error, address or invite.address) from None


def _explained(error: ChannelError, address: str) -> ChannelError:
    """A host that hangs up says nothing; what it may have meant."""
    if isinstance(error, DeadlineExceeded):
        return HandshakeTimeout(f"no welcome: {error.what}")
    if not isinstance(error, Truncated):
        return error
    return InviteRefused(
        f"{address} closed the connection without a word: the invite is unknown there, expired or already used, or "
        "nothing of ours listens at that address"
    )


def suite_of(invite: Invite) -> Suite:
    """With a secret, or by fingerprints alone."""
    return XXHFS if invite.guest else XXHFS_INVITE


def alone(me: Identity) -> Roster:
    """A roster of epoch 0 that lists us only: first contact comes before any other."""
    return Roster.of([me.public], epoch=0, signer=me)


def _preface(suite: Suite, number: bytes) -> bytes:
    return PREFACE.pack(MAGIC, VERSION, suite.number, offer([suite]), RECORD_BITS, 0) + number


def _noise(suite: Suite, invite: Invite, preface: bytes, me: Identity, *, initiator: bool) -> HandshakeState:
    psks = () if invite.guest else (invite.secret,)
    return HandshakeState(suite.protocol, initiator=initiator, prologue=preface, static=me.noise, psks=psks)


def _text(public: PublicIdentity) -> bytes:
    text = public.dumps().encode()
    if len(text) > IDENTITY:
        raise HandshakeError(f"a public identity of {len(text)} bytes, at most {IDENTITY}", fault="local")
    return text.ljust(IDENTITY, b"\n")


def _identity(text: bytes, noise: HandshakeState) -> PublicIdentity:
    """Whose static key this is, by its own certificate; raises KeyFileError or IdentityMismatch."""
    public = PublicIdentity.loads(text.decode("ascii", "replace"))
    if public.noise != noise.rs:
        raise IdentityMismatch(f"{public.name}'s identity does not name the key that was proved")
    return public


def _agreed(side: Side, suite: Suite, peer: PublicIdentity, noise: Transport) -> Agreement:
    said = Claims(DIGEST, 0, peer.fingerprint, side.me.public.fingerprint)
    return agree(side, suite, side.limits, peer, said, noise)
