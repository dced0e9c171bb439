"""Defenses and ledgers in whole runs: noise is never redrawn, and a budget stops a party before it sends."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from channels import ChannelDead
from secsplit.accounting import Charge, Release
from secsplit.assemble import parties_of, party_of
from secsplit.books import KEY, LEDGER, opened
from secsplit.check import check
from secsplit.claims import EVERYONE
from secsplit.defenses import Noise
from secsplit.drive import serve, simulate
from secsplit.errors import BudgetSpent, EnvironmentFault, LedgerDamaged, NoiseRedrawn, PeerError, RunError
from secsplit.forecast import forecasts
from secsplit.journal import anchor_of
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.message import Kind, Message, Stamp
from secsplit.run import Run
from secsplit.rundir import RunDir
from secsplit.runfile import parse
from secsplit.steps import Send
from secsplit.training import train_simulated
from secsplit.transcript import Transcript

FROZEN = {"kind": "frozen", "segment": "bottom"}
GAUSSIAN = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 4.0}
LABEL_DP = {"kind": "label-dp", "epsilon": 2.0}


def run_of(*defenses: dict[str, Any], budget: dict[str, Any] | None = None, **train: Any) -> Run:
    site = {"role": "client", **({"budget": budget} if budget else {})}
    return Run.of(
        parse(
            {
                "model": {"name": "mlp", "widths": [16]},
                "data": {"name": "digits", "limit": 64, "limit_test": 16},
                "train": {"epochs": 2, "batch_size": 32, **train},
                "defenses": list(defenses),
                "parties": {"site": site, "server": {"role": "server"}},
            }
        )
    )


def trained(run: Run, folder: Path) -> list[tuple[str, torch.Tensor]]:
    """What the server was sent, in order."""
    train_simulated(run, folder, lambda party, news: None)
    transcript = Transcript.load(folder / "parties" / "server" / "transcript")
    return [(f"{r.kind}|{r.stamp}", r.tensor) for r in transcript if r.direction == "received" and r.shapes]


def ledger(folder: Path) -> Path:
    return folder / "parties" / "site" / LEDGER


def spent(folder: Path) -> dict[tuple[str, bool], dict[str, Any]]:
    told = json.loads((folder / "parties" / "site" / "privacy.json").read_text())["spent"]
    return {(s["protects"], s["training"]): s for s in told if s["to"] == "everyone together"}


def test_two_runs_with_one_key_send_the_same_bits(tmp_path: Path) -> None:
    """As a simulated and a networked run do, or a run and its repetition after a crash."""
    run = run_of(FROZEN, GAUSSIAN, LABEL_DP)
    one = trained(run, tmp_path / "one")
    (tmp_path / "two" / "parties" / "site").mkdir(parents=True)
    key = tmp_path / "two" / "parties" / "site" / KEY
    key.write_bytes((tmp_path / "one" / "parties" / "site" / KEY).read_bytes())
    key.chmod(0o600)
    two = trained(run, tmp_path / "two")
    assert [name for name, _ in one] == [name for name, _ in two]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))
    other = trained(run, tmp_path / "three")
    assert not torch.equal(one[1][1], other[1][1])


def test_the_run_seed_does_not_give_the_noise(tmp_path: Path) -> None:
    run = run_of(FROZEN, GAUSSIAN)
    noises = []
    for name in ("a", "b"):
        sent = dict(trained(run, tmp_path / name))
        noises.append(next(tensor for key, tensor in sent.items() if key.startswith(Kind.SMASHED)))
    assert not torch.equal(*noises)


def test_repeating_a_run_charges_nothing(tmp_path: Path) -> None:
    run = run_of(FROZEN, GAUSSIAN, LABEL_DP)
    first = trained(run, tmp_path)
    lines = ledger(tmp_path).read_bytes()
    before = spent(tmp_path)
    import shutil

    shutil.rmtree(tmp_path / "parties" / "server" / "transcript")
    shutil.rmtree(tmp_path / "parties" / "site" / "transcript")
    again = trained(run, tmp_path)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert ledger(tmp_path).read_bytes() == lines
    assert spent(tmp_path) == before


def test_other_data_under_the_same_key_is_refused(tmp_path: Path) -> None:
    """The same release with other bytes: the difference of the two would show both."""
    run = run_of(FROZEN, GAUSSIAN)
    trained(run, tmp_path)
    with opened(run, RunDir(tmp_path), run.file.parties) as books:
        books.parties["site"].shards[0].inputs["train"]["x"].mul_(0.5)
        with pytest.raises(NoiseRedrawn, match="never redrawn"):
            simulate(books.parties, charge=books)


@pytest.mark.parametrize("epsilon", [1.0, 2.5])
def test_a_budget_stops_the_party_before_it_sends(tmp_path: Path, epsilon: float) -> None:
    """sigma = 4: one epoch comes to 1.99, the second would come to 2.97."""
    run = run_of(FROZEN, GAUSSIAN, LABEL_DP, budget={"epsilon": epsilon}, evaluate_every=0)
    folder, seen = RunDir.create(tmp_path, run), Transcript("server")
    with (
        pytest.raises(BudgetSpent, match="Nothing sent"),
        opened(run, folder, run.file.parties) as books,
    ):
        simulate(books.parties, transcripts={"server": seen}, charge=books)
    sent = [record for record in seen if record.direction == "received" and record.kind is Kind.SMASHED]
    assert len(sent) == (0 if epsilon < 1.9 else 2)
    told = spent(tmp_path)
    assert not told or told["inputs", True]["epsilon"] <= epsilon


def test_a_ledger_that_outlives_runs_adds_them_up(tmp_path: Path) -> None:
    budget = {"ledger": str(tmp_path / "cohort.jsonl"), "epsilon": 5.0}
    run = run_of(FROZEN, GAUSSIAN, LABEL_DP, budget=budget, evaluate_every=0)
    for folder in ("one", "two"):
        trained(run, tmp_path / folder)
    assert spent(tmp_path / "two")["inputs", True]["mu"] == pytest.approx(0.5 * 4**0.5)
    with pytest.raises(BudgetSpent, match="budget is 5"):
        trained(run, tmp_path / "three")


def test_a_damaged_ledger_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    run = run_of(FROZEN, GAUSSIAN)
    trained(run, tmp_path)
    path = ledger(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"mu":0.5', b'"mu":0.1'))
    with pytest.raises(LedgerDamaged, match="nothing sent"):
        trained(run, tmp_path)
    path.unlink()
    assert anchor_of(path).exists()
    with pytest.raises(LedgerDamaged, match="rolled back"):
        trained(run, tmp_path)


@pytest.mark.parametrize("how", ["deleted", "restored", "another"])
def test_a_ledger_gone_or_rolled_back_with_its_head_stops_a_run(tmp_path: Path, how: str) -> None:
    run = run_of(FROZEN, GAUSSIAN)
    trained(run, tmp_path)
    path = ledger(tmp_path)
    if how == "deleted":
        path.unlink()
        anchor_of(path).unlink()
    elif how == "restored":
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        anchor_of(path).unlink()
        anchor_of(path).write_text(f"{2:>16} {path.read_bytes().splitlines()[1].split()[0].decode()}\n")
    else:
        run = run_of(FROZEN, GAUSSIAN, budget={"ledger": str(tmp_path / "another.jsonl")})
    with pytest.raises(LedgerDamaged, match="does not continue line"):
        trained(run, tmp_path)


def test_inputs_that_leave_as_what_to_reconstruct_are_charged(tmp_path: Path) -> None:
    """An autoencoder whose loss lies elsewhere sends its records themselves, however well its messages are noised."""
    own = {
        "segments": [
            {"name": "bottom", "role": "client", "inputs": ["data:x"]},
            {"name": "top", "role": "server", "inputs": ["bottom"]},
        ],
        "name": "own",
        "objectives": [{"segment": "top", "holder": "client", "at": "server", "target": "data:x", "loss": "mse"}],
    }
    run = run_of(FROZEN, GAUSSIAN)
    run = Run.of(parse({**run.file.model_dump(mode="json", exclude_none=True), "topology": own}))
    train_simulated(run, tmp_path, lambda party, news: None)
    told = spent(tmp_path)["inputs", True]
    assert told["epsilon"] is None
    assert "labels messages on loss" in told["statement"]
    assert any("sends its inputs themselves to server" in gap.text for gap in check(run).gaps)
    forecast = next(f for f in forecasts(run) if (f.protects, f.training, f.to) == ("inputs", True, EVERYONE))
    assert forecast.epsilon(1e-5) == float("inf")


def test_what_was_charged_last_is_told_where_a_run_breaks_off(tmp_path: Path) -> None:
    """A burst that no sending thread has waited for yet: the head that is told is that of the ledger left behind."""
    run = run_of(FROZEN, GAUSSIAN)
    folder = RunDir.create(tmp_path, run)
    message = Message(Kind.SMASHED, "bottom->top", Stamp(), {"h": torch.zeros(2, 16)})
    release = Release("one", torch.arange(2), charges=(Charge("inputs", "gaussian", mu=0.5),))
    with opened(run, folder, run.file.parties) as books:
        books(books.parties["site"], Send("server", message, release))
    told = json.loads((tmp_path / "parties" / "site" / "privacy.json").read_text())
    assert told["head"]["lines"] == len(ledger(tmp_path).read_bytes().splitlines()) == 2


def test_keys_and_ledgers_are_private_files(tmp_path: Path) -> None:
    trained(run_of(FROZEN, GAUSSIAN), tmp_path)
    for name in (KEY, LEDGER):
        assert os.stat(tmp_path / "parties" / "site" / name).st_mode & 0o077 == 0


def test_delta_of_one_over_n_stops_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="1/n for n = 64"):
        trained(run_of(FROZEN, GAUSSIAN, budget={"delta": 0.05}), tmp_path)


def test_frozen_stays_frozen_and_label_noise_stays_drawn(tmp_path: Path) -> None:
    run = run_of(FROZEN, LABEL_DP)
    party = party_of(run, "site", noise=Noise.predictable_for_testing_only(0))
    noisy = party.labels[0, "y"].clone()
    assert not torch.equal(noisy, party.shards[0].labels["train"]["y"])
    before = [p.clone() for p in party.modules["bottom"].parameters()]
    parties = {"site": party, "server": party_of(run, "server")}
    transcript = Transcript("server")
    simulate(parties, transcripts={"server": transcript})
    assert all(torch.equal(a, b) for a, b in zip(before, party.modules["bottom"].parameters(), strict=True))
    labels = [r for r in transcript if r.kind is Kind.LABELS]
    schedule = run.schedule({0: {"train": 64, "test": 16}})
    for record in labels:
        turn = next(e for e in schedule if getattr(e, "split", None) and e.step == record.stamp.step)
        rows = schedule.rows(turn)  # type: ignore[arg-type]
        expected = noisy if record.stamp.training else party.shards[0].labels["test"]["y"]
        assert torch.equal(record.tensor, expected[rows])


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_dp_sgd_trains_across_the_cut(clipping: str, tmp_path: Path) -> None:
    run = run_of({"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": 0.5, "clipping": clipping}, epochs=3)
    parties = parties_of(run)
    before = [p.clone() for p in parties["site"].modules["bottom"].parameters()]
    simulate(parties)
    after = list(parties["site"].modules["bottom"].parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    train_simulated(run, tmp_path, lambda party, news: None)
    assert (tmp_path / "parties" / "site" / "weights" / "bottom" / "epoch-002.safetensors").exists()


def test_methods_that_bypass_the_optimizer_are_refused() -> None:
    tables = {
        "topology": {"name": "whole"}, "method": {"name": "large-batch"}, "data": {"name": "digits", "limit": 64},
        "model": {"name": "mlp", "widths": [16]},
        "defenses": [{"kind": "dp-sgd", "segment": "network", "clip": 1.0, "sigma": 1.0}],
        "parties": {"a": {"role": "client"}, "b": {"role": "client"}, "c": {"role": "aggregator"}},
    }  # fmt: skip
    with pytest.raises(RunError, match="large-batch"):
        parties_of(Run.of(parse(tables)))


def test_a_hijacked_client_stops() -> None:
    """The server's top learns labels that have nothing to do with the records it is sent."""
    run = run_of({"kind": "hijack-detector", "edge": "bottom->top"}, epochs=20, batch_size=16)
    parties = parties_of(run)
    true = parties["server"].incoming

    def blind(message: Any, rows: Any, frm: str) -> Any:
        came = true(message, rows, frm)
        if message.kind is Kind.LABELS:
            y = came.tensors["y"]
            coins = torch.Generator().manual_seed(message.stamp.step)
            return type(came)(came.kind, came.edge, came.stamp, {"y": y[torch.randperm(len(y), generator=coins)]})
        return came

    parties["server"].incoming = blind  # type: ignore[method-assign]
    with pytest.raises(PeerError, match="do not follow the labels"):
        simulate(parties)
    simulate(parties_of(run))


