"""An append-only file that shows when it was edited, cut short or rolled back, and survives a crash at any byte.

Each line is chained to the one before it by SHA-256 and is on the disk before `append` returns; `write` several and
`settle` to wait for the disk once, which whoever comes meanwhile waits for too (group commit). How many lines there
are, and the last link, are also kept in a second file: a journal that is behind it was rolled back. Whoever restores
both files together from an old copy goes unnoticed here; give `head` to a peer, or keep it elsewhere, and check it
with `follows`. The chain has no key: it shows accidents and edits, it does not stop a forger who rewrites everything.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from secsplit.errors import EnvironmentFault, LedgerDamaged

START = "0" * 64


@dataclass(frozen=True)
class Head:
    """How long a journal was and its last link: enough to tell later that it was cut short or rewritten."""

    lines: int = 0
    link: str = START

    def __str__(self) -> str:
        return f"{self.lines:>16} {self.link}\n"


class Journal:
    """The journal at `path`, locked for this process until closed; `lines` are its payloads, without newlines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settled: int | None = None  # lines that are on the disk; None until all was read and found whole
        self._settling = threading.Lock()
        self._failed = ""  # why nothing more may be written
        self._file = _open(path)
        self._anchor = _open(anchor_of(path))
        try:
            _lock(self._file, path)
            self._links: list[str] = []
            self.lines: list[bytes] = []
            self._read()
            self._check_anchor()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        return Head(len(self._links), self._links[-1] if self._links else START)

    @property
    def settled(self) -> Head:
        """The head of what is surely on the disk."""
        lines = self._settled or 0
        return Head(lines, self._links[lines - 1] if lines else START)

    def follows(self, head: Head) -> bool:
        """Whether this journal is that one, possibly continued."""
        if head.lines == 0:
            return True
        return head.lines <= len(self._links) and self._links[head.lines - 1] == head.link

    def append(self, payload: bytes) -> Head:
        """Write one line; it is on the disk when this returns. The payload is not kept in memory."""
        head = self.write(payload)
        self.settle()
        return head

    def write(self, payload: bytes) -> Head:
        """Write one line, by one thread only; nothing may depend on it before `settle` has returned."""
        if b"\n" in payload:
            raise ValueError("a journal line holds no newline")
        self._refuse_after_failure()
        link = link_of(self.head.link, payload)
        try:
            _write(self._file, link.encode() + b" " + payload + b"\n", self.path)
        except BaseException as error:
            self._failed = str(error) or "interrupted"  # half a line may lie there, which only a new start clears away
            raise
        self._links.append(link)
        return self.head

    def settle(self) -> None:
        """Return once all lines written before this call are on the disk; any thread may call it."""
        if self._settled is None:
            return
        wanted = len(self._links)
        with self._settling:
            if self._settled >= wanted:
                return
            self._refuse_after_failure()
            before, lines = self._settled, len(self._links)
            try:
                _sync(self._file, self.path)
                self._settled = lines
                self._keep_head()
            except BaseException as error:
                self._failed, self._settled = str(error) or "interrupted", before
                raise

    def _refuse_after_failure(self) -> None:
        if self._failed:
            raise EnvironmentFault(f"{self.path}: open it anew, for an earlier write failed ({self._failed})")

    def close(self) -> None:
        """Release the lock; the file stays."""
        with suppress(EnvironmentFault):
            self.settle()
        for descriptor in (self._file, self._anchor):
            os.close(descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        text = self.path.read_bytes()
        whole, newline, torn = text.rpartition(b"\n")
        if torn:  # a crash in the middle of a line: nothing was sent on its account
            os.ftruncate(self._file, len(whole) + len(newline))
        previous = START
        for number, line in enumerate(whole.split(b"\n") if newline else (), 1):
            told, _, payload = line.partition(b" ")
            previous = link_of(previous, payload)
            if told != previous.encode():
                raise LedgerDamaged(
                    f"{self.path}:{number}: the line does not fit the chain: it was edited; nothing sent"
                )
            self._links.append(previous)
            self.lines.append(payload)

    def _check_anchor(self) -> None:
        told = os.pread(self._anchor, 128, 0).decode("ascii", "replace").split()
        if not told and len(self._links) <= 1:  # new, or a crash right after its first line
            self._begin()
            return
        if len(told) != 2 or not told[0].isdigit():
            raise LedgerDamaged(
                f"{anchor_of(self.path)}: no head where {len(self._links)} lines were written; nothing sent"
            )
        head = Head(int(told[0]), told[1])
        if not self.follows(head):
            raise LedgerDamaged(
                f"{self.path}: it holds {len(self._links)} lines, and its head says {head.lines}: it was rolled back "
                "or rewritten; restore the newest copy; nothing sent"
            )
        self._begin()

    def _begin(self) -> None:
        self._settled = len(self._links)
        self._keep_head()

    def _keep_head(self) -> None:
        try:
            os.pwrite(self._anchor, str(self.settled).encode(), 0)  # may lag behind after a power cut, never run ahead
        except OSError as error:
            where = anchor_of(self.path)
            raise EnvironmentFault(f"{where}: cannot write: {error.strerror}; nothing sent") from None


def anchor_of(path: Path) -> Path:
    """Where the head of the journal at `path` is kept."""
    return path.with_name(path.name + ".head")


def link_of(previous: str, payload: bytes) -> str:
    """The link of a line after the one whose link is `previous`."""
    return sha256(previous.encode() + b" " + payload).hexdigest()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND * (not path.name.endswith(".head")), 0o600)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be opened for writing: {error.strerror}") from None


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EnvironmentFault(f"{path}: another process has it open; one party charges it at a time") from None


def _write(descriptor: int, line: bytes, path: Path) -> None:
    try:
        written = os.write(descriptor, line)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot write: {error.strerror}; nothing sent") from None
    if written != len(line):
        raise EnvironmentFault(f"{path}: only {written} of {len(line)} bytes written; nothing sent")


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot write: {error.strerror}; nothing sent") from None
