"""Victims that several tests attack, trained once."""

import pytest
import torch

from secsplit import datasets
from secsplit.datasets import Dataset, DataSpec
from secsplit.topologies import vanilla
from tests.attacks.victims import Victim, binary, mlp, train


@pytest.fixture
def coins() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return datasets.load(DataSpec(name="digits"))


@pytest.fixture(scope="session")
def patients() -> Dataset:
    return standardised(datasets.load(DataSpec(name="breast-cancer")))


def standardised(data: Dataset) -> Dataset:
    mean, spread = data.train.inputs["x"].mean(0), data.train.inputs["x"].std(0)
    train, test = (
        type(r)({k: (v - mean) / spread for k, v in r.inputs.items()}, r.labels, r.ids) for r in (data.train, data.test)
    )
    return Dataset(data.name, train, test, data.classes, data.card)


@pytest.fixture(scope="session")
def ten_classes(digits: Dataset) -> Victim:
    """Ten digits, two parties: the server owns the labels."""
    models = {"bottom": torch.nn.Sequential(torch.nn.Flatten(), mlp(64, 64, last_relu=True)), "top": mlp(64, 32, 10)}
    return train(vanilla(labels="server"), digits, models, epochs=3, batch=128)


@pytest.fixture(scope="session")
def one_in_ten(digits: Dataset) -> Victim:
    """A zero or not, two parties: the server owns the labels."""
    models = {"bottom": torch.nn.Sequential(torch.nn.Flatten(), mlp(64, 64, last_relu=True)), "top": mlp(64, 32, 2)}
    return train(vanilla(labels="server"), binary(digits, 0), models, epochs=3, batch=128)
