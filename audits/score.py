"""Guess + Truth -> Leakage: every figure with its chance level, interval and n.

Whether an attack succeeded is decided here, never by the attack. What is said of labels is in `score_labels`, of
reconstructions in `score_inputs`, of members and of candidates told apart in `score_members`.
"""

from __future__ import annotations

from attacks.base import Guess
from audits import score_inputs, score_labels, score_members
from audits.evidence import Case
from audits.leakage import Leakage


def score(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """The leakages of one guess, the headline first; empty where no row of it can be scored.

    Raises ValueError where the goal has no score here.
    """
    if not len(guess.position):
        return ()
    if guess.goal == "input":
        return score_inputs.scored(case, guess)
    if guess.goal == "membership":
        return score_members.scored(case, guess)
    if guess.goal == "distinguish":
        return score_members.matched(case, guess)
    if guess.goal in ("label", "attribute", "traffic"):
        number = case.truth.classes.get(guess.column) == 0
        return (score_labels.explained if number else score_labels.scored)(case, guess)
    raise ValueError(f"no score is defined for a guess about {guess.goal!r}")
