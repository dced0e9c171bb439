"""What each defense does against the attacks, on set-up S: the numbers that the documentation prints.

Slow where a network is trained on 20,000 images; the quick ones keep the same claims on a tenth of that. Every figure
stands beside the undefended one of the same run and seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from attacks import decoder
from audits import images
from audits.dp import reidentify
from secsplit.accounting import (
    compose,
    gaussian_mu,
    hidden_participation_epsilon,
    label_bound,
    rdp_epsilon,
)
from secsplit.defenses.gaussian import clipped
from secsplit.defenses.hijack import HijackSpec, label_gap
from secsplit.defenses.marvell import Marvell
from secsplit.defenses.nopeek import distance_correlation
from secsplit.message import Kind
from secsplit.schedule import SPLITS, Turn
from tests.attacks.victims import binary, fashion
from tests.audits.defended import EDGE, JUDGED, POOL, Defended, train
from tests.audits.hijackers import Server, gradients

slow = pytest.mark.slow


@cache
def undefended(*, batch: int = 64, cut: int = 6, n: int = 20_000) -> Defended:
    return train(batch=batch, cut=cut, n=n)


def returned(victim: Defended) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, (batch, d) gradients) of every training batch that the client was sent."""
    party = victim.parties["client"]
    schedule = party.run.schedule({0: {split: party.shards[0].size(split) or 0 for split in SPLITS}})
    turns = {event.step: event for event in schedule if isinstance(event, Turn)}
    for record in victim.transcript:
        if record.kind is Kind.CUT_GRAD:
            yield schedule.rows(turns[record.stamp.step]), record.tensor.flatten(1)


# label noise


def clued(victim: Defended) -> tuple[int, int, int]:
    """(right about the truth, right about what was sent, n), one known label a class in the first epoch's batches."""
    true, noisy = victim.data.train.labels["y"], victim.parties["client"].labels[0, "y"]
    truth = sent = n = 0
    seen: set[int] = set()
    for rows, g in returned(victim):
        if int(rows[0]) in seen:
            break  # the second epoch: the same noisy labels again are no new evidence
        seen.update(rows.tolist())
        clues = torch.tensor([int((noisy[rows] == k).nonzero()[0]) for k in noisy[rows].unique()])
        unit = normalize(g, dim=1)
        guess = noisy[rows][clues][(unit @ unit[clues].T).argmax(1)]
        judged = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, clues, False)
        truth += int((guess == true[rows])[judged].sum())
        sent += int((guess == noisy[rows])[judged].sum())
        n += int(judged.sum())
    return truth, sent, n


@pytest.mark.parametrize("epsilon", [2.0, pytest.param(0.5, marks=slow), pytest.param(1.0, marks=slow),
                                     pytest.param(4.0, marks=slow)])  # fmt: skip
def test_label_noise_bounds_what_gradients_tell(epsilon: float) -> None:
    """The attack reads the noisy label every time, and the true one exactly as often as the bound allows."""
    victim = train([{"kind": "label-dp", "epsilon": epsilon}], cut=10, n=20_000 if epsilon != 2 else 4000, epochs=1)
    truth, sent, n = clued(victim)
    assert sent / n >= 0.99
    interval = stats.binomtest(truth, n).proportion_ci(0.99, "exact")
    assert interval.low <= label_bound(epsilon, 10) <= interval.high


@slow
def test_label_noise_of_epsilon_2_costs_little() -> None:
    lost = [
        train(cut=10, batch=128, seed=seed).accuracy()
        - train([{"kind": "label-dp", "epsilon": 2.0}], cut=10, batch=128, seed=seed).accuracy()
        for seed in range(3)
    ]
    assert sum(lost) / 3 <= 0.04


# noise on smashed data

NOISE = {"kind": "gaussian", "edge": EDGE, "clip": 1.0, "sigma": 0.1, "rescale": 10.0}


