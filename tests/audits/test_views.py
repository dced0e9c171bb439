"""A view holds the coalition's own and what was granted, and nothing else; noise for messages says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audits.config import ASSUMED
from audits.finished import Finished
from audits.views import empty_handed, view_of
from secsplit.defenses.gaussian import clipped
from secsplit.errors import RunError
from secsplit.message import Kind
from secsplit.threat import Knows, Threat
from tests.audits.conftest import trained


def test_the_server_sees_its_own_and_no_more(finished: Finished) -> None:
    view = view_of(finished, Threat("bare", ("server",)))
    assert set(view.transcripts) == {"compute"}
    assert set(view.models) == {"top"}
    assert all(known.inputs == {} and set(known.labels) == {"y"} for known in view.own.values())
    assert (view.aux, view.clues, view.pairs) == (None, None, None)
    assert not view.prior
    assert not view.query
    assert not view.architecture
    assert not view.weights


def test_both_hospitals_together_are_the_client(finished: Finished) -> None:
    view = view_of(finished, Threat("clients", ("client",)))
    assert set(view.transcripts) == {"hospital-a", "hospital-b"}
    assert {cast: set(known.inputs) for cast, known in view.own.items()} == {0: {"x"}, 1: {"x"}}
    assert not any(known.labels for known in view.own.values())


def test_what_is_granted_is_true(finished: Finished) -> None:
    truth = finished.truth
    view = view_of(finished, Threat("all", ("server",), "curious", frozenset(Knows), clues=2, pairs=5, aux=50))
    assert view.clues is not None
    assert view.pairs is not None
    assert view.aux is not None
    assert torch.equal(view.clues.labels["y"], truth.label("y", view.clues.cast, view.clues.position))
    assert view.clues.labels["y"].bincount().tolist() == [2] * 10
    assert not view.clues.inputs
    assert torch.equal(view.pairs.inputs["x"], truth.input("x", view.pairs.cast, view.pairs.position))
    assert (len(view.pairs.position), len(view.aux.inputs["x"])) == (5, 50)
    labels = torch.cat([truth.labels[c]["y"] for c in truth.casts])
    assert torch.allclose(view.prior["y"], labels.bincount() / len(labels))


def test_auxiliary_records_are_nobodys_training_records(finished: Finished) -> None:
    view = view_of(finished, Threat("aux", ("server",), knows=frozenset({Knows.AUX})))
    assert view.aux is not None
    private = torch.cat([finished.truth.inputs[c]["x"] for c in finished.truth.casts]).flatten(1)
    assert float(torch.cdist(view.aux.inputs["x"].flatten(1), private).min()) > 0


def test_queries_answer_with_the_last_weights_and_hand_out_no_gradient(finished: Finished) -> None:
    view = view_of(finished, Threat("query", ("server",), knows=frozenset({Knows.QUERY, Knows.ARCHITECTURE})))
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    answer = view.query["bottom"](x)
    last = finished.snapshots(finished.holder("client"), "bottom")[-1].make()
    assert torch.equal(answer, last(x).detach())
    assert not answer.requires_grad
    assert not torch.equal(view.architecture["bottom"]()(x), answer)
    first = finished.snapshots("hospital-a", "bottom")[0].make()
    assert not torch.equal(view.architecture["bottom"]()(x), first(x))


def test_queries_pass_the_victims_own_defenses(tmp_path: Path) -> None:
    noise = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 0.5}
    defended = trained(tmp_path, defenses=(noise,), train={"seed": 1, "epochs": 1, "batch_size": 40})
    view = view_of(defended, Threat("query", ("server",), knows=frozenset({Knows.QUERY})))
    x = torch.rand(50, 1, 8, 8)
    once, twice = view.query["bottom"](x), view.query["bottom"](x)
    module = defended.snapshots(defended.holder("client"), "bottom")[-1].make().eval()
    clean = clipped(module(x).detach(), 1.0)
    assert float((once - clean).std()) == pytest.approx(0.5, rel=0.1)
    assert float((once - twice).std()) == pytest.approx(0.5 * 2**0.5, rel=0.1)


def test_an_order_of_no_turn_and_a_role_of_no_topology_are_named(finished: Finished) -> None:
    with pytest.raises(RunError, match="no role 'serer' here; did you mean 'server'"):
        view_of(finished, Threat("typo", ("serer",)))


def test_noise_has_the_shape_and_scale_of_messages_and_nothing_of_their_content(finished: Finished) -> None:
    view = view_of(finished, Threat("all", ("server",), "curious", ASSUMED))
    for true, noise in zip(view.records(Kind.SMASHED), empty_handed(view).records(Kind.SMASHED), strict=True):
        a, b = true.tensor.flatten(), noise.tensor.flatten()
        assert (true.stamp, a.shape, a.dtype) == (noise.stamp, b.shape, b.dtype)
        assert float(b.mean()) == pytest.approx(float(a.mean()), abs=0.1 * float(a.std()))
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.15
        assert torch.equal(noise.tensor, noise.tensor)
