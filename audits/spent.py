"""What the parties' ledgers say was spent: read from what each left, and never added up into more than it says."""

from __future__ import annotations

import json

from audits.frozen import Frozen
from secsplit.books import SPENT
from secsplit.claims import EVERYONE
from secsplit.errors import RunError
from secsplit.rundir import RunDir


class Spent(Frozen):
    """One line of a party's ledger: the worst record's loss towards one receiver, or everyone together.

    epsilon: at delta; None where no finite bound exists, and why. given_weights: of the messages alone, which is no
    bound for the transcript unless epsilon is finite.
    """

    party: str
    protects: str
    to: str
    cast: int
    training: bool
    records: int
    mu: float | None
    epsilon: float | None
    given_weights: float | None
    delta: float
    adjacency: str
    unit: str
    mechanisms: tuple[str, ...]
    why: tuple[str, ...]
    statement: str

    @property
    def everyone(self) -> bool:
        """Whether this line covers all receivers together, which is what a bound must hold against."""
        return self.to == EVERYONE


def spent(folder: RunDir) -> tuple[Spent, ...]:
    """Every line of every party. Raises RunError where a file is not what a ledger left."""
    found = []
    for party in folder.parties():
        path = party.path / SPENT
        if not path.exists():
            continue
        try:
            for line in json.loads(path.read_text())["spent"]:
                mu = line["mu"] if line["epsilon"] is not None else None
                fields = {name: line[name] for name in Spent.model_fields if name in line}
                found.append(Spent.model_validate({**fields, "mu": mu, "party": party.name}))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: not what a ledger leaves: {error}") from None
    return tuple(found)
