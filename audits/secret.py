"""Which of the guessed rows are secret to the adversary at all: naming what one holds is no leak.

Left out are a column or label that the coalition holds itself for that cast, rows whose label it was given as a clue,
and rows that it was given as known pairs. An attack that is left with no row did not apply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import Guess, NotApplicable
from audits.evidence import kept
from secsplit.threat import Known, View


def secret(view: View, guess: Guess) -> Guess:
    """The guess about rows that the adversary does not already hold. Raises NotApplicable where none is left."""
    if guess.goal in ("membership", "distinguish"):
        return guess  # about candidates; who holds them all is not asked
    what = "inputs" if guess.goal == "input" else "labels"
    hidden = torch.ones(len(guess.position), dtype=torch.bool)
    for cast, known in view.own.items():
        if guess.column in getattr(known, what):
            hidden &= guess.cast != cast
    for given in (view.pairs, view.clues):
        if given is not None and guess.column in getattr(given, what):
            hidden &= ~_among(guess, given)
    if len(hidden) and not bool(hidden.any()):
        who = " + ".join(view.roles) or "a wiretap"
        raise NotApplicable(f"{who} holds the {what.removesuffix('s')} {guess.column!r} of every record itself")
    return kept(guess, hidden)


def _among(guess: Guess, known: Known) -> Tensor:
    """(n,) whether each guessed row is one of the known rows."""
    keys = set(zip(known.cast.tolist(), known.position.tolist(), strict=True))
    rows = zip(guess.cast.tolist(), guess.position.tolist(), strict=True)
    return torch.tensor([row in keys for row in rows], dtype=torch.bool)
