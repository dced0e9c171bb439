"""The privacy ledger: what every message told about every record of one party, charged before its bytes leave.

One journal line a release, on the disk before the message may leave: what is charged in a burst waits for the disk
once, on the threads that send. A resend is the same release with the same
bytes: it costs nothing; the same release with other bytes is refused, since noise drawn twice can be averaged away.
Whatever its peers ask, a party stops at its own budget.

What is charged: one replaced record (or one set to zero, where that adjacency is asked for), against everyone who reads
the messages, alone and all together, with participation visible to them: no amplification by subsampling is claimed.
A segment that learns from the records without DP-SGD makes every later message depend on all of them; the ledger then
says that there is no finite epsilon. Its sum of the messages alone, given the weights, is no bound for the transcript.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from secsplit.accounting import Adjacency, Protects, Release, epsilon_of, mu_of
from secsplit.claims import EVERYONE
from secsplit.errors import BudgetSpent, LedgerDamaged, NoiseRedrawn, RunError
from secsplit.journal import Head, Journal
from secsplit.message import Message

VERSION = 1
UPDATES = ""  # the receiver of what the weights learnt: whoever reads any later message
PROTECTS: tuple[Protects, ...] = ("inputs", "labels")
Records = tuple[int, bool]  # cast, and whether they are training records
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
SOUND_OPTIONS = (
    "freeze the segments that see the records (kind = 'frozen', weights from public data)",
    "train them with DP-SGD (kind = 'dp-sgd') and add noise to what they send (kind = 'gaussian')",
)


class BudgetSpec(BaseModel):
    """A party's own limit, which it keeps whatever its peers ask; it is no part of what the parties agree on.

    epsilon: for the inputs of each record, at `delta`; label_epsilon: for their labels. None: counted, not limited.
    ledger: a file that outlives the run, so that several runs over the same records share one budget.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    label_epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    adjacency: Adjacency = "replace-one"
    unit: str = "record"
    ledger: str | None = None

    def limit(self, protects: Protects) -> float | None:
        """The epsilon allowed for inputs or labels."""
        return self.epsilon if protects == "inputs" else self.label_epsilon


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ledger"):
    """The first line: whose ledger it is, and what a unit and a neighbour are in it."""

    version: int
    party: str
    adjacency: Adjacency
    unit: str


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One charge as it is written. mu: None where there is no finite bound (JSON knows no infinity)."""

    protects: Protects
    mechanism: str
    mu: float | None = None
    epsilon: float = 0.0
    once: str = ""
    why: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rows of one set of records, and what each is charged. rows: little-endian int64."""

    cast: int
    training: bool
    rows: bytes
    costs: tuple[Cost, ...] = ()


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="release"):
    """One release as it is written: the message's own entry, and the updates that it may depend on."""

    run: str
    key: str
    to: str
    digest: bytes
    message: Entry
    updates: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What was told about the inputs, or labels, of the worst record, to one receiver or to everyone together.

    epsilon: at delta; None where no finite bound exists, and `why`. given_weights: epsilon of the messages alone, as if
    the weights had never learnt from the records; no bound for the transcript unless `epsilon` is finite. pure: the
    part that is pure epsilon. records: how many were charged at all.
    """

    protects: Protects
    to: str
    cast: int
    training: bool
    records: int
    mu: float
    pure: float
    epsilon: float | None
    given_weights: float | None
    delta: float
    adjacency: Adjacency
    unit: str
    mechanisms: tuple[str, ...]
    why: tuple[str, ...] = ()

    @property
    def statement(self) -> str:
        """One sentence that says whom it protects, against whom, and what it leaves out."""
        who = f"{self.protects} of each {self.unit} (cast {self.cast}, {'training' if self.training else 'evaluation'})"
        against = f"against {self.to}, participation visible"
        if self.epsilon is None:
            return f"no finite epsilon for the {who} {against}: {'; '.join(self.why)}"
        delta = f" at delta {self.delta:g}" if self.mu else ""
        return f"epsilon {self.epsilon:.4g}{delta} ({self.adjacency}) for the {who} {against}"


@dataclass(frozen=True)
class _Increment:
    """What one cost adds to the sums of one set of records. units: (k,), may repeat; square: (k,) mu squared each."""

    records: Records
    to: str
    cost: Cost
    rows: Rows
    units: Rows
    square: Floats


@dataclass
class _Account:
    """Sums for one set of records: mu squared by receiver, pure epsilon, and which rows were charged something once."""

    squares: dict[tuple[str, Protects], Floats] = field(default_factory=dict)
    pure: dict[Protects, Floats] = field(default_factory=dict)
    once: dict[str, Floats] = field(default_factory=dict)
    mechanisms: dict[tuple[str, Protects], dict[str, None]] = field(default_factory=dict)
    why: dict[Protects, dict[str, None]] = field(default_factory=dict)

    def total(self, protects: Protects, to: str = EVERYONE, *, updates: bool = True) -> Floats:
        """(n,) mu squared for one receiver, or for everyone together; the updates of the weights included or not."""
        total: Floats = np.zeros(0)
        for (who, what), squares in self.squares.items():
            if what == protects and ((who == UPDATES and updates) or (who != UPDATES and to in (who, EVERYONE))):
                total = _longer(total, len(squares))
                total[: len(squares)] += squares
        return total

    def names(self, protects: Protects, to: str) -> tuple[str, ...]:
        """The mechanisms behind that total."""
        known = [
            m for (who, what), ms in self.mechanisms.items() if what == protects and to in (who, EVERYONE) for m in ms
        ]
        return tuple(dict.fromkeys([*known, *self.mechanisms.get((UPDATES, protects), ())]))

    def add(self, increment: _Increment, run: str) -> None:
        """Book one increment."""
        cost, key = increment.cost, (increment.to, increment.cost.protects)
        size = int(increment.units.max(initial=-1)) + 1
        self.squares[key] = _longer(self.squares.get(key), size)
        self.pure[cost.protects] = _longer(self.pure.get(cost.protects), size)
        np.add.at(self.squares[key], increment.units, increment.square)
        np.add.at(self.pure[cost.protects], increment.units, cost.epsilon)
        self.mechanisms.setdefault(key, {})[cost.mechanism] = None
        if cost.mu is None:
            self.why.setdefault(cost.protects, {})[cost.why] = None
        if cost.once:
            name = f"{run}|{cost.once}"
            self.once[name] = _longer(self.once.get(name), int(increment.rows.max(initial=-1)) + 1)
            self.once[name][increment.rows] = 1


class Ledger:
    """One party's ledger, locked until closed.

    run: the fingerprint of the noise key in use: a resumed run has the same, so that its resends are known; another
    run, or a lost key, draws new noise and is charged anew. records: how many the party has, to refuse a delta of 1/n
    or more. units: row -> unit where a unit (a patient) owns several records: (n,) int64.
    """

    def __init__(
        self,
        path: Path,
        *,
        party: str,
        run: str,
        budget: BudgetSpec | None = None,
        records: Mapping[Records, int] | None = None,
        units: Mapping[Records, Tensor] | None = None,
    ) -> None:
        self.party, self.run = party, run
        self.budget = budget or BudgetSpec()
        self._units: dict[Records, Rows] = {key: unit.numpy() for key, unit in (units or {}).items()}
        self._accounts: dict[Records, _Account] = {}
        self._digests: dict[tuple[str, str], bytes] = {}
        for n in (records or {}).values():
            check_delta(self.budget.delta, n)
        self._journal = Journal(path)
        try:
            self._replay()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        """How long the ledger on the disk is, and its last link.

        Keep it elsewhere, or tell a peer, to notice a rollback of all.
        """
        return self._journal.settled

    def follows(self, head: Head) -> None:
        """Raises LedgerDamaged unless this ledger is the one that had that head, possibly continued."""
        if not self._journal.follows(head):
            raise LedgerDamaged(
                f"{self._journal.path}: does not continue line {head.lines} as it was seen; nothing sent"
            )

    def close(self) -> None:
        """Release the lock; the file stays."""
        self._journal.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # charging

    def charge(self, release: Release, message: Message, to: str, *, settle: bool = True) -> bool:
        """Charge a message before it leaves to party `to`; on the disk on return. False: there was nothing new to
        charge. settle: False where the caller calls `settle` itself before the message leaves.

        Raises BudgetSpent, or NoiseRedrawn where the same release left before with other bytes: nothing may be sent.
        """
        line = self._line(release, message, to)
        known = self._digests.get((line.run, line.key))
        if known is not None:
            if known != line.digest:
                raise NoiseRedrawn(f"{line.key}: charged before with other bytes; noise is never redrawn; nothing sent")
            if settle:
                self.settle()
            return False
        increments = list(self._increments(line))
        if not any(self._changes(increment) for increment in increments):
            return False
        for protects in PROTECTS:
            self._check_budget(protects, increments, line.key)
        self._journal.write(msgspec.json.encode(line))
        self._book(line, increments)
        if settle:
            self.settle()
        return True

    def settle(self) -> None:
        """Return once all that was charged before is on the disk; any thread may call it, and all wait for one."""
        self._journal.settle()

    def _line(self, release: Release, message: Message, to: str) -> Line:
        for charge in (charge for part in (release, *release.updates) for charge in part.charges):
            if 0 < charge.mu < math.inf and charge.adjacency != self.budget.adjacency:
                raise RunError(
                    f"{charge.mechanism}: its bound is for {charge.adjacency} neighbours, and the ledger of "
                    f"{self.party!r} counts {self.budget.adjacency} ones; use one adjacency everywhere"
                )
        bounded = any(charge.finite for charge in release.charges)
        digest = digest_of(release.key, message) if bounded else b""
        return Line(self.run, release.key, to, digest, _entry(release), tuple(map(_entry, release.updates)))

    def _increments(self, line: Line) -> Iterator[_Increment]:
        """What the line adds; a cost charged once leaves out the rows that had it, in this line or before."""
        claimed: dict[tuple[Records, str], Floats] = {}
        for to, entry in ((line.to, line.message), *((UPDATES, update) for update in line.updates)):
            records = (entry.cast, entry.training)
            account = self._accounts.get(records, _Account())
            for cost in entry.costs:
                rows = np.frombuffer(entry.rows, "<i8")
                if cost.once:
                    name, size = f"{line.run}|{cost.once}", int(rows.max(initial=-1)) + 1
                    had = _longer(claimed.get((records, name), account.once.get(name)), size).copy()
                    rows = np.unique(rows[had[rows] == 0])
                    had[rows] = 1
                    claimed[records, name] = had
                units = self._units[records][rows] if records in self._units else rows
                square = np.full(len(rows), math.inf if cost.mu is None else cost.mu**2)
                if to == UPDATES:  # a unit's records move the same sum together: (k mu)^2, not k mu^2
                    units, times = np.unique(units, return_counts=True)
                    square = square[: len(units)] * times**2
                yield _Increment(records, to, cost, rows, units, square)

    def _changes(self, increment: _Increment) -> bool:
        """Whether any sum would change: once a record's sum is infinite, more of the same is not written."""
        account = self._accounts.get(increment.records, _Account())
        size = int(increment.units.max(initial=-1)) + 1
        known = _longer(account.squares.get((increment.to, increment.cost.protects)), size)[increment.units]
        return bool((increment.square > 0)[~np.isinf(known)].any()) or (increment.cost.epsilon > 0 and len(known) > 0)

    def _check_budget(self, protects: Protects, increments: list[_Increment], key: str) -> None:
        limit = self.budget.limit(protects)
        mine = [i for i in increments if i.cost.protects == protects]
        if limit is None or not mine:
            return
        for records in dict.fromkeys(i.records for i in mine):
            square, pure = self._after(records, protects, mine)
            what = f"the {protects} of a {self.budget.unit}"
            if math.isinf(square):
                why = "; ".join(dict.fromkeys(i.cost.why for i in mine if i.cost.why))
                options = ", or ".join(SOUND_OPTIONS)
                raise BudgetSpent(f"{key}: no finite epsilon for {what}: {why}. Sound ways: {options}. Nothing sent")
            if pure > limit or square > _allowed(limit - pure, self.budget.delta):
                spent = pure + epsilon_of(math.sqrt(square), self.budget.delta)
                raise BudgetSpent(
                    f"{key}: it would bring {what} to epsilon {spent:.6g} at delta {self.budget.delta:g}, and this "
                    f"party's budget is {limit:g}. Nothing sent"
                )

    def _after(self, records: Records, protects: Protects, increments: list[_Increment]) -> tuple[float, float]:
        """(mu squared, pure epsilon) of the worst unit among those charged, were the increments booked."""
        account = self._accounts.get(records, _Account())
        mine = [i for i in increments if i.records == records]
        units = np.concatenate([i.units for i in mine])
        size = int(units.max(initial=-1)) + 1
        square, pure = _longer(account.total(protects), size), _longer(account.pure.get(protects), size).copy()
        for increment in mine:
            np.add.at(square, increment.units, increment.square)
            np.add.at(pure, increment.units, increment.cost.epsilon)
        return float(square[units].max(initial=0.0)), float(pure[units].max(initial=0.0))

    def _book(self, line: Line, increments: list[_Increment]) -> None:
        if line.digest:
            self._digests[line.run, line.key] = line.digest
        for increment in increments:
            self._accounts.setdefault(increment.records, _Account()).add(increment, line.run)

    def _replay(self) -> None:
        expected = Header(VERSION, self.party, self.budget.adjacency, self.budget.unit)
        lines, self._journal.lines = self._journal.lines, []
        for number, text in enumerate(lines, 1):
            try:
                line = msgspec.json.decode(text, type=Header | Line)
            except msgspec.DecodeError as error:
                raise LedgerDamaged(
                    f"{self._journal.path}:{number}: not a ledger line: {error}; nothing sent"
                ) from None
            if isinstance(line, Line):
                self._book(line, list(self._increments(line)))
            elif line != expected:
                raise RunError(f"{self._journal.path}: it is the ledger of {line}; expected {expected}")
        if not lines:
            self._journal.append(msgspec.json.encode(expected))

    # what was spent

    def spent(self) -> tuple[Spent, ...]:
        """What the worst unit was charged, by each set of records: by each receiver, then by everyone together."""
        return tuple(
            self._of_receiver(records, protects, to)
            for records, account in sorted(self._accounts.items())
            for protects in PROTECTS
            for to in (*dict.fromkeys(who for who, what in account.squares if what == protects and who), EVERYONE)
            if any(what == protects for _, what in account.squares)
        )

    def _of_receiver(self, records: Records, protects: Protects, to: str) -> Spent:
        account, delta = self._accounts[records], self.budget.delta
        pure = account.pure.get(protects, np.zeros(0))
        squares = _longer(account.total(protects, to), len(pure))
        pure = _longer(pure, len(squares))
        mu, alone = (
            math.sqrt(float(s.max(initial=0.0))) for s in (squares, account.total(protects, to, updates=False))
        )
        once = float(pure.max(initial=0.0))
        return Spent(
            protects=protects,
            to=to,
            cast=records[0],
            training=records[1],
            records=int(((squares > 0) | (pure > 0)).sum()),
            mu=mu,
            pure=once,
            epsilon=None if math.isinf(mu) else once + epsilon_of(mu, delta),
            given_weights=None if math.isinf(alone) else once + epsilon_of(alone, delta),
            delta=delta,
            adjacency=self.budget.adjacency,
            unit=self.budget.unit,
            mechanisms=account.names(protects, to),
            why=tuple(account.why.get(protects, ())) if math.isinf(mu) else (),
        )


