"""Where a party computes: no tensor of one place meets one of another, and nothing but the place differs.

There is no GPU here. A stand-in is torch's "meta" device, whose kernels refuse to work with a tensor of the processor's
memory as a GPU's do; it holds no numbers, so what comes away from it is given zeros, and backward goes on.
"""

import pytest
import torch
from torch import Tensor

from secsplit import auditlog, wire
from secsplit.assemble import parties_of as assembled
from secsplit.checkpoint import taken
from secsplit.device import CPU, device_of
from secsplit.drive import simulate
from secsplit.errors import EnvironmentFault, RunError
from secsplit.party import Party
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.transcript import Transcript
from tests.secsplit.graphs import GRAPHS, SIX, modules_of, parties_of, records_of, run_of

META = torch.device("meta")


class _Away(torch.autograd.Function):
    """From the stand-in to the processor, and the gradient back."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return gradient.to(META)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Party.away
    monkeypatch.setattr(auditlog, "raw", lambda t: wire.raw(torch.zeros_like(t, device=CPU)))
    monkeypatch.setattr(Party, "away", lambda self, t: _Away.apply(t) if t.device == META else away(self, t))


def placed(graph: str, elsewhere: set[str]) -> dict[str, Party]:
    topology = GRAPHS[graph]
    modules = modules_of(topology)
    for segment in topology.order:
        if segment.role in elsewhere:
            modules[segment.name] = modules[segment.name].to(META)
    return parties_of(run_of(topology, epochs=2), modules, {0: records_of(topology)})


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("graph", [*SIX, "diamond"])
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_parties_compute_elsewhere_and_what_they_send_is_here(graph: str, which: str) -> None:
    roles = list(GRAPHS[graph].roles)
    elsewhere = set({"all": roles, "first": roles[:1], "last": roles[-1:]}[which])
    parties = placed(graph, elsewhere)
    transcripts = {name: Transcript(name) for name in parties}
    simulate(parties, transcripts=transcripts)
    for party in parties.values():
        assert party.device == (META if party.role in elsewhere and party.held else CPU)
        for module in party.modules.values():
            assert all(p.grad is not None and p.grad.device == party.device for p in module.parameters())
        for metrics in party.judge.losses.values():
            assert metrics.device == CPU
    records = [record for transcript in transcripts.values() for record in transcript]
    assert {t.device for record in records for t in record.tensors.values()} == {CPU}


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("method", ["sl-am", "splitfed-v1", "splitfed-v3"])
def test_weights_are_shared_between_parties_of_different_places(method: str) -> None:
    topology = GRAPHS["vanilla"]
    names = {"a": "client", "b": "client", "server": "server"}
    run = run_of(topology, parties=names, epochs=2)
    run = Run.of(run.file.model_copy(update={"method": run.file.method.model_copy(update={"name": method})}), topology)
    modules = {name: module.to(META) for name, module in modules_of(topology).items()}
    parties = parties_of(run, modules, {cast: records_of(topology, seed=cast) for cast in range(2)})
    for parameter_of in ("a",):  # one client stays on the processor
        here = modules_of(topology)["bottom"]
        parties[parameter_of] = Party(
            run, parameter_of, {"bottom": here}, parties[parameter_of].shards, lambda p: torch.optim.SGD(p, lr=0.1)
        )
    simulate(parties)
    assert (parties["a"].device, parties["b"].device) == (CPU, META)


def small(**train: object) -> Run:
    tables = {
        "model": {"name": "mlp", "widths": (8,)},
        "data": {"name": "digits", "limit": 40, "limit_test": 10},
        "train": {"epochs": 1, "batch_size": 10, **train},
        "parties": {"client": {"role": "client"}, "server": {"role": "server", "device": "auto"}},
    }
    return Run.of(parse(tables))


def test_auto_is_the_processor_where_there_is_no_gpu_and_nothing_changes() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU computes other last bits")
    ends = []
    for run in (small(), small(device="auto")):
        parties = assembled(run)
        simulate(parties)
        ends.append({name: taken(party) for name, party in parties.items()})
    for name, checkpoint in ends[0].items():
        other = ends[1][name]
        assert checkpoint.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(t, other.tensors[key]) for key, t in checkpoint.tensors.items())


def test_the_device_is_each_sites_own_affair() -> None:
    assert small().digest() == small(device="auto").digest()


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="'cuda:97' is not here"):
        device_of("cuda:97")
    with pytest.raises(RunError, match=r"train\.device"):
        small(device="tpu")


def test_parties_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device_of("auto", place)) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(device_of("cuda:1")) == "cuda:1"
