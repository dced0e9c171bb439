"""Every training method against slow, obvious code: whole networks as one autograd graph, copied and averaged."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from secsplit.drive import simulate
from secsplit.errors import RunError
from secsplit.method import AGGREGATOR, METHODS
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.schedule import Turn
from secsplit.topologies import named
from secsplit.topology import Objective, Segment, Topology
from secsplit.transcript import Transcript
from tests.secsplit.graphs import GRAPHS, modules_of, parties_of, records_of, unsplit_loss

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.05)
SIZES = (20, 9, 14)  # records of three casts: unequal, and no multiple of the batch
BATCH, EPOCHS = 6, 2


def chain(*cuts: int) -> Topology:
    """Four layers in a row, held by clients and server in turns, cut after the given layers."""
    bounds = list(zip((0, *cuts), (*cuts, 4), strict=True))
    roles = ["client" if i % 2 == 0 else "server" for i in range(len(bounds))]
    names = [f"part-{a}-{b}" for a, b in bounds]
    inputs = ["data:x", *names]
    segments = tuple(Segment(name, role, (source,)) for name, role, source in zip(names, roles, inputs, strict=False))
    return Topology(f"chain{cuts}", segments, (Objective("loss", names[-1], holder="client", at=roles[-1]),))


def layers(*, norm: bool = False) -> list[nn.Module]:
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(6, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh()) for _ in range(3)]
    return [*[block.double() for block in blocks], nn.Linear(6, 3).double()]


def cut(topology: Topology, *, norm: bool = False) -> dict[str, nn.Module]:
    """The four layers as the chain's segments."""
    whole = layers(norm=norm)
    pieces = [tuple(int(n) for n in s.name.split("-")[1:]) for s in topology.segments]
    return {s.name: nn.Sequential(*whole[a:b]) for s, (a, b) in zip(topology.segments, pieces, strict=True)}


WHOLE = Topology(
    "chain", (Segment("part-0-4", "client", ("data:x",)),), (Objective("l", "part-0-4", "client", "client"),)
)


def run_of(topology: Topology, method: str, casts: int, *, cohort: tuple[str, ...], train=None, **options) -> Run:
    """A run with so many parties in each cohort role, one in every other, and an aggregator."""
    roles = {f"{role}-{i}" if casts > 1 else role: role for role in cohort for i in range(casts)}
    roles |= {role: role for role in topology.roles if role not in cohort}
    if METHODS[method].client_side in ("averaged", "gradients-averaged"):
        roles["trust"] = AGGREGATOR
    columns = {column: "all" for role in topology.roles for column in topology.columns(role)}
    labels = {label: label for role in topology.roles for label in topology.labels(role)}
    tables = {
        "parties": {name: {"role": role} for name, role in roles.items()},
        "train": {"batch_size": BATCH, "epochs": EPOCHS, "evaluate_every": 0, "seed": 5, **(train or {})},
        "data": {"modalities": columns or {"x": "all"}, "labels": labels or {"y": "y"}},
        "method": {"name": method, **options},
    }
    return Run.of(parse(tables), topology)


def data_of(topology: Topology, casts: int):
    return {cast: records_of(topology, rows=SIZES[cast], seed=10 + cast) for cast in range(casts)}


def trained(run: Run, modules, records, make_optimizer, transcripts=None):
    """cast -> segment -> weights after the run."""
    parties = parties_of(run, modules, records, make_optimizer)
    simulate(parties, transcripts=transcripts)
    return {
        i: {s.name: parties[cast[s.role]].modules[s.name].state_dict() for s in run.topology.order}
        for i, cast in enumerate(run.casts)
    }


def assert_same(ours, theirs, *, exactly: bool = False) -> None:
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        for key, tensor in weights.items():
            tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-10, "atol": 1e-12}
            torch.testing.assert_close(
                tensor, theirs[name][key], **tolerance, msg=lambda m, n=name, k=key: f"{n}.{k}: {m}"
            )


