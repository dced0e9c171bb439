"""The curve is scikit-learn's, its band covers what other records would give, and what ranks nothing has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from attacks.base import Guess
from audits.evidence import Case
from audits.roc import RATES, roc
from audits.truth import Truth


def coins(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case_of(labels: torch.Tensor, classes: int = 2) -> Case:
    truth = Truth({0: {}}, {0: {"y": labels}}, {"y": classes}, {0: "here"}, False)
    return Case(truth, coins(1), "toy", "server")


def ranked(n: int, repeats: int = 1, seed: int = 0) -> tuple[Case, Guess]:
    """Scores of n records, each told `repeats` times alike."""
    generator = coins(seed)
    labels = (torch.rand(n, generator=generator) < 0.3).long()
    scores = (labels + torch.randn(n, generator=generator)).round(decimals=1)  # with ties
    position = torch.arange(n).repeat(repeats)
    cast, step = torch.zeros_like(position), torch.arange(repeats).repeat_interleave(n)
    return case_of(labels), Guess("label", "y", cast, position, step, scores=scores.repeat(repeats))


def test_it_is_the_curve_that_others_draw() -> None:
    case, guess = ranked(2000)
    assert guess.scores is not None
    found = roc(case, guess)
    assert found is not None
    truth = case.truth.labels[0]["y"]
    fpr, tpr, _ = roc_curve(truth, guess.scores, drop_intermediate=False)
    assert found.area == pytest.approx(roc_auc_score(truth, guess.scores))
    for point in found.points:
        line = torch.tensor(tpr)[torch.tensor(fpr) <= point.fpr + 1e-12]
        above = torch.tensor(tpr)[torch.tensor(fpr) >= point.fpr - 1e-12]
        assert float(line[-1]) - 1e-9 <= point.tpr <= float(above[0]) + 1e-9
        assert point.low <= point.tpr <= point.high
    assert [point.fpr for point in found.points] == [rate for rate in RATES if rate * int((truth == 0).sum()) >= 1]


def test_a_record_told_ten_times_is_one_record() -> None:
    once, often = (roc(*ranked(300, repeats)) for repeats in (1, 10))
    assert once is not None
    assert often is not None
    assert (once.n, often.n) == (300, 300)
    widths = [sum(p.high - p.low for p in found.points if p.fpr >= 0.05) for found in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_the_band_covers_what_other_records_give() -> None:
    """Of 20 draws of 400 records, at 10% false positives, nearly all bands hold the value of 100,000 records."""
    true = roc(*ranked(100_000, seed=99))
    assert true is not None
    value = next(p.tpr for p in true.points if p.fpr == 0.1)
    bands = [next(p for p in found.points if p.fpr == 0.1) for s in range(20) if (found := roc(*ranked(400, seed=s)))]
    assert sum(band.low <= value <= band.high for band in bands) >= 17


def test_each_class_against_the_others() -> None:
    labels = torch.arange(90) % 3
    scores = torch.nn.functional.one_hot(labels, 3).float()
    position = torch.arange(90)
    guess = Guess("label", "y", torch.zeros_like(position), position, torch.full((90,), -1), scores=scores)
    found = roc(case_of(labels, 3), guess)
    assert found is not None
    assert (found.area, found.positives, found.negatives, found.n) == (1.0, 90, 180, 90)


def test_which_side_is_positive_may_be_unknown() -> None:
    case, guess = ranked(500)
    assert guess.scores is not None
    turned = replace(guess, scores=-guess.scores, up_to_permutation=True)
    one, other = roc(case, guess), roc(case, turned)
    assert one is not None
    assert other is not None
    assert one.area == pytest.approx(other.area)


def test_who_was_trained_on_is_ranked_too() -> None:
    casts = torch.tensor([0, 0, -1, -1])
    truth = Truth({0: {}}, {0: {}}, {}, {0: "here"}, False, candidates=(casts, torch.arange(4)))
    rows = torch.arange(4)
    guess = Guess("membership", "x", torch.zeros_like(rows), rows, rows - rows - 1, scores=torch.tensor([4.0, 2, 3, 1]))
    found = roc(Case(truth, coins(), "toy", "server"), guess)
    assert found is not None
    assert (found.area, found.positives, found.negatives) == (0.75, 2, 2)


def test_what_does_not_rank_has_no_curve() -> None:
    case, guess = ranked(50)
    assert roc(case, replace(guess, scores=None, labels=torch.zeros(50, dtype=torch.int64))) is None
    assert roc(case_of(torch.zeros(50, dtype=torch.int64)), guess) is None
    assert roc(case, replace(guess, goal="input")) is None
