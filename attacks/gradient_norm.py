"""Norm, direction and hint: binary labels from the gradients a feature party is sent back.

Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang, "Label Leakage and Protection in Two-party Split Learning", ICLR 2022,
arXiv 2102.08504. With one loss per row, g_i = (p_i - y_i) a_i: the rare class has the larger |p - y| (norm), and the
sign of p - y follows the label while a_i is nearly common to all rows (direction, hint).

The norm is an attack on imbalance: on balanced labels it finds nothing where the direction still finds everything, so
the two belong together. The paper takes its hints from the batch under attack; here a batch without a hint of its own
is given the direction carried over from the batch next to it, so that one known label serves a whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.rows import Batch, classes, gradients, secret_column, spread, told, untold
from secsplit.message import Kind
from secsplit.threat import Knows, View

GRADIENT = (Need(Kind.CUT_GRAD), Need(Kind.OUTPUT_GRAD))


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Attack):
    """Score a row by the norm of its gradient: the rare class scores higher.

    column: the label column (None: the first secret one); batches: at most so many turns, evenly spread.
    """

    name: ClassVar[str] = "gradient-norm"
    paper: ClassVar[str] = "Li et al., ICLR 2022, arXiv 2102.08504"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True)
    cost: ClassVar[float] = 1.0

    column: str | None = None
    batches: int = 1000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        classes(view, column, exactly=2)
        found = spread(gradients(view, column), self.batches)
        prior = view.prior.get(column)
        rare = 1.0 if prior is None or prior[1] <= prior[0] else -1.0  # a high score means class 1
        return _guess(column, found, [rare * batch.values().norm(dim=1) for batch in found], {})


@dataclass(frozen=True, kw_only=True)
class GradientDirection(Attack):
    """Score a row by the cosine of its gradient with that of a row known to be positive.

    column: the label column (None: the first secret one); batches: at most so many turns, evenly spread, besides those
    that hold a clue.
    """

    name: ClassVar[str] = "gradient-direction"
    paper: ClassVar[str] = "Li et al., ICLR 2022, arXiv 2102.08504"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True, knows=frozenset({Knows.CLUES}))
    cost: ClassVar[float] = 2.0

    column: str | None = None
    batches: int = 1000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        return _walk(view, self.column, self.batches, lambda g, hints, agreement: agreement)


@dataclass(frozen=True, kw_only=True)
class GradientHint(Attack):
    """Score a row by its gradient's inner product with the longest of those known to be positive.

    column: the label column (None: the first secret one); batches: at most so many turns, evenly spread, besides those
    that hold a clue; measure: "distance" scores by minus the distance to the nearest of them instead. The authors' code
    has both; distance is the weaker by far with one hint a class, since confident positives have gradients near zero.
    """

    name: ClassVar[str] = "gradient-hint"
    paper: ClassVar[str] = "Li et al., ICLR 2022, arXiv 2102.08504"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True, knows=frozenset({Knows.CLUES}))
    cost: ClassVar[float] = 2.0

    column: str | None = None
    batches: int = 1000
    measure: Literal["inner-product", "distance"] = "inner-product"

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        return _walk(view, self.column, self.batches, self._score)

    def _score(self, g: Tensor, hints: Tensor, agreement: Tensor) -> Tensor:
        if self.measure == "distance":
            return -torch.cdist(g, hints).min(1).values
        return g @ hints[hints.norm(dim=1).argmax()]


def cosine(rows: Tensor, hint: Tensor) -> Tensor:
    """(rows,) cosine of each row with the hint."""
    found: Tensor = (rows @ normalize(hint, dim=0)) / rows.norm(dim=1).clamp_min(1e-12)
    return found


def _walk(view: View, column: str | None, most: int, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Guess:
    """Score every batch against the hints in it, else against those carried over from the batch next to it.

    score: of (gradients, hints, cosine of each gradient with the mean hint).
    """
    column = secret_column(view, column)
    classes(view, column, exactly=2)
    found = gradients(view, column)
    positives = _positives(view, column, found)
    hinted = [i for i, own in enumerate(positives) if own.any()]
    if not hinted:
        raise NotApplicable(f"no positive clue of {column!r} is among the rows whose gradients were seen")
    if len(found) > most:
        found = spread(found, most, keep=hinted)
        positives = _positives(view, column, found)
    start = next(i for i, own in enumerate(positives) if own.any())
    scores: dict[int, Tensor] = {}
    for path in (range(start, len(found)), range(start, -1, -1)):
        hints = torch.empty(0)
        for i in path:
            g = found[i].values()
            hints = g[positives[i]] if positives[i].any() else hints
            agreement = cosine(g, hints.mean(0))
            scores[i] = score(g, hints, agreement)
            hints = _carried(g, hints, agreement)
    guess = _guess(column, found, [scores[i] for i in range(len(found))], {"batches with a clue": len(hinted)})
    return untold(guess, view.clues)


def _positives(view: View, column: str, found: list[Batch]) -> list[Tensor]:
    """Which rows of each batch are known to be positive."""
    cast, position = (torch.cat(rows) for rows in zip(*((b.cast, b.position) for b in found), strict=True))
    return list((told(view.clues, column, cast, position) == 1).split([len(batch) for batch in found]))


def _carried(g: Tensor, hints: Tensor, agreement: Tensor) -> Tensor:
    """The 16 gradients that agree best with the hints: hints for the next batch. None agrees: the same hints again."""
    best = agreement.topk(min(16, len(g))).indices
    best = best[agreement[best] > 0]
    return g[best] if len(best) else hints


def _guess(column: str, found: list[Batch], scores: list[Tensor], facts: Mapping[str, float]) -> Guess:
    return Guess(
        "label",
        column,
        cast=torch.cat([batch.cast for batch in found]),
        position=torch.cat([batch.position for batch in found]),
        step=torch.cat([batch.steps() for batch in found]),
        scores=torch.cat(scores),
        facts={"batches": len(found), "positive": 1, **facts},
    )