@slow
def test_noise_hides_one_message_and_not_ten() -> None:
    before = undefended()
    before.inverted()
    assert before.reidentified() >= 0.80
    victim = train([NOISE])
    assert float(victim.inverted().mse.mean()) >= 0.028
    assert victim.reidentified() <= 0.10
    victim.inverted(draws=10)
    assert victim.reidentified() >= 0.15


@slow
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_reidentification_stays_below_the_bound_of_the_noise(sigma: float) -> None:
    """By the best guess there is: the segment known, a thousand candidates."""
    victim = train([{**NOISE, "sigma": sigma, "rescale": 1.0}], n=2000, epochs=1)
    x = victim.data.train.inputs["x"][:1000]
    with torch.no_grad():
        messages = clipped(victim.bottom(x), 1.0)
    for draws in (1, 10):
        sent = torch.stack([victim.sent(x, draw=k) for k in range(draws)]).mean(0)
        found = reidentify(sent, messages, torch.arange(1000), mu=compose([gaussian_mu(sigma)] * draws))
        assert found.interval.low <= found.bound


# DP-SGD


@slow
@pytest.mark.parametrize("cut", [3, 6])
def test_dp_sgd_does_not_protect_messages(cut: int) -> None:
    """Inversion is as before, next to an epsilon that an amplified accountant would print proudly."""
    before = float(undefended(batch=128, cut=cut).inverted().mse.mean())
    victim = train([{"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": 1.0}], batch=128, cut=cut)
    after = float(victim.inverted().mse.mean())
    assert 0.9 <= after / before <= 1.25
    steps = 2 * math.ceil(20_000 / 128)
    hidden = hidden_participation_epsilon(sigma=1.0, sample_rate=128 / 20_000, steps=steps, delta=1e-5)
    seen = rdp_epsilon([(gaussian_mu(1.0, adjacency="zero-out"), 2)], 1e-5)
    assert hidden == pytest.approx(1.13, abs=0.02)
    assert seen == pytest.approx(7.08, abs=0.05)


# hijack detection


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=slow) for seed in range(1, 5))])
@pytest.mark.parametrize(
    ("server", "low", "high"), [("honest", 0.6, 2.0), ("hijacker", -0.1, 0.1), ("half", -0.1, 0.25)]
)
def test_the_label_gap_tells_servers_apart(server: Server, low: float, high: float, seed: int) -> None:
    """Within the first ten steps, far from the threshold of 0.3 on either side."""
    gaps = [label_gap(g, y) for g, y in gradients(server, steps=20, seed=seed)]
    known = [gap for gap in gaps if gap is not None]
    for window in (known[:10], known):
        assert low <= sum(window) / len(window) <= high
    assert (low > HijackSpec(edge=EDGE).threshold) == (server == "honest")


# noise on returned gradients, and controls

AT = {"edge": EDGE}
TABLE: dict[str, tuple[list[Mapping[str, Any]], dict[str, tuple[float, float]]]] = {
    "none": ([], {"auc": (0.96, 1), "norm": (0.9, 1), "norm95": (0.99, 1), "direction": (0.99, 1)}),
    "marvell": ([{"kind": "marvell", "s": 4.0, **AT}], {"auc": (0.955, 1), "direction95": (0.5, 0.85)}),
    "iso": ([{"kind": "iso", "t": 8.0, **AT}], {"auc": (0.93, 1), "direction95": (0.5, 0.70)}),
    "prune": (
        [{"kind": "prune", "keep": 0.1, "message": "cut-grad", **AT}], {"norm": (0.99, 1), "direction": (0.99, 1)}
    ),
    "sign": ([{"kind": "sign", "message": "cut-grad", **AT}], {"norm": (0.49, 0.51), "direction": (0.99, 1)}),
    "normalise": ([{"kind": "max-norm", "mode": "normalise", **AT}], {"norm": (0.45, 0.55), "direction": (0.99, 1)}),
}  # fmt: skip


