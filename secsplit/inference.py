"""Inference: a trained network answers for the test records over the same links, in eval mode, without any label.

The parties and their walk are those of training; only the last part differs: a scored segment's output goes to the role
that would hold its labels, for it is that role that asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secsplit.census import census
from secsplit.message import Kind
from secsplit.party import Party
from secsplit.schedule import Turn
from secsplit.steps import News, Steps
from secsplit.walk import Walk, named


class Predictor(Party):
    """A party that takes its part in inference. `predictions` fills as answers come."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._answers: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    @property
    def predictions(self) -> Mapping[tuple[str, int], Tensor]:
        """(objective, cast) -> (test records, outputs), in the order of the cast's test records."""
        return {key: torch.cat(parts) for key, parts in self._answers.items()}

    def program(self) -> Steps:
        """Every cast's test records, batch by batch."""
        schedule = self.run.schedule((yield from census(self)))
        turns = [(cast, batch) for cast in schedule.casts for batch in range(schedule.batches(cast, "test"))]
        for step, (cast, batch) in enumerate(turns):
            if self.name in self.run.casts[cast].values():
                turn = Turn(step, 0, cast, batch, "test")
                yield from self.answer(turn, schedule.rows(turn))
                yield News("turn", step, 0, len(turns))
        yield News("done", len(turns), 0, len(turns))

    def answer(self, turn: Turn, rows: Tensor) -> Steps:
        """One batch: forward, then each output to whoever asked."""
        self.copy(turn.stamp()).mode(False)
        walk = _Asked(self, self.run.casts[turn.cast], turn.stamp(), rows, 1.0)
        yield from walk.forward()
        yield from walk.objectives()

    def keep(self, objective: str, cast: int, output: Tensor) -> None:
        """An answer that this party asked for."""
        self._answers[objective, cast].append(output)


class _Asked(Walk):
    """A walk whose outputs go to the roles that asked instead of to the losses."""

    party: Predictor

    def objectives(self) -> Steps:
        for objective in self.party.topology.objectives:
            maker, asker = self.party.topology[objective.segment].role, objective.holder
            if self.party.role == maker:
                outputs = self.outputs[objective.segment]
                if maker == asker:
                    self.party.keep(objective.name, self.stamp.cast, self.party.away(outputs[0]))
                else:
                    left = self.defended(asker, Kind.OUTPUT, objective.name, outputs)
                    yield self.send(asker, Kind.OUTPUT, objective.name, named(left))
            elif self.party.role == asker:
                message = yield from self.receive(maker, Kind.OUTPUT, objective.name)
                self.check_rows(message.tensors["h"], maker, objective.name)
                self.party.keep(objective.name, self.stamp.cast, message.tensors["h"])
