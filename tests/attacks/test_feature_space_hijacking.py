"""Hijacking through the project's own parties: simulated, rehearsed by the auditor, and over real channels."""

import threading
from contextlib import ExitStack, nullcontext

import pytest
import torch

from attacks.base import NotApplicable
from attacks.conformance import check_attack
from attacks.feature_space_hijacking import FeatureSpaceHijacking, critic, encoder, inverse_of
from audits import images
from audits.config import AuditSpec, ThreatSpec
from audits.finished import Finished
from audits.privacy import audit
from audits.rehearsal import beforehand
from audits.views import view_of
from channels import memory_pair
from secsplit.assemble import parties_of
from secsplit.drive import serve, simulate
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.message import Kind
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.threat import Knows, Threat, View
from secsplit.topologies import named
from secsplit.training import train_simulated
from secsplit.transcript import Transcript
from tests.attacks import runs

QUICK = FeatureSpaceHijacking(pretraining=100, rows=300, lr=1e-3)
SERVER = Threat("server", ("server",), "malicious", frozenset({Knows.AUX, Knows.ARCHITECTURE}))


def run_of(**tables) -> Run:
    return Run.of(
        parse(
            {
                "topology": {"name": "vanilla"},
                "model": {"name": "lenet", "cut": ["relu1"]},
                "data": {"name": "digits"},
                "train": {"seed": 1, "epochs": 4, "batch_size": 64},
                "parties": {"hospital": {"role": "client"}, "compute": {"role": "server"}},
                **tables,
            }
        )
    )


def untrained(run: Run) -> Finished:
    return Finished(run, {name: Transcript(name) for name in run.file.parties}, {})


def hijacked(
    run: Run, attack: FeatureSpaceHijacking, threat: Threat = SERVER, *, seed: int = 0, see=view_of
) -> Finished:
    """The run in memory with that adversary in it; see: what of a run is shown to it."""
    finished, parties = untrained(run), parties_of(run)
    mine = {name: party for name, party in parties.items() if party.role in threat.who}
    before = beforehand(see(finished, threat))
    attack.corrupt(mine, before, coins=torch.Generator().manual_seed(seed))
    simulate(parties, transcripts=finished.transcripts)
    return finished


def figures(
    finished: Finished, attack: FeatureSpaceHijacking, threat: Threat = SERVER, *, see=view_of
) -> tuple[float, float, float]:
    """(mean squared error, SSIM, re-identification among 5000 private records) of what it reads."""
    guess = attack.infer(see(finished, threat), coins=torch.Generator().manual_seed(0))
    x = finished.truth.inputs[0]["x"]
    true, rest = x[guess.position], torch.ones(len(x), dtype=torch.bool)
    rest[guess.position] = False
    pool = torch.cat([true, x[rest][: max(0, 5000 - len(true))]])
    found = images.reidentified(guess.inputs, pool, torch.arange(len(true)))
    fidelity = images.fidelity(guess.inputs, true)
    return float(fidelity.mse.mean()), float(fidelity.ssim.mean()), float(found.float().mean())


def test_a_hijacked_run_is_read_and_an_honest_one_is_not() -> None:
    run = run_of(optimizer={"lr": 0.005})
    mse, _, again = figures(hijacked(run, QUICK), QUICK)
    honest = untrained(run)
    simulate(parties_of(run), transcripts=honest.transcripts)
    blind, _, by_chance = figures(honest, QUICK)
    x = honest.truth.inputs[0]["x"]
    assert mse < 0.6 * float((x - x.mean(0)).square().mean()) < blind
    assert again > 0.1 > 10 * by_chance


@pytest.mark.slow
def test_the_audit_rehearses_it_and_on_noise_it_finds_nobody(tmp_path) -> None:
    run = run_of(optimizer={"lr": 0.005}, train={"seed": 1, "epochs": 8, "batch_size": 64})
    train_simulated(run, tmp_path / "run", lambda party, news: None)
    spec = AuditSpec(threats={"m": ThreatSpec(who=("server",), behaviour="malicious", knows=SERVER.knows)}, gallery=0)
    attack = FeatureSpaceHijacking(pretraining=150, rows=300, lr=1e-3)
    (cell,) = audit(Finished.open(tmp_path / "run"), spec, attacks=[attack]).cells
    assert cell.status == "ran", cell.because
    again = next(leak for leak in cell.leakages if leak.metric == "re-identification")
    assert again.leaks
    assert again.value > 0.5
    assert next(b.value for b in again.baselines if "noise" in b.name) < 0.02