class Reference:
    """The unsplit network of each cast, each segment with its own optimizer, trained by obvious code."""

    def __init__(self, run: Run, modules, records, make_optimizer) -> None:
        self.run, self.records, self.make_optimizer = run, records, make_optimizer
        self.topology = run.topology
        self.schedule = run.schedule({c: {"train": SIZES[c], "test": SIZES[c]} for c in records})
        self.nets = {cast: copy.deepcopy(dict(modules)) for cast in records}
        self.sizes = {cast: SIZES[cast] for cast in records}
        self.optimizers = {cast: self.fresh(cast) for cast in records}

    def fresh(self, cast):
        return {s: self.make_optimizer(m.parameters()) for s, m in self.nets[cast].items()}

    def side(self, client: bool) -> list[str]:
        return [s.name for s in self.topology.order if (s.role in self.run.cohort_roles) == client]

    def rows(self, cast, epoch, batch):
        return self.schedule.rows(Turn(0, epoch, cast, batch))

    def gradient(self, cast, rows, net=None) -> None:
        net = net or self.nets[cast]
        for module in net.values():
            module.zero_grad()
        unsplit_loss(self.topology, net, self.records[cast], rows).backward()

    def step(self, cast, epoch, batch) -> None:
        self.gradient(cast, self.rows(cast, epoch, batch))
        for optimizer in self.optimizers[cast].values():
            optimizer.step()

    def batches(self, cast) -> int:
        return -(-self.sizes[cast] // BATCH)

    def share(self, names, source) -> None:
        """Every cast's `names` become the cast `source`'s very modules and optimizers: one network."""
        for cast in self.nets:
            for name in names:
                self.nets[cast][name] = self.nets[source][name]
                self.optimizers[cast][name] = self.optimizers[source][name]

    def average(self, names, casts=None, equal=False, reset=True) -> None:
        casts = casts or list(self.nets)
        weight = {c: 1.0 if equal else float(self.sizes[c]) for c in casts}
        total = sum(weight.values())
        for name in names:
            states = {c: self.nets[c][name].state_dict() for c in casts}
            mean = {k: sum(weight[c] / total * states[c][k] for c in casts) for k in states[casts[0]]}
            for k, v in states[casts[0]].items():
                if not v.is_floating_point():
                    mean[k] = max(states[c][k] for c in casts)
            for cast in self.nets:
                self.nets[cast][name].load_state_dict(mean)
                if reset:
                    self.optimizers[cast][name] = self.make_optimizer(self.nets[cast][name].parameters())

    def weights(self):
        return {c: {n: m.state_dict() for n, m in net.items()} for c, net in self.nets.items()}

    # the methods, from the papers' words

    def parallel(self, *, client: str, copies: bool, local_epochs: int = 1, equal: bool = False) -> None:
        """v1 (client averaged), v3 (client unique), FedAvg: every client on its own, then averages."""
        for start in range(0, EPOCHS, local_epochs):
            for cast in self.nets:
                for epoch in range(start, min(start + local_epochs, EPOCHS)):
                    for batch in range(self.batches(cast)):
                        self.step(cast, epoch, batch)
            if client == "averaged":
                self.average(self.side(True), equal=equal)
            if copies:
                self.average(self.side(False), equal=equal)

    def sequential(self, order: str, *, client: str, state: bool = False) -> None:
        """Split learning and v2: one server network, fed in sequence."""
        self.share(self.side(False), 0)
        last = None
        for epoch in range(EPOCHS):
            casts = self.schedule.participants(epoch)
            if order == "alternate-minibatch":
                turns = [(c, b) for b in range(max(map(self.batches, casts))) for c in casts if b < self.batches(c)]
            else:
                turns = [(c, b) for c in casts for b in range(self.batches(c))]
            for cast, batch in turns:
                if client == "handed-over" and last not in (None, cast):
                    for name in self.side(True):
                        self.nets[cast][name].load_state_dict(self.nets[last][name].state_dict())
                        if state:
                            self.optimizers[cast][name].load_state_dict(self.optimizers[last][name].state_dict())
                self.step(cast, epoch, batch)
                last = cast
            if client == "averaged":
                self.average(self.side(True))


COHORTS = {
    "vanilla": ("client",),
    "u_shaped": ("client",),
    "vertical": ("radiology", "pathology"),
    "extended_vanilla": ("client-1", "client-2"),
    "multi_task": ("client-1", "client-2"),
    "multi_hop": ("client-1",),
    "diamond": ("clinic", "lab", "registry"),
}
REFERENCES = {
    "sl-ac": lambda r: r.sequential("alternate-client", client="handed-over"),
    "sl-am": lambda r: r.sequential("alternate-minibatch", client="handed-over"),
    "splitfed-v1": lambda r: r.parallel(client="averaged", copies=True),
    "splitfed-v2": lambda r: r.sequential("random-sequence", client="averaged"),
    "splitfed-v3": lambda r: r.parallel(client="unique", copies=True),
}


@pytest.mark.parametrize("graph", COHORTS)
@pytest.mark.parametrize("method", REFERENCES)
def test_every_method_with_every_topology_equals_obvious_code(method: str, graph: str) -> None:
    topology = GRAPHS[graph]
    run = run_of(topology, method, 3, cohort=COHORTS[graph], train={"micro_batches": 1})
    modules, records = modules_of(topology), data_of(topology, 3)
    reference = Reference(run, modules, records, MOMENTUM)
    ours = trained(run, modules, records, MOMENTUM)
    REFERENCES[method](reference)
    last = [event for event in reference.schedule if isinstance(event, Turn)][-1].cast  # who holds what is handed over
    for cast in records if run.method.client_side != "handed-over" else [last]:
        assert_same(ours[cast], reference.weights()[cast])


@pytest.mark.parametrize("method", ["sl-ac", "sl-am"])
def test_split_learning_with_unique_clients(method: str) -> None:
    topology = named("vanilla")
    run = run_of(topology, method, 3, cohort=("client",), client_side="unique")
    modules, records = modules_of(topology), data_of(topology, 3)
    reference = Reference(run, modules, records, ADAM)
    ours = trained(run, modules, records, ADAM)
    reference.sequential(METHODS[method].order, client="unique")
    for cast in records:
        assert_same(ours[cast], reference.weights()[cast])


@pytest.mark.parametrize("method", ["sl-ac", "sl-am"])
def test_weights_handed_over_with_the_optimizer_equal_centralised_training(method: str) -> None:
    topology = named("u_shaped")
    run = run_of(topology, method, 3, cohort=("client",), hands="weights-and-optimizer")
    modules, records = modules_of(topology), data_of(topology, 3)
    schedule = run.schedule({c: {"train": SIZES[c], "test": SIZES[c]} for c in range(3)})
    oracle = copy.deepcopy(modules)
    optimizers = [ADAM(m.parameters()) for m in oracle.values()]
    ours = trained(run, modules, records, ADAM)
    for turn in (event for event in schedule if isinstance(event, Turn)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        unsplit_loss(topology, oracle, records[turn.cast], schedule.rows(turn)).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(ours[turn.cast], {name: module.state_dict() for name, module in oracle.items()}, exactly=True)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("federated", "large-batch")])
