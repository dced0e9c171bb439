"""Gradient inversion of runs by the project's own parties: who averages reads what was learnt from."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.conformance import check_attack
from attacks.gradient_inversion import GradientInversion, angles
from audits.config import AuditSpec, ThreatSpec
from audits.finished import Finished
from audits.privacy import audit
from audits.views import empty_handed, view_of
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.threat import Knows, Threat
from secsplit.topologies import named
from secsplit.training import train_simulated

KNOWS = frozenset({Knows.WEIGHTS})
WITH_AUX = KNOWS | {Knows.AUX}


def finished(folder, *, method="large-batch", model="mlp", batch=1, limit=8, **tables) -> Finished:
    run = Run.of(
        parse(
            {
                "topology": {"name": "whole"},
                "method": {"name": method},
                "model": {"name": model},
                "data": {"name": "digits", "limit": limit},
                "train": {"seed": 1, "epochs": 2, "batch_size": batch},
                "parties": {
                    "a": {"role": "client"},
                    "b": {"role": "client"},
                    "mean": {"role": "aggregator"},
                },
                **tables,
            }
        )
    )
    train_simulated(run, folder / "run", lambda party, news: None)
    return Finished.open(folder / "run")


def curious(knows=KNOWS) -> Threat:
    return Threat("curious aggregator", ("aggregator",), knows=knows)


def guess_of(run: Finished, attack=None, knows=KNOWS, view=None):
    attack = attack or GradientInversion()
    return attack.infer(view or view_of(run, curious(knows)), coins=torch.Generator().manual_seed(0))


def error(run: Finished, guess) -> float:
    true = run.truth.input("x", guess.cast, guess.position)
    return float((guess.inputs - true).square().mean())


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Finished:
    return finished(tmp_path_factory.mktemp("single"))


def test_it_keeps_to_the_contract(single: Finished) -> None:
    check_attack(GradientInversion(), lambda poisoned: view_of(single, curious()))


def test_one_record_through_a_linear_layer_is_exact(single: Finished) -> None:
    guess = guess_of(single)
    assert len(guess.position) == 4  # two clients, and the weights are known at the start of two epochs
    assert error(single, guess) < 1e-6
    assert not guess.up_to_permutation


def test_empty_handed_it_finds_nobody(single: Finished) -> None:
    guess = guess_of(single, view=empty_handed(view_of(single, curious())))
    mean = single.truth.inputs[0]["x"].mean(0)
    blind = float((single.truth.input("x", guess.cast, guess.position) - mean).square().mean())
    assert error(single, guess) > blind


def test_one_step_of_federated_sgd_is_a_gradient(tmp_path) -> None:
    tables = {"optimizer": {"name": "sgd", "lr": 0.1}}
    run = finished(tmp_path, method="federated", batch=1, limit=2, **tables)
    assert error(run, guess_of(run)) < 1e-4


def test_through_convolutions_auxiliary_records_teach_to_read_it(tmp_path) -> None:
    run = finished(tmp_path, model="lenet", limit=40)
    guess = guess_of(run, knows=WITH_AUX)
    mean = run.truth.inputs[0]["x"].mean(0)
    blind = float((run.truth.input("x", guess.cast, guess.position) - mean).square().mean())
    assert error(run, guess) < 0.6 * blind
    assert guess.facts["how"] == "told by the first linear layer"


def test_a_batch_is_found_up_to_its_order(tmp_path) -> None:
    run = finished(tmp_path, batch=3, limit=12)
    spec = AuditSpec(threats={"mean": ThreatSpec(who=("aggregator",), knows=KNOWS)}, gallery=0)
    (cell,) = audit(run, spec, attacks=[GradientInversion(steps=600, tv=0.0)]).cells
    assert cell.status == "ran", cell.because
    mse = next(leak for leak in cell.leakages if leak.metric == "mse")
    assert mse.value < 0.6 * mse.chance
    again = next(leak for leak in cell.leakages if leak.metric == "re-identification")
    assert again.value > 0.6


def test_one_step_of_adam_tells_signs(tmp_path) -> None:
    run = finished(tmp_path, method="federated", limit=2)
    guess = guess_of(run, GradientInversion(steps=400, tv=0.0))
    assert guess.facts["matched"] == "signs"
    blind = run.outside.inputs["x"].mean(0)
    true = run.truth.input("x", guess.cast, guess.position)
    assert error(run, guess) < 0.9 * float((true - blind).square().mean())


def test_where_there_is_a_cut_or_too_many_records_it_does_not_apply(single: Finished, tmp_path) -> None:
    assert "there is a cut" in str(GradientInversion().why_not(named("vanilla"), Threat("t", ("server",), knows=KNOWS)))
    assert "'weights'" in str(GradientInversion().why_not(named("whole"), curious(frozenset())))
    assert GradientInversion().why_not(named("whole"), curious()) is None
    with pytest.raises(NotApplicable, match="rests on 2 records or fewer"):
        guess_of(finished(tmp_path, batch=3, limit=12), GradientInversion(most=2))


def test_angles_are_nought_between_multiples() -> None:
    g = {"w": torch.randn(2, 5, generator=torch.Generator().manual_seed(0))}
    apart = angles(g, {"w": 3 * g["w"]}, torch.tensor([False, False]))
    torch.testing.assert_close(apart, torch.zeros(2), atol=1e-6, rtol=0)
