"""Small text files: TOML tables of names and keys; private ones for their owner's eyes only, sealed where asked.

A private file has mode 0600 from its first byte on, is refused when others could read it, and is never overwritten.
Sealing is Argon2id (RFC 9106, libsodium's moderate limits) and ChaCha20-Poly1305 under a key used once.
This file knows no identities.
"""

from __future__ import annotations

import base64
import os
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from nacl.pwhash import argon2id

from channels.errors import KeyFileError
from channels.noise import Secretive
from channels.primitives import CIPHERS, TAG

MAX_FILE = 1 << 20  # bytes; a larger file is refused unread


class Hidden(Secretive):
    """Text that must not show in a traceback's variables, whoever prints them."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def toml(table: dict[str, Any]) -> str:
    """Lines of TOML for a flat table of names, base64, integers, dates and lists of names: nothing needs escaping."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(int(value))


def parse_toml(text: str, format_: str) -> dict[str, Any]:
    """The table in a TOML text of the given format; raises KeyFileError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        text = ""  # it may hold a key
        raise KeyFileError(f"not TOML: {error}", fix=f"expected a {format_!r} file") from None
    if table.get("format") != format_:
        raise KeyFileError(f"expected format {format_!r}, got {str(table.get('format'))[:60]!r}")
    return table


def read_file(path: Path, *, private: bool = False) -> str:
    """A small text file; a private one must be ours and closed to group and others, links not followed."""
    flags = os.O_RDONLY | (os.O_NOFOLLOW if private else 0)
    try:
        with open(os.open(path, flags), encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if private and (status.st_mode & 0o077 or status.st_uid != os.geteuid()):
                mode = stat.filemode(status.st_mode)
                raise KeyFileError(f"{path} is open to others ({mode}, uid {status.st_uid})", fix=f"chmod 600 {path}")
            if status.st_size > MAX_FILE:
                raise KeyFileError(f"{path} has {status.st_size} bytes, expected at most {MAX_FILE}")
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read {path}: {error}") from None


def write_file(path: Path, text: str | Hidden, *, mode: int, exclusive: bool = False) -> None:
    """Write a whole file or none, readable by whom `mode` says from its first byte on; `exclusive` never replaces."""
    if exclusive and path.exists():
        raise KeyFileError(f"{path} exists already", fix="choose another name; keys are never overwritten")
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text.text if isinstance(text, Hidden) else text)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(draft, path)  # unlike a rename, fails where the name is taken
            draft.unlink()
        else:
            draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise KeyFileError(f"cannot write {path}: {error}") from None


def to_text(raw: bytes) -> str:
    """Base64."""
    return base64.b64encode(raw).decode()


def from_text(text: Any, length: int) -> bytes:
    """Exactly so many bytes from base64; raises ValueError."""
    raw = base64.b64decode(str(text), validate=True)
    if len(raw) != length:
        raise ValueError(f"expected {length} bytes in base64, got {len(raw)}")
    return raw


def seal(secret: bytes, passphrase: str, statement: bytes) -> dict[str, Any]:
    """Table entries that hide a secret under a passphrase and bind it to a statement beside it."""

    salt = os.urandom(argon2id.SALTBYTES)
    operations, memory = argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE
    key = argon2id.kdf(32, passphrase.encode(), salt, opslimit=operations, memlimit=memory)
    box = CIPHERS["ChaChaPoly"].new(key).encrypt(bytes(12), secret, statement)  # this key seals once
    return {"salt": to_text(salt), "operations": operations, "memory": memory, "sealed": to_text(box)}


def unseal(table: dict[str, Any], passphrase: str | None, statement: bytes, length: int) -> bytes:
    """The secret of so many bytes; raises KeyFileError."""

    if passphrase is None:
        raise KeyFileError("the key file is sealed", fix="give its passphrase")
    try:
        salt, box = from_text(table["salt"], argon2id.SALTBYTES), from_text(table["sealed"], length + TAG)
        operations = min(int(table["operations"]), argon2id.OPSLIMIT_SENSITIVE)
        memory = min(int(table["memory"]), argon2id.MEMLIMIT_SENSITIVE)
        key = argon2id.kdf(32, passphrase.encode(), salt, opslimit=operations, memlimit=memory)
        return CIPHERS["ChaChaPoly"].new(key).decrypt(bytes(12), box, statement)
    except InvalidTag:
        raise KeyFileError("the passphrase does not open the key file, or the file was changed") from None
    except (KeyError, ValueError, TypeError) as error:
        raise KeyFileError(f"the key file is damaged: {error!r}", fix="restore it from a backup") from None
