"""What a run file may claim about privacy: one [[claims]] table a sentence that a report would print.

A claim is judged by `check` before anything moves; here is only its form.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from secsplit.accounting import Adjacency, Protects
from secsplit.config import Strict

EVERYONE = "everyone together"
Reason = Literal[
    "gaussian", "dp-sgd", "label-dp", "frozen", "iso", "marvell", "max-norm", "nopeek", "prune", "quantise", "sign",
    "dropout", "confidence", "hijack-detector", "splitguard", "subsampling", "topology", "audit", "dfil",
]  # fmt: skip


class ClaimSpec(Strict):
    """The inputs, or labels, of `whose` records are protected against a role, or everyone together, to this epsilon.

    whose: a role (the only one that has any, where left out); epsilon: left out, the claim is that nothing is learnt;
    because: what it is said to rest on (the run's defenses, where left out).
    """

    protects: Protects
    against: str = EVERYONE
    whose: str | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    adjacency: Adjacency = "replace-one"
    because: tuple[Reason, ...] = ()

    @property
    def text(self) -> str:
        """The sentence."""
        how_much = (
            "nothing is learnt of" if self.epsilon is None else f"epsilon {self.epsilon:g} at delta {self.delta:g} for"
        )
        why = f", because of {', '.join(self.because)}" if self.because else ""
        return f"{how_much} the {self.protects} of {self.whose or 'the records'} against {self.against}{why}"