def leaks(victim: Defended) -> dict[str, float]:
    """Leak AUC by batch of norm and direction (one hint a batch): medians and 95% quantiles; AUC on test records."""
    y = victim.data.train.labels["y"]
    norm, direction = [], []
    for rows, g in returned(victim):
        if 1 < int(y[rows].sum()) < len(rows):  # one is the hint: a batch needs another to be found by it
            hint = int(y[rows].nonzero()[0])
            others = torch.arange(len(rows)) != hint
            norm.append(roc_auc_score(y[rows], g.norm(dim=1)))
            unit = normalize(g, dim=1)
            direction.append(roc_auc_score(y[rows][others], (unit @ unit[hint])[others]))
    with torch.no_grad():
        answers = victim.top(victim.sent(victim.data.test.inputs["x"]))
    auc = roc_auc_score(victim.data.test.labels["y"], answers[:, 1] - answers[:, 0])
    return {
        "auc": float(auc), "norm": float(np.median(norm)), "norm95": float(np.quantile(norm, 0.95)),
        "direction": float(np.median(direction)), "direction95": float(np.quantile(direction, 0.95)),
    }  # fmt: skip


@slow
@pytest.mark.parametrize("defense", TABLE)
def test_returned_gradients(defense: str) -> None:
    """Ten per cent positives, the server's labels against the client: 20,000 images, three epochs."""
    specs, expected = TABLE[defense]
    data = binary(fashion(), 0, share=0.1, n=20_000)
    found = leaks(train(specs, data=data, labels="server", epochs=3, batch=256))
    for name, (low, high) in expected.items():
        assert low <= found[name] <= high, (name, found)


@pytest.mark.parametrize("defense", ["none", "prune", "sign", "normalise"])
def test_returned_gradients_quickly(defense: str) -> None:
    """One epoch of 4,000: enough for what pruning reveals and signs keep."""
    data = binary(fashion(), 0, share=0.1, n=4000)
    found = leaks(train(TABLE[defense][0], data=data, labels="server", epochs=1, batch=256))
    low, high = {"none": (0.8, 1.0), "prune": (0.9, 1.0)}.get(defense, (0.4, 0.6))
    assert low <= found["norm"] <= high
    assert found["direction"] >= 0.95


def test_marvell_tells_less_with_more_power() -> None:
    data = binary(fashion(), 0, share=0.1, n=2000)
    divergences = []
    for s in (1.0, 4.0, 10.0):
        victim = train([{"kind": "marvell", "s": s, **AT}], data=data, labels="server", epochs=1, batch=256)
        (defense,) = victim.parties["server"].defenses
        assert isinstance(defense, Marvell)
        divergences.append(float(np.mean(defense.sum_kl)))
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] > 4 * divergences[-1]


# NoPeek


@slow
def test_nopeek_is_not_enough() -> None:
    """a = 0.5 halves the correlation and most images are still named; a = 0.8 costs a tenth of the accuracy."""
    before = undefended(batch=128)
    x = before.data.train.inputs["x"][:500]
    assert float(distance_correlation(x, before.sent(x))) > 0.9
    mild, harsh = (train([{"kind": "nopeek", "a": a, **AT}], batch=128) for a in (0.5, 0.8))
    assert float(distance_correlation(x, mild.sent(x))) <= 0.60
    mild.inverted()
    assert mild.reidentified() >= 0.50
    assert before.accuracy() - harsh.accuracy() > 0.10


# depth


@slow
def test_deeper_cuts_give_less_away() -> None:
    victim = undefended()
    whole = nn.Sequential(*victim.bottom, *victim.top)  # type: ignore[misc]
    aux, private = victim.data.test.inputs["x"][:5000], victim.data.train.inputs["x"][:POOL]
    rates = []
    for cut in (3, 6, 8, 10, 11):
        with torch.no_grad():
            known, seen = whole[:cut](aux), whole[:cut](private[:JUDGED])
        fitted = decoder.fit(known, aux, coins=torch.Generator().manual_seed(0))
        rates.append(float(images.reidentified(fitted(seen), private, torch.arange(JUDGED)).double().mean()))
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 5
