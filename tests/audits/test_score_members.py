"""Membership figures against slow obvious ones, at both ends and at chance."""

from __future__ import annotations

import pytest
import torch

from attacks.base import Guess
from audits.evidence import Case
from audits.score import score
from audits.score_members import advantage, true_positives
from audits.truth import Truth


def scored(scores: torch.Tensor, member: torch.Tensor):  # type: ignore[no-untyped-def]
    n = len(scores)
    where = torch.where(member, 0, -1)
    truth = Truth({}, {}, {}, candidates=(where, where))
    nothing = torch.full((n,), -1)
    guess = Guess("membership", "member", nothing, torch.arange(n), nothing, scores=scores)
    case = Case(truth, torch.Generator().manual_seed(0), "a", "t")
    return {leak.metric: leak for leak in score(case, guess)}


def test_true_positives_against_the_slow_way():
    coins = torch.Generator().manual_seed(0)
    scores, member = torch.randn(400, generator=coins).double(), torch.rand(400, generator=coins) < 0.5
    scores += member
    for rate in (0.01, 0.05, 0.2):
        others, mine = scores[~member], scores[member]
        best = max(float((mine > t).double().mean()) for t in scores if float((others > t).double().mean()) <= rate)
        assert true_positives(scores, member, rate) == best
        slow = max(float((mine > t).double().mean() - (others > t).double().mean()) for t in scores)
        assert advantage(scores, member) == pytest.approx(slow)


def test_what_is_scored_alike_is_not_told_apart():
    assert advantage(torch.zeros(10).double(), torch.arange(10) < 5) == 0
    assert true_positives(torch.zeros(10).double(), torch.arange(10) < 5, 0.01) == 0


def test_perfect_and_blind_guesses():
    member = torch.arange(400) % 2 == 0
    perfect = scored(member.double(), member)
    assert [leak.value for leak in perfect.values()] == [1, 1, 1, 1]
    assert all(leak.leaks for leak in perfect.values() if leak.headline)
    blind = scored(torch.rand(400, generator=torch.Generator().manual_seed(3)), member)
    assert not any(leak.leaks for leak in blind.values())
    assert {leak.n for leak in blind.values()} == {400}


def test_matching_counts_only_rows_that_are_candidates():
    truth = Truth({}, {}, {}, candidates=(torch.tensor([0, -1, 0, 0]), torch.tensor([5, -1, 7, 9])))
    position = torch.tensor([5, 7, 9, 1])
    scores = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0], [9.0, 0, 0, 0]])
    zeros = torch.zeros(4, dtype=torch.int64)
    guess = Guess("distinguish", "record", zeros, position, zeros, scores=scores)
    found = score(Case(truth, torch.Generator().manual_seed(0), "a", "t"), guess)
    assert (found[0].metric, found[0].n, found[0].chance) == ("re-identification", 3, 0.25)
    assert found[0].value == pytest.approx(2 / 3)
    assert found[1].metric == "advantage"


def test_finding_nobody_among_few_is_not_certain():
    """A bootstrap of nothing but misses has no width, and a gate would read its end as 0."""
    member = torch.arange(40) % 2 == 0
    blind = scored(torch.where(member, 0.0, 1.0), member)
    for metric in ("tpr-at-1", "tpr-at-0.1"):
        assert blind[metric].value == 0
        assert blind[metric].high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_record_matched_in_every_epoch_is_one_record():
    """Repeated guesses are no further evidence, neither in n nor in the interval nor in p."""
    truth = Truth({}, {}, {}, candidates=(torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    case = Case(truth, torch.Generator().manual_seed(0), "a", "t")

    def guess(times: int) -> Guess:
        position = torch.arange(4).repeat(times)
        scores = torch.eye(4).repeat(times, 1)
        return Guess("distinguish", "record", torch.zeros_like(position), position, position, scores=scores)

    once, often = score(case, guess(1)), score(case, guess(50))
    for one, many in zip(once, often, strict=True):
        assert (one.n, one.low, one.high, one.p) == (many.n, many.low, many.high, many.p)
        assert one.low < 1
