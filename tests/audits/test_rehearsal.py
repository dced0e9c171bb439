"""An active attack is judged on a run of its own, in which its adversary's parties were changed and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from attacks.base import Attack, Goal, Guess, Need, Needs
from audits.config import AuditSpec, ThreatSpec
from audits.finished import Finished
from audits.privacy import audit
from audits.rehearsal import rehearsed
from audits.views import view_of
from secsplit.message import Kind
from secsplit.party import Party
from secsplit.threat import Threat, View
from tests.audits import toys

SERVER = Threat("malicious server", ("server",), "malicious")


@dataclass(frozen=True, kw_only=True)
class Zeroed(Attack):
    """A server whose top starts from nought, and who then names class 0 of everyone."""

    name: ClassVar[str] = "zeroed"
    paper: ClassVar[str] = "a toy"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs((Need(Kind.SMASHED),), active=True)

    def corrupt(self, parties: Mapping[str, Party], before: View, *, coins: torch.Generator) -> None:
        assert set(parties) == {"compute"}
        assert not before.models
        assert not any(len(transcript) for transcript in before.transcripts.values())
        for parameter in parties["compute"].modules["top"].parameters():
            parameter.data.zero_()

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        raise AssertionError("not asked")


def kinds(finished: Finished, party: str) -> list[Kind]:
    return [record.kind for record in finished.transcripts[party]]


@pytest.fixture
def view(finished: Finished) -> View:
    return view_of(finished, SERVER)


def test_the_adversary_is_changed_and_the_rest_of_the_run_is_the_same(finished: Finished, view: View) -> None:
    with rehearsed(finished, Zeroed(), SERVER, view, coins=torch.Generator()) as other:
        assert kinds(other, "compute") == kinds(finished, "compute")
        first = [next(iter(f.snapshots("compute", "top"))).make() for f in (finished, other)]
        assert [bool(sum(p.abs().sum() for p in top.parameters()) == 0) for top in first] == [False, True]
        mine, theirs = (
            [r.tensor for r in f.transcripts["compute"] if r.kind is Kind.SMASHED] for f in (finished, other)
        )
        assert torch.equal(mine[0], theirs[0])  # nothing was learnt before the first message
        assert not torch.equal(mine[-1], theirs[-1])
        assert other.folder is not None
        kept = other.folder
    assert not kept.exists()


def test_what_changes_nothing_rehearses_the_very_same_run(finished: Finished, view: View) -> None:
    class Idle(Zeroed):
        def corrupt(self, parties: Mapping[str, Party], before: View, *, coins: torch.Generator) -> None:
            pass

    with rehearsed(finished, Idle(), SERVER, view, coins=torch.Generator()) as other:
        assert other.fingerprint == finished.fingerprint


def test_an_active_attack_is_a_cell_like_any_other(finished: Finished) -> None:
    spec = AuditSpec(attacks=("active-completion", "model-completion"))
    found = audit(finished, spec)
    cells = {(c.attack, c.threat): c for c in found.cells}
    active = cells["active-completion", "malicious client"]
    assert active.status == "ran"
    assert active.leakages[0].n > 100
    assert "is curious" in cells["active-completion", "curious client"].because
    passive = cells["model-completion", "malicious client"]
    assert passive.because == "it takes nobody's place; what it finds stands under 'curious client'"
    assert audit(finished, spec).cells == found.cells
    assert finished.folder is not None
    assert not list(Path(finished.folder).glob("rehearsal-*"))


def test_a_passive_attack_by_a_malicious_adversary_alone_runs(finished: Finished) -> None:
    spec = AuditSpec(threats={"evil": ThreatSpec(who=("client",), behaviour="malicious")})
    assert audit(finished, spec, attacks=[toys.FirstBatch()]).cells[0].status == "ran"