@pytest.mark.parametrize("graph", COHORTS)
def test_with_one_client_every_split_method_is_centralised_training(method: str, graph: str) -> None:
    topology = GRAPHS[graph]
    run = run_of(topology, method, 1, cohort=())
    modules, records = modules_of(topology), data_of(topology, 1)
    oracle = copy.deepcopy(modules)
    optimizers = [ADAM(m.parameters()) for m in oracle.values()]
    ours = trained(run, modules, records, ADAM)
    schedule = run.schedule({0: {"train": SIZES[0], "test": SIZES[0]}})
    for turn in (event for event in schedule if isinstance(event, Turn)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        unsplit_loss(topology, oracle, records[0], schedule.rows(turn)).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(ours[0], {name: module.state_dict() for name, module in oracle.items()}, exactly=True)


def union_batches(run: Run, records):
    """(inputs, labels) of the batch that all clients' mini-batches make together, step by step."""
    schedule = run.schedule({c: {"train": SIZES[c], "test": SIZES[c]} for c in records})
    for epoch in range(EPOCHS):
        for batch in range(max(schedule.batches(c, "train") for c in records)):
            xs, ys = [], []
            for cast in records:
                if batch < schedule.batches(cast, "train"):
                    rows = schedule.rows(Turn(0, epoch, cast, batch))
                    xs.append(records[cast]["client"].inputs["train"]["x"][rows])
                    ys.append(records[cast]["client"].labels["train"]["y"][rows])
            yield torch.cat(xs), torch.cat(ys)


@pytest.mark.parametrize("make_optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
def test_large_batch_equals_centralised_sgd_on_the_union_batch(make_optimizer) -> None:
    run = run_of(WHOLE, "large-batch", 3, cohort=("client",))
    modules, records = cut(WHOLE), data_of(WHOLE, 3)
    oracle = copy.deepcopy(modules["part-0-4"])
    optimizer = make_optimizer(oracle.parameters())
    ours = trained(run, modules, records, make_optimizer)
    for x, y in union_batches(run, records):
        optimizer.zero_grad()
        nn.functional.cross_entropy(oracle(x), y).backward()
        optimizer.step()
    for cast in records:
        assert_same(ours[cast], {"part-0-4": oracle.state_dict()})
        assert_same(ours[cast], ours[0], exactly=True)


def test_federated_averaging_with_one_local_step_equals_large_batch() -> None:
    records = data_of(WHOLE, 3)
    whole_shard = {"batch_size": max(SIZES)}
    results = [
        trained(run_of(WHOLE, method, 3, cohort=("client",), train=whole_shard), cut(WHOLE), records, SGD)
        for method in ("federated", "large-batch")
    ]
    for cast in records:
        assert_same(results[0][cast], results[1][cast])


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2), (1, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"local_epochs": 2}, {"in_flight": 1}, {"in_flight": 3}], ids=str)
def test_splitfed_v1_equals_federated_averaging_of_the_unsplit_network(cuts, options) -> None:
    topology, records = chain(*cuts), data_of(WHOLE, 3)
    split = run_of(topology, "splitfed-v1", 3, cohort=("client",), **options)
    whole = run_of(WHOLE, "federated", 3, cohort=("client",), **{k: v for k, v in options.items() if k != "in_flight"})
    ours = trained(
        split, cut(topology), {c: {"client": r["client"], "server": empty()} for c, r in records.items()}, ADAM
    )
    theirs = trained(whole, cut(WHOLE), records, ADAM)
    for cast in records:
        flat = [t for weights in ours[cast].values() for t in weights.values()]
        for a, b in zip(flat, theirs[cast]["part-0-4"].values(), strict=True):
            assert torch.equal(a, b)


