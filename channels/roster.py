"""The roster: who may talk to whom, signed by one party, with an epoch that only rises.

Leaving a party out of the next epoch revokes it; adding one touches nobody else's keys. Every host pins the signer
(by public identity or by the words of its fingerprint) and remembers the highest epoch it has accepted, so an old
roster, which might list a revoked party, cannot be played back to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from channels.errors import IdentityMismatch, KeyFileError, RosterExpired, RosterRollback, UnknownPeer
from channels.identity import Identity, PublicIdentity, pack
from channels.keyfile import from_text, parse_toml, read_file, to_text, toml, write_file

_FORMAT = "secsplit roster 1"


@dataclass(frozen=True)
class Roster:
    """A signed list of parties, each listed once by name and by key."""

    parties: tuple[PublicIdentity, ...]
    epoch: int
    signer: PublicIdentity
    signature: bytes

    @classmethod
    def of(cls, parties: Iterable[PublicIdentity], *, epoch: int, signer: Identity) -> Roster:
        """Sign a roster; raises ValueError where a name or key is listed twice."""
        listed = tuple(party.verify() for party in parties)
        for what, values in (("name", [p.name for p in listed]), ("key", [p.noise for p in listed])):
            if len(set(values)) != len(values):
                raise ValueError(f"a {what} is listed twice in the roster")
        return cls(listed, epoch, signer.public, signer.sign(_statement(listed, epoch)))

    def adding(self, newcomers: Iterable[PublicIdentity], *, signer: Identity) -> Roster:
        """The next epoch, with these parties listed too; one of a known name replaces that one. Raises ValueError."""
        added = list(newcomers)
        names = {party.name for party in added}
        kept = [party for party in self.parties if party.name not in names]
        return Roster.of([*kept, *added], epoch=self.epoch + 1, signer=signer)

    def verify(self, signer: PublicIdentity | str) -> Roster:
        """Itself; raises KeyFileError unless the pinned signer (or the one of that fingerprint) signed all of it."""
        pinned = signer if isinstance(signer, str) else signer.fingerprint
        if self.signer.fingerprint != pinned:
            raise KeyFileError(
                f"roster signed by {self.signer.name} ({self.signer.fingerprint}), expected {pinned}",
                fix="take rosters from the pinned signer only",
            )
        self.signer.verify_signature(self.signature, _statement(self.parties, self.epoch))
        return self

    def by_name(self, name: str) -> PublicIdentity:
        """The party of that name; raises UnknownPeer or RosterExpired."""
        for party in self.parties:
            if party.name == name:
                return _in_time(party)
        known = ", ".join(party.name for party in self.parties[:12])
        raise UnknownPeer(f"roster epoch {self.epoch} lists no {name!r}; it lists {known}", peer=name, fault="local")

    def by_key(self, noise: bytes) -> PublicIdentity:
        """The party of that Noise key; raises UnknownPeer or RosterExpired."""
        for party in self.parties:
            if party.noise == noise:
                return _in_time(party)
        raise UnknownPeer(f"a stranger's key, not in roster epoch {self.epoch}")

    def expect(self, name: str, noise: bytes) -> PublicIdentity:
        """The party that must have both this name and this key; raises IdentityMismatch."""
        party = self.by_key(noise)
        if party.name != name:
            raise IdentityMismatch(f"expected {name}, but the key is {party.name}'s", peer=name)
        return party

    def __iter__(self) -> Iterator[PublicIdentity]:
        return iter(self.parties)

    def dumps(self) -> str:
        """The TOML text."""
        head = {"format": _FORMAT, "epoch": self.epoch, "signature": to_text(self.signature)}
        tables = [("\n[signer]\n", self.signer), *(("\n[[party]]\n", party) for party in self.parties)]
        return toml(head) + "".join(title + toml(party.fields()) for title, party in tables)

    @classmethod
    def loads(cls, text: str, signer: PublicIdentity | str) -> Roster:
        """Read and verify; raises KeyFileError."""
        table = parse_toml(text, _FORMAT)
        try:
            parties = tuple(map(PublicIdentity.from_fields, table.get("party", [])))
            signature = from_text(table["signature"], 64)
            roster = cls(parties, int(table["epoch"]), PublicIdentity.from_fields(table["signer"]), signature)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KeyFileError(f"not a roster: {error!r}", fix="fetch it again from its signer") from None
        return roster.verify(signer)

    def save(self, path: str | Path) -> None:
        """Write the text file."""
        write_file(Path(path), self.dumps(), mode=0o644)

    @classmethod
    def load(cls, path: str | Path, signer: PublicIdentity | str, *, seen: str | Path | None = None) -> Roster:
        """Read and verify; `seen` is a small file remembering the highest epoch accepted on this host.

        Raises KeyFileError, or RosterRollback where the epoch is below the one remembered.
        """
        roster = cls.loads(read_file(Path(path)), signer)
        if seen is not None:
            roster.remember(Path(seen))
        return roster

    def remember(self, seen: Path) -> None:
        """Check the epoch against the highest one accepted here, and raise that mark; raises RosterRollback."""
        mark = hashlib.sha256(_statement(self.parties, self.epoch)).hexdigest()
        highest, known = _seen(seen)
        if self.epoch < highest or (self.epoch == highest and mark != known):
            other = "another roster of the same epoch" if self.epoch == highest else f"epoch {highest}"
            raise RosterRollback(f"roster epoch {self.epoch} offered, but {other} was already accepted here")
        if self.epoch > highest:
            write_file(seen, f"{self.epoch} {mark}\n", mode=0o600)


def _in_time(party: PublicIdentity) -> PublicIdentity:
    if party.expired:
        raise RosterExpired("its identity has expired", peer=party.name)
    return party


def _seen(path: Path) -> tuple[int, str]:
    if not path.exists():
        return 0, ""
    try:
        epoch, mark = read_file(path).split()
        return int(epoch), mark
    except ValueError:
        raise KeyFileError(f"{path} holds no epoch", fix="restore it; without it old rosters cannot be told") from None


def _statement(parties: tuple[PublicIdentity, ...], epoch: int) -> bytes:
    return pack(b"secsplit roster 1", epoch.to_bytes(8, "big"), *(p.statement() + p.signature for p in parties))
