"""Every attack of the catalogue keeps to the contract on real runs: with all that is other parties' poisoned, no guess
changes. An attack that is new is held to it without being named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import Attack, NotApplicable
from attacks.catalogue import attack as configured
from attacks.catalogue import catalogue
from attacks.conformance import check_attack
from audits.finished import Finished, State
from audits.rehearsal import rehearsed
from audits.views import view_of
from secsplit.errors import SplitError
from secsplit.threat import Knows, Threat, View
from secsplit.transcript import Record, Transcript
from tests.audits.conftest import trained

FEW = {"steps": 20, "iterations": 20, "epochs": 2, "rounds": 2, "networks": 4, "candidates": 50, "warm_up": 20}
PAIR = {"hospital": {"role": "client"}, "compute": {"role": "server"}}
SMALL = {"name": "digits", "limit": 200, "limit_test": 150}
MLP = {"name": "mlp", "widths": (24, 16)}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "two classes": {
        "data": {**SMALL, "labels": {"y": "y in 0,1,2"}}, "parties": PAIR, "model": {**MLP, "cut": ["relu1"]},
    },
    "labels sent": {"data": SMALL, "topology": {"name": "vanilla"}, "parties": PAIR,
                    "model": {**MLP, "cut": ["relu1"]}},
    "a number": {
        "topology": {"name": "vanilla", "labels": "server", "loss": "mse"}, "parties": PAIR,
        "model": {**MLP, "cut": ["relu1"]},
        "data": {"name": "breast-cancer", "labels": {"y": "worst area"}, "limit": 200, "limit_test": 100},
    },
    "u-shaped": {"data": SMALL, "topology": {"name": "u_shaped"}, "parties": PAIR,
                 "model": {**MLP, "cut": ["relu1", "relu2"]}},
    "multi-task": {
        "topology": {"name": "multi_task", "tasks": ["y", "parity"]}, "model": {"name": "mlp"},
        "data": {**SMALL, "modalities": {"x1": "left", "x2": "right"}, "labels": {"y": "y", "parity": "parity"}},
        "parties": {n: {"role": n} for n in ("client-1", "client-2", "server-1", "server-2")},
    },
    "handed over": {
        "data": SMALL, "topology": {"name": "vanilla"}, "method": {"name": "sl-ac"},
        "model": {**MLP, "cut": ["relu1"]}, "parties": {**PAIR, "clinic": {"role": "client"}},
    },
    "federated": {
        "data": SMALL, "topology": {"name": "whole"}, "method": {"name": "federated"}, "model": MLP,
        "parties": {"hospital": {"role": "client"}, "clinic": {"role": "client"}, "average": {"role": "aggregator"}},
    },
    "large batch": {
        "data": {**SMALL, "limit": 16}, "train": {"seed": 1, "epochs": 1, "batch_size": 1}, "model": MLP,
        "topology": {"name": "whole"}, "method": {"name": "large-batch"},
        "parties": {"hospital": {"role": "client"}, "clinic": {"role": "client"}, "average": {"role": "aggregator"}},
    },
}  # fmt: skip
# Held to it in their own tests, with the networks that they need: no trainable top, linear bottoms, discrete features.
ELSEWHERE = {
    "direct-label", "equality-solving", "generative-regression", "label-enumeration", "feature-enumeration",
}  # fmt: skip


@cache
def run(setting: str) -> Finished:
    tables = {"train": {"seed": 1, "epochs": 2, "batch_size": 40}, **SETTINGS[setting]}
    return trained(Path(mkdtemp()), **tables)


def quick(name: str) -> Attack:
    fields = getattr(catalogue()[name], "__dataclass_fields__", {})
    return configured(name, **{option: value for option, value in FEW.items() if option in fields})


def adversaries(finished: Finished) -> Iterator[Threat]:
    averaging = ["aggregator"] if finished.run.parties("aggregator") else []
    for role, behaviour in product([*finished.run.topology.roles, *averaging], ("curious", "malicious")):
        yield Threat(f"{behaviour} {role}", (role,), behaviour, frozenset(Knows), clues=3, pairs=10)  # type: ignore[arg-type]
    yield Threat("wiretap", (), "wiretap", frozenset(Knows), clues=3)


def poisoned(finished: Finished, threat: Threat) -> Finished:
    """Everything that the adversary's view does not grant, filled with sevens: messages, weights before the last."""
    mine = {party for role in threat.who for party in finished.run.parties(role)}
    transcripts = {
        party: kept if party in mine else Transcript.of(party, map(spoiled, kept))
        for party, kept in finished.transcripts.items()
    }
    last = {segment: finished.holder(finished.run.topology[segment].role) for _, segment in finished.states}
    states = {
        (party, segment): kept if party in mine else tuple(
            (step, state if granted(kept, i, party == last[segment]) else sevens(state))
            for i, (step, state) in enumerate(kept)
        )
        for (party, segment), kept in finished.states.items()
    }  # fmt: skip
    return replace(finished, transcripts=transcripts, states=states)


def granted(kept: tuple[Any, ...], i: int, holder: bool) -> bool:
    """Whether these weights are what a threat with queries or weights may run: the holder's last."""
    return holder and i == len(kept) - 1


def sevens(state: State) -> State:
    return lambda: {name: torch.full_like(value, 7) for name, value in state().items()}


def spoiled(record: Record) -> Record:
    def load() -> Mapping[str, Tensor]:
        return {name: torch.full_like(tensor, 7) for name, tensor in record.load().items()}

    return replace(record, load=load)


def viewed(finished: Finished, attack: Attack, threat: Threat, stack: ExitStack) -> Finished:
    """The run that the attack is judged on: a rehearsal where it takes a party's place."""
    if not attack.needs.active:
        return finished
    view = view_of(finished, threat)
    return stack.enter_context(rehearsed(finished, attack, threat, view, coins=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_attack_keeps_to_the_contract(name: str) -> None:
    for setting in SETTINGS:
        finished = run(setting)
        for threat in adversaries(finished):
            attack = quick(name)
            if attack.why_not(finished.run.topology, threat):
                continue
            with ExitStack() as stack:
                try:
                    real = viewed(finished, attack, threat, stack)
                    attack.infer(view_of(real, threat), coins=torch.Generator().manual_seed(0))
                except (NotApplicable, SplitError):
                    continue

                def make_view(spoil: bool, real: Finished = real, threat: Threat = threat) -> View:
                    view = view_of(poisoned(real, threat) if spoil else real, threat)
                    return view

                guess = check_attack(attack, make_view)
                assert len(guess.position)
                return
    assert name in ELSEWHERE, f"{name} met no setting in which it applies: add one"