def empty():
    from secsplit.party import Shard

    return Shard({}, {})


@pytest.mark.parametrize("method", ["splitfed-v1", "federated", "large-batch"])
def test_batch_normalisation_statistics_are_averaged_with_the_weights(method: str) -> None:
    topology = chain(2) if method == "splitfed-v1" else WHOLE
    run = run_of(topology, method, 2, cohort=("client",))
    records = data_of(WHOLE, 2)
    if method == "splitfed-v1":
        records = {c: {"client": r["client"], "server": empty()} for c, r in records.items()}
    modules = cut(topology, norm=True)
    reference = Reference(run, modules, records, SGD)
    ours = trained(run, modules, records, SGD)
    assert_same(ours[0], ours[1], exactly=True)
    if method == "large-batch":
        obvious_large_batch(reference)
    else:
        reference.parallel(client="averaged", copies=True)
    assert_same(ours[0], reference.weights()[0])


def obvious_large_batch(r: Reference) -> None:
    for epoch in range(EPOCHS):
        for batch in range(max(map(r.batches, r.nets))):
            casts = [c for c in r.nets if batch < r.batches(c)]
            rows = {c: r.rows(c, epoch, batch) for c in casts}
            total = sum(len(x) for x in rows.values())
            for cast in casts:
                r.gradient(cast, rows[cast])
            for i, parameter in enumerate(r.nets[0]["part-0-4"].parameters()):
                grads = [list(r.nets[c]["part-0-4"].parameters())[i].grad * (len(rows[c]) / total) for c in casts]
                parameter.mean_grad = sum(grads)
            means = [p.mean_grad for p in r.nets[0]["part-0-4"].parameters()]
            buffers = [{k: v.clone() for k, v in r.nets[c]["part-0-4"].named_buffers()} for c in casts]
            for cast in r.nets:
                for k, v in r.nets[cast]["part-0-4"].named_buffers():
                    shares = [len(rows[c]) / total for c in casts]
                    mean = sum(s * b[k] for s, b in zip(shares, buffers, strict=True))
                    v.copy_(mean if v.is_floating_point() else max(b[k] for b in buffers))
                for parameter, mean in zip(r.nets[cast]["part-0-4"].parameters(), means, strict=True):
                    parameter.grad = mean.clone()
                for optimizer in r.optimizers[cast].values():
                    optimizer.step()


