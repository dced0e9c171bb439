"""The epsilon audit of a run: true claims stand, and a mechanism that does not do what the run says is flagged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from audits.dp_found import found_of
from audits.dp_run import audit_run
from secsplit.defenses.gaussian import Gaussian
from secsplit.errors import RunError
from secsplit.run import Run
from secsplit.runfile import parse

FROZEN = {"kind": "frozen", "segment": "bottom"}
GAUSSIAN = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 2.0}
LOOSE = {**GAUSSIAN, "sigma": 0.4}
DP_SGD = {"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": 2.0}


def tables(*defenses: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"name": "mlp", "widths": [32]},
        "data": {"name": "digits"},
        "train": {"epochs": 3, "evaluate_every": 0, "record": "off"},
        "defenses": defenses,
        "parties": {"hospital": {"role": "client"}, "server": {"role": "server"}},
    }


def run_of(*defenses: dict[str, Any]) -> Run:
    return Run.of(parse(tables(*defenses)))


@pytest.mark.parametrize("defenses", [(FROZEN, GAUSSIAN), (FROZEN, {**LOOSE, "once": True}), (DP_SGD, GAUSSIAN)])
def test_true_claims_stand(defenses: tuple[dict[str, Any], ...]) -> None:
    found = audit_run(run_of(*defenses), trials=4000)
    assert found.violations == 0
    assert [a.canaries for a in found.links] == ["crafted", "real"]
    assert found.links[0].lower.epsilon > 0.5 * found.links[0].claimed
    (training,) = found.trainings
    assert training.canaries == 719
    (named,) = found.reidentifications
    assert named.candidates == 1000
    assert named.interval.low <= named.bound
    told = found_of(run_of(*defenses), found)
    assert told.violations == 0
    for link in told.links:
        assert [after.messages for after in link.over] == [1, 2, 3]
        assert link.over[-1].lower == link.lower
    assert all("no violation found" in statement for statement in found.statements)


def test_half_the_noise_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Gaussian.outgoing

    def halved(self: Gaussian, out: Any) -> Tensor:
        spec = self.spec.model_copy(update={"sigma": self.spec.sigma / 2})
        return true(Gaussian(spec, self._noise), out)

    monkeypatch.setattr(Gaussian, "outgoing", halved)
    found = audit_run(run_of(FROZEN, GAUSSIAN), trials=4000)
    assert found.violations >= 1
    assert found.links[0].verdict == "violation"


def test_no_noise_at_all_is_flagged_by_every_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By canaries, by one whole training, and by re-identification."""

    def silent(self: Gaussian, inside: Tensor, name: str) -> Tensor:
        return inside + 1e-6 * torch.randn_like(inside)

    monkeypatch.setattr(Gaussian, "_noised", silent)
    found = audit_run(run_of(FROZEN, {**GAUSSIAN, "sigma": 8.0}), trials=4000)
    assert found.links[0].verdict == "violation"
    assert found.trainings[0].verdict == "violation"
    assert found.reidentifications[0].verdict == "violation"


def test_without_finite_claim_no_training_is_audited() -> None:
    found = audit_run(run_of(GAUSSIAN), trials=2000)
    assert found.trainings == ()
    assert found.links


def test_nothing_to_audit_is_said() -> None:
    with pytest.raises(RunError, match="no claim of noise"):
        audit_run(run_of())


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomli_w
    import typer

    from audits.cli import register

    app = typer.Typer()
    register(app)
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(tables(FROZEN, {**GAUSSIAN, "sigma": 8.0})))
    good = CliRunner().invoke(app, ["audit", "--dp", str(path)])
    assert good.exit_code == 0, good.output
    assert "no violation found" in good.stdout
    monkeypatch.setattr(Gaussian, "_noised", lambda self, inside, name: inside)
    bad = CliRunner().invoke(app, ["audit", "--dp", str(path), "--json"])
    assert bad.exit_code == 1
    assert '"violation"' in bad.stdout
