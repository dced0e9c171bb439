"""Guesses whose worth is known beforehand, and controls that must be at chance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from attacks.base import Guess
from audits import labels
from audits.evidence import Case, Rival
from audits.leakage import METRICS, Leakage, worst
from audits.score import score
from audits.truth import Truth
from secsplit.errors import DataError

N, BATCH = 512, 32


def coins(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth_of(classes: int = 2, share: float = 0.5, casts: int = 1) -> Truth:
    g = coins(1)
    y = {c: (torch.rand(N, generator=g) < share).long() if classes == 2 else torch.randint(classes, (N,), generator=g)
         for c in range(casts)}  # fmt: skip
    x = {c: torch.rand(N, 1, 8, 8, generator=g) for c in range(casts)}
    return Truth({c: {"x": x[c]} for c in x}, {c: {"y": y[c]} for c in y}, {"y": classes}, real_patients=False)


def guess_of(n: int = N, cast: int = 0, **what: object) -> Guess:
    goal = "input" if "inputs" in what else "label"
    step = what.pop("step", torch.arange(n) // BATCH)
    column = "x" if goal == "input" else "y"
    return Guess(goal, column, torch.full((n,), cast), torch.arange(n) % N, step, **what)  # type: ignore[arg-type]


def by_metric(found: tuple[Leakage, ...]) -> dict[str, Leakage]:
    return {leak.metric: leak for leak in found}


def case(truth: Truth, *rivals: Rival, epochs: dict[int, int] | None = None) -> Case:
    return Case(truth, coins(), "an attack", "a threat", rivals, epochs)


def test_leak_auc_is_the_median_over_batches_of_scikit_learns() -> None:
    truth = truth_of(share=0.3)
    y = truth.labels[0]["y"]
    scores = y + torch.randn(N, generator=coins(2))
    leak = by_metric(score(case(truth), guess_of(scores=scores)))["leak-auc"]
    slow = torch.tensor([roc_auc_score(y[i : i + BATCH], scores[i : i + BATCH]) for i in range(0, N, BATCH)])
    assert leak.value == pytest.approx(float(slow.quantile(0.5)))
    assert (leak.n, leak.unit, leak.headline) == (16, "batches", True)
    assert leak.low <= leak.value <= leak.high
    assert leak.leaks
    assert leak.chance == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("permuted", [False, True])
def test_scores_of_noise_are_at_chance(share: float, permuted: bool) -> None:
    noise = guess_of(scores=torch.randn(N, generator=coins(11)), up_to_permutation=permuted)
    found = by_metric(score(case(truth_of(share=share)), noise))["leak-auc"]
    assert not found.leaks
    assert found.p is not None
    assert found.p > 0.05
    assert found.value == pytest.approx(found.chance, abs=0.08)
    assert (found.chance > 0.55) == permuted  # an unsigned area is flattered, and so is its null


def test_a_batch_of_one_class_is_left_out() -> None:
    truth = truth_of(share=0.5)
    truth.labels[0]["y"][:BATCH] = 1
    leak = by_metric(score(case(truth), guess_of(scores=truth.labels[0]["y"].float())))["leak-auc"]
    assert leak.n == 15


def test_accuracy_against_the_commonest_class() -> None:
    truth = truth_of(classes=10)
    y = truth.labels[0]["y"]
    found = by_metric(score(case(truth), guess_of(labels=torch.where(torch.arange(N) % 2 == 0, y, (y + 1) % 10))))
    assert found["accuracy"].value == 0.5
    assert found["accuracy"].chance == pytest.approx(float(y.bincount().max()) / N)
    assert found["accuracy"].interval == "Clopper-Pearson"
    assert found["balanced-accuracy"].chance == 0.1
    assert {g.by for g in found["accuracy"].groups} == {"class"}
    assert found["accuracy"].leaks


def test_always_naming_the_common_class_earns_nothing() -> None:
    truth = truth_of(share=0.1)
    found = by_metric(score(case(truth), guess_of(labels=torch.zeros(N, dtype=torch.int64))))
    assert found["accuracy"].score == 0
    assert found["advantage"].value == 0
    assert not found["accuracy"].leaks


def test_a_renaming_of_the_classes_counts_in_full_and_is_called_so() -> None:
    truth = truth_of(classes=4)
    renamed = torch.tensor([2, 0, 3, 1])[truth.labels[0]["y"]]
    found = by_metric(score(case(truth), guess_of(labels=renamed, up_to_permutation=True)))
    assert set(found) == {"accuracy-permuted"}
    assert found["accuracy-permuted"].value == 1.0


def test_random_groups_in_small_batches_are_at_their_flattered_chance() -> None:
    truth = truth_of(classes=4)
    random = torch.randint(4, (N,), generator=coins(3))
    leak = by_metric(score(case(truth), guess_of(labels=random, up_to_permutation=True)))["accuracy-permuted"]
    assert leak.value > 0.3  # far above 1/4, and worth nothing
    assert leak.value == pytest.approx(leak.chance, abs=0.04)
    assert not leak.leaks


def test_matching_is_the_best_of_all_renamings() -> None:
    from itertools import permutations

    g = coins(5)
    guessed, y = torch.randint(4, (50,), generator=g), torch.randint(4, (50,), generator=g)
    slow = max(int((torch.tensor(p)[guessed] == y).sum()) for p in permutations(range(4)))
    assert int((labels.matched(guessed, y) == y).sum()) == slow


def test_ten_guesses_about_a_record_are_one_unit_of_evidence() -> None:
    truth = truth_of(classes=2)
    y = truth.labels[0]["y"]
    once = torch.where(torch.rand(N, generator=coins(6)) < 0.7, y, 1 - y)
    many = guess_of(10 * N, labels=once.repeat(10), step=torch.arange(10 * N) // BATCH)
    a = by_metric(score(case(truth), guess_of(labels=once)))["accuracy"]
    b = by_metric(score(case(truth), many))["accuracy"]
    assert (a.n, b.n) == (N, N)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.15)


@pytest.mark.parametrize("right", [False, True])
def test_ten_equal_guesses_about_few_records_are_not_certain(right: bool) -> None:
    """All wrong, or all right, ten times over: a bootstrap would leave no width at all."""
    truth = truth_of()
    y = truth.labels[0]["y"][:20].repeat(10)
    guess = guess_of(200, labels=y if right else 1 - y, step=torch.full((200,), -1))
    guess = replace(guess, position=torch.arange(20).repeat(10))
    found = by_metric(score(case(truth), guess))
    for name in ("accuracy", "balanced-accuracy"):
        leak = found[name]
        assert leak.value == float(right)
        assert (leak.high or 0) - (leak.low or 0) > 0.15
        assert leak.pessimistic == 1.0 if right else (leak.pessimistic or 0) > 0.15


def test_unlabelled_rows_do_not_count() -> None:
    truth = truth_of(classes=3)
    truth.labels[0]["y"][:100] = -1
    guess = guess_of(labels=truth.labels[0]["y"].clamp_min(0))
    leak = by_metric(score(case(truth), guess))["accuracy"]
    assert (leak.value, leak.n) == (1.0, N - 100)


def test_leakage_over_training_time_and_by_site() -> None:
    truth = truth_of(classes=2, casts=2)
    parts = [guess_of(labels=truth.labels[c]["y"], cast=c) for c in (0, 1)]
    join = lambda name: torch.cat([getattr(p, name) for p in parts])  # noqa: E731
    guess = Guess("label", "y", join("cast"), join("position"), join("step"), labels=join("labels"))
    found = by_metric(score(case(truth, epochs={s: s // 8 for s in range(16)}), guess))["accuracy"]
    assert [(g.by, g.name, g.n) for g in found.groups if g.by != "class"] == [
        ("site", "client 1", N), ("site", "client 2", N), ("epoch", "0", N), ("epoch", "1", N),
    ]  # fmt: skip


def test_a_blind_rival_is_the_chance_and_one_that_saw_messages_is_not() -> None:
    truth = truth_of(classes=2)
    y = truth.labels[0]["y"]
    good = torch.where(torch.rand(N, generator=coins(8)) < 0.8, y, 1 - y)
    rival = guess_of(labels=good)
    blind = by_metric(score(case(truth, Rival("own features", rival)), guess_of(labels=good)))["accuracy"]
    seeing = by_metric(score(case(truth, Rival("ceiling", rival, "all", blind=False)), guess_of(labels=good)))[
        "accuracy"
    ]
    assert blind.chance_is == "own features"
    assert blind.score == 0
    assert not blind.leaks
    assert seeing.leaks
    assert seeing.baselines[0].sees == "all"


def noisy(truth: Truth, sigma: float) -> Tensor:
    x = truth.inputs[0]["x"]
    return (x + sigma * torch.randn(x.shape, generator=coins(9))).clamp(0, 1)


def mean_image(truth: Truth) -> Rival:
    x = truth.inputs[0]["x"]
    return Rival("mean image", guess_of(inputs=x.mean(0, keepdim=True).expand_as(x)))


def test_reconstructions_are_held_against_the_mean_image() -> None:
    truth = truth_of()
    found = by_metric(score(case(truth, mean_image(truth)), guess_of(inputs=noisy(truth, 0.1))))
    assert set(found) == {"re-identification", "mse", "ssim", "psnr", "correlation"}
    assert found["re-identification"].value == 1.0
    assert found["re-identification"].chance == pytest.approx(1 / N)
    assert found["mse"].chance_is == "mean image"
    assert found["mse"].low < found["mse"].value < found["mse"].high < found["mse"].chance
    assert all(found[name].leaks for name in ("mse", "ssim", "psnr", "correlation", "re-identification"))
    assert {g.by for g in found["mse"].groups} == {"worst tenth", "class"}


def test_the_mean_image_itself_leaks_nothing() -> None:
    truth = truth_of()
    found = by_metric(score(case(truth, mean_image(truth)), mean_image(truth).guess))
    assert found["mse"].score == 0
    assert found["re-identification"].value <= 2 / N
    assert not any(leak.leaks for leak in found.values())


def test_an_attack_that_cannot_know_the_scale_is_judged_without_it() -> None:
    truth = truth_of()
    guess = guess_of(inputs=3 * truth.inputs[0]["x"] - 7, up_to_affine=True)
    found = by_metric(score(case(truth, mean_image(truth)), guess))
    assert set(found) == {"re-identification", "affine-mse", "ssim", "correlation"}
    assert found["affine-mse"].value == pytest.approx(0, abs=1e-9)
    assert found["re-identification"].value == 1.0


def test_rows_of_a_table() -> None:
    g = coins(4)
    x = 50 + 20 * torch.randn(200, 6, generator=g)
    truth = Truth({0: {"x": x}}, {0: {}}, {})
    guess = Guess("input", "x", torch.zeros(200), torch.arange(200), torch.zeros(200), inputs=x + torch.randn(200, 6))
    rival = Rival("mean", Guess("input", "x", guess.cast, guess.position, guess.step, inputs=x.mean(0).expand_as(x)))
    found = by_metric(score(case(truth, rival), guess))
    assert set(found) == {"re-identification", "mse"}
    assert found["mse"].leaks
    assert found["re-identification"].value > 0.9


def test_numbers_are_held_against_their_mean() -> None:
    y = torch.randn(300, generator=coins(1))
    truth = Truth({}, {0: {"y": y}}, {"y": 0})
    rows = (torch.zeros(300), torch.arange(300), torch.zeros(300))
    close = score(case(truth), Guess("label", "y", *rows, scores=y + 0.1 * torch.randn(300, generator=coins(2))))[0]
    mean = score(case(truth), Guess("label", "y", *rows, scores=y.mean().expand(300)))[0]
    assert close.value > 0.98
    assert close.leaks
    assert mean.value == pytest.approx(0, abs=1e-6)
    assert not mean.leaks


def test_a_guess_about_a_row_that_is_not_there_is_named() -> None:
    truth = truth_of()
    with pytest.raises(DataError, match="outside the 512 records of cast 0"):
        score(
            case(truth), Guess("label", "y", torch.zeros(1), torch.tensor([N]), torch.zeros(1), labels=torch.zeros(1))
        )
    with pytest.raises(DataError, match="label column 'z' of cast 0"):
        score(case(truth), Guess("label", "z", torch.zeros(1), torch.zeros(1), torch.zeros(1), labels=torch.zeros(1)))


def test_a_goal_without_a_score_is_refused_and_an_empty_guess_is_empty() -> None:
    rows = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no score is defined"):
        score(case(truth_of()), Guess("mood", "y", rows, rows, rows))  # type: ignore[arg-type]
    assert score(case(truth_of()), guess_of(0)) == ()


def test_the_headline_is_the_worst_over_attacks() -> None:
    truth = truth_of(classes=2)
    y = truth.labels[0]["y"]
    weak = score(case(truth), guess_of(labels=torch.where(torch.arange(N) % 3 == 0, 1 - y, y)))
    strong = score(case(truth), guess_of(scores=y.float()))
    found = worst((*weak, *strong))
    assert found is not None
    assert (found.metric, found.score) == ("leak-auc", 1.0)
    assert worst(()) is None


def test_every_metric_says_what_it_means() -> None:
    assert all(m.about.endswith(".") and m.title for m in METRICS.values())