def test_local_batch_normalisation_stays_with_each_client() -> None:
    topology = chain(2)
    run = run_of(topology, "splitfed-v1", 2, cohort=("client",), batch_norm="local")
    records = {c: {"client": r["client"], "server": empty()} for c, r in data_of(WHOLE, 2).items()}
    transcripts = {"trust": Transcript("trust")}
    ours = trained(run, cut(topology, norm=True), records, SGD, transcripts)
    for key, tensor in ours[0]["part-0-2"].items():
        differs = not torch.equal(tensor, ours[1]["part-0-2"][key])
        assert differs == (".1." in key), key
    seen = {name for record in transcripts["trust"] for name in record.shapes}
    assert seen
    assert not any("running_mean" in name for name in seen)


def test_weighting_each_client_equally() -> None:
    topology = named("vanilla")
    run = run_of(topology, "splitfed-v1", 3, cohort=("client",), weighting="equal")
    modules, records = modules_of(topology), data_of(topology, 3)
    reference = Reference(run, modules, records, SGD)
    ours = trained(run, modules, records, SGD)
    reference.parallel(client="averaged", copies=True, equal=True)
    for cast in records:
        assert_same(ours[cast], reference.weights()[cast])


def test_a_fraction_of_the_clients_takes_part_in_a_round() -> None:
    topology = named("vanilla")
    run = run_of(topology, "splitfed-v1", 3, cohort=("client",), fraction=0.67, train={"seed": 8})
    modules, records = modules_of(topology), data_of(topology, 3)
    reference = Reference(run, modules, records, MOMENTUM)
    ours = trained(run, modules, records, MOMENTUM)
    drawn = [reference.schedule.participants(index) for index in range(EPOCHS)]
    assert all(len(set(casts)) == 2 for casts in drawn)
    assert len(set(drawn)) > 1
    for epoch, casts in enumerate(drawn):
        for cast in casts:
            for batch in range(reference.batches(cast)):
                reference.step(cast, epoch, batch)
        reference.average(list(modules), casts=casts)
    for cast in records:
        assert_same(ours[cast], reference.weights()[cast])


def test_the_server_averages_where_there_is_no_aggregator_and_sees_the_weights() -> None:
    topology = named("vanilla")
    parties = {"a": "client", "b": "client", "server": "server"}
    tables = {
        "parties": {name: {"role": role} for name, role in parties.items()},
        "method": {"name": "splitfed-v1"},
        "train": {"batch_size": BATCH, "evaluate_every": 0},
    }
    run = Run.of(parse(tables), topology)
    assert run.aggregator == "server"
    transcripts = {"server": Transcript("server")}
    trained(run, modules_of(topology), data_of(topology, 2), SGD, transcripts)
    weights = [r for r in transcripts["server"] if r.kind == "weights"]
    assert [(r.direction, r.peer) for r in weights] == [
        ("received", "a"),
        ("received", "b"),
        ("sent", "a"),
        ("sent", "b"),
    ]


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        (
            "sl-am",
            {"local_epochs": 2},
            r"method.local_epochs: means nothing to 'sl-am' here, which averages no weights",
        ),
        ("sl-ac", {"batch_norm": "local"}, r"method.batch_norm: means nothing to 'sl-ac'"),
        ("splitfed-v1", {"via": "server"}, r"method.via: means nothing to 'splitfed-v1' here, which hands no weights"),
        ("sl-am", {"in_flight": 2}, r"method.in_flight: means nothing to 'sl-am' whose order leaves no choice"),
    ],
)
def test_an_option_that_means_nothing_is_refused(method: str, options, reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        run_of(named("vanilla"), method, 2, cohort=("client",), **options)


def test_an_average_that_nobody_could_compute_is_refused() -> None:
    tables = {"parties": {"a": {"role": "client"}, "b": {"role": "client"}}, "method": {"name": "federated"}}
    with pytest.raises(RunError, match=r'add one party with role = "aggregator"'):
        Run.of(parse(tables), named("whole"))