def test_one_turn_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smashed data and labels of a turn are two charges and one wait."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    train_simulated(run_of(FROZEN, GAUSSIAN, LABEL_DP, epochs=1), tmp_path, lambda party, news: None)
    header, turns = 1, 3
    assert ledger(tmp_path).read_bytes().count(b"\n") == header + 2 * turns
    assert synced.count(str(ledger(tmp_path))) == header + turns


class Bare:
    """A channel that notes what is sent on it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, meta: bytes, *payload: Any) -> None:
        self.sent.append(meta)

    def recv(self, timeout: float | None = None) -> Any:
        time.sleep(0.2)
        raise ChannelDead("over")

    def close(self) -> None:
        pass


def test_bytes_leave_once_their_charge_is_on_the_disk_and_not_before() -> None:
    channel, inbox, settled = Bare(), ChannelInbox(timeout=10), threading.Event()
    link = ChannelLink("server", channel, inbox)  # type: ignore[arg-type]
    link.send(
        Message(Kind.SMASHED, "bottom->top", tensors={"h": torch.ones(2)}), lambda: bool(settled.wait(10)) or None
    )
    time.sleep(0.05)
    assert channel.sent == []
    settled.set()
    link.close()
    assert len(channel.sent) == 1


def test_nothing_leaves_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(FROZEN, GAUSSIAN)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with opened(run, RunDir.create(tmp_path, run), ["site"]) as books:
        party = books.parties["site"]
        party.sizes = {0: {"train": 64, "test": 16}}
        channel, inbox = Bare(), ChannelInbox(timeout=10)
        link = ChannelLink("server", channel, inbox)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(EnvironmentFault, match=r"No space left on device.*; nothing sent"):
            serve(party, {"server": link}, inbox, charge=books)
        link.close()
    assert channel.sent == []
