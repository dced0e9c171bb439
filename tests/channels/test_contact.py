"""First contact: by an invite's secret or by fingerprints; what strangers, thieves, replays and the wire cannot do."""

import contextlib
import logging
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels import (
    ChannelError,
    HandshakeError,
    Identity,
    IdentityMismatch,
    Invite,
    InviteRefused,
    Invites,
    PublicIdentity,
    Reception,
    Roster,
    accept_invite,
    contact,
)
from channels.contact import DIGEST, Arriving, Receiving, alone
from channels.dial import split_address
from channels.handshake import frame
from channels.meeting import Conversation, Side
from channels.tap import Tap
from tests.channels.talk import together

HOST = Identity.generate("host")
NEW = Identity.generate("radiology", roles=["client"])
KINDS = ["secret", "fingerprint"]


@pytest.fixture
def book(tmp_path: Path) -> Invites:
    return Invites(tmp_path / "invites")


@pytest.fixture
def reception(book: Invites) -> Iterator[Reception]:
    with Reception("127.0.0.1:0", HOST, book) as open_:
        yield open_


def invite(book: Invites, kind: str, address: str = "") -> Invite:
    guest = NEW.public.fingerprint if kind == "fingerprint" else ""
    made = Invite.of("radiology", HOST.public, roles=["client"], guest=guest, address=address)
    book.issue(made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_newcomer_is_met_and_its_identity_waits_for_the_roster(
    reception: Reception, book: Invites, kind: str
) -> None:
    mine = invite(book, kind, reception.address)
    met = accept_invite(mine, NEW)
    assert met == HOST.public
    newcomer, entry = reception.welcome(5)
    assert newcomer == NEW.public == PublicIdentity.load(entry)
    listed = Roster.of([HOST.public], epoch=3, signer=HOST).adding([newcomer], signer=HOST)
    assert (listed.epoch, listed.by_name("radiology")) == (4, NEW.public)


@pytest.mark.parametrize("kind", KINDS)
def test_an_invite_is_not_used_again(reception: Reception, book: Invites, kind: str) -> None:
    """Neither by the one invited nor by who stole it, before or after the host restarts."""
    mine = invite(book, kind, reception.address)
    accept_invite(mine, NEW)
    _, entry = reception.welcome(5)
    with pytest.raises(InviteRefused, match="without a word"):
        accept_invite(mine, NEW)
    entry.unlink()
    thief = Identity.generate("radiology", roles=["client"])
    with Reception("127.0.0.1:0", HOST, Invites(book.folder)) as after:
        for who in (NEW, thief) if kind == "secret" else (NEW,):
            with pytest.raises(InviteRefused, match="without a word"):
                accept_invite(mine, who, address=after.address)
        assert "already been used" in str(after._listener.refusals[-1])
    assert not list(book.pending.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_another_host_is_not_believed(tmp_path: Path, kind: str) -> None:
    """Somebody else at that address, even one who knows the invite, learns no identity and is not pinned."""
    eve, book = Identity.generate("host"), Invites(tmp_path)
    mine = invite(book, kind)
    asked = Arriving(mine).initiate(Side(NEW, alone(NEW), DIGEST))
    answered = Receiving(book).respond(Side(eve, alone(eve), DIGEST))
    with pytest.raises(IdentityMismatch, match="expected"):
        together(asked, answered)
    assert book.open()


class Guessed(Invite):
    """An invite whose number was overheard, and whose secret was not."""

    __slots__ = ("overheard",)

    @property
    def number(self) -> bytes:
        number: bytes = self.overheard
        return number


def test_the_number_alone_opens_nothing(reception: Reception, book: Invites) -> None:
    """It travels in the clear; whoever overheard it neither gets in nor uses the invite up."""
    mine = invite(book, "secret", reception.address)
    guess = Guessed(mine.name, mine.host, roles=(), expires=mine.expires, secret=bytes(32), guest="", address="")
    guess.overheard = mine.number  # type: ignore[attr-defined]
    with pytest.raises(HandshakeError, match="did not open"):
        together(*both(guess, book))
    assert [one.number for one in book.open()] == [mine.number]
    accept_invite(mine, NEW)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_one_invited(reception: Reception, book: Invites, kind: str) -> None:
    mine = invite(book, kind, reception.address)
    other = Identity.generate("pathology", roles=["client"])
    with pytest.raises(InviteRefused, match="invited radiology"):
        accept_invite(mine, other)  # told here, before anything is sent
    honest = Arriving(mine).initiate(Side(other, alone(other), DIGEST))  # as a newcomer that does not check
    with pytest.raises(InviteRefused, match="invited radiology"):
        together(honest, Receiving(book).respond(Side(HOST, alone(HOST), DIGEST)))
    assert len(book.open()) == 1
    accept_invite(mine, NEW)


def test_a_certificate_of_another_key_is_not_taken(book: Invites) -> None:
    """Whoever holds the invite shows somebody else's identity: the key proved is not the one it names."""
    mine = invite(book, "secret")
    eve = Identity.generate("radiology", roles=["client"])
    side = Side(eve, alone(eve), DIGEST)
    object.__setattr__(side, "me", type("Liar", (), {"noise": eve.noise, "public": NEW.public})())
    with pytest.raises(IdentityMismatch, match="does not name the key"):
        together(Arriving(mine).initiate(side), Receiving(book).respond(Side(HOST, alone(HOST), DIGEST)))
    assert book.open()


def test_a_stranger_hears_nothing(reception: Reception, book: Invites, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    unknown = Invite.of("radiology", HOST.public, roles=["client"], address=reception.address)
    with pytest.raises(InviteRefused, match="without a word"):
        accept_invite(unknown, NEW)
    for said in (b"GET / HTTP/1.1\r\n\r\n", frame(bytes(1300)), b"\xff" * 3000):
        with socket.create_connection(split_address(reception.address), timeout=8) as sock:
            sock.sendall(said)
            heard = b""
            with contextlib.suppress(ConnectionError):
                heard = sock.recv(1)
            assert heard == b""
    assert len([record for record in caplog.records if record.name == "secsplit.channels"]) == 4
    assert "InviteRefused" not in caplog.text  # one line each, no traceback


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changed_on_the_way_is_believed(book: Invites, kind: str) -> None:
    """A flipped bit at any byte of any of the three messages ends the handshake, and leaves the invite open."""
    mine, coins, flips = invite(book, kind), random.Random(3), 0
    lengths = [len(said) for said in transcript(mine, book)][:3]
    mine = invite(book, kind) if kind == "secret" else reissued(book, mine)
    for turn, length in enumerate(lengths):
        for position in range(0, length, 13):

            def flip(index: int, said: bytes, turn: int = turn, position: int = position) -> bytes:
                if index != turn:
                    return said
                return said[:position] + bytes([said[position] ^ 1 << coins.randrange(8)]) + said[position + 1 :]

            with pytest.raises((ChannelError, EOFError)):
                together(*both(mine, book), change=flip)
            flips += 1
    assert flips > 500
    assert [one.number for one in book.open()] == [mine.number]
    assert not list(book.pending.iterdir())


def test_a_welcome_that_was_changed_is_not_believed(book: Invites) -> None:
    """The host has met the newcomer by then; the newcomer is told nothing that it could check."""
    mine = invite(book, "secret")
    with pytest.raises(HandshakeError, match="did not say welcome"):
        together(*both(mine, book), change=lambda index, said: said if index != 3 else bytes(len(said)))
    assert [entry.name for entry in book.pending.iterdir()] == ["radiology.pub.toml"]


def reissued(book: Invites, mine: Invite) -> Invite:
    for path in book.folder.glob("*.used"):
        path.unlink()
    book.issue(mine)
    return mine


def both(mine: Invite, book: Invites) -> tuple[Conversation, Conversation]:
    near, far = Side(NEW, alone(NEW), DIGEST), Side(HOST, alone(HOST), DIGEST)
    return Arriving(mine).initiate(near), Receiving(book).respond(far)


def transcript(mine: Invite, book: Invites) -> list[bytes]:
    said: list[bytes] = []

    def note(index: int, message: bytes) -> bytes:
        said.append(message)
        return message

    together(*both(mine, book), change=note)
    for entry in book.pending.iterdir():
        entry.unlink()
    return said


def test_a_recorded_first_contact_cannot_be_replayed(reception: Reception, book: Invites) -> None:
    mine = invite(book, "secret", reception.address)
    said = transcript(mine, book)
    with socket.create_connection(split_address(reception.address), timeout=8) as sock:
        sock.sendall(said[0] + said[2])
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
    fresh = invite(book, "secret", reception.address)  # and the third message does not fit another first
    with socket.create_connection(split_address(reception.address), timeout=8) as sock:
        first = next(Arriving(fresh).initiate(Side(NEW, alone(NEW), DIGEST))).say
        sock.sendall(first + said[2])
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(4096):
                heard += piece
        assert len(heard) > 100  # it named an open invite, so the host showed its identity, and hung up
    assert [one.number for one in book.open()] == [fresh.number]


def test_a_wiretap_sees_neither_names_nor_keys(reception: Reception, book: Invites) -> None:
    mine = invite(book, "secret")
    with Tap(reception.address, keep_bytes=True) as tap:
        accept_invite(mine, NEW, address=tap.address)
    seen = b"".join(bytes(run) for recording in tap.recordings for run in (recording.there, recording.back))
    for secret in (b"radiology", b"host", NEW.public.noise, HOST.public.noise, HOST.public.signing, mine.secret):
        assert secret not in seen
    assert mine.number in seen


def test_what_a_stranger_may_send_is_below_eight_kib() -> None:
    assert 2 * (2 + contact.MAX_SAID) < 8192
