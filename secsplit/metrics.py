"""What an epoch achieved, told by the party that computes the loss: loss in training, utility on the test records."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from secsplit.losses import mean_loss, present
from secsplit.topology import Objective


class Judge:
    """Gathers losses and test outputs during an epoch; `finish` gives the epoch's metrics and starts anew.

    answers: objective -> (outputs, targets) of the last evaluation, kept where `keep` is set.
    losses, rows: objective -> sum of the loss over training rows, and how many; all there is to keep between turns.
    """

    def __init__(self) -> None:
        self.keep = False
        self.answers: dict[str, tuple[Tensor, Tensor]] = {}
        self._start()

    def _start(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.rows: dict[str, int] = defaultdict(int)
        self._outputs: dict[Objective, list[Tensor]] = defaultdict(list)
        self._targets: dict[Objective, list[Tensor]] = defaultdict(list)

    def lost(self, objective: Objective, loss: Tensor, share: float, rows: int) -> None:
        """The (weighted) loss of so many labelled rows; share: of a mini-batch, whose mean loss this is a part of."""
        total = self.losses.get(objective.name)
        if total is None:
            self.losses[objective.name] = loss * (rows / share)
        else:
            total.add_(loss, alpha=rows / share)
        self.rows[objective.name] += rows

    def judged(self, objective: Objective, output: Tensor, target: Tensor) -> None:
        """Outputs and targets of a test batch."""
        self._outputs[objective].append(output)
        self._targets[objective].append(target)

    def finish(self) -> dict[str, dict[str, float]]:
        """objective -> metric -> value; empty for a party that computes no loss."""
        metrics: dict[str, dict[str, float]] = {}
        for name, total in self.losses.items():
            metrics.setdefault(name, {})["train_loss"] = float(total) / max(self.rows[name], 1)
        for objective, outputs in self._outputs.items():
            output, target = torch.cat(outputs), torch.cat(self._targets[objective])
            if self.keep:
                self.answers[objective.name] = (output, target)
            metrics.setdefault(objective.name, {}).update(utility(objective, output, target))
        self._start()
        return metrics


def utility(objective: Objective, output: Tensor, target: Tensor) -> dict[str, float]:
    """Test loss, n, and accuracy where there are classes. output: (n, classes) or (n, 1) logits; target: (n, ...)."""
    keep = present(target)
    loss, count = mean_loss(objective.loss, output, target)
    values = {"test_loss": float(loss), "test_n": float(count)}
    if objective.loss == "cross_entropy":
        values["test_accuracy"] = float((output.argmax(1) == target)[keep].double().mean())
    elif objective.loss == "binary_cross_entropy":
        guess = output.reshape(target.shape) > 0
        values["test_accuracy"] = float((guess == (target > 0.5))[keep].double().mean())
    return values
