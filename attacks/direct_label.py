"""Direct label inference: read the label off the gradient at the logits.

Fu, Zhang, Ji, Chen, Wu, Guo, Zhou, Liu, Wang, "Label Inference Attacks Against Vertical Federated Learning", USENIX
Security 2022, section 4.1. Where the top is a plain sum and a softmax (no trainable top), the gradient that comes back
is p - e_y: its one negative entry is the label. Exact, from the first message on, with nothing else known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.base import Attack, Goal, Guess, Needs, NotApplicable
from attacks.gradient_norm import GRADIENT
from attacks.rows import Batch, classes, gradients, places, secret_column, spread, unique_rows
from secsplit.message import Kind
from secsplit.threat import View


@dataclass(frozen=True, kw_only=True)
class DirectLabel(Attack):
    """The label is the negative entry of the gradient at the logits; applies only where that gradient is sent back.

    column: the label column (None: the first secret one); batches: at most so many turns, evenly spread.
    """

    name: ClassVar[str] = "direct-label"
    paper: ClassVar[str] = "Fu et al., USENIX Security 2022"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True)
    cost: ClassVar[float] = 0.5

    column: str | None = None
    batches: int = 10_000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        count = classes(view, column)
        found = spread(gradients(view, column), self.batches)
        certain = _at_logits(view, found[0])
        scores = torch.cat([_scores(batch.values(), count, certain=certain) for batch in found])
        cast, position, _ = places(found)
        cast, position, index = unique_rows(cast, position)
        total = torch.zeros(len(position), count).index_add_(0, index, scores)
        return Guess(
            "label",
            column,
            cast=cast,
            position=position,
            step=torch.full_like(position, -1),
            scores=total,
            labels=total.argmax(1),
            facts={"batches": len(found)},
        )


def _scores(g: Tensor, count: int, *, certain: bool) -> Tensor:
    """(rows, classes) from gradients at the logits: one entry a class, or a single logit of a binary label.

    Several parties of a coalition are each sent that gradient; they take the mean.
    """
    scale = g.abs().max().clamp_min(1e-30)
    if g.shape[1] % count == 0:
        at_logits = g.reshape(len(g), -1, count).mean(1)
        if not certain and not (at_logits.sum(1).abs().max() <= 1e-3 * scale and ((at_logits < 0).sum(1) <= 1).all()):
            raise NotApplicable("the gradients do not have one negative entry a row and sum zero: the top is trainable")
        return at_logits / -scale
    if count == 2 and certain:
        at_logit = g.mean(1, keepdim=True)
        return torch.cat([at_logit, -at_logit], dim=1) / scale
    raise NotApplicable(f"gradients of width {g.shape[1]} are not those at the logits of {count} classes")


def _at_logits(view: View, batch: Batch) -> bool:
    """Whether the topology alone says so: a scored output's own gradient, or what a scored sum or mean hands back."""
    edges = {edge.name: edge.user for edge in view.topology.edges}
    return all(
        part[0].kind is Kind.OUTPUT_GRAD
        or (edges[part[0].edge].merge in ("sum", "mean") and bool(view.topology.scored(edges[part[0].edge].name)))
        for part in batch.parts
    )
