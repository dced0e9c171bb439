"""Small attacks whose success can be told beforehand, for tests of what is done with attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from secsplit.message import Kind
from secsplit.threat import Knows, View


def last_seen(view: View, kind: Kind) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(cast, position, step, values): the last message about each row."""
    seen: dict[tuple[int, int], tuple[int, Tensor]] = {}
    for record in view.records(kind, edge=view.edges(kind)[0]):
        for position, value in zip(view.order(record.stamp).tolist(), record.tensor, strict=True):
            seen[record.stamp.cast, position] = record.stamp.step, value.flatten()
    cast, position = torch.tensor(list(seen)).unbind(1)
    return cast, position, torch.tensor([s for s, _ in seen.values()]), torch.stack([v for _, v in seen.values()])


@dataclass(frozen=True, kw_only=True)
class LinearInverse(Attack):
    """Least squares from smashed data to inputs, fitted on the adversary's own records through queries."""

    name: ClassVar[str] = "linear-inverse"
    paper: ClassVar[str] = "a toy"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs((Need(Kind.SMASHED),), frozenset({Knows.QUERY, Knows.AUX}))

    damping: float = 1e-2

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        assert view.aux is not None
        x = view.aux.inputs["x"]
        z = view.query["bottom"](x).flatten(1).double()
        gram = z.T @ z + self.damping * torch.eye(z.shape[1], dtype=z.dtype)
        inverse = torch.linalg.solve(gram, z.T @ x.flatten(1).double())
        cast, position, step, values = last_seen(view, Kind.SMASHED)
        rebuilt = (values.double() @ inverse).float().reshape(-1, *x.shape[1:]).clamp(0, 1)
        return Guess("input", "x", cast, position, step, inputs=rebuilt, facts={"damping": self.damping})


@dataclass(frozen=True, kw_only=True)
class FirstBatch(Attack):
    """The first batch's gradients point one way a class: each row takes the name of the nearest clue's direction."""

    name: ClassVar[str] = "first-batches"
    paper: ClassVar[str] = "a toy"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs((Need(Kind.CUT_GRAD),), frozenset({Knows.CLUES}))

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        assert view.clues is not None
        known = dict(
            zip(zip(view.clues.cast.tolist(), view.clues.position.tolist(), strict=True),
                view.clues.labels["y"].tolist(), strict=True)
        )  # fmt: skip
        rows: list[tuple[int, int, int]] = []
        directions = []
        for record in view.records(Kind.CUT_GRAD):
            if record.stamp.epoch == 0:
                order = view.order(record.stamp).tolist()
                rows += [(record.stamp.cast, position, record.stamp.step) for position in order]
                directions.append(normalize(record.tensor.flatten(1), dim=1))
        g = torch.cat(directions)
        hints = [i for i, (cast, position, _) in enumerate(rows) if (cast, position) in known]
        if not hints:
            raise NotApplicable("no clue among the rows seen")
        names = torch.tensor([known[rows[i][:2]] for i in hints])
        cast, position, step = torch.tensor(rows).unbind(1)
        return Guess("label", "y", cast, position, step, labels=names[(g @ g[hints].T).argmax(1)])


@dataclass(frozen=True, kw_only=True)
class Blind(Attack):
    """Names the commonest class of everyone: at chance by construction."""

    name: ClassVar[str] = "blind"
    paper: ClassVar[str] = "a toy"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs((Need(Kind.CUT_GRAD),), frozenset({Knows.PRIOR}))

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        cast, position, step, _ = last_seen(view, Kind.CUT_GRAD)
        return Guess("label", "y", cast, position, step, labels=view.prior["y"].argmax().expand(len(cast)))


@dataclass(frozen=True, kw_only=True)
class Broken(Attack):
    """Fails."""

    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "a toy"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs((Need(Kind.CUT_GRAD),))

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        raise MemoryError("out of memory")


ALL = (LinearInverse(), FirstBatch(), Blind(), Broken())
