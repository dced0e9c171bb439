"""What a report stands on, sealed: a digest of every file and of every line of it, signed by each site's identity.

DIR/manifest.json      file -> SHA-256 of the whole and a short digest a line, so that a change can be named by its line
DIR/seals/NAME.json    a party's Ed25519 signature over the manifest, with its public identity

A seal says that its site saw exactly these files. It does not say that they are true, and without knowing a site's
fingerprint from elsewhere anybody could have made one: compare it by telephone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from audits.channel import FILE as CHANNEL
from audits.dp_found import FILE as DP
from audits.frozen import Frozen
from audits.grid import POINTS
from audits.privacy import AUDIT
from audits.report.write import CARD, HTML, JSON, PDF
from audits.sweep import GRID, Grid
from secsplit.auditlog import FILE as LOG
from secsplit.errors import RunError
from secsplit.rundir import RunDir, write_atomically

if TYPE_CHECKING:
    from channels import Identity

MANIFEST, SEALS = "manifest.json", "seals"
STATEMENT = b"secsplit seal 1\n"
LINE = 16  # hexadecimal digits of a line's digest


class Sealed(Frozen):
    """One file as it was sealed."""

    sha256: str
    lines: tuple[str, ...]


class Manifest(Frozen):
    """Every sealed file, by its path in the folder. digest: of the run, or the key of the sweep."""

    schema_version: str = "1.0"
    digest: str
    files: dict[str, Sealed]

    def statement(self) -> bytes:
        """What is signed: the manifest in one canonical form."""
        return STATEMENT + json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


class Seal(Frozen):
    """One party's signature over the manifest."""

    identity: str  # as its owner exports it
    signature: str


def sealed(path: Path) -> Sealed:
    """A file's digests."""
    content = path.read_bytes()
    return Sealed(
        sha256=sha256(content).hexdigest(),
        lines=tuple(sha256(line).hexdigest()[:LINE] for line in content.split(b"\n")),
    )


def evidence_files(folder: Path) -> Iterator[str]:
    """What is sealed where it is there: the run, the audits, the report, and each party's log, metrics and accounts.

    The DPIA fields are not: they are there to be filled in. Of a sweep: its results, and the same of every point.
    """
    for name in ("run.toml", "digest", AUDIT, CHANNEL, DP, GRID, JSON, HTML, PDF, CARD):
        if (folder / name).exists():
            yield name
    for party in sorted((folder / "parties").glob("*/")):
        for name in (LOG, "metrics.jsonl", "channel.json", "privacy.json"):
            if (party / name).exists():
                yield f"parties/{party.name}/{name}"
    for point in sorted((folder / POINTS).glob("*/")):
        yield from (f"{POINTS}/{point.name}/{name}" for name in evidence_files(point))


def met(folder: Path) -> dict[str, str]:
    """party -> its identity's fingerprint, as a peer's channels knew it; of those that were on a channel."""
    known = {}
    for party in RunDir(folder).parties():
        try:
            told = party.channels()
        except RunError:
            continue  # a sealed file like others: named by its first wrong line
        for channel in (channel for facts in told.values() for channel in facts["channels"]):
            known[str(channel.get("peer_name"))] = str(channel.get("peer_fingerprint"))
    return known


def seal(folder: Path, me: Identity) -> Path:
    """Sign the folder's evidence as `me`.

    Raises RunError where it is no longer what others have sealed, or `me` has a party's name and not its key.
    """
    path = folder / MANIFEST
    knew = met(folder).get(me.public.name, me.public.fingerprint)
    if knew != me.public.fingerprint:
        raise RunError(
            f"{folder}: this key is {me.public.fingerprint}, and the channels of the run knew its party "
            f"{me.public.name!r} as {knew}; sign with the key it ran with, or under a name that no party of the run has"
        )
    made = Manifest(
        digest=Grid.load(folder).key if (folder / GRID).exists() else (folder / "digest").read_text().strip(),
        files={name: sealed(folder / name) for name in evidence_files(folder)},
    )
    others = sorted((folder / SEALS).glob("*.json")) if (folder / SEALS).is_dir() else []
    if others and load(folder) != made:
        raise RunError(
            f"{path}: the evidence changed since {', '.join(other.stem for other in others)} sealed it; "
            f"run 'secsplit verify {folder}', or remove {folder / SEALS} to begin anew"
        )
    write_atomically(path, made.model_dump_json(indent=1).encode())
    signed = Seal(identity=me.public.dumps(), signature=me.sign(made.statement()).hex())
    write_atomically(folder / SEALS / f"{me.public.name}.json", signed.model_dump_json(indent=1).encode())
    return folder / SEALS / f"{me.public.name}.json"


def load(folder: Path) -> Manifest:
    """The manifest. Raises RunError where there is none, or none of this version."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: nothing was sealed here; run 'secsplit seal {folder} --key NAME.key'") from None
    except ValidationError as error:
        raise RunError(f"{path}: not a manifest: {error.errors()[0]['msg']}") from None
