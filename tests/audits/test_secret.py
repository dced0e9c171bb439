"""Rows whose truth the adversary holds are no evidence."""

from __future__ import annotations

import pytest
import torch

from attacks.base import Guess, NotApplicable
from audits.finished import Finished
from audits.secret import secret
from audits.views import view_of
from secsplit.threat import Knows, Threat


def everyone(goal: str, column: str, n: int = 120) -> Guess:
    cast, position = torch.arange(2).repeat_interleave(n), torch.arange(n).repeat(2)
    return Guess(goal, column, cast, position, cast, labels=cast)  # type: ignore[arg-type]


def test_clues_and_pairs_are_left_out(finished: Finished) -> None:
    threat = Threat("t", ("client",), knows=frozenset({Knows.CLUES}), clues=2)
    assert len(secret(view_of(finished, threat), everyone("label", "y")).position) == 240 - 20
    pairs = Threat("t", ("server",), knows=frozenset({Knows.PAIRS}), pairs=7)
    assert len(secret(view_of(finished, pairs), everyone("input", "x")).position) == 240 - 7


def test_what_one_holds_is_no_secret(finished: Finished) -> None:
    with pytest.raises(NotApplicable, match="client holds the input 'x' of every record itself"):
        secret(view_of(finished, Threat("t", ("client",))), everyone("input", "x"))
    with pytest.raises(NotApplicable, match="server holds the label 'y'"):
        secret(view_of(finished, Threat("t", ("server",))), everyone("label", "y"))


def test_all_else_is_kept(finished: Finished) -> None:
    guess = everyone("label", "y")
    assert torch.equal(secret(view_of(finished, Threat("t", ("client",))), guess).position, guess.position)
