"""The epsilon audit: flags five planted bugs, and never the correct mechanism, whose claim the ledger made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from audits.dp import (
    EpsilonAudit,
    audit_mechanism,
    crafted,
    farthest,
    guess_coins,
    lower_bounds,
    one_run_lower_bound,
    one_run_p_value,
    reidentify,
)
from secsplit.accounting import Charge, Release, compose, epsilon_of, gaussian_mu, hidden_participation_epsilon
from secsplit.claims import EVERYONE
from secsplit.defenses import Noise, Outgoing
from secsplit.defenses.gaussian import Gaussian, GaussianSpec, clipped
from secsplit.ledger import Ledger
from secsplit.message import Kind, Message, Stamp

EDGE, DELTA = "bottom->top", 1e-5


def spec(sigma: float, **options: object) -> GaussianSpec:
    return GaussianSpec.model_validate({"edge": EDGE, "clip": 1.0, "sigma": sigma, **options})


class NoClip(Gaussian):
    """Forgets to clip."""

    def outgoing(self, out: Outgoing) -> Tensor:
        return self._noised(out.tensor, out.name)


class HalfNoise(Gaussian):
    """Adds half of what it charges for."""

    def outgoing(self, out: Outgoing) -> Tensor:
        return Gaussian(spec(self.spec.sigma / 2), self._noise).outgoing(out)


class HalfSensitivity(Gaussian):
    """Charges the sensitivity of zero-out neighbours, and says replace-one."""

    def bounds(self, out: Outgoing) -> tuple[Charge, ...]:
        return tuple(replace(charge, mu=charge.mu / 2) for charge in super().bounds(out))


class OneEpoch(Gaussian):
    """Charges a record once, and draws new noise for it every epoch."""

    def bounds(self, out: Outgoing) -> tuple[Charge, ...]:
        return tuple(replace(charge, once="sent") for charge in super().bounds(out))


def claimed(defense: Gaussian, releases: int, folder: Path) -> float:
    """What the ledger says after so many messages of one record."""
    with Ledger(folder / "ledger.jsonl", party="c", run="r") as ledger:
        for step in range(releases):
            h = torch.zeros(1, 4)
            out = Outgoing(Kind.SMASHED, EDGE, Stamp(step), h, None, torch.arange(1), "server")
            message = Message(Kind.SMASHED, EDGE, Stamp(step), {"h": defense.outgoing(out)})
            ledger.charge(Release(out.name, out.rows, charges=defense.bounds(out)), message, "server")
        (spent,) = (s for s in ledger.spent() if s.to == EVERYONE)
    assert spent.epsilon is not None
    return spent.epsilon


def audited(defense: Gaussian, claim: float, releases: int = 1, **options: object) -> EpsilonAudit:
    chosen: dict[str, object] = {"trials": 10_000, **options}
    return audit_mechanism(
        defense, crafted(defense.spec), claim, kind=Kind.SMASHED, edge=EDGE, delta=DELTA, releases=releases, **chosen
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_the_correct_mechanism_is_never_flagged(seed: int, tmp_path: Path) -> None:
    """Twenty seeds over every form of it, and the bound is not far below the claim."""
    forms: list[tuple[float, int, dict[str, object]]] = [
        (4.0, 1, {}), (1.0, 1, {"noise": "float"}), (2.0, 3, {}), (4.0, 1, {"nonnegative": True}),
    ]  # fmt: skip
    sigma, releases, options = forms[seed % len(forms)]
    defense = Gaussian(spec(sigma, **options), Noise.predictable_for_testing_only(seed))
    claim = claimed(defense, releases, tmp_path)
    found = audited(defense, claim, releases)
    assert found.verdict == "no violation found"
    assert found.lower.epsilon > 0.5 * claim


@pytest.mark.parametrize("nonnegative", [False, True])
def test_zero_out_neighbours_are_audited_as_such(nonnegative: bool) -> None:
    """A record set to zero moves a message half as far as one replaced: correct is not flagged, and a bug is."""
    chosen = spec(2.0, adjacency="zero-out", nonnegative=nonnegative)
    claim = epsilon_of(gaussian_mu(2.0, adjacency="zero-out"), DELTA)
    good = audited(Gaussian(chosen, Noise.predictable_for_testing_only(0)), claim, adjacency="zero-out")
    assert good.verdict == "no violation found"
    assert good.lower.epsilon > 0.5 * claim
    assert audited(HalfNoise(chosen, Noise.predictable_for_testing_only(0)), claim).verdict == "violation"
    messages = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)) * 3
    real = farthest(messages, chosen)
    found = audit_mechanism(
        Gaussian(chosen, Noise.predictable_for_testing_only(1)), real, claim, kind=Kind.SMASHED, edge=EDGE, delta=DELTA,
        trials=5000,
    )  # fmt: skip
    assert found.verdict == "no violation found"
    assert not bool(real.other.any())


def test_sigma_4_ten_epochs(tmp_path: Path) -> None:
    defense = Gaussian(spec(4.0), Noise.predictable_for_testing_only(0))
    claim = claimed(defense, 10, tmp_path)
    found = audited(defense, claim, 10)
    assert claim == pytest.approx(7.511, abs=1e-3)
    assert 1.35 <= found.lower.mu <= 1.58
    assert found.lower.epsilon <= 7.52
    assert "no violation found" in found.statement
    assert "n = 10000" in found.statement


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("bug", "sigma", "releases"), [(NoClip, 4, 1), (HalfNoise, 4, 1), (HalfSensitivity, 4, 1),
                                                        (OneEpoch, 8, 10)])  # fmt: skip
def test_planted_bugs_are_flagged(bug: type[Gaussian], sigma: float, releases: int, seed: int, tmp_path: Path) -> None:
    defense = bug(spec(sigma), Noise.predictable_for_testing_only(seed))
    claim = claimed(defense, releases, tmp_path)
    assert claim <= 2.0
    found = audited(defense, claim, releases)
    assert found.verdict == "violation"


def test_amplification_against_a_server_that_sees_who_takes_part_is_flagged() -> None:
    """Claimed with sampling rate 0.01 over ten epochs; the server reads ten messages of the record."""
    claim = hidden_participation_epsilon(sigma=1.0, sample_rate=0.01, steps=1000, delta=DELTA)
    assert claim < 2.5
    found = audited(Gaussian(spec(2.0), Noise.predictable_for_testing_only(0)), claim, 10)
    assert found.verdict == "violation"
    assert found.lower.clopper_pearson > claim


def test_real_canaries_are_weaker_and_say_so() -> None:
    messages = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)) * 3
    pair = farthest(messages, spec(2.0))
    defense = Gaussian(spec(2.0), Noise.predictable_for_testing_only(1))
    real = audit_mechanism(defense, pair, 4.377, kind=Kind.SMASHED, edge=EDGE, delta=DELTA, trials=5000)
    assert real.canaries == "real"
    assert 0 < real.lower.epsilon < audited(defense, 4.377).lower.epsilon
    assert real.verdict == "no violation found"


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_bounds_hold_and_come_near(mu: float) -> None:
    """Against draws of the Gaussian pair itself: below the truth in all of forty repeats, near it on average."""
    coins = torch.Generator().manual_seed(0)
    found = [lower_bounds(torch.randn(5000, generator=coins) + mu, torch.randn(5000, generator=coins), DELTA)
             for _ in range(40)]  # fmt: skip
    assert max(low.mu for low in found) < mu
    assert sum(low.mu for low in found) / 40 > 0.75 * mu
    assert all(low.clopper_pearson < epsilon_of(mu, DELTA) for low in found)


def test_no_difference_gives_no_bound() -> None:
    coins = torch.Generator().manual_seed(1)
    low = lower_bounds(torch.randn(4000, generator=coins), torch.randn(4000, generator=coins), DELTA)
    assert low.epsilon < 0.15


def test_clopper_pearson_cannot_exceed_its_cap() -> None:
    low = lower_bounds(torch.full((5000,), 1.0), torch.full((5000,), -1.0), DELTA)
    assert low.clopper_pearson < math.log(5000)
    assert low.n == 5000


# one run


def test_one_run_p_value_by_hand() -> None:
    """delta = 0: the chance of at least v successes among r at odds e^epsilon."""
    p = one_run_p_value(canaries=100, guesses=50, correct=45, epsilon=1.0, delta=0.0)
    assert p == pytest.approx(float(stats.binom.sf(44, 50, math.e / (1 + math.e))))
    assert one_run_p_value(canaries=100, guesses=50, correct=45, epsilon=1.0, delta=1e-3) > p
    assert one_run_p_value(canaries=100, guesses=0, correct=0, epsilon=1.0, delta=0.0) == 1
    with pytest.raises(ValueError, match="canaries"):
        one_run_p_value(canaries=10, guesses=50, correct=45, epsilon=1.0, delta=0.0)


def test_one_run_lower_bound_refutes_exactly_what_it_says() -> None:
    counts = {"canaries": 1000, "guesses": 300, "correct": 290}
    low = one_run_lower_bound(**counts, delta=DELTA)
    assert one_run_p_value(**counts, epsilon=low - 1e-4, delta=DELTA) < 0.05
    assert one_run_p_value(**counts, epsilon=low + 1e-4, delta=DELTA) >= 0.05
    assert one_run_lower_bound(canaries=1000, guesses=300, correct=150, delta=DELTA) == 0


@pytest.mark.parametrize("releases", [1, 10])
def test_one_run_against_the_gaussian_mechanism(releases: int) -> None:
    """A thousand canaries, twenty repeats: always below the truth; ten redraws sold as one show."""
    mu = compose([gaussian_mu(4.0)] * releases)
    claim = epsilon_of(gaussian_mu(4.0), DELTA)
    flagged = []
    for seed in range(20):
        coins = torch.Generator().manual_seed(seed)
        used = torch.rand(1000, generator=coins) < 0.5
        scores = torch.randn(1000, generator=coins) + mu * (used.float() - 0.5)
        found = guess_coins(scores, used, claim, delta=DELTA)
        assert found.lower <= epsilon_of(mu, DELTA)
        flagged.append(found.verdict == "violation")
    assert not any(flagged) if releases == 1 else sum(flagged) >= 10


# re-identification


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_reidentification_stays_below_what_the_noise_allows(sigma: float) -> None:
    coins = torch.Generator().manual_seed(0)
    messages = clipped(torch.randn(500, 64, generator=coins), 1.0)
    truth = torch.arange(500)
    defense = Gaussian(spec(sigma), Noise.predictable_for_testing_only(2))
    sent = defense.outgoing(Outgoing(Kind.SMASHED, EDGE, Stamp(), messages, None, truth, "server"))
    found = reidentify(sent, messages, truth, mu=gaussian_mu(sigma))
    assert found.chance == 1 / 500
    assert found.interval.low <= found.bound
    assert found.verdict == "no violation found"


def test_reidentification_without_noise_is_a_violation_of_any_claim() -> None:
    messages = clipped(torch.randn(200, 16), 1.0)
    found = reidentify(messages, messages, torch.arange(200), mu=1.0)
    assert found.rate == 1
    assert found.verdict == "violation"


def test_averaging_epochs_is_composition() -> None:
    """Ten messages of each record: more are named, and the bound for ten still holds, while that for one is broken."""
    coins = torch.Generator().manual_seed(3)
    messages = clipped(torch.randn(500, 64, generator=coins), 1.0)
    defense, truth = Gaussian(spec(0.7), Noise.predictable_for_testing_only(4)), torch.arange(500)

    def sent(steps: Iterable[int]) -> Tensor:
        outs = [defense.outgoing(Outgoing(Kind.SMASHED, EDGE, Stamp(k), messages, None, truth, "s")) for k in steps]
        return torch.stack(outs).mean(0)

    one = reidentify(sent(range(1)), messages, truth, mu=gaussian_mu(0.7))
    ten = reidentify(sent(range(10)), messages, truth, mu=compose([gaussian_mu(0.7)] * 10))
    assert ten.rate > 5 * one.rate
    assert ten.verdict == "no violation found"
    assert replace(ten, mu=0.1).verdict == "violation"
