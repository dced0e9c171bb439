"""Finished pieces of work kept by what they are the result of, so that nothing finished is computed twice.

A piece's key is a digest of everything that it depends on, the code that made it among them; it is written whole or not
at all, so that a kill at any point leaves either the piece or nothing. A piece that cannot be read is computed anew.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from secsplit.rundir import write_atomically

M = TypeVar("M", bound=BaseModel)
FLOORS = ("channels", "secsplit", "attacks", "audits")
COMPUTING = ("torch", "numpy", "scipy", "scikit-learn")


def key_of(*parts: Any) -> str:
    """32 hexadecimal digits over plain values, in their canonical JSON, and over this project's code."""
    text = json.dumps([code(), *parts], sort_keys=True, separators=(",", ":"), default=_plain)
    return blake2b(text.encode(), digest_size=16, person=b"secsplit/shelf").hexdigest()


@cache
def code() -> str:
    """A digest of every module of the four floors, and of the libraries that compute: others may find otherwise."""
    root, digest = Path(__file__).parents[1], blake2b(digest_size=16)
    digest.update(repr([version(name) for name in COMPUTING]).encode())
    for floor in FLOORS:
        for file in sorted((root / floor).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def code_of(cls: type) -> str:
    """A digest of the module that defines a class, of whatever package; its name where there is no file."""
    try:
        return blake2b(Path(inspect.getfile(cls)).read_bytes(), digest_size=16).hexdigest()
    except (OSError, TypeError):
        return cls.__module__


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return repr(value)


@dataclass(frozen=True)
class Shelf:
    """A folder of pieces, one file each."""

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def get(self, key: str, model: type[M]) -> M | None:
        """The piece of that key; None where it is not there, or is no longer of that form."""
        try:
            return model.model_validate_json(self.path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def put(self, key: str, piece: BaseModel) -> None:
        write_atomically(self.path(key), piece.model_dump_json().encode())
