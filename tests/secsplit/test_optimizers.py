"""Optimizers by name, their rates over the epochs, and their state as tensors, against torch itself."""

import copy
import warnings

import pytest
import torch
from torch import nn

from secsplit.errors import RunError
from secsplit.optimizers import OPTIMIZERS, RATES, OptimizerSpec, RateSpec, optimizer_of, rates_of, restore, state_of

NEEDED = {
    "step": {"step_size": 2},
    "multistep": {"milestones": (1, 3)},
    "exponential": {"gamma": 0.5},
    "cosine": {"T_max": 4},
    "cosine-restarts": {"T_0": 2},
    "cyclic": {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 2, "cycle_momentum": False},
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_through_tensors_and_back_exactly(name: str) -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 2)
    make = optimizer_of(OptimizerSpec(name=name, lr=0.01))
    first = make(one.parameters())
    step(one, first)
    step(one, first)
    two = copy.deepcopy(one)
    second = make(two.parameters())
    restore(second, state_of(first))
    step(one, first)
    step(two, second)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", RATES)
def test_rates_are_those_of_torch(name: str) -> None:
    options = NEEDED.get(name, {})
    spec = OptimizerSpec(name="sgd", lr=0.2, rate=RateSpec(name=name, options=options))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = RATES[name](optimizer, **options)
    theirs = []
    for _ in range(6):
        theirs.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule.step()
    assert rates_of(spec, 6) == tuple(theirs)


def test_state_of_another_network_is_refused() -> None:
    one, other = nn.Linear(4, 2), nn.Linear(3, 2)
    optimizer = torch.optim.Adam(one.parameters())
    step(one, optimizer)
    with pytest.raises(ValueError, match=r"'0/exp_avg' of shape \(2, 4\), expected \(2, 3\)"):
        restore(torch.optim.Adam(other.parameters()), state_of(optimizer))
    with pytest.raises(ValueError, match="'7/exp_avg' belongs to no parameter here"):
        restore(optimizer, {"7/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "adam", "momentum": 0.9}, r"^here.momentum: 'adam' has no such option"),
        ({"name": "sgd", "options": {"nesterovv": True}}, r"^here.options.nesterovv: .*did you mean 'nesterov'"),
        ({"name": "sgd", "options": {"nesterov": True}}, r"^here: 'sgd' cannot work so: Nesterov momentum requires"),
        ({"rate": RateSpec(name="step")}, r"^here.rate: 'step' cannot work so: .*step_size"),
    ],
)
def test_what_cannot_work_is_named(options, reason: str) -> None:
    spec = OptimizerSpec(**options)
    with pytest.raises(RunError, match=reason):
        (optimizer_of(spec, where="here"), rates_of(spec, 3, where="here"))
