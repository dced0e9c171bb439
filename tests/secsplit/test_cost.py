"""Bytes foretold are the bytes that are sent, for every topology and method; costs of parties against arithmetic."""

from pathlib import Path
from typing import Any

import pytest

from secsplit.cost import cost, on_the_wire, shortened
from secsplit.run import Run, load
from secsplit.runfile import parse
from secsplit.traffic import Tally, total

EXAMPLES = [path for path in sorted(Path("examples").glob("*.toml")) if "[parties]" in path.read_text()]
TWO = {"a": {"role": "client"}, "b": {"role": "client"}, "s": {"role": "server"}}
THREE = {"c": {"role": "client"}, **TWO}
WHOLE = {"a": {"role": "client"}, "b": {"role": "client"}, "s": {"role": "aggregator"}}


def run(**tables: Any) -> Run:
    defaults: dict[str, Any] = {
        "model": {"name": "lenet", "cut": ["pool1"]},
        "data": {"name": "digits", "limit": 200, "limit_test": 60},
        "train": {"batch_size": 16, "epochs": 2},
        "parties": TWO,
    }
    return Run.of(parse(defaults | tables))


CASES: dict[str, dict[str, Any]] = {
    "sl-ac": {"method": {"name": "sl-ac"}, "parties": THREE},
    "sl-am": {"method": {"name": "sl-am"}, "parties": THREE},
    "optimizer handed over too": {"method": {"name": "sl-am", "hands": "weights-and-optimizer"}},
    "splitfed-v1": {"method": {"name": "splitfed-v1"}, "parties": THREE},
    "splitfed-v2": {"method": {"name": "splitfed-v2"}},
    "splitfed-v3": {"method": {"name": "splitfed-v3"}},
    "u-shaped v1": {
        "method": {"name": "splitfed-v1"},
        "topology": {"name": "u_shaped"},
        "model": {"name": "lenet", "cut": ["pool1", "relu3"]},
    },
    "federated": {
        "method": {"name": "federated", "local_epochs": 2},
        "topology": {"name": "whole"},
        "model": {"name": "lenet"},
        "parties": WHOLE,
    },
    "large batch": {
        "method": {"name": "large-batch"},
        "topology": {"name": "whole"},
        "model": {"name": "lenet"},
        "parties": WHOLE,
    },
    "a fraction of clients": {"method": {"name": "splitfed-v1", "fraction": 0.5}, "parties": THREE},
    "handed over by way of the server": {"method": {"name": "sl-am", "via": "server"}, "parties": THREE},
    "eight bits": {"compression": [{"smashed": "int8", "cut_grad": "float16"}]},
    "the largest entries": {"compression": [{"smashed": "top-k", "keep": 0.2}]},
    "micro-batches": {"train": {"batch_size": 16, "micro_batches": 3}},
    "batchnorm averaged": {"method": {"name": "splitfed-v1"}, "model": {"name": "resnet18", "cut": ["layer1"]}},
    "batchnorm local": {
        "method": {"name": "splitfed-v1", "batch_norm": "local"},
        "model": {"name": "resnet18", "cut": ["layer1"]},
    },
    "a skip crosses": {"model": {"name": "resnet18", "cut": ["layer2.0.bn1"], "skips": "cross"}},
    "reconstruction elsewhere": {
        "topology": {
            "name": "own",
            "segments": [
                {"name": "code", "role": "client", "inputs": ["data:x"]},
                {"name": "top", "role": "server", "inputs": ["code"]},
            ],
            "objectives": [{"segment": "top", "holder": "client", "at": "server", "target": "data:x", "loss": "mse"}],
        },
        "model": {"name": "mlp"},
    },
    "unequal": {
        "method": {"name": "splitfed-v2"},
        "data": {"name": "digits", "limit": 200, "limit_test": 60, "weights": [1, 3]},
    },
}


@pytest.mark.parametrize("tables", CASES.values(), ids=CASES)
def test_bytes_foretold_are_the_bytes_sent(tables: dict[str, Any]) -> None:
    told = cost(run(**tables), steps=3)
    assert total(told.short.traffic).payload > 0
    assert told.disagreement() == 0.0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_too(path: Path) -> None:
    told = cost(load(path, ["data.limit=300", "data.limit_test=100"]), steps=2)
    assert told.disagreement() == 0.0
    for segment in told.segments.values():
        assert segment.flops.step == 2 * segment.macs.step


def test_parties_costs_are_what_the_shapes_say() -> None:
    told = cost(run(method={"name": "splitfed-v3"}))
    a, b, server = told.parties()
    smashed = 8 * 4 * 4 * 4  # bytes a record
    assert (a.steps, b.steps, server.steps) == (14, 14, 28)
    assert a.sent.payload == 2 * ((100 + 30) * smashed + (100 + 30) * 8)
    assert a.received.payload == 2 * 100 * smashed
    assert server.received.payload == a.sent.payload + b.sent.payload
    forward = 8 * 9 * 64  # of conv1, a record
    assert a.macs == 2 * (100 * 2 * forward + 30 * forward)


def test_a_short_run_is_never_longer_than_the_run() -> None:
    whole = run()
    assert shortened(whole, 1000).file.data.limit == whole.file.data.limit
    assert shortened(whole, 2).file.data.limit == 64


@pytest.mark.slow
def test_processes_send_what_was_foretold_within_one_percent() -> None:
    told = cost(run(method={"name": "splitfed-v3"}, train={"batch_size": 64}), steps=1)
    wire = on_the_wire(told.short.run)
    assert wire.keys() == {("a", "s"), ("s", "a"), ("b", "s"), ("s", "b")}
    for (sender, receiver), sent in wire.items():
        foretold = total(told.foretold, lambda route, ends=(sender, receiver): route[:2] == ends)  # type: ignore[misc]
        assert foretold.sealed <= sent <= 1.01 * foretold.sealed + 512  # greetings and signs of life


def test_a_tally_of_nothing_is_nothing() -> None:
    assert total({}) == Tally()
