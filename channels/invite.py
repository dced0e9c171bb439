"""Invites: what lets one party that no roster lists yet be met once, and the book that remembers which are used up.

An invite either holds a secret of 256 bits, to be handed over in private, or names the newcomer's own fingerprint, read
aloud beforehand. Its number is a hash of that: who does not hold the invite cannot name it, and hears nothing. A host
keeps its open invites in a folder of private files. An invite is used by renaming its file, which can succeed once,
whatever is restarted or runs at the same time; what it brought, the newcomer's public identity, waits in `pending`
until the roster's signer lists it. This file knows no handshake.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from channels.errors import InviteRefused, KeyFileError
from channels.identity import DAY, PublicIdentity, check_name, pack
from channels.keyfile import Hidden, from_text, parse_toml, read_file, to_text, toml, write_file
from channels.meeting import WORDS
from channels.noise import Secretive

NUMBER = 16  # bytes
SECRET = 32  # bytes
_FORMAT = "secsplit invite 1"


class Invite(Secretive):
    """For one party, once: `secret` or `guest` (the newcomer's fingerprint) is empty. No repr, no copy, no pickle."""

    __slots__ = ("address", "expires", "guest", "host", "name", "roles", "secret")

    def __init__(
        self, name: str, host: str, *, roles: tuple[str, ...], expires: int, secret: bytes, guest: str, address: str
    ) -> None:
        for word in (name, *roles):
            check_name(word)
        for words in filter(None, (host, guest)):
            if not WORDS.fullmatch(words):
                raise ValueError(f"expected a fingerprint of eight words joined by '-', got {words[:80]!r}")
        if bool(secret) == bool(guest) or len(secret) not in (0, SECRET):
            raise ValueError(f"an invite holds a secret of {SECRET} bytes or the newcomer's fingerprint")
        if any(sign in address for sign in '"\\') or not address.isprintable():
            raise ValueError(f"expected an address 'host:port', got {address[:80]!r}")
        self.name, self.host, self.roles, self.expires = name, host, roles, expires
        self.secret, self.guest, self.address = secret, guest, address

    @classmethod
    def of(
        cls,
        name: str,
        host: PublicIdentity,
        *,
        roles: Iterable[str] = (),
        days: float = 7,
        guest: str = "",
        address: str = "",
    ) -> Invite:
        """A new invite by that host: for the holder of fingerprint `guest`, or else with a fresh secret."""
        expires, secret = int(time.time() + days * DAY), b"" if guest else os.urandom(SECRET)
        roles = tuple(roles)
        return cls(name, host.fingerprint, roles=roles, expires=expires, secret=secret, guest=guest, address=address)

    @property
    def number(self) -> bytes:
        """16 bytes that name it and tell nothing of its secret."""
        kind, what = (b"guest", self.guest.encode()) if self.guest else (b"secret", self.secret)
        return hashlib.sha256(pack(b"secsplit invite", kind, what, self.host.encode())).digest()[:NUMBER]

    def check_time(self) -> Invite:
        """Itself; raises InviteRefused where its time is over."""
        if time.time() >= self.expires:
            raise InviteRefused(f"the invite for {self.name} has expired")
        return self

    def check(self, newcomer: PublicIdentity) -> None:
        """Raise InviteRefused unless this is the party that was invited."""
        if newcomer.expired:
            raise InviteRefused(f"{newcomer.name}'s identity has expired")
        if newcomer.name != self.name or (self.guest and newcomer.fingerprint != self.guest):
            raise InviteRefused(f"invited {self.name}, met {newcomer.name} ({newcomer.fingerprint})")
        if self.roles and not set(newcomer.roles) <= set(self.roles):
            raise InviteRefused(f"{newcomer.name} claims roles {newcomer.roles}, invited as {self.roles}")

    def dumps(self) -> Hidden:
        """The text of its private file."""
        table: dict[str, Any] = {"format": _FORMAT, "name": self.name, "roles": list(self.roles), "host": self.host}
        table |= {"guest": self.guest, "secret": to_text(self.secret), "address": self.address}
        table["expires"] = datetime.fromtimestamp(self.expires, UTC)
        return Hidden("# Works once. Hand it to the one invited, in private.\n" + toml(table))

    @classmethod
    def loads(cls, text: str) -> Invite:
        """What `dumps` wrote; raises KeyFileError."""
        table = parse_toml(text, _FORMAT)
        try:
            secret = str(table["secret"])
            return cls(
                str(table["name"]),
                str(table["host"]),
                roles=tuple(map(str, table["roles"])),
                expires=int(table["expires"].timestamp()),
                secret=from_text(secret, SECRET) if secret else b"",
                guest=str(table["guest"]),
                address=str(table["address"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            raise KeyFileError("the invite is damaged", fix="ask whoever issued it for a new one") from None

    def save(self, path: str | Path) -> None:
        """Write its private file; raises KeyFileError where one exists."""
        write_file(Path(path), self.dumps(), mode=0o600, exclusive=True)

    @classmethod
    def load(cls, path: str | Path) -> Invite:
        """Read its private file; raises KeyFileError, also where others may read it."""
        return cls.loads(read_file(Path(path), private=True))


class Invites:
    """A host's book: `NUMBER.invite` is open, `NUMBER.used` was, and `pending` holds who came by them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.pending = self.folder / "pending"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.pending.mkdir(mode=0o700, exist_ok=True)

    def issue(self, invite: Invite) -> None:
        """Remember it as open; raises KeyFileError where it is known already."""
        if self._path(invite.number, "used").exists():
            raise KeyFileError("this invite was used before")
        invite.save(self._path(invite.number, "invite"))

    def find(self, number: bytes) -> Invite:
        """The open invite of that number; raises InviteRefused where it is unknown, used or expired."""
        if self._path(number, "used").exists():
            raise InviteRefused("this invite has already been used")
        try:
            return Invite.load(self._path(number, "invite")).check_time()
        except KeyFileError as error:
            raise InviteRefused(f"no such invite: {error.what}") from None

    def use(self, invite: Invite, newcomer: PublicIdentity) -> Path:
        """Use it up for this newcomer; where its identity now waits. Raises InviteRefused, for all but the first."""
        invite.check_time().check(newcomer)
        entry = self.pending / f"{newcomer.name}.pub.toml"
        if entry.exists():
            raise InviteRefused(f"{entry.name} waits already", fix="list that one in the roster, or remove it")
        used = self._path(invite.number, "used")
        try:
            self._path(invite.number, "invite").rename(used)  # atomic: of several, one succeeds
        except OSError:
            raise InviteRefused("this invite has already been used") from None
        newcomer.save(entry)
        write_file(used, f"{newcomer.name} {newcomer.fingerprint}\n", mode=0o600)  # and the secret is gone
        return entry

    def open(self) -> list[Invite]:
        """All that can still be used."""
        found = []
        for path in sorted(self.folder.glob("*.invite")):
            with suppress(KeyFileError, InviteRefused):
                found.append(Invite.load(path).check_time())
        return found

    def _path(self, number: bytes, state: str) -> Path:
        return self.folder / f"{number.hex()}.{state}"
