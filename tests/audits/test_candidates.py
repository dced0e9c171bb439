"""Attacks on candidates over real runs: members named, messages matched, outsiders at chance, nothing told before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.candidate_matching import CandidateMatching, NearestMessage
from attacks.membership import LikelihoodRatio
from audits.candidates import candidates_of
from audits.config import ASSUMED, AuditSpec
from audits.evidence import Case
from audits.finished import Finished
from audits.privacy import audit
from audits.score import score
from audits.views import view_of
from secsplit.threat import Knows, Threat
from tests.audits.conftest import trained

SERVER = Threat("curious server", ("server",), knows=ASSUMED)
U: dict[str, Any] = {
    "topology": {"name": "u_shaped"},
    "model": {"name": "mlp", "widths": (48, 24), "cut": ["relu1", "relu2"]},
    "parties": {"hospital": {"role": "client"}, "compute": {"role": "server"}},
    "data": {"name": "digits", "limit": 300, "limit_test": 360},
}
NOISY = {"kind": "gaussian", "edge": "bottom->middle", "clip": 1.0, "sigma": 0.3}


@pytest.fixture(scope="module")
def overfit(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Trained until it knows its records by heart."""
    return trained(tmp_path_factory.mktemp("run"), **U, train={"seed": 1, "epochs": 25, "batch_size": 40})


@pytest.fixture(scope="module")
def noised(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """So slowly that a record's messages stay alike for many epochs, but for their noise, which is fresh each time."""
    return trained(
        tmp_path_factory.mktemp("run"),
        **U,
        defenses=[NOISY],
        optimizer={"lr": 0.001},
        train={"seed": 1, "epochs": 60, "batch_size": 40},
    )


def test_half_are_members_and_the_adversary_is_not_told(overfit: Finished) -> None:
    view, drawn = view_of(overfit, SERVER), candidates_of(overfit, 0)
    assert view.candidates is not None
    assert len(view.candidates.position) == 0
    assert int((drawn.position >= 0).sum()) == len(drawn.outsiders) == len(drawn.position) // 2
    x, truth = view.candidates.inputs["x"], overfit.truth
    members = drawn.position >= 0
    assert torch.equal(x[members], truth.input("x", drawn.cast[members], drawn.position[members]))
    first = members[: len(members) // 2].double().mean()
    assert 0.3 < float(first) < 0.7  # mixed


def test_auxiliary_records_hold_no_outsider_in_question(overfit: Finished) -> None:
    view, drawn = view_of(overfit, SERVER), candidates_of(overfit, 0)
    assert view.aux is not None
    assert view.candidates is not None
    strangers = view.candidates.inputs["x"][drawn.position < 0].flatten(1)
    assert float(torch.cdist(strangers, view.aux.inputs["x"].flatten(1)).min()) > 0
    alone = view_of(overfit, replace(SERVER, knows=frozenset({Knows.AUX})))
    assert alone.aux is not None
    assert len(alone.aux.inputs["x"]) == len(view.aux.inputs["x"]) + len(drawn.outsiders)


def test_members_of_an_overfit_network_are_found(overfit: Finished) -> None:
    found = audit(overfit, AuditSpec(attacks=("membership-lira", "membership-at-cut")))
    cells = {(c.attack, c.threat): c for c in found.cells}
    lira = {leak.metric: leak for leak in cells["membership-lira", "curious server"].leakages}
    assert lira["auc"].leaks
    assert 0.58 < lira["auc"].value < 0.9
    assert lira["tpr-at-1"].value > 2 * (lira["tpr-at-1"].chance or 1)
    assert cells["membership-at-cut", "curious server"].leakages[0].value == 1.0  # the message itself is there
    assert "so knows whose are there" in cells["membership-lira", "curious client"].because
    assert "runs nothing" in cells["membership-lira", "wiretap"].because


def test_candidates_that_nobody_trained_on_are_at_chance(overfit: Finished) -> None:
    """The same attack, its members replaced by outsiders: whatever it says must be a coin's word."""
    view, drawn = view_of(overfit, SERVER), candidates_of(overfit, 0)
    assert view.candidates is not None
    rows = (drawn.position < 0).nonzero().flatten()
    known = view.candidates
    inputs, labels = ({k: v[rows] for k, v in part.items()} for part in (known.inputs, known.labels))
    guess = LikelihoodRatio(networks=8, epochs=30).infer(
        replace(view, candidates=replace(known, inputs=inputs, labels=labels)), coins=torch.Generator().manual_seed(0)
    )
    fake = torch.arange(len(rows)) % 2 - 1
    case = Case(replace(overfit.truth, candidates=(fake, fake)), torch.Generator().manual_seed(0), "lira", "server")
    assert not any(leak.leaks for leak in score(case, guess))


def test_averaging_over_epochs_undoes_fresh_noise(noised: Finished) -> None:
    view = view_of(noised, replace(SERVER, knows=ASSUMED | {Knows.WEIGHTS}))
    drawn = candidates_of(noised, 0)
    truth = replace(noised.truth, candidates=(drawn.cast, drawn.position))
    case = Case(truth, torch.Generator().manual_seed(0), "matching", "server")
    hits = {}
    for averages in ((1,), (1, 4, 16, 64)):
        guess = CandidateMatching(averages=averages, queries=32).infer(view, coins=torch.Generator())
        hits[averages] = score(case, guess)[0]
    one, many = hits.values()
    assert one.metric == "re-identification"
    assert many.value > one.value + 0.08  # of 71 records; the noise is the operating system's, another each time
    assert one.value > (one.chance or 1)


def test_who_matches_nothing(overfit: Finished) -> None:
    topology = overfit.run.topology
    assert "holds the records" in str(CandidateMatching().why_not(topology, Threat("t", ("client",), knows=ASSUMED)))
    weak = Threat("t", ("server",), knows=frozenset({Knows.CANDIDATES}))
    assert "it needs 'query' or 'weights'" in str(NearestMessage().why_not(topology, weak))


def test_the_audit_of_candidates_is_the_same_again(noised: Finished, tmp_path: Path) -> None:
    spec = AuditSpec(attacks=("candidate-matching", "membership-at-cut"), positive_control=False)
    assert audit(noised, spec).cells == audit(noised, spec).cells
