"""Figures of a diagnosis against their definitions, and intervals that hold what they promise."""

import math

import pytest
import torch

from secsplit.diagnosis import FIGURES, diagnosis, difference


def coins(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int, shift: float, seed: int, part: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal scores, those of the ill `shift` higher: AUROC is Phi(shift / sqrt 2)."""
    truth = torch.arange(n) < part * n
    return torch.randn(n, generator=coins(seed)) + shift * truth, truth.long()


def test_figures_by_their_definitions() -> None:
    scores, truth = drawn(60, 1.0, 3)
    found = diagnosis(scores, truth, coins=coins(), resamples=0)
    ill, well = scores[truth == 1], scores[truth == 0]
    wins = (ill[:, None] > well[None]).double().mean()
    best = max(((ill >= t).double().mean() + (well < t).double().mean(), t) for t in scores)
    guess = scores >= found.threshold
    tp, fp = int((guess & (truth == 1)).sum()), int((guess & (truth == 0)).sum())
    fn, tn = len(ill) - tp, len(well) - fp
    ranked = truth[scores.argsort(descending=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, 61)
    agreed = (tp + tn) / 60
    by_chance = ((tp + fp) * len(ill) + (fn + tn) * len(well)) / 60**2
    expected = {
        "auroc": wins,
        "auprc": (precision * ranked).sum() / ranked.sum(),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "kappa": (agreed - by_chance) / (1 - by_chance),
        "sensitivity": tp / len(ill),
        "specificity": tn / len(well),
    }
    for name in FIGURES:
        assert found.figures[name].value == pytest.approx(float(expected[name]), abs=1e-12)
    assert found.figures["sensitivity"].value + found.figures["specificity"].value == pytest.approx(float(best[0]))
    assert (found.n, found.ill, found.prevalence) == (60, 18, 0.3)


def test_figures_are_those_of_scikit_learn_ties_and_all() -> None:
    from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, roc_auc_score, roc_curve

    for seed in range(5):
        scores, truth = drawn(80, 0.7, seed)
        scores = (scores * 4).round()
        found = diagnosis(scores, truth, coins=coins(), resamples=0)
        false, true, thresholds = roc_curve(truth, scores, drop_intermediate=False)
        best = (true - false).argmax()
        guess = scores.numpy() >= thresholds[best]
        expected = (
            roc_auc_score(truth, scores),
            average_precision_score(truth, scores),
            f1_score(truth, guess),
            cohen_kappa_score(truth, guess),
            true[best],
            1 - false[best],
        )
        assert [found.figures[name].value for name in FIGURES] == pytest.approx(expected, abs=1e-12)
        assert found.threshold == thresholds[best]


def test_scores_that_tell_everything_and_scores_that_tell_nothing() -> None:
    truth = torch.tensor([0, 1] * 20)
    perfect = diagnosis(truth.double(), truth, coins=coins(), resamples=50)
    assert all((f.value, f.high) == (1.0, 1.0) for f in perfect.figures.values())
    assert perfect.figures["auroc"].low == 1.0
    assert perfect.figures["sensitivity"].low == pytest.approx(0.025 ** (1 / 20))  # none of 20 missed, by the binomial
    scores, truth = drawn(400, 0.0, 1)
    assert diagnosis(scores, truth, coins=coins(), resamples=100).figures["auroc"].low < 0.5


def test_nine_in_ten_intervals_hold_the_true_auroc() -> None:
    true = 0.5 * (1 + math.erf(0.8 / 2))  # Phi(0.8 / sqrt 2)
    held = 0
    for seed in range(40):
        scores, truth = drawn(150, 0.8, seed)
        figure = diagnosis(scores, truth, coins=coins(seed), resamples=60, confidence=0.9).figures["auroc"]
        held += figure.low <= true <= figure.high
    assert 31 <= held <= 40  # fewer than 31 of 40 at 0.9: one in 500


def test_differences_are_of_the_same_records() -> None:
    scores, truth = drawn(200, 0.8, 0)
    noisy = scores + 0.3 * torch.randn(200, generator=coins(5))
    figures = [diagnosis(s, truth, coins=coins(), resamples=0).figures["auroc"].value for s in (scores, noisy)]
    found = difference(scores, noisy, truth, coins=coins())
    assert found.value == pytest.approx(figures[0] - figures[1])
    assert found.low < found.value < found.high
    alone = diagnosis(scores, truth, coins=coins()).figures["auroc"]
    assert found.high - found.low < 0.6 * (alone.high - alone.low)  # what both scores share cancels out
    same = difference(scores, 2 * scores + 1, truth, coins=coins())
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "truth", "reason"),
    [
        (torch.zeros(3), torch.ones(3), "both classes, got 3 ill of 3"),
        (torch.zeros(3), torch.tensor([0, 1]), "as many scores as labels"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores, truth, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        diagnosis(scores, truth, coins=coins())
