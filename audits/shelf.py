"""Finished pieces of work kept by what they are the result of, so that nothing finished is computed twice.

A piece's key is a digest of everything that it depends on; it is written whole or not at all, so that a kill at any
point leaves either the piece or nothing. A piece that cannot be read is computed anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from secsplit.rundir import write_atomically

M = TypeVar("M", bound=BaseModel)


def key_of(*parts: Any) -> str:
    """32 hexadecimal digits over plain values, in their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return blake2b(text.encode(), digest_size=16, person=b"secsplit/shelf").hexdigest()


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