@lru_cache(maxsize=1024)
def _allowed(epsilon: float, delta: float) -> float:
    """The sum of mu squared that an epsilon leaves room for, with a rounding error's grace."""
    return mu_of(epsilon, delta) ** 2 * (1 + 1e-9) if epsilon > 0 else 0.0


def check_delta(delta: float, n: int) -> None:
    """Raises RunError for a delta of 1/n or more, which allows to publish a record outright."""
    if n and delta >= 1 / n:
        raise RunError(f"budget.delta: {delta:g} is not below 1/n for n = {n} records; expected less than {1 / n:.2g}")


def digest_of(key: str, message: Message) -> bytes:
    """16 bytes over a message's tensors, to tell a resend from a redraw. No signature: its key is no secret."""
    mac = Poly1305(sha256(key.encode()).digest())
    for name, tensor in message.tensors.items():
        mac.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        mac.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return mac.finalize()


def _entry(release: Release) -> Entry:
    rows = release.rows.to(torch.int64).contiguous().numpy().astype("<i8").tobytes()
    costs = (
        Cost(c.protects, c.mechanism, None if math.isinf(c.mu) else c.mu, c.epsilon, c.once, c.why)
        for c in release.charges
    )
    return Entry(release.cast, release.training, rows, tuple(costs))


def _longer(values: Floats | None, size: int) -> Floats:
    """The same values with zeros after them, at least `size` long; the same memory where it is long enough."""
    if values is None:
        return np.zeros(size)
    return values if len(values) >= size else np.concatenate([values, np.zeros(size - len(values))])
