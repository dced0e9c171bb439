"""Generative regression: a generator of private features, trained so that the model answers as it did.

Luo, Wu, Xiao, Ooi, "Feature Inference Attack on Model Predictions in Vertical Federated Learning", ICDE 2021, arXiv
2010.10152, section V (GRN). The generator takes the adversary's own features of a record and noise. What it makes is
put through the known model beside the own features, and the squared difference from the confidences that were seen is
brought down, with a penalty on features that vary more than uniform ones would.

The paper beats random guessing by it. Guessing the mean is often better still, and so is a ridge regression on a few
known pairs: read its error beside those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Goal, Guess, Needs, drawing
from attacks.feature_inference import SEES, Answers, answering
from attacks.observed import Observed
from attacks.upstream import column_of, network_missing
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

WIDTHS = (256, 128)  # the paper's are 600, 300, 100; these are as good on tables of tens of features
UNIFORM = 1 / 12  # variance of a feature spread evenly over its range


@dataclass(frozen=True, kw_only=True)
class GenerativeRegression(Attack):
    """Reconstruct a private column by a generator whose output makes the known model answer as it did.

    column: what to reconstruct (None: the first private one that goes in); edge: which messages (None: smashed data
    first); iterations, batch, lr: of Adam; penalty: on variance beyond the uniform one; draws: noises averaged at last.
    """

    name: ClassVar[str] = "generative-regression"
    paper: ClassVar[str] = "Luo et al., ICDE 2021, arXiv 2010.10152"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(any_of=SEES)
    cost: ClassVar[float] = 15.0

    column: str | None = None
    edge: str | None = None
    iterations: int = 1500
    batch: int = 64
    lr: float = 1e-3
    penalty: float = 1.0
    draws: int = 20

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        return super().why_not(topology, threat) or network_missing(topology, threat, {Knows.WEIGHTS})

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        answers = answering(view, self.edge)
        column = column_of(answers.up, self.column or answers.hidden[0])
        rows = answers.rows
        generator, loss = self._trained(answers, coins)
        with torch.no_grad():
            made = torch.stack([generator(rows, coins) for _ in range(self.draws)]).mean(0)
        return Guess(
            "input",
            column,
            rows.cast,
            rows.position,
            rows.step,
            inputs=answers.columns(made)[column].float(),
            facts={"iterations": self.iterations, "last loss": loss},
        )

    def _trained(self, answers: Answers, coins: torch.Generator) -> tuple[Generator, float]:
        with drawing(coins):
            generator = Generator(answers)
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.lr)
        loss = torch.zeros(())
        for _ in range(self.iterations):
            few = answers.rows.take(torch.randint(len(answers.rows), (self.batch,), generator=coins))
            made = generator(few, coins)
            error = (_compared(answers, answers.raw(made, few)) - _compared(answers, few.values)).square().mean()
            spread = (generator.unscaled(made).var(0) - UNIFORM).clamp_min(0).mean()
            loss = error + self.penalty * spread
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        return generator, float(loss.detach())


class Generator(nn.Module):
    """(own features, noise) -> hidden features, each within the range of the auxiliary records, else within [0, 1]."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.own = [column for column in answers.up.columns if column not in answers.shapes]
        known = sum(answers.own(column, answers.rows.take(torch.arange(1))).numel() for column in self.own)
        self.width = sum(shape.numel() for shape in answers.shapes.values())
        layers: list[nn.Module] = []
        last = known + self.width
        for width in WIDTHS:
            layers += [nn.Linear(last, width), nn.LayerNorm(width), nn.ReLU()]
            last = width
        self.body = nn.Sequential(*layers, nn.Linear(last, self.width), nn.Sigmoid()).double()
        self.low, self.high = answers.ranges()

    def forward(self, rows: Observed, coins: torch.Generator) -> Tensor:
        noise = torch.randn(len(rows), self.width, generator=coins, dtype=torch.float64)
        inputs = torch.cat([*(self.answers.own(column, rows).flatten(1) for column in self.own), noise], dim=1)
        made: Tensor = self.low + (self.high - self.low) * self.body(inputs)
        return made

    def unscaled(self, made: Tensor) -> Tensor:
        return (made - self.low) / (self.high - self.low).clamp_min(1e-9)


def _compared(answers: Answers, values: Tensor) -> Tensor:
    """Confidences where the model gives them or their logarithms, else its answers as they are."""
    values = values.flatten(1).double()
    return values.exp() if answers.normalised and not answers.confidences else values
