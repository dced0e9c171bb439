"""Record ids that sites can compare without showing hospital numbers: HMAC-SHA256 under a key that only they hold.

Vertical parties hold different columns of the same patients, so they must put the same patients in the same order. Each
names its records by ``keyed_ids``; what they have in ``common`` is what they train on, sorted by id. Before
a run starts, the census compares the ``order`` of each.

This is not private set intersection: whoever holds the key can test whether a number that he can guess is in another's
list. Give the key to the sites that share patients and to no server.
"""

from __future__ import annotations

import hmac
import stat
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from secsplit.datasets.records import mismatch

KEY_BYTES = 32


def keyed_ids(names: Sequence[str], key: bytes) -> Tensor:
    """(n,) int64: the first 63 bits of each name's HMAC. Raises DataError where two records have the same name."""
    if len(key) < KEY_BYTES:
        raise mismatch("id key", expected=f"at least {KEY_BYTES} bytes", got=f"{len(key)}", fix="make a new key")
    digests = [hmac.digest(key, b"secsplit record id\0" + name.encode(), "sha256") for name in names]
    ids = torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests], dtype=torch.int64)
    repeated = len(ids) - len(set(ids.tolist()))
    if repeated:
        raise mismatch(
            "record ids", expected="one record a name", got=f"{repeated} repeated", fix="remove the repeated records"
        )
    return ids


def read_key(path: Path) -> bytes:
    """The key in a file of hexadecimal digits that nobody else may read. Raises DataError."""
    fix = "write one with: python -c 'import secrets; print(secrets.token_hex(32))', mode 0600, the same at every site"
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise mismatch(
                f"data.id_key {path}", expected="a file that only you can read", got="wider", fix="chmod 600"
            )
        with path.open("rb") as file:
            return bytes.fromhex(file.read(4096).decode("ascii").strip())
    except OSError as error:
        raise mismatch(f"data.id_key {path}", expected="a key file", got=f"{error.strerror}", fix=fix) from None
    except ValueError:
        raise mismatch(f"data.id_key {path}", expected="hexadecimal digits", got="other text", fix=fix) from None


def common(*lists: Tensor) -> Tensor:
    """(m,) the ids that every list has, sorted, so that every site comes to the same order."""
    shared = set(lists[0].tolist()).intersection(*(ids.tolist() for ids in lists[1:]))
    return torch.tensor(sorted(shared), dtype=torch.int64)


def places(ids: Tensor, wanted: Tensor) -> Tensor:
    """(m,) int64: where each wanted id is. Raises DataError where one is missing."""
    row = {name: place for place, name in enumerate(ids.tolist())}
    missing = [name for name in wanted.tolist() if name not in row]
    if missing:
        raise mismatch(
            "alignment",
            expected="every record of the agreed list",
            got=f"{len(missing)} of {len(wanted)} missing",
            fix="agree on the common ids again",
        )
    return torch.tensor([row[name] for name in wanted.tolist()], dtype=torch.int64)


def write_ids(path: Path, ids: Tensor) -> None:
    """Write a list of keyed ids, one a line, for the other sites."""
    path.write_text("".join(f"{name:016x}\n" for name in sorted(ids.tolist())), encoding="ascii")


def read_ids(path: Path) -> Tensor:
    """(n,) int64 of a list that `write_ids` wrote. Raises DataError."""
    expected, fix = "a list of ids, 16 hexadecimal digits a line", "write it anew with: secsplit data ids"
    try:
        lines = path.read_text(encoding="ascii").split()
        ids = [int(line, 16) for line in lines]
    except OSError as error:
        raise mismatch(f"{path}", expected=expected, got=f"{error.strerror}", fix=fix) from None
    except ValueError:
        raise mismatch(f"{path}", expected=expected, got="other text", fix=fix) from None
    if any(len(line) != 16 or name >> 63 for line, name in zip(lines, ids, strict=True)) or len(set(ids)) < len(ids):
        raise mismatch(f"{path}", expected=expected, got="an id of another length, or one twice", fix=fix)
    return torch.tensor(sorted(ids), dtype=torch.int64)


def order(ids: Tensor) -> int:
    """A number of 63 bits that tells which records these are and in what order, and nothing else to who has no key."""
    digest = blake2b(ids.contiguous().numpy().tobytes(), digest_size=8, person=b"secsplit/order")
    return int.from_bytes(digest.digest(), "big") >> 1


def identified(names: Iterable[str] | None, n: int, key: Path | None) -> Tensor:
    """(n,) ids of a source's records: keyed from their names where there is a key, else their row numbers."""
    if key is None:
        return torch.arange(n)
    if names is None:
        raise mismatch("data.id_key", expected="data.id, the column that names a record", got="none", fix="set data.id")
    return keyed_ids(list(names), read_key(key))
