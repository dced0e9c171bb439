"""Norm, direction and hint: binary labels from the gradients a feature party is sent back.

Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang, "Label Leakage and Protection in Two-party Split Learning", ICLR 2022,
arXiv 2102.08504. With one loss per row, g_i = (p_i - y_i) a_i: the rare class has the larger |p - y| (norm), and the
sign of p - y follows the label while a_i is nearly common to all rows (direction, hint).

The norm is an attack on imbalance: on balanced labels it finds nothing where the direction still finds everything, so
the two belong together. The paper takes its hints from the batch under attack; here a batch without a hint of its own
is given the direction carried over from the batch next to it, so that one known label serves a whole run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.rows import Batch, classes, gradients, places, secret_column, spread, told, untold
from secsplit.message import Kind
from secsplit.threat import Knows, View

TOGETHER = 16  # batches read at a time
LEAST = 1e-30  # below every norm of a gradient that is not zero
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
        norms = [vector_norm(batch.values(), dim=1) for batch in found]
        return _guess(column, found, rare * torch.cat(norms), {})


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
        found = _hinted(view, self.column, self.batches)
        walked = sorted(((i, made, hint) for i, _, _, hint, made in _walk(found)), key=lambda one: one[0])
        sizes = torch.tensor([len(batch) for batch in found.batches])
        lengths = vector_norm(torch.stack([hint for _, _, hint in walked]), dim=1).clamp_min_(LEAST)
        scores = torch.cat([made for _, made, _ in walked]) / lengths.repeat_interleave(sizes)
        return found.guess(view, scores)


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
        found = _hinted(view, self.column, self.batches)
        scores = {i: self._score(g, hints) for i, g, hints, _, _ in _walk(found)}
        return found.guess(view, torch.cat([scores[i] for i in range(len(scores))]))

    def _score(self, g: Tensor, hints: Tensor) -> Tensor:
        if self.measure == "distance":
            return -torch.cdist(g, hints).min(1).values
        return g @ hints[hints.norm(dim=1).argmax()]


@dataclass(frozen=True)
class Hinted:
    """The batches to score, and of those with rows known to be positive which rows."""

    column: str
    batches: list[Batch]
    positives: Mapping[int, Tensor]

    def guess(self, view: View, scores: Tensor) -> Guess:
        made = _guess(self.column, self.batches, scores, {"batches with a clue": len(self.positives)})
        return untold(made, view.clues)


def _hinted(view: View, column: str | None, most: int) -> Hinted:
    column = secret_column(view, column)
    classes(view, column, exactly=2)
    found = gradients(view, column)
    positives = _positives(view, column, found)
    if not positives:
        raise NotApplicable(f"no positive clue of {column!r} is among the rows whose gradients were seen")
    if len(found) > most:
        found = spread(found, most, keep=list(positives))
        positives = _positives(view, column, found)
    return Hinted(column, found, positives)


def _walk(hinted: Hinted) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """(batch, gradients, hints, their sum, agreement of each gradient with it) from the first batch that has hints.

    A batch without its own gets those carried over from the batch next to it. agreement: the cosine, times the length
    of the hints' sum.
    """
    start, end = min(hinted.positives), len(hinted.batches)
    hints = onward = torch.empty(0)
    for path in (range(start, end), range(start - 1, -1, -1)):
        for i, g, u in _read(hinted.batches, path):
            hints = g[hinted.positives[i]] if i in hinted.positives else hints
            towards = hints.sum(0)
            agreement = u @ towards
            yield i, g, hints, towards, agreement
            hints = _carried(g, hints, agreement)
            if i == start:
                onward = hints
        hints = onward


def _positives(view: View, column: str, found: list[Batch]) -> dict[int, Tensor]:
    """batch -> the rows of it that are known to be positive, for the batches that have any."""
    rows = (told(view.clues, column, *places(found)[:2]) == 1).nonzero().flatten()
    sizes = torch.tensor([len(batch) for batch in found])
    ends = sizes.cumsum(0)
    batch = torch.searchsorted(ends, rows, right=True)
    within = rows - (ends - sizes)[batch]
    return {i: within[batch == i] for i in batch.unique().tolist()}


def _read(found: list[Batch], path: range) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(batch, gradients, the same scaled to length 1) along the path, a few batches read at a time."""
    for group in (path[i : i + TOGETHER] for i in range(0, len(path), TOGETHER)):
        read = [found[i].values() for i in group]
        together = torch.cat(read)
        sizes = [len(g) for g in read]
        unit = together / vector_norm(together, dim=1, keepdim=True).clamp_min_(LEAST)
        yield from zip(group, together.split(sizes), unit.split(sizes), strict=True)


def _carried(g: Tensor, hints: Tensor, agreement: Tensor) -> Tensor:
    """The 16 gradients that agree best with the hints: hints for the next batch. None agrees: the same hints again."""
    most, best = agreement.topk(min(16, len(g)))
    if float(most[-1]) > 0:
        return g.index_select(0, best)
    best = best[most > 0]
    return g[best] if len(best) else hints


def _guess(column: str, found: list[Batch], scores: Tensor, facts: Mapping[str, float]) -> Guess:
    facts = {"batches": len(found), "positive": 1, **facts}
    return Guess("label", column, *places(found), scores=scores, facts=facts)