def test_simulated_and_networked_it_does_the_same_bit_for_bit() -> None:
    run = run_of(train={"seed": 1, "epochs": 1, "batch_size": 64}, data={"name": "digits", "limit": 192})
    quick = FeatureSpaceHijacking(pretraining=5)
    simulated = hijacked(run, quick).transcripts
    networked = over_channels(run, quick)
    honest = untrained(run)
    simulate(parties_of(run), transcripts=honest.transcripts)
    for name in simulated:
        ours, theirs = list(simulated[name]), list(networked[name])
        assert [(r.kind, r.stamp, r.direction) for r in ours] == [(r.kind, r.stamp, r.direction) for r in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    ours, true = (
        next(r.tensor for r in t["hospital"] if r.kind is Kind.CUT_GRAD) for t in (simulated, honest.transcripts)
    )
    assert not torch.allclose(ours, true)


def over_channels(run: Run, attack: FeatureSpaceHijacking) -> dict[str, Transcript]:
    """The same over encrypted channels, a thread a party."""
    finished, parties = untrained(run), parties_of(run)
    before = beforehand(view_of(finished, SERVER))
    attack.corrupt({"compute": parties["compute"]}, before, coins=torch.Generator().manual_seed(0))
    inboxes = {name: ChannelInbox(timeout=60) for name in parties}
    links: dict[str, dict[str, ChannelLink]] = {name: {} for name in parties}
    errors: list[BaseException] = []

    def drive(name: str) -> None:
        try:
            serve(parties[name], links[name], inboxes[name], transcript=finished.transcripts[name])
        except BaseException as error:
            errors.append(error)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("secsplit.drive.pinned", lambda threads: nullcontext())  # threads share what processes do not
        for a, b in run.links:
            ends = memory_pair()
            for mine, other, end in ((a, b, ends[0]), (b, a, ends[1])):
                links[mine][other] = ChannelLink(other, end, inboxes[mine])
                stack.callback(links[mine][other].close)
        threads = [threading.Thread(target=drive, args=(name,)) for name in parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    return dict(finished.transcripts)


def test_it_needs_records_of_the_domain_and_an_edge() -> None:
    bare = Threat("t", ("server",), "malicious")
    with pytest.raises(NotApplicable, match="auxiliary records of column x"):
        QUICK.corrupt({}, view_of(untrained(run_of()), bare), coins=torch.Generator())
    assert "curious" in str(QUICK.why_not(named("vanilla"), Threat("t", ("server",), knows=SERVER.knows)))
    assert "never received smashed" in str(
        QUICK.why_not(named("vanilla"), Threat("t", ("client",), "malicious", SERVER.knows))
    )
    for topology, role in (("u_shaped", "server"), ("multi_hop", "client-2"), ("extended_vanilla", "intermediate")):
        assert QUICK.why_not(named(topology), Threat("t", (role,), "malicious", SERVER.knows)) is None


def test_it_keeps_to_the_contract() -> None:
    def make_view(poisoned: bool) -> View:
        victim = runs.small(steps=20)
        _, _, x, y = runs.digits()
        view = victim.view("server", aux=({"x": x}, {"y": y}), knows={Knows.ARCHITECTURE})
        if poisoned:  # the client's own records and weights, which no view holds
            victim.inputs = {"x": torch.full_like(victim.inputs["x"], 7.0)}
            for p in victim.nets["bottom"].parameters():
                p.data.fill_(7.0)
        return view

    check_attack(FeatureSpaceHijacking(pretraining=3, rows=20), make_view)


@pytest.mark.parametrize(
    ("record", "features"),
    [((1, 28, 28), (8, 12, 12)), ((3, 17, 30), (5, 6, 9)), ((1, 8, 8), (40,)), ((20,), (7,)), ((1, 8, 8), (4, 8, 8))],
)
def test_networks_of_its_own_fit_any_shape(record: tuple[int, ...], features: tuple[int, ...]) -> None:
    x = torch.rand(3, *record)
    made = encoder(torch.Size(record), torch.Size(features))(x)
    assert made.shape == (3, *features)
    assert inverse_of(torch.Size(features), torch.Size(record))(made).shape == x.shape
    assert critic(torch.Size(features))(made).shape == (3, 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_set_up_s(seed: int) -> None:
    """Cut 3, 500 of the client's steps on 6400 private images, the attacker's 5000 records of the test split."""
    run = run_of(
        model={"name": "mnistnet", "cut": ["pool1"]},
        data={"name": "fashion-mnist", "limit": 6400, "limit_test": 5000},
        train={"seed": seed, "epochs": 5, "batch_size": 64},
    )
    attack = FeatureSpaceHijacking()
    mse, ssim, again = figures(hijacked(run, attack, seed=seed), attack)
    assert mse <= 0.018
    assert ssim >= 0.60
    assert again >= 0.85
