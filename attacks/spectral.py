"""Spectral: binary labels without a single hint, from the one direction in which the messages of a batch spread most.

Sun, Yang, Yao, Wang, "Label Leakage and Protection from Forward Embedding in Vertical Federated Learning", 2022,
arXiv 2203.01451; the spectral score is that of Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS
2018. The score is the projection of the centred gradient on the top singular vector.

The sign of a singular vector says nothing. It is made the same from batch to batch (the vectors turn slowly), and is
then chosen so that the tail is positive, the rare class being the far one; the guess is up to that choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.base import Attack, Goal, Guess, Needs
from attacks.gradient_norm import GRADIENT
from attacks.rows import classes, gradients, places, secret_column, spread
from secsplit.threat import View


@dataclass(frozen=True, kw_only=True)
class Spectral(Attack):
    """Score a row by the projection of its centred gradient on the batch's top singular vector.

    column: the label column (None: the first secret one); batches: at most so many turns, evenly spread.
    """

    name: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "Sun et al., 2022, arXiv 2203.01451"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True)
    cost: ClassVar[float] = 5.0

    column: str | None = None
    batches: int = 1000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        classes(view, column, exactly=2)
        found = spread(gradients(view, column), self.batches)
        scores = []
        last: Tensor | None = None
        for batch in found:
            g = batch.values()
            g = g - g.mean(0)
            v = top_direction(g)
            v = v if last is None or v @ last >= 0 else -v
            last = v
            scores.append(g @ v)
        together = torch.cat(scores)
        cast, position, step = places(found)
        tail = float(((together / together.std().clamp_min(1e-30)) ** 3).mean())
        return Guess(
            "label",
            column,
            cast,
            position,
            step,
            scores=together if tail >= 0 else -together,
            up_to_permutation=True,
            facts={"batches": len(found), "positive": 1, "skewness": abs(tail)},
        )


def top_direction(rows: Tensor) -> Tensor:
    """(d,) the top right singular vector of (rows, d), through the smaller of the two Gram matrices."""
    if len(rows) < rows.shape[1]:
        _, vectors = torch.linalg.eigh((rows @ rows.T).double())
        v: Tensor = rows.T @ vectors[:, -1].to(rows.dtype)
    else:
        _, vectors = torch.linalg.eigh((rows.T @ rows).double())
        v = vectors[:, -1].to(rows.dtype)
    return normalize(v, dim=0)
