"""Labels that are numbers, from the gradients of a squared error.

The setting is that of Xie, Chen, Li, Zhang, "Label Inference Attack against Split Learning under Regression Setting",
2023, arXiv 2301.07284, who learn the labels together with a surrogate of the label party's network. For a squared error
    g_i = 2 (p_i - y_i) a_i,   a_i the slope of the network at z_i, nearly common to all rows,
so the signed length of g_i is the error but for one scale, the projection of z_i on the common direction is the
prediction but for scale and offset, and y_i is linear in the two. Three numbers are then fitted to a few known labels.

A surrogate learnt from the slopes, as in the paper, was tried and left: with ten known labels it did not reliably beat
a ridge regression on the raw features, and failed where labels have nothing to do with features. This explains .98
where that ridge explains .89 (breast cancer's worst area), and .92 to .98 of labels drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.linear_model import Ridge

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.exploit import exchanged
from attacks.rows import secret_column, told_number, untold
from attacks.spectral import top_direction
from secsplit.message import Kind
from secsplit.threat import Knows, View

RIDGE = 0.1  # on features of unit spread: it matters only where hardly more labels than unknowns are known


@dataclass(frozen=True, kw_only=True)
class RegressionLabels(Attack):
    """Guess a numeric label of every row of the last epoch from its gradient and what was sent for it.

    column: the label column (None: the first secret one); rows: at most so many.
    """

    name: ClassVar[str] = "regression-labels"
    paper: ClassVar[str] = "after Xie et al., 2023, arXiv 2301.07284"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(
        messages=(Need(Kind.SMASHED, "sent"), Need(Kind.CUT_GRAD)), knows=frozenset({Knows.CLUES}), secret_labels=True
    )
    cost: ClassVar[float] = 1.0

    column: str | None = None
    rows: int = 20_000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        losses = {o.loss for o in view.topology.objectives if o.target == column}
        if losses != {"mse"}:
            raise NotApplicable(f"the loss on {column!r} is {', '.join(sorted(losses))}; this attack needs mse")
        seen = exchanged(view, column, self.rows)
        label = told_number(view.clues, column, seen.cast, seen.position)
        known = ~label.isnan()
        if int(known.sum()) < 3:
            raise NotApplicable(f"{int(known.sum())} known labels among the rows seen; three numbers are to be fitted")
        common = top_direction(seen.g)
        error = seen.g.norm(dim=1) * (seen.g @ common).sign()
        features = torch.stack([error, seen.z @ common], dim=1)
        features = features / features.std(0).clamp_min(1e-12)
        fitted = Ridge(alpha=RIDGE).fit(features[known].numpy(), label[known].numpy())
        guess = Guess(
            "label",
            column,
            seen.cast,
            seen.position,
            step=torch.full_like(seen.position, -1),
            scores=torch.as_tensor(fitted.predict(features.numpy())).float(),
            facts={"labels known": int(known.sum())},
        )
        return untold(guess, view.clues)
