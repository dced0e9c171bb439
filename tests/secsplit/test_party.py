"""Split training equals the unsplit network's: the oracle is one autograd graph with nothing detached."""

import copy

import pytest
import torch
from torch import nn

from secsplit.drive import simulate
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.party import Party
from secsplit.topologies import named
from tests.secsplit.graphs import GRAPHS, ROWS, gradients, modules_of, parties_of, records_of, run_of, unsplit_loss


def one_step(name: str, **train: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(gradients of split training, gradients of the unsplit network) after one step on all rows."""
    topology = GRAPHS[name]
    run = run_of(topology, **{"batch_size": ROWS, "evaluate_every": 0, **train})
    modules, records = modules_of(topology), records_of(topology)
    oracle = copy.deepcopy(modules)
    simulate(parties_of(run, modules, {0: records}))
    rows = next(iter_rows(run))
    unsplit_loss(topology, oracle, records, rows).backward()
    return gradients(modules.values()), gradients(oracle.values())


def iter_rows(run):
    schedule = run.schedule({0: {"train": ROWS, "test": ROWS}})
    return (schedule.rows(turn) for turn in schedule)


@pytest.mark.parametrize("name", GRAPHS)
def test_one_step_gives_bit_equal_gradients(name: str) -> None:
    split, unsplit = one_step(name)
    assert len(split) == len(unsplit) > 0
    for ours, oracle in zip(split, unsplit, strict=True):
        assert torch.equal(ours, oracle)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("micro_batches", [2, 3, 5])
def test_micro_batches_equal_one_batch(name: str, micro_batches: int) -> None:
    split, unsplit = one_step(name, micro_batches=micro_batches)
    for ours, oracle in zip(split, unsplit, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-12)


def test_micro_batches_with_batch_normalisation_are_refused() -> None:
    topology = named("vanilla")
    run = run_of(topology, micro_batches=2)
    modules = modules_of(topology)
    modules["bottom"] = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    with pytest.raises(RunError, match=r"micro_batches: 2 with BatchNorm1d '1' in segment 'bottom'"):
        parties_of(run, modules, {0: records_of(topology)})


def test_a_segment_in_eval_mode_stays_there() -> None:
    topology = named("vanilla")
    modules = modules_of(topology)
    modules["bottom"] = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    modules["bottom"][1].eval()
    before = modules["bottom"][1].running_mean.clone()
    simulate(parties_of(run_of(topology, epochs=2), modules, {0: records_of(topology)}))
    assert torch.equal(modules["bottom"][1].running_mean, before)
    assert not modules["bottom"][1].training


def test_unlabelled_rows_do_not_count() -> None:
    topology = named("vanilla")
    records = records_of(topology)
    records["client"].labels["train"]["y"][5:] = -1
    run = run_of(topology, batch_size=ROWS, evaluate_every=0)
    modules = modules_of(topology)
    oracle = copy.deepcopy(modules)
    simulate(parties_of(run, modules, {0: records}))
    rows = torch.arange(5)
    unsplit_loss(topology, oracle, records, rows).backward()
    for ours, theirs in zip(gradients(modules.values()), gradients(oracle.values()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class Lying(Party):
    """A server whose gradient is not what the run agreed on."""

    spoil = staticmethod(lambda message: message)

    def send(self, to, message, rows):
        send = super().send(to, message, rows)
        return type(send)(send.to, self.spoil(send.message)) if message.kind is Kind.CUT_GRAD else send


def with_tensor(tensor):
    return lambda m: Message(m.kind, m.edge, m.stamp, {"h": tensor(m.tensors["h"])})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (with_tensor(lambda h: h[:-1]), r"cut-grad on 'bottom->top': expected \(8, 6\).*got \(7, 6\)"),
        (with_tensor(lambda h: h.float()), r"expected \(8, 6\) torch.float64, got \(8, 6\) torch.float32"),
        (with_tensor(lambda h: h / 0), r"'h' has NaN or infinity"),
        (lambda m: Message(m.kind, m.edge, m.stamp, {}), r"got nothing"),
    ],
    ids=["rows", "dtype", "not-finite", "empty"],
)
def test_a_gradient_that_does_not_fit_is_refused(monkeypatch, spoil, reason: str) -> None:
    topology = named("vanilla")
    run = run_of(topology)
    parties = parties_of(run, modules_of(topology), {0: records_of(topology)})
    server = parties["server"]
    server.__class__ = Lying
    monkeypatch.setattr(Lying, "spoil", staticmethod(spoil))
    before = copy.deepcopy(parties["client"].modules["bottom"].state_dict())
    with pytest.raises(PeerError, match=reason) as error:
        simulate(parties)
    assert error.value.peer == "server"
    for name, weights in parties["client"].modules["bottom"].state_dict().items():
        assert torch.equal(weights, before[name])


def test_smashed_data_of_another_batch_size_is_refused() -> None:
    topology = named("vanilla")
    parties = parties_of(run_of(topology), modules_of(topology), {0: records_of(topology)})
    program = parties["server"].program()
    step = program.send(None)
    while True:
        recv = getattr(step, "frm", None)
        if recv is None:
            step = program.send(None)
        elif step.kind is Kind.CONTROL:
            told = {"casts": 0, "records": 24, "orders": 0}
            facts = {f"{s}-{w}": [v] for s in ("train", "test") for w, v in told.items()}
            step = program.send(Message(Kind.CONTROL, step.edge, step.stamp, facts=facts))
        else:
            break
    with pytest.raises(PeerError, match=r"expected 8 rows on 'bottom->top' at step 0, got shape \(9, 6\)"):
        program.send(Message(Kind.SMASHED, "bottom->top", Stamp(), {"h": torch.zeros(9, 6).double()}))
